"""Teacher sampling on Ray Data: questions x sample index, asked by async actors, kept in the sample store.

Every reply is in the store before anything reads it, so what is missing is what the store lacks, and a second start asks
for that alone. When an actor or its node dies, what is then missing is asked for in a new pass. The driver's memory
holds the questions and 32 bytes for each sample.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qcrd.config import ExperimentConfig, TeacherConfig
from qcrd.records import Question
from qcrd.tasks import get_task
from qcrd.tasks.base import Task
from qcrd.teacher.asking import Asked, Asker, Leases, Stopped
from qcrd.teacher.build import build_teacher, make_limits
from qcrd.teacher.cost import Price, read_price
from qcrd.teacher.freeze import freeze, spent_before
from qcrd.teacher.imported import ImportedCompletions, read_completions
from qcrd.teacher.limits import Grant, Need, Report, Totals
from qcrd.teacher.probe import probe, samples_per_request
from qcrd.teacher.requests import (
    Wanted,
    build_call,
    missing_mask,
    read_prompt,
    split_calls,
    store_place,
    wanted_samples,
)
from qcrd.teacher.store import SampleStore, StoreError, StoreWriter, question_key, sample_key

OnProgress = Callable[[int, int, Mapping[str, Any]], None]
MAX_BATCH, BATCHES_PER_BLOCK, BLOCKS_AT_ONCE = 128, 4, 16
PASSES_WITHOUT_PROGRESS = 3
SHOW_SECONDS = 1.0
logger = logging.getLogger(__name__)


class LimitsActor:
    """`SharedLimits` where all sampling actors can reach it; it also deals out the slots."""

    def __init__(self, teacher: TeacherConfig, spent_usd: float) -> None:
        self._limits = make_limits(teacher, spent_usd)
        actors = min(teacher.actors, teacher.concurrency)
        share, rest = divmod(teacher.concurrency, actors)
        self._slots = [share + (number < rest) for number in range(actors)]

    def slots(self) -> int:
        """How many attempts the next actor may have under way at once."""
        return self._slots.pop() if self._slots else 1

    def lease(self, needs: Sequence[Need], reports: Sequence[Report]) -> Grant:
        return self._limits.lease(needs, reports)

    def stop(self, reason: str) -> None:
        self._limits.stop(reason)

    def state(self) -> tuple[str, Totals]:
        """Why all stopped ("" if they did not), and the counts so far."""
        return self._limits.stop_reason, self._limits.totals


@dataclass(frozen=True)
class Job:
    """What each actor is told. No key is in it: each reads that for itself."""

    teacher: TeacherConfig
    task: str
    few_shot: str
    identity: str
    store: str
    price: Price | None


class SamplingActor:
    """Makes the calls of each batch and keeps each reply before it says so. A row is (question row, first, count)."""

    def __init__(self, job: Job, limits: Any, data: list[Any]) -> None:
        """`data` holds references to the table of questions and to imported completions."""
        self._job, self._limits = job, limits
        self._task = get_task(job.task)
        self._questions, self._completions = ray.get(data)
        self._slots = ray.get(limits.slots.remote())
        self._writer = StoreWriter(job.store, job.teacher.flush_seconds)
        self._asker: Asker | None = None
        self._leases = Leases(self._lease)

    async def __call__(self, batch: dict[str, np.ndarray]) -> AsyncIterator[dict[str, Any]]:
        if self._asker is None:
            teacher = build_teacher(self._job.teacher, self._task.STOP, self._completions)
            self._asker = Asker(
                self._job.teacher, teacher, self._writer, self._leases, self._slots, self._job.price
            )
        rows = zip(*(batch[name].tolist() for name in ("question", "first", "count")), strict=True)
        asked = await asyncio.gather(*(self._ask(*row) for row in rows))
        try:
            await asyncio.to_thread(self._writer.flush)
        except StoreError as error:
            await self._limits.stop.remote(str(error))
        await self._leases.flush()
        yield {
            "replies": np.array([one.replies for one in asked]),
            "failures": np.array([one.failures for one in asked]),
            "reason": np.array([one.reason for one in asked]),
        }

    async def _lease(self, needs: Sequence[Need], reports: Sequence[Report]) -> Grant:
        return await self._limits.lease.remote(needs, reports)

    async def _ask(self, row: int, first: int, count: int) -> Asked:
        assert self._asker is not None
        question = Question(**self._questions.slice(row, 1).to_pylist()[0], split="train", answer="")
        of_question = question_key(self._job.identity, question.text)
        keys = [sample_key(of_question, index) for index in range(first, first + count)]
        try:
            return await self._asker.ask(
                build_call(self._job.teacher, self._task, self._job.few_shot, question, first, count), keys
            )
        except StoreError as error:
            await self._limits.stop.remote(str(error))
        except Stopped:
            pass
        return Asked(0, 0, "")


def _calls_dataset(calls: np.ndarray, job: Job, limits: Any, data: list[Any]) -> Any:
    """The calls as a Ray dataset that makes them."""
    teacher = job.teacher
    actors = min(teacher.actors, teacher.concurrency)
    slots = -(-teacher.concurrency // actors)
    batch_size = min(MAX_BATCH, max(1, slots // 4))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the caller shows one
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    table = pa.table({name: calls[:, column] for column, name in enumerate(("question", "first", "count"))})
    # A block is one call of the actor. Many at once keep all slots busy while some rows wait to be tried again; a row
    # that waits holds no slot.
    rows = BATCHES_PER_BLOCK * batch_size
    blocks = [table.slice(start, rows) for start in range(0, len(table), rows)]
    gpus = teacher.vllm.tensor_parallel_size if teacher.kind == "vllm" else 0
    return ray.data.from_arrow(blocks).map_batches(
        SamplingActor,  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(
            size=actors, max_concurrent_calls_per_actor=BLOCKS_AT_ONCE, max_tasks_in_flight_per_actor=2 * BLOCKS_AT_ONCE
        ),
        num_cpus=0,
        num_gpus=gpus,
        # Ray would ask again for all that a dead actor had; a new pass asks for what is missing.
        max_restarts=0,
        fn_constructor_args=(job, limits, data),
        udf_modifying_row_count=False,
    )


@dataclass
class Sampling:
    """A sampling job in progress."""

    config: ExperimentConfig
    task: Task
    wanted: Wanted
    store: SampleStore
    price: Price | None
    completions: Mapping[str, Sequence[str]]
    on_progress: OnProgress
    asked: int = 0
    """Samples that got a record in this start."""
    attempts: int = 0
    usd: float = 0.0
    usd_unknown: int = 0
    seconds: float = 0.0

    def run(self, retry_errors: bool) -> None:
        """Ask until nothing is missing. Raises `Stopped`, `StoreError`, and `ConfigError` for what the first call shows.

        With `retry_errors` a sample that failed is missing too, once.
        """
        teacher, stalled = self.config.teacher, 0
        if teacher.mode == "batch":
            asyncio.run(self._resume_batches())
        while True:
            index = self.store.index()
            missing = missing_mask(self.wanted, index, retry_errors)
            if not missing.any():
                return
            spent = 0.0
            if teacher.budget_usd is not None and self.price is not None:
                spent = spent_before(self.wanted, index, self.price)
            n = samples_per_request(self.config, self.store) or 1
            if teacher.kind == "openai" and not self.asked:
                n, asked = probe(self.config, self.task, self.wanted, missing, self.store, spent, self.price)
                self.asked += asked
                missing &= ~self.store.index().answered(self.wanted.keys)
            calls = split_calls(missing, n)
            if teacher.mode == "batch":
                asyncio.run(self._run_batches(calls, spent))
                return
            before = self.asked
            try:
                self._pass(calls, spent)
                return
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                stalled = stalled + 1 if self.asked == before else 0
                if stalled == PASSES_WITHOUT_PROGRESS:
                    raise
                logger.warning("sampling lost an actor (%s); what is missing is asked for", type(error).__name__)

    def _pass(self, calls: np.ndarray, spent_usd: float) -> None:
        """Make the calls on Ray Data. Raises `RayError` where an actor dies, `Stopped` where the limits say so."""
        if len(calls) == 0:
            return
        teacher = self.config.teacher
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        limits = ray.remote(LimitsActor).options(num_cpus=0, scheduling_strategy=here).remote(teacher, spent_usd)
        few_shot = read_prompt(teacher, self.task)
        job = Job(teacher, self.task.NAME, few_shot, self.wanted.identity, self.store.place, self.price)
        rows = self.wanted.questions
        table = pa.table({name: [getattr(row, name) for row in rows] for name in ("id", "text", "label", "facts")})
        started = time.perf_counter()
        try:
            self._watch(_calls_dataset(calls, job, limits, [ray.put(table), ray.put(self.completions)]), limits, started)
        finally:
            self.seconds += time.perf_counter() - started
        reason, totals = ray.get(limits.state.remote())
        self.attempts += totals.attempts
        self.usd += totals.usd
        self.usd_unknown += totals.usd_unknown
        if reason:
            raise Stopped(reason)

    def _watch(self, dataset: Any, limits: Any, started: float) -> None:
        """Take the batches as they come, and show how far it is."""
        total = self.wanted.total
        done = total - int(missing_mask(self.wanted, self.store.index(), True).sum()) - self.asked
        shown, errors, before = started, 0, self.asked
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            errors += int(batch["failures"].sum())
            self.asked += int(batch["replies"].sum() + batch["failures"].sum())
            now = time.perf_counter()
            if now - shown >= SHOW_SECONDS:
                shown = now
                _, totals = ray.get(limits.state.remote())
                self.on_progress(done + self.asked, total, self._shown(totals, now - started, errors, self.asked - before))
        self.on_progress(done + self.asked, total, {"errors": errors})

    def _shown(self, totals: Totals, seconds: float, errors: int, asked: int) -> dict[str, Any]:
        """What stands beside the bar."""
        info: dict[str, Any] = {"samples/s": f"{asked / seconds:.1f}", "errors": errors}
        if self.price is not None:
            info["usd"] = f"{self.usd + totals.usd:.2f}"
        if totals.limited:
            info["rate limited"] = totals.limited
        return info

    async def _resume_batches(self) -> None:
        """Take what batches of an earlier start have brought."""

    async def _run_batches(self, calls: np.ndarray, spent_usd: float) -> None:
        """Make the calls in batch mode."""


def sample(
    config: ExperimentConfig, task: Task, questions: Sequence[Question], out: Path, on_progress: OnProgress,
    retry_errors: bool = False, accept_missing: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write all samples of the training questions to the Parquet file `out`: from the store where they are there, else
    from the teacher. Returns counts of the samples and of this start.

    Ray must be running where something is missing. A request that fails for good becomes an error row, which is asked
    again only with `retry_errors`. With `accept_missing` nobody is asked, and what is missing becomes an error row.
    Raises `Stopped` (budget, an endpoint that fails, a full disk); what was answered is then kept, and nothing written.
    """
    imported = read_completions(config.teacher.imported, questions) if config.teacher.kind == "imported" else None
    wanted = wanted_samples(config, task, questions)
    store, price = SampleStore(store_place(config)), read_price(config.teacher)
    completions = imported.by_question_id if imported is not None else {}
    sampling = Sampling(config, task, wanted, store, price, completions, on_progress)
    try:
        if not accept_missing:
            sampling.run(retry_errors)
    except StoreError as error:
        raise Stopped(str(error)) from error
    finally:
        store.sync()
    return {
        **freeze(wanted, store.index(), out, price),
        "asked": sampling.asked,
        "attempts": sampling.attempts,
        **({"usd_of_this_start": sampling.usd, "attempts_of_unknown_price": sampling.usd_unknown} if price else {}),
        "seconds": sampling.seconds,
        "samples_per_second": sampling.asked / sampling.seconds if sampling.seconds else 0.0,
        **(_imported_counts(imported) if imported is not None else {}),
    }


def _imported_counts(imported: ImportedCompletions) -> dict[str, int]:
    matched = {f"records_of_{split}": count for split, count in sorted(imported.matched.items())}
    return {"records": imported.records, "unmatched_records": imported.unmatched, **matched}

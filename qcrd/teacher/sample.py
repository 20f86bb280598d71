"""Teacher sampling on Ray Data: questions x sample index, asked by async actors, kept in the sample store.

Every reply is in the store before anything reads it, so what is missing is what the store lacks, and a second start
asks for that alone. Of starts that want samples of one identity from one store, one asks at a time. When an actor or
its node dies, what is then missing is asked for in a new pass. The driver's memory holds the questions, about 120 bytes
for each sample, and no request.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qcrd.config import ConfigError, OpenAITeacherConfig, TeacherSettings
from qcrd.records import Question
from qcrd.teacher.asking import Asked, Asker, Leases, Stopped, all_of
from qcrd.teacher.backends.base import ImportedCompletions, TeacherError
from qcrd.teacher.backends.table import backend_of, build_teacher
from qcrd.teacher.batch.mode import BatchSummary, resume_batches, run_batches
from qcrd.teacher.freeze import freeze, spent_before
from qcrd.teacher.limits import AttemptReport, Grant, Need, Totals, make_limits
from qcrd.teacher.prices import Price, read_price, spent_usd
from qcrd.teacher.probe import probe, samples_per_request
from qcrd.teacher.prompts import Prompts
from qcrd.teacher.requests import SampleSource, Wanted, build_call, missing_mask, split_calls, wanted_samples
from qcrd.teacher.store import SampleStore, StoreIndex
from qcrd.teacher.store_format import StoreError, question_key, sample_key
from qcrd.teacher.store_writer import StoreWriter
from qcrd.teacher.tokens import worst_case_prompt_tokens

OnProgress = Callable[[int, int, Mapping[str, Any]], None]
MAX_BATCH, BATCHES_PER_BLOCK, BLOCKS_AT_ONCE = 128, 4, 16
PASSES_WITHOUT_PROGRESS = 3
SHOW_SECONDS, REPORT_SECONDS = 1.0, 10.0
logger = logging.getLogger(__name__)


class LimitsActor:
    """`SharedLimits` where all sampling actors can reach it; it also deals out the slots."""

    def __init__(self, teacher: TeacherSettings, spent_usd: float) -> None:
        self._limits = make_limits(teacher, spent_usd)
        actors = min(teacher.actors, teacher.concurrency)
        share, rest = divmod(teacher.concurrency, actors)
        self._slots = [share + (number < rest) for number in range(actors)]
        self._under_way: Counter[tuple[str, str]] = Counter()

    def slots(self) -> int:
        """How many attempts the next actor may have under way at once."""
        return self._slots.pop() if self._slots else 1

    def lease(self, needs: Sequence[Need], reports: Sequence[AttemptReport], who: tuple[str, str]) -> Grant:
        """`who`: the node and the actor that ask."""
        before = self._limits.under_way
        grant = self._limits.lease(needs, reports)
        self._under_way[who] += self._limits.under_way - before
        return grant

    def stop(self, reason: str) -> None:
        self._limits.stop(reason)

    def under_way(self, gone: Collection[str]) -> int:
        """Attempts that were granted and not reported yet, but for those of nodes and actors that are gone."""
        return sum(count for who, count in self._under_way.items() if not set(who).intersection(gone))

    def state(self) -> tuple[str, Totals, float]:
        """Why all stopped ("" if they did not), the counts so far, and dollars at most that they do not cover."""
        return self._limits.stop_reason, self._limits.totals, self._limits.unpriced


@dataclass(frozen=True)
class ActorWork:
    """What each actor is told. No key is in it: each reads that for itself."""

    teacher: TeacherSettings
    prompts: Prompts
    identity: str
    store: str
    price: Price | None


class SamplingActor:
    """Makes the calls of each batch and keeps each reply before it says so. A row is (question row, first, count)."""

    def __init__(self, work: ActorWork, limits: Any, data: list[Any]) -> None:
        """`data` holds references to the table of questions and to imported completions."""
        self._work, self._limits = work, limits
        self._questions, self._completions = ray.get(data)
        self._slots: int = ray.get(limits.slots.remote())  # pyright: ignore[reportAssignmentType]
        context = ray.get_runtime_context()
        self._who = context.get_node_id(), context.get_actor_id() or ""
        self._asker: Asker | None = None
        self._leases = Leases(self._lease)

    async def __call__(self, batch: dict[str, np.ndarray]) -> AsyncIterator[dict[str, Any]]:
        if self._asker is None:
            try:
                teacher = build_teacher(self._work.teacher, self._work.prompts.stop, self._completions)
                self._writer = StoreWriter(self._work.store, self._work.teacher.flush_seconds)
            except (ConfigError, StoreError) as error:  # this node has no key, or cannot write there
                await self._limits.stop.remote(f"node {socket.gethostname()}: {error}")
                yield {"replies": np.zeros(1, dtype=np.int64), "failures": np.zeros(1, dtype=np.int64)}
                return
            self._asker = Asker(self._work.teacher, teacher, self._writer, self._leases, self._slots, self._work.price)
        rows = zip(*(batch[name].tolist() for name in ("question", "first", "count")), strict=True)
        asked = await all_of(self._ask(*row) for row in rows)
        try:
            await asyncio.to_thread(self._writer.flush)
        except StoreError as error:
            await self._limits.stop.remote(str(error))
        await self._leases.flush()
        yield {
            "replies": np.array([one.replies for one in asked]),
            "failures": np.array([one.failures for one in asked]),
        }

    async def _lease(self, needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        return await self._limits.lease.remote(needs, reports, self._who)

    async def _ask(self, row: int, first: int, count: int) -> Asked:
        assert self._asker is not None
        question = Question(**self._questions.slice(row, 1).to_pylist()[0], split="", answer="")
        of_question = question_key(self._work.identity, question.text)
        keys = [sample_key(of_question, index) for index in range(first, first + count)]
        try:
            return await self._asker.ask(
                build_call(self._work.teacher, self._work.prompts, question, first, count), keys
            )
        except StoreError as error:
            await self._limits.stop.remote(str(error))
        except Stopped:
            pass
        return Asked(0, 0)


def _calls_dataset(calls: np.ndarray, work: ActorWork, limits: Any, data: list[Any]) -> Any:
    """The calls as a Ray dataset that makes them."""
    teacher = work.teacher
    actors = min(teacher.actors, teacher.concurrency)
    slots = -(-teacher.concurrency // actors)
    batch_size = min(MAX_BATCH, slots)
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
    at_once = min(BLOCKS_AT_ONCE, -(-len(blocks) // actors))  # the first actor to be ready must not take them all
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to say `max_restarts`, and warns of this one.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return ray.data.from_arrow(blocks).map_batches(
            SamplingActor,  # pyright: ignore[reportArgumentType]
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(
                size=actors, max_concurrent_calls_per_actor=at_once, max_tasks_in_flight_per_actor=at_once
            ),
            num_cpus=0,
            num_gpus=backend_of(teacher).gpus(teacher),
            # Ray would ask again for all that a dead actor had; a new pass asks for what is missing.
            max_restarts=0,
            fn_constructor_args=(work, limits, data),
        )


def _let_finish(limits: Any, dead: str | None, seconds: float) -> None:
    """After the actor `dead` died: the others make no further attempts, and what they have under way is waited for, at
    most `seconds`, so that the next pass does not ask for it again. What a dead one had will never be reported."""
    ray.get(limits.stop.remote("another pass begins"))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gone = {dead, *(node["NodeID"] for node in ray.nodes() if not node["Alive"])}
        if not ray.get(limits.under_way.remote(gone)):
            break
        time.sleep(0.1)


@dataclass
class Sampling:
    """A sampling job in progress."""

    teacher: TeacherSettings
    prompts: Prompts
    wanted: Wanted
    store: SampleStore
    price: Price | None
    completions: Mapping[str, Sequence[str]]
    on_progress: OnProgress
    asked: int = 0
    """Samples that got a record in this start."""
    seconds: float = 0.0
    usd: float = 0.0
    """What the attempts of passes that are over said they cost."""
    unpriced: float = 0.0
    """Dollars at most of attempts of this start that did not say what they cost."""
    is_probed: bool = False
    base: int = 0
    """Samples that had a record when the present pass began, less `asked` then."""
    settled: np.ndarray = field(init=False)
    """Samples that are not asked for again in this start: of the first call, and of all calls in batch mode."""

    def __post_init__(self) -> None:
        self.settled = np.zeros(self.wanted.keys.shape, dtype=bool)

    def run(self, retry_errors: bool) -> StoreIndex:
        """Ask until nothing is missing; returns what the store then has.

        With `retry_errors` a sample that failed is missing too, once. Raises `Stopped`, `StoreError`, `OSError` where
        the store cannot be locked, and `ConfigError` for what the first call shows.
        """
        index = self.store.index()
        if not missing_mask(self.wanted, index, retry_errors).any():
            return index
        del index  # it lacks what another start may be asking for
        with self.store.locked(f"samples-{self.wanted.identity}", _say_waiting):
            return self._ask(retry_errors)

    def _ask(self, retry_errors: bool) -> StoreIndex:
        """`run` for the one start that asks."""
        stalled, before, is_over = 0, 0, False
        death: RayError | None = None
        retried: np.ndarray | None = None  # failures of earlier starts
        endpoint = backend_of(self.teacher).endpoint(self.teacher)
        batch = endpoint if endpoint is not None and endpoint.mode == "batch" else None
        if batch is not None:
            self._in_batches(batch, None)
        while True:
            index = self.store.index()
            missing = missing_mask(self.wanted, index, False)
            if retried is None:
                retried = missing_mask(self.wanted, index, retry_errors) & ~missing
            unanswered = int(missing.sum())
            missing = (missing | (retried & ~index.answered(self.wanted.keys))) & ~self.settled
            left = int(missing.sum())
            if is_over or left == 0:
                break
            if death is not None:
                stalled = stalled + 1 if left == before else 0
                if stalled == PASSES_WITHOUT_PROGRESS:
                    raise death
            before = left
            calls, spent = self._calls(index, missing)
            self.base = self.wanted.total - int(calls[:, 2].sum()) - self.asked
            if batch is not None:
                self._round(batch, calls, spent)
                continue
            try:
                self._pass(calls, spent)
                is_over = True
            except RayTaskError:
                raise
            except RayError as error:
                death = error
                logger.warning("sampling lost an actor (%s); what is missing is asked for", type(error).__name__)
        if unanswered:
            raise Stopped(f"{unanswered} samples were not answered")
        return index

    def _calls(self, index: StoreIndex, missing: np.ndarray) -> tuple[np.ndarray, float]:
        """Calls for what is missing, and dollars at most that are spent. Where somebody has to be reached, the first
        call is made here and now."""
        spent = self.unpriced
        endpoint = backend_of(self.teacher).endpoint(self.teacher)
        if endpoint is not None and endpoint.budget_usd is not None and self.price is not None:
            spent += spent_before(self.wanted, index, self.price)
        if endpoint is None or self.is_probed:
            return split_calls(missing, samples_per_request(self.teacher, self.store) or 1), spent
        is_proven, started = bool(index.answered(self.wanted.keys).any()), time.perf_counter()
        probed = probe(endpoint, self.prompts, self.wanted, missing, self.store, spent, self.price, is_proven)
        self.is_probed = True
        self.seconds += time.perf_counter() - started
        self.asked += probed.count
        self.unpriced += probed.unpriced
        place = probed.row, slice(probed.first, probed.first + probed.count)
        self.settled[place], missing[place] = True, False
        return split_calls(missing, probed.samples_per_request), spent + probed.usd + probed.unpriced

    def _pass(self, calls: np.ndarray, spent: float) -> None:
        """Make the calls on Ray Data. Raises `RayError` where an actor dies, `Stopped` where the limits say so."""
        if len(calls) == 0:
            return
        teacher = self.teacher
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor_class: Any = ray.remote(LimitsActor)
        limits = actor_class.options(num_cpus=0, scheduling_strategy=here).remote(teacher, spent)
        work = ActorWork(teacher, self.prompts, self.wanted.identity, self.store.place, self.price)
        rows = self.wanted.questions
        table = pa.table({name: [getattr(row, name) for row in rows] for name in ("id", "text", "label", "facts")})
        started = time.perf_counter()
        try:
            data = [ray.put(table), ray.put(self.completions)]
            self._watch(_calls_dataset(calls, work, limits, data), limits, started)
        except RayError as error:
            dead = error.actor_id if isinstance(error, RayActorError) else None
            _let_finish(limits, dead, teacher.timeout_seconds + REPORT_SECONDS)
            raise
        finally:
            self.seconds += time.perf_counter() - started
            reason, totals, unpriced = ray.get(limits.state.remote())
            self.usd += totals.usd
            self.unpriced += unpriced
        if reason:
            raise Stopped(
                f"{reason} (a call that failed for good before that is an error row, which --retry-errors asks again)"
            )

    def _watch(self, dataset: Any, limits: Any, started: float) -> None:
        """Take the batches as they come, and show how far it is."""
        total = self.wanted.total
        shown, errors, before = started, 0, self.asked
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            errors += int(batch["failures"].sum())
            self.asked += int(batch["replies"].sum() + batch["failures"].sum())
            now = time.perf_counter()
            if now - shown >= SHOW_SECONDS:
                shown = now
                _, totals, _ = ray.get(limits.state.remote())
                info = self._shown(totals, now - started, errors, self.asked - before)
                self.on_progress(self.base + self.asked, total, info)
        self.on_progress(self.base + self.asked, total, {"errors": errors})

    def _shown(self, totals: Totals, seconds: float, errors: int, asked: int) -> dict[str, Any]:
        """What stands beside the bar."""
        info: dict[str, Any] = {"samples/s": f"{asked / seconds:.1f}", "errors": errors}
        if self.price is not None:
            info["usd"] = f"{self.usd + totals.usd:.2f}"
        if failed := totals.kinds.total():
            info["failed attempts"] = failed
        return info

    def _round(self, teacher: OpenAITeacherConfig, calls: np.ndarray, spent: float) -> None:
        """Make as many of the calls in batch mode as the budget is sure to suffice for: they may cost less, and then
        another round follows. No sample is in two rounds of a start. Raises `Stopped` where the round brings nothing.
        """
        if len(calls) == 0:
            return
        most, before = self._affordable(teacher, calls, spent), self.asked
        summary = self._in_batches(teacher, calls[: len(most)])
        for (row, first, count), usd in zip(calls.tolist(), most, strict=False):
            self.settled[row, first : first + count] = True
            if self.wanted.keys_of(row, first, 1)[0].hex() in summary.unpriced:
                self.unpriced += usd
        if self.asked == before:
            raise Stopped(f"batches of {len(most)} requests brought nothing; errors: {dict(summary.errors)}")

    def _affordable(self, teacher: OpenAITeacherConfig, calls: np.ndarray, spent: float) -> list[float]:
        """The most, in dollars, that each of the first calls can cost in batch mode, for as many as fit into the
        budget; without one it is 0 for each. Raises `Stopped` where not even the first fits."""
        if teacher.budget_usd is None or self.price is None:
            return [0.0] * len(calls)
        most, total = list[float](), spent
        for question, first, count in calls.tolist():
            call = build_call(teacher, self.prompts, self.wanted.questions[question], first, count)
            prompt, completion = worst_case_prompt_tokens(call.prompt), count * teacher.max_tokens
            most.append(spent_usd(self.price, prompt, completion, batch=True))
            total += most[-1]
            if total > teacher.budget_usd:
                most.pop()
                break
        if not most:
            raise Stopped(
                f"teacher.budget_usd: the next request may pass ${teacher.budget_usd:g}; at most ${spent:.4f} are spent"
            )
        return most

    def _in_batches(self, teacher: OpenAITeacherConfig, calls: np.ndarray | None) -> BatchSummary:
        """Make the calls in batch mode; None: wait for those that an earlier start has made."""
        built = (
            (
                build_call(teacher, self.prompts, self.wanted.questions[row], first, count),
                self.wanted.keys_of(row, first, count),
            )
            for row, first, count in ([] if calls is None else calls.tolist())
        )
        before, started = self.asked, time.perf_counter()

        def show(samples: int) -> None:
            self.asked = before + samples
            self.on_progress(min(self.base + self.asked, self.wanted.total), self.wanted.total, {"mode": "batch"})

        with StoreWriter(self.store.place, teacher.flush_seconds) as writer:
            try:
                if calls is None:
                    summary = asyncio.run(resume_batches(teacher, self.store, writer, show))
                else:
                    summary = asyncio.run(run_batches(teacher, self.prompts.stop, self.store, writer, built, show))
            except TeacherError as error:
                raise Stopped(str(error)) from error
        self.seconds += time.perf_counter() - started
        if summary.missing or summary.malformed:
            logger.warning(
                "batches ended without %d samples, %d lines could not be read; errors: %s", summary.missing,
                summary.malformed, dict(summary.errors),
            )  # fmt: skip
        return summary


def _say_waiting() -> None:
    logger.warning("another run asks for the same samples; waiting for what it finds")


def sample(
    source: SampleSource, questions: Sequence[Question], out: Path, on_progress: OnProgress,
    retry_errors: bool = False, accept_missing: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write all samples of the questions of `teacher.splits` to the Parquet file `out`: from the store where they are
    there, else from the teacher. Returns counts of the samples and of this start.

    Ray must be running where something is missing. A request that fails for good becomes an error row, which is asked
    again only with `retry_errors`. With `accept_missing` nobody is asked, and what is missing becomes an error row.
    Raises `Stopped` (budget, an endpoint that fails, a full disk); what was answered is then kept, and nothing written.
    """
    teacher = source.teacher
    read_completions = backend_of(teacher).completions
    imported = None if read_completions is None else read_completions(teacher, questions)
    wanted = wanted_samples(teacher, source.prompts, questions)
    store, price = SampleStore(source.store), read_price(teacher)
    completions = imported.by_question_id if imported is not None else {}
    sampling = Sampling(teacher, source.prompts, wanted, store, price, completions, on_progress)
    try:
        index = store.index() if accept_missing else sampling.run(retry_errors)
        frozen = freeze(wanted, index, out, price)
    except (StoreError, OSError) as error:
        raise Stopped(str(error)) from error
    finally:
        store.sync()
    return {
        **frozen,
        "asked": sampling.asked,
        "seconds": sampling.seconds,
        "samples_per_second": sampling.asked / sampling.seconds if sampling.seconds else 0.0,
        **(_imported_counts(imported) if imported is not None else {}),
    }


def _imported_counts(imported: ImportedCompletions) -> dict[str, int]:
    matched = {f"records_of_{split}": count for split, count in sorted(imported.matched.items())}
    return {"records": imported.records, "unmatched_records": imported.unmatched, **matched}

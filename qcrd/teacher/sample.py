"""Teacher sampling on Ray Data: questions x sample index, asked by async actors, kept in the sample store.

Every reply is in the store, durable, before anything reads it, so what is missing is what the store lacks, and a
second call asks for that alone. The samples of a run are then read back from the store in their own order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from qcrd.config import ConfigError, ExperimentConfig, TeacherConfig
from qcrd.records import Question, Sample
from qcrd.tasks.base import Task
from qcrd.teacher.base import Reply, SampleRequest, Teacher, TeacherError
from qcrd.teacher.imported import ImportedCompletions, ImportedTeacher, import_identity, read_completions
from qcrd.teacher.openai_client import OpenAITeacher, api_key
from qcrd.teacher.requests import build_requests, prompt_path, read_prompt
from qcrd.teacher.simulated import SimulatedTeacher
from qcrd.teacher.store import Failure, Record, SampleStore, StoreWriter

OnProgress = Callable[[int, int, Mapping[str, Any]], None]
MAX_BATCH = 32


@dataclass(frozen=True)
class SamplingResult:
    """All samples in (question, index) order, and the counts of this call."""

    samples: list[Sample]
    summary: dict[str, Any]


def check_teacher(config: ExperimentConfig, task: Task) -> None:
    """Raise `ConfigError` for what can be known to be wrong before the first request."""
    teacher = config.teacher
    if task.ANSWER_PHRASE not in read_prompt(teacher, task):
        raise ConfigError(f"teacher.prompt: '{prompt_path(teacher, task)}' never says {task.ANSWER_PHRASE!r}")
    if teacher.kind == "openai":
        api_key(teacher)
    elif teacher.kind == "imported":
        import_identity(teacher.imported)
    elif not task.SIMULATED:
        raise ConfigError(f"teacher.kind: 'simulated' is not allowed for task {task.NAME}: its questions are not made")


def build_teacher(config: TeacherConfig, stop: Sequence[str], completions: Mapping[str, Sequence[str]]) -> Teacher:
    """The teacher that the settings name. Call it on the event loop that will use it."""
    if config.kind == "simulated":
        return SimulatedTeacher(config.simulated.error_rate)
    if config.kind == "imported":
        return ImportedTeacher(completions)
    return OpenAITeacher(config, stop)


class SamplingActor:
    """Asks for the rows of each batch at once, `slots` at a time, and keeps each reply before it says so."""

    def __init__(
        self, settings: dict[str, Any], stop: Sequence[str], completions: Mapping[str, Sequence[str]],
        store_folder: str, slots: int,
    ) -> None:
        self._config = TeacherConfig.model_validate(settings)
        self._stop, self._completions, self._slots = stop, completions, slots
        self._writer = StoreWriter(Path(store_folder))
        self._teacher: Teacher | None = None
        self._semaphore: asyncio.Semaphore | None = None

    async def __call__(self, batch: dict[str, np.ndarray]) -> AsyncIterator[dict[str, Any]]:
        if self._semaphore is None:
            self._semaphore = asyncio.Semaphore(self._slots)
            self._teacher = build_teacher(self._config, self._stop, self._completions)
        columns = {name: values.tolist() for name, values in batch.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        records = await asyncio.gather(*(self._ask(SampleRequest(**row)) for row in rows))
        yield {
            "key": np.array([row["key"] for row in rows]),
            "reason": np.array([record.reason if isinstance(record, Failure) else "" for record in records]),
            "attempts": np.array([record.attempts for record in records]),
        }

    async def _ask(self, request: SampleRequest) -> Record:
        assert self._semaphore is not None and self._teacher is not None
        async with self._semaphore:
            try:
                record: Record = await self._teacher.ask(request)
            except TeacherError as error:
                record = Failure(str(error), error.attempts)
            except Exception as error:  # noqa: BLE001 - one row that breaks the client must not fail the others
                record = Failure(f"{type(error).__name__}: unexpected", 1)
        self._writer.write(request.key, record)
        return record


def _ask_missing(
    config: ExperimentConfig, task: Task, missing: Sequence[SampleRequest], completions: Mapping[str, Sequence[str]],
    store_folder: Path, total: int, on_progress: OnProgress,
) -> Counter[str]:
    """Ask for the missing rows on Ray Data. Returns the errors by reason."""
    teacher = config.teacher
    actors = min(teacher.actors, teacher.concurrency)
    slots = teacher.concurrency // actors
    batch_size = min(MAX_BATCH, max(1, slots // 2))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the caller shows one
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    table = pa.Table.from_pylist([asdict(request) for request in missing])
    # A block is one call of the actor. Two calls at once, of several batches each, keep all slots busy.
    rows = 4 * batch_size
    blocks = [table.slice(start, rows) for start in range(0, len(missing), rows)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        SamplingActor,  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(
            size=actors, max_concurrent_calls_per_actor=2, max_tasks_in_flight_per_actor=4
        ),
        num_cpus=0,
        fn_constructor_args=(teacher.model_dump(), task.STOP, completions, str(store_folder), slots),
        udf_modifying_row_count=False,
    )
    errors: Counter[str] = Counter()
    done, started = total - len(missing), time.perf_counter()
    answered = 0
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        reasons = [str(reason) for reason in batch["reason"] if reason]
        errors.update(reason.split(":")[0] for reason in reasons)
        answered += len(batch["key"])
        rate = answered / (time.perf_counter() - started)
        on_progress(done + answered, total, {"requests/s": f"{rate:.1f}", "errors": errors.total()})
    return errors


def sample(
    config: ExperimentConfig, task: Task, questions: Sequence[Question], store_folder: Path, on_progress: OnProgress
) -> SamplingResult:
    """All samples of the training questions: from the store where they are there, else from the teacher.

    Ray must be running where something is missing. A request that fails for good becomes an error row.
    """
    requests = build_requests(config, task, questions)
    store = SampleStore(store_folder)
    known = store.replies({request.key for request in requests})
    missing = list({request.key: request for request in requests if request.key not in known}.values())
    imported = None
    if config.teacher.kind == "imported":
        imported = read_completions(config.teacher.imported, questions)
    started = time.perf_counter()
    errors: Counter[str] = Counter()
    if missing:
        completions = imported.by_question_id if imported is not None else {}
        errors = _ask_missing(config, task, missing, completions, store_folder, len(requests), on_progress)
        store.sync()
    records = store.load({request.key for request in requests})
    samples = [_sample(request, records.get(request.key)) for request in requests]
    summary = {
        "requests": len(requests),
        "asked": len(missing),
        "from_store": len(requests) - len(missing),
        "errors": sum(bool(one.error) for one in samples),
        **{f"error {reason}": count for reason, count in sorted(errors.items())},
        **_tokens(samples),
        **(_imported_counts(imported) if imported is not None else {}),
        "seconds": time.perf_counter() - started,
    }
    return SamplingResult(samples, summary)


def _sample(request: SampleRequest, record: Record | None) -> Sample:
    """A row of the samples artifact."""
    if isinstance(record, Reply):
        return Sample(
            request.question_id, request.index, request.key, record.text, record.reasoning, record.finish_reason, "",
            record.attempts, record.prompt_tokens, record.completion_tokens,
        )  # fmt: skip
    reason, attempts = (record.reason, record.attempts) if record is not None else ("lost by the teacher's actor", 0)
    return Sample(request.question_id, request.index, request.key, "", "", "", reason, attempts, None, None)


def _tokens(samples: Sequence[Sample]) -> dict[str, int]:
    """Token counts as the endpoint gave them; absent where it gave none."""
    counts = {}
    for name in ("prompt_tokens", "completion_tokens"):
        known = [value for one in samples if (value := getattr(one, name)) is not None]
        if known:
            counts[name] = sum(known)
    return counts


def _imported_counts(imported: ImportedCompletions) -> dict[str, int]:
    matched = {f"records_of_{split}": count for split, count in sorted(imported.matched.items())}
    return {"records": imported.records, "unmatched_records": imported.unmatched, **matched}

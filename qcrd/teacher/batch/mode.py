"""Batch mode (`teacher.mode=batch`): requests go up as files, replies come down within a day, at half the price.

Each batch has a small file in the sample store, `batch-<digest>-….json`, that says all that is needed to finish it:

    submitting   written before the batch is asked for; there may be one, or not
    in_flight    its id is known; it is polled until it has ended
    done         its replies are in the store, durable; what did not come back is missing and is asked for anew
    failed       it was never made, or the endpoint refused it; nothing was paid, all of it is missing

So a process may end at any moment: the next start looks for a batch that was asked for before it believes that there is
none, and downloads again what it cannot know to be kept (the store tells identical lines apart from new ones). States
of another endpoint or route are left alone. This module knows nothing about Ray, tasks, questions, budgets, or why a
sample is wanted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from openai.types import Batch

from qcrd.config import OpenAITeacherConfig
from qcrd.teacher.backends.base import Call, Failure, Result, TeacherError
from qcrd.teacher.batch.endpoint import BatchEndpoint, errors_of, queue_was_full, request_counts
from qcrd.teacher.batch.files import InputFile, input_files, read_result
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_format import StoreError
from qcrd.teacher.store_writer import StoreWriter

logger = logging.getLogger(__name__)

OnProgress = Callable[[int], None]
"""Told how many samples have come back (replies and failures) since the call began."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass
class BatchSummary:
    """Counts of one call. Batches: `submitted` now, `adopted` (an earlier start asked for it and never knew its id),
    `resumed` (its id was known). Samples: `replies`, `failures` (error rows), `missing` (of batches that ended; asked
    for by a later start). Lines of results: `malformed`, and `unknown` (asked for by nobody). `errors` by kind.
    Requests, by custom_id: `unpriced` (they may have been paid for, and nothing says what they cost)."""

    submitted: int = 0
    adopted: int = 0
    resumed: int = 0
    replies: int = 0
    failures: int = 0
    missing: int = 0
    malformed: int = 0
    unknown: int = 0
    unpriced: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)


async def run_batches(
    config: OpenAITeacherConfig, stop: Sequence[str], store: SampleStore, writer: StoreWriter,
    calls: Iterable[tuple[Call, Sequence[bytes]]], on_progress: OnProgress,
) -> BatchSummary:  # fmt: skip
    """Ask for calls, each with the store keys of its samples, and wait until all have come back or failed.

    All files are sent up before the first is waited for; one file is in memory at a time. Raises `TeacherError` where
    the endpoint refuses (a wrong key, an unknown batch), and, when all others have ended, for batches that it refused.
    """
    run = _Run(config, store, writer, on_progress, buys=True)
    try:
        for file in input_files(config, stop, run.endpoint.route, calls):
            await run.submit(file)
        return await run.follow()
    finally:
        await run.endpoint.close()


async def resume_batches(
    config: OpenAITeacherConfig, store: SampleStore, writer: StoreWriter, on_progress: OnProgress
) -> BatchSummary:
    """Finish what earlier starts left in flight at this endpoint. Buys nothing and needs no key where there is none.

    A batch that was asked for and is not there is given up, and what was in it is missing.
    """
    names = [name for name in store.names("batch-", ".json") if (state := _read(store, name)) and state.is_live]
    if not names:
        return BatchSummary()
    run = _Run(config, store, writer, on_progress, buys=False)
    try:
        for name in names:
            await run.take_up(name)
        return await run.follow()
    finally:
        await run.endpoint.close()


# -- what is remembered -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What the store says of one batch. `created`: Unix time at which it was asked for. `requests` is there while the
    batch is live; `output_file` and `error_file` when it has ended, for whoever wants to look into them again."""

    state: Literal["submitting", "in_flight", "done", "failed"]
    base_url: str
    api: str
    digest: str
    submission: str
    created: float
    input_file: str
    requests: dict[str, list[str]]
    batch: str | None = None
    status: str | None = None
    output_file: str | None = None
    error_file: str | None = None
    reason: str | None = None

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.requests.values()))

    @property
    def is_live(self) -> bool:
        return self.state in ("submitting", "in_flight")


def _read(store: SampleStore, name: str) -> _State | None:
    text = store.read_text(name)
    if text is None:
        return None
    try:
        return _State(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{store.place}/{name} is not the state of a batch: {error}") from None


# -- the work -----------------------------------------------------------------------------------------------------


class _Run:
    """Batches of one endpoint under way, by the names of their states."""

    def __init__(
        self, config: OpenAITeacherConfig, store: SampleStore, writer: StoreWriter, on_progress: OnProgress, buys: bool
    ) -> None:
        self._config, self._store, self._writer, self._on_progress = config, store, writer, on_progress
        self._buys = buys
        self.endpoint = BatchEndpoint(config)
        self._summary = BatchSummary()
        self._flying: dict[str, str] = {}
        self._put_off: dict[str, str] = {}
        self._last_try: str | None = None
        self._refused: list[str] = []
        self._told: dict[str, str] = {}

    async def submit(self, file: InputFile) -> None:
        """Send a file up and ask for its batch, unless that very batch is under way."""
        place = hashlib.sha256(f"{self.endpoint.base_url} {file.digest}".encode()).hexdigest()
        prefix = f"batch-{place[:32]}-"
        for name in self._store.names(prefix, ".json"):
            await self.take_up(name)
        if any(name.startswith(prefix) for name in self._flying):
            return
        state = _State(
            "submitting", self.endpoint.base_url, self._config.api, file.digest, submission="", created=0.0,
            input_file=await self.endpoint.upload(f"qcrd-{file.digest[:32]}.jsonl", file.content),
            requests=file.requests,
        )  # fmt: skip
        await self._create(f"{prefix}{uuid.uuid4().hex[:8]}.json", state)

    async def take_up(self, name: str) -> None:
        """Go on with the batch of a live state of this endpoint, if it is there."""
        state = _read(self._store, name)
        if state is None or not state.is_live:
            return
        if (state.base_url, state.api) != (self.endpoint.base_url, self._config.api):
            logger.info("%s is a batch of %s (%s): left alone", name, state.base_url, state.api)
            return
        if state.batch is not None:
            self._summary.resumed += 1
            self._flying[name] = state.batch
            return
        try:
            batch = await self.endpoint.find(state.input_file, state.submission)
            if batch is None:
                await self.endpoint.delete(state.input_file)  # from now on it cannot come into being
                batch = await self.endpoint.find_now(state.input_file, state.submission)
        except TeacherError as error:
            raise _explained(error, name) from None
        if batch is None:
            self._summary.missing += state.num_samples
            self._end(name, state, state="failed", reason="never created")
            return
        self._summary.adopted += 1
        self._fly(name, state, batch)

    async def _create(self, name: str, state: _State) -> None:
        state = replace(state, state="submitting", batch=None, submission=uuid.uuid4().hex, created=time.time())
        self._write(name, state)
        try:
            batch = await self.endpoint.create(state.input_file, state.digest, state.submission)
        except TeacherError as error:
            if not error.billed:
                self._end(name, state, state="failed", reason=str(error))
            raise
        self._summary.submitted += 1
        self._fly(name, state, batch)

    def _fly(self, name: str, state: _State, batch: str) -> None:
        self._write(name, replace(state, state="in_flight", batch=batch))
        self._flying[name] = batch

    async def follow(self) -> BatchSummary:
        """Poll all that is under way until it has ended."""
        while self._flying:
            ended = [name for name in list(self._flying) if await self._look(name)]
            self._on_progress(self._summary.replies + self._summary.failures)
            if self._put_off and (ended or not self._flying):
                await self._try_again()
            if self._flying:
                await asyncio.sleep(self._config.batch.poll_seconds)
        if self._refused:
            raise TeacherError("; ".join(self._refused), of_endpoint=True)
        return self._summary

    async def _look(self, name: str) -> bool:
        """Look at a batch, and take what it brings if it has ended. Whether that made room for another."""
        try:
            return await self._take(name, await self.endpoint.retrieve(self._flying[name]))
        except TeacherError as error:
            raise _explained(error, name) from None

    async def _take(self, name: str, batch: Batch) -> bool:
        completed, failed, total = request_counts(batch)
        told = f"batch {batch.id}: {batch.status}, {completed + failed} of {total} requests"
        if self._told.get(name) != told:
            self._told[name] = told
            logger.info(told)
        if batch.status not in _ENDED:
            return False
        if batch.status == "completed" and completed and not batch.output_file_id:
            logger.warning("%s, but no file of them is named yet", told)
            return False
        state = self._state(name, batch.id)
        if state is None:
            pass
        elif batch.status != "failed" or batch.output_file_id:
            await self._collect(name, state, batch)
        elif queue_was_full(batch) and self._buys and name != self._last_try:
            self._put_off[name] = batch.id
        else:
            self._refuse(name, state, batch)
        del self._flying[name]
        return batch.status != "failed"

    async def _try_again(self) -> None:
        """Ask again for a batch for which the endpoint's queue was too full. Where it is too full for this one alone,
        it always will be."""
        name = next(iter(self._put_off))
        state = self._state(name, self._put_off.pop(name))
        self._last_try = None if self._flying else name
        if state is not None:
            logger.warning("%s: the endpoint's queue was full; the batch is asked for again", name)
            await self._create(name, state)

    def _refuse(self, name: str, state: _State, batch: Batch) -> None:
        errors = errors_of(batch)
        told = "; ".join(f"{error.get('message') or error.get('code')} (line {error.get('line')})" for error in errors)
        told = told.replace(" (line None)", "") or "the endpoint does not say why"
        reason = self.endpoint.safe(f"batch {batch.id} was refused: {told}")
        logger.warning(reason)
        if self._buys or not queue_was_full(batch):
            self._refused.append(reason)
        self._summary.errors["batch refused"] += 1
        self._summary.missing += state.num_samples
        self._end(name, state, state="failed", status=batch.status, reason=reason)

    async def _collect(self, name: str, state: _State, batch: Batch) -> None:
        """Keep what an ended batch brought, and only then say so."""
        waiting = dict(state.requests)
        kept = 0
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                with tempfile.TemporaryFile() as stream:
                    await self.endpoint.download(file_id, stream)
                    kept += sum(self._keep(line, waiting) for line in stream if line.strip())
        self._writer.flush()
        self._summary.unpriced |= waiting.keys()
        missing = state.num_samples - kept
        self._summary.missing += missing
        if missing:
            logger.warning("batch %s: %s, %d samples did not come back", batch.id, batch.status, missing)
        self._end(
            name, state, state="done", status=batch.status,
            output_file=batch.output_file_id, error_file=batch.error_file_id,
        )  # fmt: skip

    def _keep(self, line: bytes, waiting: dict[str, list[str]]) -> int:
        """Write the samples of a line of results to the store; how many they are."""
        try:
            data = json.loads(line)
            custom_id = data["custom_id"]
            keys = waiting.pop(custom_id, None)
        except (ValueError, TypeError, KeyError, RecursionError):  # the last: nested as deeply as no reply is
            self._summary.malformed += 1
            return 0
        if keys is None:
            self._summary.unknown += 1
            return 0
        try:
            records: list[Result] = [*read_result(data, len(keys))]
            self._summary.replies += len(records)
            if records[0].prompt_tokens is None or records[0].completion_tokens is None:
                self._summary.unpriced.add(custom_id)
        except TeacherError as error:
            reason = self.endpoint.safe(str(error))
            kind = reason.split(":")[0]
            self._summary.errors[kind] += 1
            self._summary.malformed += kind == "malformed"
            if error.billed:
                self._summary.unpriced.add(custom_id)
            if error.retryable or error.of_endpoint:  # not this request's fault
                return 0
            records = [Failure(reason, error.status, attempts=1)] * len(keys)
            self._summary.failures += len(records)
        self._writer.write([(bytes.fromhex(key), record) for key, record in zip(keys, records, strict=False)])
        return len(records)

    def _state(self, name: str, batch: str) -> _State | None:
        """The live state of a batch; None where another process has dealt with it meanwhile."""
        state = _read(self._store, name)
        return state if state is not None and state.is_live and state.batch == batch else None

    def _write(self, name: str, state: _State) -> None:
        self._store.write_text(name, json.dumps(asdict(state)))

    def _end(self, name: str, before: _State, **changes: Any) -> None:
        """A small record remains."""
        self._write(name, replace(before, requests={}, **changes))


def _explained(error: TeacherError, name: str) -> TeacherError:
    """What to do about a batch of which the endpoint knows nothing, or says nothing."""
    if error.status in (401, 403):
        return error
    reason = f"{error}; {name} in the sample store says what is known; delete that file only to give the batch up"
    return TeacherError(reason, error.status, of_endpoint=True)

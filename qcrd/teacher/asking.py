"""Asking a teacher: slots, shared limits, retries, several samples a call, and every reply kept before anyone reads it.

All on one event loop. Knows nothing about Ray (leases come through a function), HTTP, parsing or votes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_exponential_jitter

from qcrd.config import LanguageModelSettings, TeacherSettings
from qcrd.teacher.backends.base import Answer, Call, Failure, Reply, Result, Teacher, TeacherError
from qcrd.teacher.limits import AttemptReport, GaveUp, Grant, Need, Outcome
from qcrd.teacher.prices import Price, spent_usd
from qcrd.teacher.store_writer import StoreWriter
from qcrd.teacher.tokens import worst_case_prompt_tokens

LONGEST_SLEEP = 0.5
MAX_RETRY_AFTER_SECONDS = 600.0
MAX_RATE_LIMITED = 50
"""How often one call may be refused with status 429, which does not count as an attempt: the others get through."""
ATTEMPTS_TO_LEARN_N = 2
_BACKOFF = wait_exponential_jitter(initial=0.5, max=30.0, jitter=0.5)

T = TypeVar("T")
Lease = Callable[[Sequence[Need], Sequence[AttemptReport]], Awaitable[Grant]]


class Stopped(Exception):
    """No further attempt may be made; the message says why. What was not asked is missing, not failed."""


class Leases:
    """Asks for leases on behalf of all calls that wait, many at a time, and hands back how attempts ended."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._waiting: deque[tuple[Need, asyncio.Future[None]]] = deque()
        self._reports: list[AttemptReport] = []
        self._task: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    async def acquire(self, need: Need) -> None:
        """Wait until one attempt may be made. Raises `Stopped`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((need, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it was granted a moment before
                self.report(_unused(need))
            raise

    async def sleep(self, seconds: float) -> None:
        """Wait before another attempt, at most until all stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def report(self, report: AttemptReport) -> None:
        """How an attempt ended. Every attempt that was granted is reported once."""
        self._reports.append(report)

    async def flush(self) -> None:
        """Send what was reported."""
        if self._reports:
            reports, self._reports = self._reports, []
            await self._lease([], reports)

    async def _serve(self) -> None:
        while self._waiting:
            reports, self._reports = self._reports, []
            try:
                grant = await self._lease([need for need, _ in self._waiting], reports)
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                self._end(error)
                return
            for _ in range(grant.count):
                need, future = self._waiting.popleft()
                if future.cancelled():
                    self.report(_unused(need))
                else:
                    future.set_result(None)
            if grant.stop:
                self._stopped.set()
                self._end(Stopped(grant.stop))
            elif self._waiting and grant.wait > 0:
                await asyncio.sleep(min(grant.wait, LONGEST_SLEEP))

    def _end(self, error: Exception) -> None:
        for _, future in self._waiting:
            if not future.cancelled():
                future.set_exception(error)
        self._waiting.clear()


async def all_of(parts: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, each waited for to its end: one that fails leaves no paid call of another behind. Raises the
    first error."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


@dataclass(frozen=True)
class Asked:
    """What became of a call: how many samples were answered, how many failed."""

    replies: int
    failures: int


class Asker:
    """Makes calls, at most `slots` attempts at once. A call that waits before it is tried again holds no slot."""

    def __init__(
        self, config: TeacherSettings, teacher: Teacher, writer: StoreWriter, leases: Leases, slots: int,
        price: Price | None,
    ) -> None:  # fmt: skip
        self._config, self._teacher, self._writer, self._leases = config, teacher, writer, leases
        self._slots = asyncio.Semaphore(slots)
        self._price = price
        self._max_tokens = config.max_tokens if isinstance(config, LanguageModelSettings) else 0
        self._tokens_of_reply: float = self._max_tokens  # the mean so far
        self.honours_n: bool | None = None
        """Whether the server gives several choices a call; None until one was asked for."""

    async def ask(self, call: Call, keys: Sequence[bytes]) -> Asked:
        """Ask until each sample of the call has a record in the store. `keys` are those of `call.indices`.

        Raises `Stopped`, and `StoreError` where a reply cannot be kept.
        """
        if len(call.indices) > 1 and self.honours_n is False:
            return await self._ask_each(call, keys)
        try:
            answer, attempts = await self.answer(call)
        except TeacherError as error:
            if len(call.indices) > 1 and self.honours_n is None and error.status not in (None, 401, 403, 404, 429):
                return await self._ask_each(call, keys)  # perhaps it was the server's way to refuse `n`
            failure = Failure(str(error), error.status, error.attempts)
            self._writer.write([(key, failure) for key in keys])
            return Asked(0, len(keys))
        here = self.keep(answer, attempts, keys)
        got = here.replies + here.failures
        if len(keys) > 1 and self.honours_n is None:
            self.honours_n = got > 1
        rest = slice(got, None)
        return here if got == len(keys) else _sum(here, await self._ask_each(call.part(rest), keys[rest]))

    def keep(self, answer: Answer, attempts: int, keys: Sequence[bytes]) -> Asked:
        """Write an answer's records under the first of `keys`. Raises `StoreError`."""
        records = [replace(record, attempts=attempts) for record in answer.records[: len(keys)]]
        self._writer.write(list(zip(keys, records, strict=False)))
        return _count(records)

    async def _ask_each(self, call: Call, keys: Sequence[bytes]) -> Asked:
        """One call for each sample."""
        parts = (self.ask(call.part(slice(at, at + 1)), keys[at : at + 1]) for at in range(len(keys)))
        asked = _sum(*await all_of(parts))
        if asked.replies and self.honours_n is None:
            self.honours_n = False
        return asked

    async def answer(self, call: Call) -> tuple[Answer, int]:
        """The answer and the number of attempts it took; nothing is kept. Raises `Stopped`, and `TeacherError` with its
        `attempts` where none was had."""
        limited = 0
        most = self._config.max_attempts
        if len(call.indices) > 1 and self.honours_n is None:
            most = min(most, ATTEMPTS_TO_LEARN_N)

        def is_over(state: RetryCallState) -> bool:
            nonlocal limited
            error = _error_of(state)
            limited += error.status == 429
            error.attempts = state.attempt_number
            too_long = (error.retry_after or 0.0) > MAX_RETRY_AFTER_SECONDS
            return state.attempt_number - limited >= most or limited >= MAX_RATE_LIMITED or too_long

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, TeacherError) and error.retryable),
            stop=is_over, wait=_seconds_to_wait, reraise=True, sleep=self._leases.sleep,
        )  # fmt: skip
        number = 0
        try:
            async for attempt in retrying:
                with attempt:
                    number = attempt.retry_state.attempt_number
                    async with self._slots:
                        return await self._attempt(call), number
        except TeacherError as error:
            error.attempts = number
            if error.of_endpoint:
                self._leases.report(GaveUp(str(error)))
            raise
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _attempt(self, call: Call) -> Answer:
        """One attempt, leased before and reported after."""
        need = self._need(call)
        await self._leases.acquire(need)
        outcome = Outcome(need, "cancelled")  # what stands where the task is cancelled: perhaps paid
        try:
            answer = await self._teacher.ask(call)
            outcome = self._good(need, answer)
            return answer
        except TeacherError as error:
            kind = str(error).split(":")[0]
            outcome = Outcome(need, kind, error.status, billed=error.billed, headers=error.headers)
            raise
        except Exception as error:  # noqa: BLE001 - one row that breaks the client must not fail the others
            outcome = Outcome(need, "unexpected")
            raise TeacherError(f"unexpected: {type(error).__name__}") from None
        finally:
            self._leases.report(outcome)

    def _need(self, call: Call) -> Need:
        prompt, samples = worst_case_prompt_tokens(call.prompt), len(call.indices)
        usd = 0.0
        if self._price is not None:
            usd = spent_usd(self._price, prompt, samples * self._max_tokens, batch=False)
        return Need(prompt / 4 + samples * self._tokens_of_reply, usd)

    def _good(self, need: Need, answer: Answer) -> Outcome:
        replies = [record for record in answer.records if isinstance(record, Reply)]
        prompt, completion = total_tokens(replies)
        tokens = usd = None
        if prompt is not None and completion is not None:
            tokens = prompt + completion
            usd = spent_usd(self._price, prompt, completion, batch=False) if self._price is not None else 0.0
            self._tokens_of_reply += 0.05 * (completion / len(replies) - self._tokens_of_reply)
        elif self._price is None:
            usd = 0.0
        return Outcome(need, "", 200, tokens, usd, headers=answer.headers)


def _unused(need: Need) -> Outcome:
    """Of a lease whose caller had gone."""
    return Outcome(need, "cancelled", billed=False)


def total_tokens(replies: Sequence[Reply]) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of replies; None where any of them has no count, or there are none."""
    prompt = [reply.prompt_tokens for reply in replies if reply.prompt_tokens is not None]
    completion = [reply.completion_tokens for reply in replies if reply.completion_tokens is not None]
    whole = len(replies) > 0
    return (
        sum(prompt) if whole and len(prompt) == len(replies) else None,
        sum(completion) if whole and len(completion) == len(replies) else None,
    )


def _count(records: Sequence[Result]) -> Asked:
    failed = sum(isinstance(record, Failure) for record in records)
    return Asked(len(records) - failed, failed)


def _sum(*parts: Asked) -> Asked:
    return Asked(sum(part.replies for part in parts), sum(part.failures for part in parts))


def _error_of(state: RetryCallState) -> TeacherError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, TeacherError)
    return error


def _seconds_to_wait(state: RetryCallState) -> float:
    """What the endpoint asks for (and a little more, so that not all come back at once), else exponential backoff."""
    after = _error_of(state).retry_after
    backoff = _BACKOFF(state)
    if after is None:
        return backoff
    return after + random.uniform(0.0, min(backoff, 0.1 * after + 0.1))  # decides no result, so it needs no seed

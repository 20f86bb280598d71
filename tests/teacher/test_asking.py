"""Asking a real server on loopback, with a real store and real limits: slots, retries, several samples a call."""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcrd.config import ImportedTeacherConfig, OpenAITeacherConfig
from qcrd.teacher import asking
from qcrd.teacher.asking import Asked, Asker, Leases, Stopped
from qcrd.teacher.backends.base import Answer, Call, Failure, Reply, Result, TeacherError
from qcrd.teacher.backends.openai_endpoint import OpenAITeacher
from qcrd.teacher.limits import AttemptReport, Grant, Need, SharedLimits
from qcrd.teacher.prices import Price
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_format import KEY_TYPE, StoreError, question_key, sample_key
from qcrd.teacher.store_writer import StoreWriter
from tests.teacher.loopback import (
    BREAK,
    CUT,
    STALL,
    TRICKLE,
    Behaviour,
    Reaction,
    Server,
    answer,
    error,
    loopback,
)

PRICE = Price(0.01, 0.02, None, "2026-01-01", "a test")
AT_ONCE = {"Retry_After": "0"}


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_BACKOFF", lambda state: 0.0)


def call_of(number: int, samples: int = 1) -> Call:
    """Question `number` asks for number + 1."""
    seeds = tuple(100 * number + index for index in range(samples))
    return Call(f"q{number}", tuple(range(samples)), f"Q: {number} and 1?\nA:", "", "", seeds)


def keys_of(call: Call) -> list[bytes]:
    return [sample_key(question_key("test", call.question_id), index) for index in call.indices]


def good(call: Call, attempts: int = 1) -> Reply:
    """The reply of a healthy server to a single sample."""
    return Reply(answer(call.prompt), "", "stop", 7, 5, attempts)


@dataclass
class Job:
    """A job in one process: `ask` makes calls at once and keeps what became of each."""

    folder: Path
    server: Server
    slots: int = 8
    budget: float | None = None
    patience: int = 100
    settings: dict[str, Any] = field(default_factory=dict)
    became: list[Asked | BaseException] = field(default_factory=list)
    granted: int = 0
    honours_n: bool | None = None

    def __post_init__(self) -> None:
        defaults = {"base_url": self.server.base_url, "model": "m", "max_attempts": 3, "max_tokens": 10}
        self.config = OpenAITeacherConfig.model_validate({**defaults, **self.settings})
        self.limits = SharedLimits(None, None, self.budget, 0.0, self.patience)

    def ask(self, *calls: Call, price: Price | None = None, disk_is_full: bool = False) -> list[Asked | BaseException]:
        async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
            grant = self.limits.lease(needs, reports)
            self.granted += grant.count
            return grant

        async def run() -> None:
            teacher = OpenAITeacher(self.config, [])
            leases = Leases(lease)
            with StoreWriter(self.folder, 60) as writer:
                if disk_is_full:
                    full = os.open("/dev/full", os.O_WRONLY)
                    os.dup2(full, writer._sink._file)  # pyright: ignore[reportAttributeAccessIssue]
                    os.close(full)
                asker = Asker(self.config, teacher, writer, leases, self.slots, price)
                asker.honours_n = self.honours_n
                self.became = await asyncio.gather(
                    *(asker.ask(call, keys_of(call)) for call in calls), return_exceptions=True
                )
                self.honours_n = asker.honours_n
                await leases.flush()
            await teacher.close()

        asyncio.run(run())
        return self.became

    def records(self, *calls: Call) -> list[Result | None]:
        keys = np.array([key for call in calls for key in keys_of(call)], dtype=KEY_TYPE)
        return list(SampleStore(self.folder).index().records(keys))


def one(folder: Path, behaviour: Behaviour, **settings: Any) -> tuple[Result | None, Server, Job]:
    """One sample of one question: its record."""
    with loopback(behaviour) as server:
        job = Job(folder, server, settings=settings)
        (became,) = job.ask(call_of(3))
    (record,) = job.records(call_of(3))
    if isinstance(became, BaseException):
        raise became
    assert became.replies == isinstance(record, Reply) and became.failures == isinstance(record, Failure)
    return record, server, job


def first(*reactions: Reaction) -> Behaviour:
    """These reactions one after the other, then healthy."""
    return lambda number, prompt: reactions[number] if number < len(reactions) else None


# -- slots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
def test_slots_bound_what_is_under_way_and_are_used(slots: int, tmp_path: Path):
    calls = [call_of(number) for number in range(2 * slots)]
    with loopback(delay=0.2) as server:
        job = Job(tmp_path, server, slots)
        assert job.ask(*calls) == [Asked(1, 0)] * len(calls)
    assert server.peak == slots
    assert job.records(*calls) == [good(call) for call in calls]
    assert job.granted == len(calls) == server.asked.total()


def test_a_call_that_waits_to_be_asked_again_holds_no_slot(tmp_path: Path):
    calls = [call_of(number) for number in range(6)]
    bad = calls[0].prompt

    def behaviour(number: int, prompt: str) -> Reaction | None:
        return error(429, Retry_After="0.6") if prompt == bad and number == 0 else None

    with loopback(behaviour) as server:
        job = Job(tmp_path, server, slots=1)
        assert job.ask(*calls) == [Asked(1, 0)] * 6
    order = [prompt for _, prompt in server.arrivals]
    assert order == [bad, *(call.prompt for call in calls[1:]), bad] and server.peak == 1
    assert server.arrivals[6][0] - server.arrivals[0][0] >= 0.6
    assert job.records(*calls) == [good(calls[0], attempts=2), *(good(call) for call in calls[1:])]


# -- one bad row --------------------------------------------------------------------------------------------------


def test_one_bad_row_is_an_error_row_and_the_others_are_answered(tmp_path: Path):
    calls = [call_of(number) for number in range(10)]
    with loopback(lambda number, prompt: error(400, "too long") if "Q: 4" in prompt else None) as server:
        job = Job(tmp_path, server)
        became = job.ask(*calls)
    assert became[4] == Asked(0, 1) and became.count(Asked(1, 0)) == 9
    expected: list[Result] = [good(call) for call in calls]
    expected[4] = Failure("status 400: too long", 400, 1)
    assert job.records(*calls) == expected and server.asked.total() == 10


def test_a_row_that_breaks_the_client_fails_alone(tmp_path: Path):
    odd = replace(call_of(0), prompt="half \ud83d of a pair")
    with loopback() as server:
        job = Job(tmp_path, server)
        became = job.ask(odd, call_of(1))
    assert became[1] == Asked(1, 0)
    record, other = job.records(odd, call_of(1))
    assert other == good(call_of(1)) and isinstance(record, Failure | Reply)
    if isinstance(record, Failure):
        assert record.reason.startswith("unexpected: Unicode") and record.attempts == 1


# -- what is asked again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_what_may_pass_is_asked_again(status: int, tmp_path: Path):
    record, server, job = one(tmp_path, first(error(status, **AT_ONCE)))
    assert record == good(call_of(3), attempts=2) and server.asked.total() == 2
    assert job.limits.totals.kinds == {f"status {status}": 1, "": 0}


@pytest.mark.parametrize(
    ("reaction", "reason", "status"),
    [
        (BREAK, "connection: ", None), (CUT, "connection: ", None), ((200, {}, "not json"), "malformed: ", 200),
        ((200, {}, '{"choices": []}'), "malformed: ", 200), (error(503, **AT_ONCE), "status 503: no", 503),
    ],
    ids=["break", "cut", "no json", "no choices", "503"],
)  # fmt: skip
def test_what_may_pass_is_asked_max_attempts_times(reaction: Reaction, reason: str, status: int | None, tmp_path: Path):
    record, server, _ = one(tmp_path / "a", first(reaction))
    assert record == good(call_of(3), attempts=2) and server.asked.total() == 2
    record, server, job = one(tmp_path / "b", lambda number, prompt: reaction, max_attempts=2)
    assert isinstance(record, Failure) and record.reason.startswith(reason)
    assert (record.status, record.attempts) == (status, 2) and server.asked.total() == 2
    assert job.granted == 2 and job.limits.under_way == 0


@pytest.mark.parametrize("reaction", [STALL, TRICKLE], ids=["stall", "trickle"])
def test_a_server_that_stalls_or_trickles_is_cut_and_asked_again(reaction: Reaction, tmp_path: Path):
    record, _, job = one(tmp_path / "a", lambda number, prompt: reaction, timeout_seconds=0.2, max_attempts=2)
    assert record == Failure("timeout: no answer within 0.2 s", None, 2)
    assert job.granted == 2 and job.limits.under_way == 0
    if reaction == STALL:
        record, _, _ = one(tmp_path / "b", first(reaction), timeout_seconds=0.8)
        assert record == good(call_of(3), attempts=2)


@pytest.mark.parametrize(
    ("reaction", "reason", "status"),
    [
        (error(400), "status 400: no", 400), (error(401), "status 401: no", 401), (error(403), "status 403: no", 403),
        (error(404), "status 404: no", 404), (error(422), "status 422: no", 422),
        (error(400, "bad words", "content_filter"), "content filter: bad words", 400),
        (error(429, "pay first", "insufficient_quota"), "status 429: pay first", 429),
        (
            (200, {}, '{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'),
            "content filter: the endpoint withheld the answer", 200,
        ),
    ],
    ids=["400", "401", "403", "404", "422", "filter 400", "quota", "filter 200"],
)  # fmt: skip
def test_what_cannot_pass_is_asked_once(reaction: Reaction, reason: str, status: int, tmp_path: Path):
    record, server, _ = one(tmp_path, lambda number, prompt: reaction)
    assert record == Failure(reason, status, 1) and server.asked.total() == 1


def test_refusals_by_429_are_no_attempts(tmp_path: Path):
    record, server, _ = one(tmp_path, first(*[error(429, **AT_ONCE)] * 8), max_attempts=1)
    assert record == good(call_of(3), attempts=9) and server.asked.total() == 9
    mixed = [error(429, **AT_ONCE), error(500, **AT_ONCE)] * 3
    record, server, _ = one(tmp_path / "b", first(*mixed), max_attempts=3)
    assert record == Failure("status 500: no", 500, 6) and server.asked.total() == 6


def test_refusals_by_429_end_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(asking, "MAX_RATE_LIMITED", 4)
    record, server, _ = one(tmp_path, lambda number, prompt: error(429, **AT_ONCE), max_attempts=2)
    assert record == Failure("status 429: no", 429, 4) and server.asked.total() == 4


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("Retry-After", lambda: "0.3", 0.3), ("retry-after-ms", lambda: "300", 0.3),
        ("Retry-After", lambda: email.utils.formatdate(time.time() + 2, usegmt=True), 0.9),
    ],
    ids=["seconds", "milliseconds", "date"],
)  # fmt: skip
def test_retry_after_is_obeyed(name: str, value: Callable[[], str], least: float, tmp_path: Path):
    _, server, _ = one(tmp_path, lambda number, prompt: (503, {name: value()}, "{}") if number == 0 else None)
    (begin, _), (end, _) = server.arrivals
    assert least <= end - begin < 10


def test_an_endpoint_that_asks_for_a_very_long_wait_is_given_up(tmp_path: Path):
    record, server, _ = one(tmp_path, lambda number, prompt: error(503, Retry_After="601"))
    assert record == Failure("status 503: no", 503, 1) and server.asked.total() == 1


def test_reasoning_is_kept_apart(tmp_path: Path):
    text = '{"choices": [{"message": {"content": "fine", "reasoning_content": "hm"}, "finish_reason": "stop"}]}'
    record, _, _ = one(tmp_path, lambda number, prompt: (200, {}, text))
    assert record == Reply("fine", "hm", "stop", None, None, 1)


# -- several samples a call ---------------------------------------------------------------------------------------


def ways(call: Call, prompt_tokens: int = 7) -> list[Reply]:
    """The replies of a server that honours `n`."""
    text, count = answer(call.prompt), len(call.indices)
    texts = [text, *(f"In way {number}: {text}" for number in range(2, count + 1))]
    return [
        Reply(text, "", "stop", 0 if at else prompt_tokens, 0 if at else 5 * count) for at, text in enumerate(texts)
    ]


def test_where_n_is_honoured_one_request_brings_all(tmp_path: Path):
    calls = [call_of(number, 5) for number in range(3)]
    with loopback(most_choices=5) as server:
        job = Job(tmp_path, server)
        assert job.ask(*calls, price=PRICE) == [Asked(5, 0)] * 3
    assert [body["n"] for body in server.bodies] == [5, 5, 5] and job.honours_n is True
    assert job.records(*calls) == [reply for call in calls for reply in ways(call)]
    assert job.limits.totals.usd == pytest.approx(3 * (7 * 0.01 + 25 * 0.02))


def test_a_server_that_ignores_n_is_asked_for_the_others_one_by_one_and_is_remembered(tmp_path: Path):
    call, other = call_of(0, 5), call_of(1, 5)
    with loopback() as server:
        job = Job(tmp_path, server)
        assert job.ask(call) == [Asked(5, 0)] and job.honours_n is False
        assert [body.get("n") for body in server.bodies] == [5, None, None, None, None]
        assert server.bodies[0]["seed"] == 0 and {body["seed"] for body in server.bodies[1:]} == {1, 2, 3, 4}
        job.ask(other)
    assert [body.get("n") for body in server.bodies[5:]] == [None] * 5
    assert sorted(body["seed"] for body in server.bodies[5:]) == [100, 101, 102, 103, 104]
    assert job.records(call, other) == [good(call)] * 5 + [good(other)] * 5


def test_a_server_that_refuses_n_is_asked_one_by_one_and_is_remembered(tmp_path: Path):
    call, other = call_of(0, 5), call_of(1, 5)
    with loopback(most_choices=0) as server:
        job = Job(tmp_path, server)
        assert job.ask(call) == [Asked(5, 0)] and job.honours_n is False
        assert [body.get("n") for body in server.bodies] == [5] + [None] * 5
        job.ask(other)
    assert server.asked.total() == 11 and [body.get("n") for body in server.bodies[6:]] == [None] * 5
    assert job.records(call, other) == [good(call)] * 5 + [good(other)] * 5


def test_a_server_that_gives_fewer_choices_is_asked_for_the_rest(tmp_path: Path):
    call = call_of(0, 5)
    with loopback(most_choices=2) as server:
        job = Job(tmp_path, server)
        assert job.ask(call) == [Asked(5, 0)] and job.honours_n is True
    assert [body.get("n") for body in server.bodies] == [5, None, None, None]
    assert server.bodies[0]["seed"] == 0 and {body["seed"] for body in server.bodies[1:]} == {2, 3, 4}
    assert job.records(call) == [*ways(call_of(0, 2)), *[good(call)] * 3]


def test_a_server_that_fails_with_n_is_asked_one_by_one(tmp_path: Path):
    """5xx may be its way to refuse `n`; two attempts are enough to think so."""
    with loopback(lambda number, prompt: error(500, **AT_ONCE) if "n" in server.bodies[-1] else None) as server:
        job = Job(tmp_path, server, settings={"max_attempts": 6})
        assert job.ask(call_of(0, 3)) == [Asked(3, 0)] and job.honours_n is False
    assert [body.get("n") for body in server.bodies] == [3, 3, None, None, None]


def test_one_bad_question_tells_nothing_about_n(tmp_path: Path):
    bad = call_of(0, 3)
    with loopback(lambda number, prompt: error(400) if prompt == bad.prompt else None, most_choices=3) as server:
        job = Job(tmp_path, server)
        assert job.ask(bad) == [Asked(0, 3)] and job.honours_n is None
        assert server.asked.total() == 4
        assert job.ask(call_of(1, 3)) == [Asked(3, 0)] and job.honours_n is True
        assert server.asked.total() == 5
        # A server that is known to honour n means the question.
        other = replace(bad, question_id="again")
        assert job.ask(other) == [Asked(0, 3)] and server.asked.total() == 6
    assert job.records(bad, other) == [Failure("status 400: no", 400, 1)] * 6


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_all_is_not_asked_one_by_one(status: int, tmp_path: Path):
    with loopback(lambda number, prompt: error(status)) as server:
        job = Job(tmp_path, server)
        assert job.ask(call_of(0, 5)) == [Asked(0, 5)]
    assert server.asked.total() == 1 and job.records(call_of(0, 5)) == [Failure(f"status {status}: no", status, 1)] * 5


def test_slots_hold_for_the_single_calls_too(tmp_path: Path):
    with loopback(delay=0.03) as server:
        job = Job(tmp_path, server, slots=3, honours_n=False)
        job.ask(*(call_of(number, 5) for number in range(3)))
    assert server.peak == 3 and server.asked.total() == 15


# -- money --------------------------------------------------------------------------------------------------------


def test_the_budget_ends_the_job_before_it_is_passed(tmp_path: Path):
    """A call may cost 0.01 * (14 + 16) + 0.02 * 10 = 0.50 and costs 0.17: the tenth might pass 2.00."""
    calls = [call_of(number) for number in range(10)]
    assert len(calls[0].prompt) == 14
    calls += [replace(call_of(number), prompt=f"Q: {number % 10} and 2?\nA:") for number in range(10, 30)]
    with loopback(delay=0.01) as server:
        job = Job(tmp_path, server, budget=2.0)
        became = job.ask(*calls, price=PRICE)
    stopped = [error for error in became if isinstance(error, Stopped)]
    assert became.count(Asked(1, 0)) == 9 and len(stopped) == 21 and server.asked.total() == 9
    assert str(stopped[0]).startswith("teacher.budget_usd: the next request may cost $0.5000")
    assert job.limits.totals.usd == pytest.approx(9 * 0.17)
    assert sum(record is not None for record in job.records(*calls)) == 9


def test_what_may_have_been_paid_counts_as_the_most_it_can_cost(tmp_path: Path):
    calls = [call_of(0), call_of(1), call_of(2)]
    reactions = {calls[0].prompt: BREAK, calls[1].prompt: error(500, **AT_ONCE)}
    with loopback(lambda number, prompt: reactions.get(prompt) if number == 0 else None) as server:
        job = Job(tmp_path, server)
        job.ask(*calls, price=PRICE)
    assert job.limits.totals.usd == pytest.approx(3 * 0.17) and job.limits.spent == pytest.approx(0.50 + 3 * 0.17)
    assert job.limits.unpriced == pytest.approx(0.50)
    assert job.granted == 5


def test_without_usage_the_most_it_can_cost_counts(tmp_path: Path):
    text = '{"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}'
    with loopback(lambda number, prompt: (200, {}, text)) as server:
        job = Job(tmp_path, server)
        job.ask(call_of(0), price=PRICE)
        assert job.limits.totals.usd == 0 and job.limits.spent == pytest.approx(0.50)
        free = Job(tmp_path, server)
        free.ask(call_of(1))
    assert free.limits.totals.usd == 0 and free.limits.spent == 0


def test_what_is_cancelled_may_have_been_paid(tmp_path: Path):
    limits = SharedLimits(None, None, None, 0.0, 10)

    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        return limits.lease(needs, reports)

    async def run(server: Server) -> None:
        config = OpenAITeacherConfig(base_url=server.base_url, max_tokens=10)
        leases = Leases(lease)
        with StoreWriter(tmp_path, 60) as writer:
            asker = Asker(config, OpenAITeacher(config, []), writer, leases, 1, PRICE)
            task = asyncio.create_task(asker.ask(call_of(0), keys_of(call_of(0))))
            while not server.arrivals:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await leases.flush()

    with loopback(delay=5.0) as server:
        asyncio.run(run(server))
    assert limits.totals.usd == 0 and limits.spent == pytest.approx(0.50) and limits.under_way == 0


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_stopped_job_asks_nobody_and_records_nothing(tmp_path: Path):
    with loopback() as server:
        job = Job(tmp_path, server)
        job.limits.stop("enough")
        (became,) = job.ask(call_of(0, 5))
    assert isinstance(became, Stopped) and str(became) == "enough"
    assert server.asked.total() == 0 and job.records(call_of(0, 5)) == [None] * 5


@pytest.mark.parametrize(("reaction", "attempts"), [(error(401), 1), (error(500, **AT_ONCE), 2), (BREAK, 2)])
def test_a_job_ends_where_call_after_call_is_given_up(reaction: Reaction, attempts: int, tmp_path: Path):
    calls = [call_of(number) for number in range(10)]
    with loopback(lambda number, prompt: reaction) as server:
        job = Job(tmp_path, server, slots=1, patience=3, settings={"max_attempts": 2})
        became = job.ask(*calls)
    assert sum(isinstance(one, Stopped) for one in became) == 10 - sum(isinstance(one, Asked) for one in became)
    stopped = next(one for one in became if isinstance(one, Stopped))
    assert "the endpoint failed 3 calls in a row" in str(stopped)
    failed = [record for record in job.records(*calls) if record is not None]
    assert len(failed) == 3 and all(isinstance(record, Failure) and record.attempts == attempts for record in failed)


def test_what_a_question_is_to_blame_for_ends_no_job(tmp_path: Path):
    calls = [call_of(number) for number in range(10)]
    with loopback(lambda number, prompt: error(400)) as server:
        job = Job(tmp_path, server, slots=1, patience=3)
        assert job.ask(*calls) == [Asked(0, 1)] * 10
    assert server.asked.total() == 10


def test_a_reply_that_cannot_be_kept_is_an_error(tmp_path: Path):
    with loopback() as server:
        job = Job(tmp_path, server)
        job.ask(call_of(0), call_of(1, 2), disk_is_full=True)
    assert all(isinstance(one, StoreError) and "No space left" in str(one) for one in job.became)
    assert len(job.became) == 2 and job.records(call_of(0)) == [None]


# -- leases -------------------------------------------------------------------------------------------------------


def test_leases_are_asked_for_many_at_a_time_and_every_attempt_is_reported(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    limits = SharedLimits(None, None, None, 0.0, 10)

    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        await asyncio.sleep(0.02)  # as a call to another process
        seen.append((len(needs), len(reports)))
        return limits.lease(needs, reports)

    async def run(server: Server) -> None:
        config = OpenAITeacherConfig(base_url=server.base_url)
        leases = Leases(lease)
        with StoreWriter(tmp_path, 60) as writer:
            asker = Asker(config, OpenAITeacher(config, []), writer, leases, 50, None)
            await asyncio.gather(*(asker.ask(call_of(n), keys_of(call_of(n))) for n in range(50)))
            await leases.flush()
            await leases.flush()  # nothing is left to send

    with loopback() as server:
        asyncio.run(run(server))
    assert seen[0] == (50, 0) and sum(reports for _, reports in seen) == 50 and len(seen) == 2
    assert limits.under_way == 0 and limits._answered == 50


def test_an_error_of_the_lease_reaches_all_who_wait():
    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        raise RuntimeError("the actor is gone")

    async def run() -> list[BaseException | None]:
        leases = Leases(lease)
        waiting = asyncio.gather(*(leases.acquire(Need()) for _ in range(3)), return_exceptions=True)
        return await asyncio.wait_for(waiting, 5)

    found = asyncio.run(run())
    assert [str(error) for error in found] == ["the actor is gone"] * 3


def test_a_lease_that_has_to_wait_is_asked_for_again():
    clock = time.monotonic
    limits = SharedLimits(600, None, None, 0.0, 10)  # ten a second

    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        return limits.lease(needs, reports)

    async def run() -> float:
        leases = Leases(lease)
        started = clock()
        await asyncio.gather(*(leases.acquire(Need()) for _ in range(14)))
        return clock() - started

    assert 0.38 <= asyncio.run(run()) < 5


def test_a_task_that_was_cancelled_while_it_waited_takes_no_lease():
    """Its place in the queue is passed over, and the others get theirs."""
    now = [0.0]
    limits = SharedLimits(600, None, None, 0.0, 10, lambda: now[0])

    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        return limits.lease(needs, reports)

    async def run() -> None:
        leases = Leases(lease)
        tasks = [asyncio.create_task(leases.acquire(Need())) for _ in range(13)]
        await asyncio.wait(tasks[:10])
        assert not any(task.done() for task in tasks[10:])
        tasks[10].cancel()
        now[0] = 1.0
        done, waiting = await asyncio.wait(tasks, timeout=3)
        assert not waiting and sum(task.cancelled() for task in done) == 1
        await leases.flush()
        assert limits.under_way == 12

    asyncio.run(run())


def test_a_teacher_that_answers_at_once_needs_no_server(tmp_path: Path):
    class Broken:
        async def ask(self, call: Call) -> Answer:
            if call.question_id == "q0":
                raise ZeroDivisionError
            if call.question_id == "q1":
                raise TeacherError("no completion")
            return Answer([Reply("a")])

        async def close(self) -> None:
            pass

    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        return Grant(len(needs))

    async def run() -> list[Asked]:
        with StoreWriter(tmp_path, 60) as writer:
            asker = Asker(ImportedTeacherConfig(path="x"), Broken(), writer, Leases(lease), 2, None)
            return await asyncio.gather(*(asker.ask(call_of(n), keys_of(call_of(n))) for n in range(3)))

    assert asyncio.run(run()) == [
        Asked(0, 1), Asked(0, 1), Asked(1, 0),
    ]  # fmt: skip

"""Shared limits by an injected clock: rates never passed, the budget never passed, and adapting to refusals."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from qcrd.teacher.backends.base import RateHeaders
from qcrd.teacher.limits import MAX_PAUSE_SECONDS, AttemptReport, GaveUp, Need, Outcome, SharedLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(
    clock: Clock, requests: int | None = None, tokens: int | None = None, budget: float | None = None,
    spent: float = 0.0, patience: int = 10,
) -> SharedLimits:  # fmt: skip
    return SharedLimits(requests, tokens, budget, spent, patience, clock)


@dataclass
class Simulation:
    """Many callers with `slots` attempts at once, whose attempts end as `end` says: (need, time) → (seconds it takes,
    outcome)."""

    limits: SharedLimits
    clock: Clock
    end: Callable[[Need, float], tuple[float, Outcome]]
    need: Callable[[], Need] = Need
    slots: int = 1000

    def run(self, seconds: float) -> list[tuple[float, Outcome]]:
        """All attempts granted: when, and how they ended."""
        start = self.clock.now
        granted: list[tuple[float, Outcome]] = []
        running: list[tuple[float, int, Outcome]] = []
        waiting = [self.need() for _ in range(self.slots)]
        number = itertools.count()
        while self.clock.now < start + seconds:
            reports: list[AttemptReport] = []
            while running and running[0][0] <= self.clock.now:
                reports.append(heapq.heappop(running)[2])
            waiting += [self.need() for _ in reports]
            grant = self.limits.lease(waiting, reports)
            for need in waiting[: grant.count]:
                takes, outcome = self.end(need, self.clock.now - start)
                heapq.heappush(running, (self.clock.now + takes, next(number), outcome))
                granted.append((self.clock.now - start, outcome))
            waiting = waiting[grant.count :]
            if grant.stop:
                break
            soonest = [self.clock.now + grant.wait] * (grant.wait > 0) + [end for end, *_ in running[:1]]
            self.clock.now = max(min(soonest, default=self.clock.now + 1.0), self.clock.now + 1e-4)
        return granted


def answered(need: Need, now: float) -> tuple[float, Outcome]:
    return 0.5, Outcome(need, status=200)


def refused(need: Need) -> Outcome:
    return Outcome(need, "status 429", 429, billed=False)


def rate(granted: list[tuple[float, Outcome]], first: float, last: float) -> float:
    """Attempts a second from `first` to `last`."""
    return sum(first <= when < last for when, _ in granted) / (last - first)


# -- rates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_minute", [6, 60, 500, 3000])
def test_requests_a_minute_hold_in_any_window(per_minute: int):
    clock = Clock()
    granted = Simulation(make(clock, requests=per_minute), clock, answered).run(200)
    times = [when for when, _ in granted]
    per_second = per_minute / 60
    ahead = max(1.0, per_second)  # one second's worth
    for window in (1.0, 7.0, 60.0):
        last = 0
        for first, start in enumerate(times):
            while last < len(times) and times[last] < start + window:
                last += 1
            assert last - first <= per_second * window + ahead + 1e-6
    assert len(times) >= 0.97 * per_second * 200  # and the rate is used


def test_time_without_demand_is_not_saved_up():
    clock = Clock()
    limits = make(clock, requests=600)
    clock.now += 3600
    grant = limits.lease([Need()] * 100, [])
    assert grant.count == 10 and grant.wait == pytest.approx(0.1)


def test_tokens_a_minute_hold_with_debt_and_settlement():
    """Attempts are expected to use 100 tokens and use 50 to 400; what they used counts in the end."""
    clock, rng = Clock(), random.Random(0)

    def end(need: Need, now: float) -> tuple[float, Outcome]:
        return 0.5, Outcome(need, status=200, tokens=rng.randint(50, 400))

    granted = Simulation(make(clock, tokens=60_000), clock, end, need=lambda: Need(tokens=100), slots=20).run(120)
    used = [(when, outcome.tokens or 0) for when, outcome in granted]
    for start in range(0, 110, 10):
        for window in (10, 60):
            inside = sum(tokens for when, tokens in used if start <= when < start + window)
            assert inside <= 1000 * window + 1000 + 20 * 300  # what is under way may turn out larger than expected
    assert sum(tokens for _, tokens in used) == pytest.approx(1000 * 120, rel=0.05)


def test_an_amount_above_a_seconds_worth_leaves_a_debt_that_is_waited_for():
    clock = Clock()
    limits = make(clock, tokens=6000)  # 100 a second
    need = Need(tokens=500)
    assert limits.lease([need, need], []).count == 1
    grant = limits.lease([need], [])
    assert grant.count == 0 and grant.wait == pytest.approx(4.01)  # 400 are owed, and 1 must be there
    clock.now += 4.0
    assert limits.lease([need], []).count == 0
    clock.now += 0.02
    assert limits.lease([need], []).count == 1


def test_tokens_that_were_not_used_are_given_back():
    clock = Clock()
    limits = make(clock, tokens=6000)
    need = Need(tokens=500)
    limits.lease([need], [])
    grant = limits.lease([need, need], [Outcome(need, status=200, tokens=420)])
    assert grant.count == 0 and grant.wait == pytest.approx(3.21)
    limits = make(clock, tokens=6000)
    limits.lease([need], [])
    assert limits.lease([need], [Outcome(need, "status 500", 500)]).wait == pytest.approx(4.01)  # unknown: as expected


# -- budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_is_never_passed(seed: int):
    rng, clock = random.Random(seed), Clock()
    limits = make(clock, budget=1.0, spent=0.25)
    paid = 0.25

    def end(need: Need, now: float) -> tuple[float, Outcome]:
        nonlocal paid
        kind = rng.choice(["", "", "", "free", "timeout"])
        cost = {"free": 0.0, "timeout": need.usd}.get(kind, need.usd * rng.random())
        paid += cost
        seconds = rng.uniform(0.1, 3.0)
        if kind == "free":
            return seconds, Outcome(need, "status 500", 500, billed=False)
        if kind == "timeout":
            return seconds, Outcome(need, kind, None, usd=None)
        return seconds, Outcome(need, status=200, usd=cost)

    simulation = Simulation(limits, clock, end, need=lambda: Need(usd=rng.uniform(0.001, 0.02)), slots=50)
    simulation.run(10_000)
    assert 0.97 < paid <= 1.0 + 1e-9  # used to the last request that fits
    assert limits.stop_reason.startswith("teacher.budget_usd: the next request may cost $0.0")
    assert f"at most ${limits.spent:.4f} are spent" in limits.stop_reason
    assert limits.spent == pytest.approx(paid)


def test_while_attempts_are_under_way_the_budget_is_waited_for():
    clock = Clock()
    limits = make(clock, budget=1.0)
    need = Need(usd=0.4)
    grant = limits.lease([need] * 3, [])
    assert (grant.count, grant.stop) == (2, "") and grant.wait > 0
    assert limits.lease([need], [Outcome(need, status=200, usd=0.1)]).count == 1  # 0.1 + 0.4 + 0.4
    one_left = limits.lease([need], [Outcome(need, status=200, usd=0.3)])
    assert (one_left.count, one_left.stop) == (0, "")  # 0.4 spent, 0.4 under way
    grant = limits.lease([need], [Outcome(need, status=200, usd=0.35)])
    assert grant.count == 0 and grant.stop == (
        "teacher.budget_usd: the next request may cost $0.4000, which would pass the budget of $1; "
        "at most $0.7500 are spent"
    )
    assert limits.lease([Need(usd=0.01)], []).stop == grant.stop  # for good


def test_what_is_not_known_counts_as_the_most_it_can_cost():
    clock = Clock()
    limits = make(clock, budget=1.0)
    need = Need(usd=0.4)
    limits.lease([need, need], [])
    grant = limits.lease([need], [Outcome(need, "malformed", 200), Outcome(need, "timeout")])
    assert grant.stop and limits.spent == pytest.approx(0.8) and limits.totals.usd == 0


def test_no_budget_holds_where_the_endpoint_counts_nothing():
    limits = make(Clock(), budget=1.0)
    limits.lease([Need(usd=0.1)], [])
    grant = limits.lease([Need(usd=0.1)], [Outcome(Need(usd=0.1), status=200)])
    assert grant.count == 0 and grant.stop.startswith("teacher.budget_usd: the endpoint does not say how many tokens")


def test_what_was_refused_costs_nothing():
    clock = Clock()
    limits = make(clock, budget=0.5)
    need = Need(usd=0.4)
    for _ in range(20):
        assert limits.lease([need], []).count == 1
        limits.lease([], [Outcome(need, "status 500", 500, billed=False)])
    assert limits.totals.usd == 0 and limits.spent == 0 and limits.totals.kinds["status 500"] == 20


def test_without_a_budget_what_is_paid_is_counted():
    limits = make(Clock())
    limits.lease([Need()] * 3, [])
    limits.lease([], [Outcome(Need(), usd=0.5), Outcome(Need(), usd=0.25), Outcome(Need(), "x", billed=False)])
    assert limits.totals.usd == 0.75


# -- adapting to status 429 ---------------------------------------------------------------------------------------


@dataclass
class Endpoint:
    """Answers at most `per_second` requests a second, in any second, and refuses the others at once."""

    per_second: float
    clock: Clock
    seconds: float = 0.5

    def __post_init__(self) -> None:
        self.level, self.time = self.per_second, self.clock()

    def __call__(self, need: Need, _: float) -> tuple[float, Outcome]:
        now = self.clock()
        self.level = min(self.per_second, self.level + (now - self.time) * self.per_second)
        self.time = now
        if self.level < 1:
            return 0.05, refused(need)
        self.level -= 1
        return self.seconds, Outcome(need, status=200)


def test_it_falls_to_what_the_endpoint_answers_and_recovers():
    clock = Clock()
    endpoint = Endpoint(20.0, clock)
    limits = make(clock)
    simulation = Simulation(limits, clock, endpoint, slots=64)
    simulation.run(10)
    granted = simulation.run(60)
    share = sum(outcome.status == 429 for _, outcome in granted) / len(granted)
    good = sum(outcome.status == 200 for _, outcome in granted) / 60
    assert share < 0.15 and good > 0.75 * 20
    endpoint.per_second = 1e9  # the limit is gone: the slots alone bind, 64 / 0.5 s
    simulation.run(60)
    assert limits._adapted is None
    assert rate(simulation.run(10), 0, 10) == pytest.approx(128, rel=0.1)


def test_rare_refusals_do_not_slow_down():
    clock, rng = Clock(), random.Random(1)

    def end(need: Need, now: float) -> tuple[float, Outcome]:
        return (0.05, refused(need)) if rng.random() < 0.02 else (0.5, Outcome(need, status=200))

    limits = make(clock)
    granted = Simulation(limits, clock, end, slots=64).run(60)
    assert limits._adapted is None and rate(granted, 0, 60) == pytest.approx(128, rel=0.1)
    assert sum(outcome.status == 429 for _, outcome in granted) == pytest.approx(0.02 * len(granted), rel=0.3)


def test_refusals_while_all_others_are_still_being_answered_do_not_throttle():
    clock = Clock()
    limits = make(clock)
    assert limits.lease([Need()] * 500, []).count == 500
    clock.now += 0.1
    limits.lease([], [refused(Need())] * 15)
    clock.now += 2.5
    assert limits.lease([Need()] * 15, []).count == 15 and limits._adapted is None


@pytest.mark.parametrize(("slots", "refusals", "seconds"), [(64, 8, 0.5), (32, 3, 3.0), (500, 15, 20.0)])
def test_a_bad_first_second_does_not_throttle(slots: int, refusals: int, seconds: float):
    """The first few are refused, at once, while all others are still being answered."""
    clock = Clock()
    left = refusals

    def end(need: Need, now: float) -> tuple[float, Outcome]:
        nonlocal left
        if left > 0:
            left -= 1
            return 0.1, refused(need)
        return seconds, Outcome(need, status=200)

    limits = make(clock)
    granted = Simulation(limits, clock, end, slots=slots).run(4 * seconds)
    assert limits._adapted is None
    assert len(granted) >= 4 * slots


def test_it_never_falls_below_the_lowest_rate_and_goes_on():
    clock = Clock()
    limits = make(clock)
    dead = Simulation(limits, clock, lambda need, now: (0.05, refused(need)), slots=8)
    dead.run(60)
    assert 0 < rate(dead.run(100), 0, 100) <= 1.0  # it asks, though seldom
    alive = Simulation(limits, clock, answered, slots=8)
    alive.run(300)
    assert rate(alive.run(20), 0, 20) == pytest.approx(16, rel=0.1)


# -- what the endpoint says ---------------------------------------------------------------------------------------


def told(limits: SharedLimits, need: Need | None = None, status: int = 200, **headers: float) -> None:
    need = need or Need()
    assert limits.lease([need], []).count == 1
    limits.lease([], [Outcome(need, "" if status == 200 else f"status {status}", status,
                              headers=RateHeaders(**headers))])  # fmt: skip


@pytest.mark.parametrize("status", [200, 429])
def test_nothing_left_is_a_pause_until_the_reset(status: int):
    clock = Clock()
    limits = make(clock)
    told(limits, status=status, remaining_requests=0, reset_requests=7.0)
    grant = limits.lease([Need()], [])
    assert grant.count == 0 and grant.wait == pytest.approx(7.0)
    clock.now += 6.9
    assert limits.lease([Need()], []).count == 0
    clock.now += 0.2
    assert limits.lease([Need()] * 5, []).count == 5


def test_too_few_tokens_left_are_a_pause():
    limits = make(Clock())
    told(limits, Need(tokens=100), remaining_tokens=100, reset_tokens=7.0)
    told(limits, Need(tokens=100), remaining_tokens=99, reset_tokens=3.0, remaining_requests=5, reset_requests=60.0)
    assert limits.lease([Need()], []).wait == pytest.approx(3.0)


def test_a_pause_has_a_bound_and_a_shorter_one_does_not_end_it():
    clock = Clock()
    limits = make(clock)
    limits.lease([Need()] * 2, [])
    for reset in (1e6, 1.0):
        headers = RateHeaders(remaining_requests=0, reset_requests=reset)
        limits.lease([], [Outcome(Need(), status=200, headers=headers)])
    assert limits.lease([Need()], []).wait == pytest.approx(MAX_PAUSE_SECONDS)


def test_limits_are_taken_from_the_headers_unless_they_are_set_here():
    clock = Clock()
    limits = make(clock)
    told(limits, limit_requests=600, limit_tokens=60_000)
    clock.now += 10
    assert limits.lease([Need()] * 100, []).count == 10
    clock.now += 10
    assert limits.lease([Need(tokens=300)] * 100, []).count == 4  # 1,000 tokens a second, the last one on credit
    own = make(clock, requests=1200, tokens=120_000)
    told(own, limit_requests=600, limit_tokens=60_000)
    clock.now += 10
    assert own.lease([Need()] * 100, []).count == 20


def test_a_limit_that_changes_is_followed():
    clock = Clock()
    limits = make(clock)
    told(limits, limit_requests=600)
    told(limits, limit_requests=6000)
    clock.now += 10
    assert limits.lease([Need()] * 1000, []).count == 100


# -- stopping -----------------------------------------------------------------------------------------------------


def test_it_stops_after_many_calls_given_up_in_a_row():
    limits = make(Clock(), patience=3)
    limits.lease([Need()] * 9, [])
    failure, success = Outcome(Need(), "status 500", 500), Outcome(Need(), status=200)
    assert limits.lease([], [failure, GaveUp("a"), failure, GaveUp("b"), success]).stop == ""
    assert limits.lease([Need()], [failure, GaveUp("c"), failure, GaveUp("status 500: d")]).count == 1
    grant = limits.lease([Need()], [failure, GaveUp("status 500: e")])
    assert (grant.count, grant.stop) == (0, "the endpoint failed 3 calls in a row, the last with: status 500: e")
    assert limits.lease([Need()], [success]).stop == grant.stop == limits.stop_reason


def test_attempts_that_fail_and_are_tried_again_are_no_reason_to_stop():
    limits = make(Clock(), patience=2)
    for _ in range(50):
        assert limits.lease([Need()], []).count == 1
        assert limits.lease([], [Outcome(Need(), "status 500", 500)]).stop == ""


def test_the_first_reason_stands():
    limits = make(Clock())
    limits.stop("first")
    limits.stop("second")
    assert limits.lease([Need()], []) == limits.lease([], []) and limits.stop_reason == "first"

"""What all callers of one endpoint share: requests and tokens a minute, the budget, and when to stop.

A caller leases the right to make attempts and reports how each ended. The rate adapts: where more than a tenth of the
attempts is refused with status 429 it falls to what was answered, and rises again; what the endpoint says of its limits
in its headers holds too. Knows nothing about Ray, HTTP or where replies are kept; time is handed in.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qcrd.config import PaidSettings, TeacherSettings
from qcrd.teacher.backends.base import RateHeaders

WINDOW_SECONDS = 2.0
WINDOW_ATTEMPTS = 10
LIMITED_SHARE = 0.1
LOWEST_RATE = 0.1  # requests a second
MAX_PAUSE_SECONDS = 300.0


@dataclass(frozen=True)
class Need:
    """What one attempt may use: tokens as expected, dollars at most."""

    tokens: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended. `usd` and `tokens` are what it used, where that is known; `billed`: whether it may have
    been paid for (then `need.usd` counts where `usd` is None). `kind` of failure: empty where it was answered."""

    need: Need
    kind: str = ""
    status: int | None = None
    tokens: int | None = None
    usd: float | None = None
    billed: bool = True
    headers: RateHeaders | None = None


@dataclass(frozen=True)
class GaveUp:
    """A call that will not be tried again, because of the endpoint and not of the question."""

    reason: str


AttemptReport = Outcome | GaveUp


@dataclass(frozen=True)
class Grant:
    """The first `count` needs may go ahead; the others ask again after `wait` seconds, or never: `stop` says why."""

    count: int
    wait: float = 0.0
    stop: str = ""


class Bucket:
    """A rate that may be used up to a second ahead. An amount larger than that leaves a debt that is waited for."""

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._level, self._time = 0.0, now
        self._level = self._capacity()

    def _capacity(self) -> float:
        return max(1.0, self.per_second)

    def wait(self, now: float) -> float:
        """Seconds until something may be taken."""
        self._level = min(self._capacity(), self._level + (now - self._time) * self.per_second)
        self._time = now
        return 0.0 if self._level >= min(1.0, self._capacity()) - 1e-9 else (1.0 - self._level) / self.per_second

    def take(self, amount: float) -> None:
        self._level -= amount


@dataclass
class Totals:
    """Counts of all attempts so far. `usd`: what those cost that said so."""

    usd: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    """Attempts that failed, by kind."""


class SharedLimits:
    """The state behind all leases. Call it from one thread."""

    def __init__(
        self, requests_per_minute: int | None, tokens_per_minute: int | None, budget_usd: float | None,
        spent_usd: float, patience: int, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`spent_usd` has been paid before. After `patience` calls in a row that were given up because the endpoint
        failed, all stop."""
        now = clock()
        self._clock, self._patience = clock, patience
        self._requests = Bucket(requests_per_minute / 60, now) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute / 60, now) if tokens_per_minute else None
        self._own = (requests_per_minute, tokens_per_minute)
        self._adapted: Bucket | None = None
        self._refused_rate = 0.0
        self._budget, self._reserved, self._unpriced = budget_usd, 0.0, 0.0
        self.spent = spent_usd
        """Dollars at most: an attempt that does not say what it cost counts as the most it can."""
        self.under_way = 0
        """Attempts that were granted and not reported yet."""
        self._paused_until = now
        self._window_began, self._answered, self._limited = now, 0, 0
        self._failures = 0
        self.stop_reason = ""
        self.totals = Totals()

    def lease(self, needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        """Take note of how attempts ended, then grant as many of `needs` as may go ahead now, in order."""
        now = self._clock()
        for report in reports:
            if isinstance(report, GaveUp):
                self._failures += 1
                if self._failures >= self._patience:
                    self.stop(f"the endpoint failed {self._failures} calls in a row, the last with: {report.reason}")
            else:
                self._settle(report, now)
        self._adapt(now)
        count, wait = 0, 0.0
        for need in needs:
            if not self.stop_reason:
                wait = self._wait(need, now)
            if self.stop_reason:
                return Grant(count, 0.0, self.stop_reason)
            if wait > 0:
                break
            self._take(need)
            count += 1
        return Grant(count, wait, self.stop_reason)

    def stop(self, reason: str) -> None:
        """No further attempt is granted. The first reason stands."""
        self.stop_reason = self.stop_reason or reason

    @property
    def unpriced(self) -> float:
        """Dollars at most of attempts that did not say what they cost, or were not reported."""
        return self._unpriced + self._reserved

    def _buckets(self) -> list[tuple[Bucket, bool]]:
        """Buckets with whether they count tokens."""
        pairs = ((self._requests, False), (self._adapted, False), (self._tokens, True))
        return [(bucket, tokens) for bucket, tokens in pairs if bucket is not None]

    def _wait(self, need: Need, now: float) -> float:
        if self._budget is not None and self.spent + self._reserved + need.usd > self._budget:
            if self.under_way == 0:
                self.stop(
                    f"teacher.budget_usd: the next request may cost ${need.usd:.4f}, which would pass the budget of "
                    f"${self._budget:g}; at most ${self.spent:.4f} are spent"
                )
            return 0.1  # attempts under way may turn out cheaper than the most they can cost
        return max([self._paused_until - now, *(bucket.wait(now) for bucket, _ in self._buckets())])

    def _take(self, need: Need) -> None:
        for bucket, tokens in self._buckets():
            bucket.take(need.tokens if tokens else 1.0)
        self._reserved += need.usd
        self.under_way += 1

    def _settle(self, outcome: Outcome, now: float) -> None:
        self.under_way -= 1
        self._reserved = max(0.0, self._reserved - outcome.need.usd)
        if outcome.billed:
            self.spent += outcome.need.usd if outcome.usd is None else outcome.usd
            self.totals.usd += outcome.usd or 0.0
            self._unpriced += outcome.need.usd if outcome.usd is None else 0.0
        self.totals.kinds[outcome.kind] += bool(outcome.kind)
        if self._tokens is not None and outcome.tokens is not None:
            self._tokens.take(outcome.tokens - outcome.need.tokens)
        if outcome.status == 429:
            self._limited += 1
        elif not outcome.kind:
            self._answered += 1
            self._failures = 0
            if self._budget is not None and outcome.usd is None:
                self.stop("teacher.budget_usd: the endpoint does not say how many tokens it counts, so no budget holds")
        if outcome.headers is not None:
            self._obey(outcome.headers, outcome.need, now)

    def _obey(self, headers: RateHeaders, need: Need, now: float) -> None:
        """The endpoint's own limits, where none is set here; and a pause where nothing is left."""
        if headers.limit_requests and self._own[0] is None:
            self._requests = _at_rate(self._requests, headers.limit_requests / 60, now)
        if headers.limit_tokens and self._own[1] is None:
            self._tokens = _at_rate(self._tokens, headers.limit_tokens / 60, now)
        pauses = [0.0]
        if headers.remaining_requests is not None and headers.remaining_requests < 1:
            pauses.append(headers.reset_requests or 0.0)
        if headers.remaining_tokens is not None and headers.remaining_tokens < need.tokens:
            pauses.append(headers.reset_tokens or 0.0)
        self._paused_until = max(self._paused_until, now + min(max(pauses), MAX_PAUSE_SECONDS))

    def _adapt(self, now: float) -> None:
        """Once a window: slow down to what was answered; or speed up, twofold while far from the rate that was refused
        last, below or above, and by a tenth near it, until the rate binds nobody.

        Refusals come at once and answers late, so attempts under way count as not refused.
        """
        seconds, attempts = now - self._window_began, self._answered + self._limited
        if attempts == 0:
            self._window_began = now
        if seconds < WINDOW_SECONDS or (attempts < WINDOW_ATTEMPTS and seconds < 10 * WINDOW_SECONDS):
            return
        answered = self._answered / seconds
        if self._limited > LIMITED_SHARE * (attempts + self.under_way):
            self._refused_rate = attempts / seconds
            self._adapted = _at_rate(self._adapted, max(LOWEST_RATE, 0.9 * answered), now)
        elif self._adapted is not None:
            rate = self._adapted.per_second
            is_near = self._refused_rate / 2 <= rate <= self._refused_rate * 1.5
            rate *= 1.1 if is_near else 2.0
            unused = rate > 4 * answered + 1
            self._adapted = None if unused else _at_rate(self._adapted, rate, now)
        self._window_began, self._answered, self._limited = now, 0, 0


def _at_rate(bucket: Bucket | None, per_second: float, now: float) -> Bucket:
    if bucket is None:
        return Bucket(per_second, now)
    bucket.wait(now)  # what has passed so far counts at the old rate
    bucket.per_second = per_second
    return bucket


def make_limits(teacher: TeacherSettings, spent_usd: float) -> SharedLimits:
    """The limits of a job. A teacher whose tokens are not paid for has none."""
    paid = teacher if isinstance(teacher, PaidSettings) else PaidSettings()
    return SharedLimits(
        paid.requests_per_minute, paid.tokens_per_minute, paid.budget_usd, spent_usd,
        patience=max(10, teacher.concurrency),
    )  # fmt: skip

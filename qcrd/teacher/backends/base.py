"""The one interface behind which all teachers stand.

A teacher turns one call into raw texts. It knows nothing about parsing, votes, Ray, retries, limits or where replies
are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol


@dataclass(frozen=True)
class Call:
    """Samples `indices` of one question, asked for at once, each with a seed of its own (a server that takes one seed
    for the whole call gets the first). `label` and `facts` serve the simulated teacher alone; `prompt` is what a real
    teacher sees, and the gold label is never in it."""

    question_id: str
    indices: tuple[int, ...]
    prompt: str
    label: str
    facts: str
    seeds: tuple[int, ...]

    def part(self, rows: slice) -> Call:
        """The call for some of its samples."""
        return replace(self, indices=self.indices[rows], seeds=self.seeds[rows])


def as_count(value: Any) -> int | None:
    """A number of tokens, or an HTTP status, as an endpoint gives it; None for what is no int of 31 bits."""
    return value if type(value) is int and 0 <= value < 2**31 else None


@dataclass(frozen=True)
class Reply:
    """What came back for one sample, before anything parses it.

    Token counts are None where the endpoint gives none. Where one call brought several samples, the counts of the
    whole call stand with its first sample and are 0 with the others, so that sums are what was paid.
    """

    text: str
    reasoning: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 1
    batch: bool = False


@dataclass(frozen=True)
class Failure:
    """A sample that could not be had: the row becomes an error row. `status` is the HTTP status, where there is one;
    an answer that was withheld (a content filter) is paid for, and has counts as a `Reply` has."""

    reason: str
    status: int | None
    attempts: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    batch: bool = False


Record = Reply | Failure


@dataclass(frozen=True)
class RateHeaders:
    """What an endpoint says of its limits: requests and tokens a minute, what is left, seconds until it is reset."""

    limit_requests: float | None = None
    limit_tokens: float | None = None
    remaining_requests: float | None = None
    remaining_tokens: float | None = None
    reset_requests: float | None = None
    reset_tokens: float | None = None


class TeacherError(Exception):
    """One call that failed.

    `retryable`: whether asking again may help. `of_endpoint`: whether any other question would have failed alike, as
    with a wrong key or a dead server. `billed`: whether the call may have been paid for all the same.
    """

    def __init__(
        self, reason: str, status: int | None = None, *, retryable: bool = False, of_endpoint: bool = False,
        retry_after: float | None = None, headers: RateHeaders | None = None, billed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.status, self.retryable, self.of_endpoint = status, retryable, of_endpoint
        self.retry_after, self.headers, self.billed = retry_after, headers, billed
        self.attempts = 1


@dataclass(frozen=True)
class Answer:
    """A call's records, in order: at least one, and fewer than asked for where the server does not honour `n`."""

    records: Sequence[Record]
    headers: RateHeaders | None = None


class Teacher(Protocol):
    """Makes one attempt at a call. Raises `TeacherError`, and nothing else, where it fails."""

    async def ask(self, call: Call) -> Answer: ...

    async def close(self) -> None: ...

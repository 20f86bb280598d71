"""The one interface behind which all teachers stand, and what a kind of teacher says of itself (`Backend`).

A teacher turns one call into raw texts. It knows nothing about parsing, votes, Ray, retries, limits or where replies
are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

from qcrd.config import LanguageModelSettings, OpenAITeacherConfig, PaidSettings, TeacherSettings
from qcrd.records import Question
from qcrd.teacher.prompts import Prompts


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


Result = Reply | Failure
"""What a sample came to; the store keeps one for each."""


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

    records: Sequence[Result]
    headers: RateHeaders | None = None


class Teacher(Protocol):
    """Makes one attempt at a call. Raises `TeacherError`, and nothing else, where it fails."""

    async def ask(self, call: Call) -> Answer: ...

    async def close(self) -> None: ...


# -- what a kind of teacher says of itself ------------------------------------------------------------------------


@dataclass(frozen=True)
class ImportedCompletions:
    """Texts by question id, in the file's order; an empty text is a missing one. `matched` counts records by the split
    of their question."""

    by_question_id: dict[str, list[str]]
    records: int
    unmatched: int
    matched: dict[str, int]


C = TypeVar("C", bound=TeacherSettings)


@dataclass(frozen=True, kw_only=True)
class Backend(Generic[C]):
    """One kind of teacher: the entry of its file in the table (table.py). Nothing else asks for a teacher's kind."""

    kind: str
    settings: type[C]
    costs: Literal["per_token", "gpu", "nothing"]
    """What a sample costs: money for each token, time of the job's own GPUs, or nothing. There is no default."""
    simulated: bool
    """Whether no language model said what its samples say: plans, reports and runs then show it."""
    shown: tuple[str, ...]
    """Settings of its own that a report shows, beside those of every kind."""
    asked: str
    """What a plan calls the samples that are missing."""
    name: Callable[[C], str]
    """The teacher's name in reports."""
    identity: Callable[[C, Sequence[str]], dict[str, Any]]
    """Everything but prompt, question and index that changes a reply, given the sequences at which it stops: part of
    every sample's key, so never changed."""
    check: Callable[[C, Prompts], None]
    """Raises `ConfigError` for what can be known to be wrong before the first request."""
    build: Callable[[C, Sequence[str], Mapping[str, Sequence[str]]], Teacher]
    """The teacher, given stop sequences and imported completions. Called on the event loop that will use it; what is
    slow or big is imported here and not before."""
    samples_per_request: Callable[[C], int | None] = lambda config: 1
    """Samples of a call; None: only the endpoint can tell."""
    endpoint: Callable[[C], OpenAITeacherConfig | None] = lambda config: None
    """The settings of an endpoint that the first call of a job has to reach before all others; None: there is none."""
    completions: Callable[[C, Sequence[Question]], ImportedCompletions] | None = None
    """Reads what `build` is given, by question, where the kind asks nobody and has what somebody was told."""
    gpus: Callable[[C], int] = lambda config: 0
    """GPUs of each actor."""
    variables: Callable[[C], dict[str, str]] = lambda config: {}
    """Environment variables that the nodes need: name → what for."""
    key_file: Callable[[C], str | None] = lambda config: None
    """File of the nodes that holds a key."""

    def __post_init__(self) -> None:
        if (self.costs == "per_token") != issubclass(self.settings, PaidSettings):
            raise TypeError(
                f"backend {self.kind}: costs = {self.costs!r} does not go with {self.settings.__name__}; tokens that "
                "are paid have prices and a budget (PaidSettings), others have none"
            )
        if unknown := [name for name in self.shown if name not in self.settings.model_fields]:
            raise TypeError(f"backend {self.kind}: shown names {unknown[0]!r}, which its settings do not have")


def language_model_identity(kind: str, config: LanguageModelSettings, stop: Sequence[str]) -> dict[str, Any]:
    """`Backend.identity` of a language model. `base_url` is not in it: one model served from two addresses is one."""
    settings = {
        "kind": kind,
        "model": config.model,
        "api": config.api,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "stop": list(stop),
        "seed": config.seed,
    }
    return settings | ({"extra_body": config.extra_body} if config.extra_body else {})

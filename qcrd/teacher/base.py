"""The one interface behind which all teachers stand.

A teacher turns a request into raw text. It knows nothing about parsing, votes, Ray or where replies are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SampleRequest:
    """One question asked once. `question`, `label` and `facts` serve the simulated teacher alone; `prompt` is what a
    real teacher sees, and the gold label is never in it."""

    key: str
    question_id: str
    index: int
    prompt: str
    question: str
    label: str
    facts: str
    seed: int


@dataclass(frozen=True)
class Reply:
    """What came back, before anything parses it. Token counts are None where the endpoint gives none."""

    text: str
    reasoning: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 1


class TeacherError(Exception):
    """A request that failed for good: the row becomes an error row with this reason."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.attempts = attempts


class Teacher(Protocol):
    """Asks for one completion. Raises `TeacherError`, and nothing else, for a request that fails."""

    async def ask(self, request: SampleRequest) -> Reply: ...

    async def close(self) -> None: ...

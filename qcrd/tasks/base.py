"""What a task (a benchmark) offers: questions, a few-shot prompt, the reading of an answer, when one is right.

A task is a module with these names (`tasks/svamp.py`); `tasks/__init__.py` lists them. Nothing outside `tasks/` and
`experiments/` knows a benchmark by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qcrd.records import Question


@dataclass(frozen=True)
class ParsedSample:
    """A completion, read: the reasoning before the answer phrase, the label text, and its canonical answer."""

    rationale: str
    label: str
    answer: str


Parser = Callable[[str, Question], ParsedSample | None]
"""Reads a raw completion to a question; None where it has no answer."""


class Task(Protocol):
    """The interface of a task module."""

    NAME: str
    STOP: tuple[str, ...]
    """Sequences at which the teacher stops: the marker of a next question."""
    ANSWER_PHRASE: str
    """What every few-shot example of the prompt says before its answer."""
    PROMPT: Path
    """The task's own few-shot prompt."""
    SIMULATED: bool
    """Whether questions carry the facts that the simulated teacher needs."""
    PARSERS: Mapping[str, Parser]
    """Further ways to read a completion, for `teacher.parser`; `task` is `parse`."""

    @staticmethod
    def format_prompt(few_shot: str, question: str) -> str:
        """The text that the teacher completes."""
        ...

    @staticmethod
    def sizes(config: Any) -> dict[str, int]:
        """Questions per split before `train_limit`: the published sizes, or those of the partial file that is used.

        Reads and downloads nothing.
        """
        ...

    @staticmethod
    def has_gold_labels(config: Any) -> bool:
        """Whether the training questions have gold labels; where not, their label and answer are empty."""
        ...

    @staticmethod
    def check(config: Any) -> None:
        """Raise `ConfigError` that names the field where the task's file is missing or a setting cannot be.

        Reads and downloads nothing.
        """
        ...

    @staticmethod
    def source(config: Any) -> dict[str, str]:
        """What decides the questions' content: {name: sha256 or pinned revision}. Downloads nothing."""
        ...

    @staticmethod
    def load(config: Any) -> list[Question]:
        """All questions of all splits, in a fixed order, before `train_limit`."""
        ...

    @staticmethod
    def parse(text: str, question: Question) -> ParsedSample | None:
        """Read a raw completion to this question; None where it has no answer."""
        ...

    @staticmethod
    def answer_of(label: str) -> str | None:
        """Canonical answer of a label text (gold or predicted); None where it is not one."""
        ...

    @staticmethod
    def is_right(label: str, question: Question) -> bool:
        """Whether a predicted label text is right."""
        ...

    @staticmethod
    def states_answer(text: str, answer: str) -> bool:
        """Whether a rationale states this canonical answer (negatives that do are no longer wrong)."""
        ...

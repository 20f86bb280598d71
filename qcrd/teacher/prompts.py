"""How a question becomes a request: what a task, or the LLM judge, hands to the sampling.

Knows nothing about who is asked or where replies are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qcrd.config import ConfigError
from qcrd.tasks.base import Task


@dataclass(frozen=True)
class Prompts:
    """`format(template, question)` is the text that the teacher completes. It travels to Ray's actors."""

    name: str
    """Part of every sample's key: the task's name, or `judge` for the LLM judge."""
    template: str
    """The few-shot examples, as text."""
    path: Path
    """Where the template was read."""
    answer_phrase: str
    """What every example of the template says before its answer."""
    stop: tuple[str, ...]
    """Sequences at which the teacher stops: the marker of a next question."""
    format: Callable[[str, str], str]
    has_facts: bool = False
    """Whether questions carry the facts that the simulated teacher needs."""

    def prompt(self, question: str) -> str:
        """The request for a question's text."""
        return self.format(self.template, question)


def task_prompts(task: Task, path: str | None) -> Prompts:
    """A task's prompts, with the template in the file `path` (`teacher.prompt`); None: the task's own.

    Raises `ConfigError` where the file is missing, or no text.
    """
    source = Path(path) if path else task.PROMPT
    return Prompts(
        task.NAME, read_template(source), source, task.ANSWER_PHRASE, task.STOP, task.format_prompt, task.SIMULATED
    )


def read_template(path: Path) -> str:
    """The few-shot examples as text. Raises `ConfigError` where the file is missing, or no text."""
    if not path.is_file():
        raise ConfigError(f"teacher.prompt: '{path}' does not exist; give a file of few-shot examples")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"teacher.prompt: '{path}' is not UTF-8: {error}") from None

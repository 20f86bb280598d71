"""Named ways to read a completion, for teachers who do not keep to the task's answer phrase (`teacher.parser`).

Knows nothing about teachers or where completions come from. The default, `task`, is the task's own `parse`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qcrd.config import ConfigError
from qcrd.tasks.base import ParsedSample, Task
from qcrd.tasks.equations import answer_of
from qcrd.tasks.equations import last_number as last_number_in

Parser = Callable[[str], ParsedSample | None]

# A full stop inside 3.5 is followed by no space, so it ends no sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def last_number(text: str) -> ParsedSample | None:
    """Free text without an answer phrase: the answer is the last number of the last sentence.

    The whole text is the rationale, since no part of it can be told apart as the answer. None where the last
    sentence has no number, which is how chat models say that a problem cannot be solved.
    """
    rationale = text.strip()
    label = last_number_in(_SENTENCE_END.split(rationale)[-1])
    answer = None if label is None else answer_of(label)
    if label is None or answer is None:
        return None
    return ParsedSample(rationale=rationale, label=label, answer=answer)


PARSERS: dict[str, Parser] = {"last_number": last_number}


def get_parser(name: str, task: Task) -> Parser:
    """The parser that `teacher.parser` names. Raises `ConfigError`."""
    if name == "task":
        return task.parse
    if name not in PARSERS:
        raise ConfigError(f"teacher.parser: {name!r} is not allowed; the parsers are {', '.join(['task', *PARSERS])}")
    return PARSERS[name]

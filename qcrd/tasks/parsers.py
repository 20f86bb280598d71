"""Named ways to read a completion, for teachers who do not keep to the task's answer phrase (`teacher.parser`).

Knows nothing about teachers or where completions come from. A task lists those that fit its answers in `PARSERS`; the
default, `task`, is its own `parse`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qcrd.config import ConfigError
from qcrd.records import Question
from qcrd.tasks.base import ParsedSample, Parser, Task
from qcrd.tasks.equations import answer_of
from qcrd.tasks.equations import last_number as last_number_in

# A full stop inside 3.5 is followed by no space, so it ends no sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SENTENCE_OR_LINE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_NUMBERING = re.compile(r"^[ \t]*[0-9]+\.[ \t]+", re.MULTILINE)
# About 256 tokens, the longest target: of 8,000 Bing replies to CQA and e-SNLI the two limits differ in 6.
MAX_WORDS = 190

Finder = Callable[[str, Question], tuple[re.Match[str], str, str] | None]
"""Where a text first names an answer: the match, the label and the canonical answer."""


def last_number(text: str, question: Question) -> ParsedSample | None:
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


def first_answer(find: Finder) -> Parser:
    """A parser of chat replies that answer first and then give reasons: `1. The answer is **(D) x**. This is …`.

    The answer is the first that `find` sees. Everything up to the end of its sentence gives it away, so the rationale
    is what follows. Numbering, `**` and what stands before the number (the end of another reply) are cut. None for
    replies with two numbered answers or more than `MAX_WORDS` words, and where there is no answer.
    """

    def parse(text: str, question: Question) -> ParsedSample | None:
        numberings = list(_NUMBERING.finditer(text))
        own = text[numberings[0].end() :] if numberings else text
        own = own.replace("**", "").strip()
        if len(numberings) > 1 or len(own.split()) > MAX_WORDS:
            return None
        found = find(own, question)
        if found is None:
            return None
        match, label, answer = found
        end = _SENTENCE_OR_LINE_END.search(own, match.end())
        return ParsedSample(rationale=own[end.end() :].strip() if end else "", label=label, answer=answer)

    return parse


def get_parser(name: str, task: Task) -> Parser:
    """The parser that `teacher.parser` names. Raises `ConfigError`."""
    parsers = {"task": task.parse, **task.PARSERS}
    if name not in parsers:
        allowed = ", ".join(parsers)
        raise ConfigError(f"teacher.parser: {name!r} is not allowed; the parsers of {task.NAME} are {allowed}")
    return parsers[name]

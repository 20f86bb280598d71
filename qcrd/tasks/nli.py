"""Natural language inference: does a premise entail a hypothesis, contradict it, or neither? Shared by its benchmarks.

A question's text is premise + `SEPARATOR` + hypothesis, its label one of three class words, which is also the canonical
answer. Knows nothing about files. Method §2 (answer phrase), §4 (input) and §8 (exact match).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qcrd.records import SEPARATOR, Question
from qcrd.tasks.base import ParsedSample, Parser
from qcrd.tasks.parsers import first_answer
from qcrd.tasks.reading import PHRASE, split_completion
from qcrd.tasks.sources import text_of

CLASSES = ("entailment", "neutral", "contradiction")
"""In the order of the numbers that the benchmarks' files have for them."""

ANSWER_PHRASE: str = "So the answer is"
SIMULATED: bool = False
STOP: tuple[str, ...] = ("\nPremise:",)

# PaLM's e-SNLI completions end with a line `Answer: neutral`.
_PHRASE = re.compile(rf"{PHRASE.pattern}|^[ \t]*answer:", re.IGNORECASE | re.MULTILINE)
_CLASS = re.compile(rf"\b(?:{'|'.join(CLASSES)})\b", re.IGNORECASE)
_ANSWER = re.compile(rf"[\s*\"'(]*({'|'.join(CLASSES)})\b", re.IGNORECASE)
# How a rationale says it, unless it says the opposite: "does not contradict", "neither entails nor …".
_STATED = {
    name: re.compile(rf"(?<!\bnot )(?<!n't )(?<!\bneither )(?<!\bnor )\b{stem}", re.IGNORECASE)
    for name, stem in zip(CLASSES, ("entail", "neutral", "contradict"), strict=True)
}


def class_of(row: Mapping[str, Any]) -> str:
    """The class word of a file's row, whose `label` is a number or the word. Raises `ValueError`."""
    label = row.get("label")
    if isinstance(label, int) and 0 <= label < len(CLASSES):
        return CLASSES[label]
    if label in CLASSES:
        return str(label)
    raise ValueError(f"its label is {label!r}, not one of 0, 1, 2, {', '.join(CLASSES)}")


def pair_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Premise and hypothesis of a file's row. Raises `ValueError`."""
    return text_of(row, "premise"), text_of(row, "hypothesis")


def question_of(question_id: str, split: str, premise: str, hypothesis: str, label: str) -> Question:
    """One question."""
    return Question(question_id, split, f"{premise}{SEPARATOR}{hypothesis}", label, label)


def format_prompt(few_shot: str, question: str) -> str:
    """The few-shot examples, then this question, each part on one line."""
    premise, hypothesis = (" ".join(part.split()) for part in question.split(SEPARATOR, 1))
    return f"{few_shot.rstrip()}\n\nPremise: {premise}\nHypothesis: {hypothesis}\nAnswer:"


def answer_of(label: str) -> str | None:
    """The class that a label text names; None where it is not exactly one."""
    return label.strip() if label.strip() in CLASSES else None


def is_right(label: str, question: Question) -> bool:
    """Whether a label is the question's, but for white space."""
    return label.strip() == question.label


def states_answer(text: str, answer: str) -> bool:
    """Whether a rationale names this class, also as a verb ("entails"), without denying it in the word before."""
    return _STATED[answer].search(text) is not None


def parse(text: str, question: Question) -> ParsedSample | None:
    """Read a completion `<reasoning> So the answer is neutral.`; None where no class follows the last phrase."""
    parts = split_completion(text, STOP[0], _PHRASE)
    match = None if parts is None else _ANSWER.match(parts[1])
    if parts is None or match is None:
        return None
    label = match[1].lower()
    return ParsedSample(rationale=parts[0], label=label, answer=label)


def _first_class(text: str, question: Question) -> tuple[re.Match[str], str, str] | None:
    match = _CLASS.search(text)
    return None if match is None else (match, match[0].lower(), match[0].lower())


PARSERS: Mapping[str, Parser] = {"first_answer": first_answer(_first_class)}

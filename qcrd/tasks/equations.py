"""Arithmetic labels: a safe evaluator, canonical numbers, and the reading of `The answer is ( 8.0 + 3.0 ).`

Shared by the tasks whose label is an equation. The text comes from language models, so it is untrusted: it is
tokenised and parsed here by hand, never evaluated as code. Knows nothing about files, prompts or any one benchmark.
Method §2 (answer phrase) and §8 (equality within 1e-6).
"""

from __future__ import annotations

import functools
import math
import re

from qcrd.records import Question
from qcrd.tasks.base import ParsedSample
from qcrd.tasks.reading import split_completion

ANSWER_PHRASE: str = "The answer is"
NEXT_QUESTION = "Q:"
MAX_LENGTH = 200
MAX_DEPTH = 32
# Beyond this, floats no longer hold every whole number, so "equal within 1e-6" would mean nothing.
MAX_VALUE = 1e15
TOLERANCE = 1e-6

# [0-9], not \d: Unicode has hundreds of other digits, which are not numbers here.
_NUMBER = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_TOKEN = re.compile(rf"({_NUMBER.pattern})|([-+*/()x×÷−])")
_SAME_OPERATOR = {"x": "*", "×": "*", "÷": "/", "−": "-"}


class _Unreadable(Exception):
    """The text is not an arithmetic expression."""


def _tokens(text: str) -> list[str | float]:
    found: list[str | float] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Unreadable
        number, operator = match.groups()
        found.append(float(number.replace(",", "")) if number else _SAME_OPERATOR.get(operator, operator))
        position = match.end()
    return found


class _Parser:
    """Recursive descent over sum = product (+|- product)*, product = factor (*|/ factor)*."""

    def __init__(self, tokens: list[str | float]) -> None:
        self.tokens = tokens
        self.position = 0

    def peek(self) -> str | float | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> str | float | None:
        token = self.peek()
        self.position += 1
        return token

    def sum(self, depth: int) -> float:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            if self.take() == "+":
                value += self.product(depth)
            else:
                value -= self.product(depth)
        return value

    def product(self, depth: int) -> float:
        value = self.factor(depth)
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.factor(depth)
            else:
                divisor = self.factor(depth)
                if divisor == 0:
                    raise _Unreadable
                value /= divisor
        return value

    def factor(self, depth: int) -> float:
        if depth > MAX_DEPTH:
            raise _Unreadable
        token = self.take()
        if isinstance(token, float):
            return token
        if token == "-":
            return -self.factor(depth + 1)
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() == ")":
                return value
        raise _Unreadable


def evaluate(text: str) -> float | None:
    """The value of an arithmetic expression, or None where the text is not exactly one.

    + - * / (also x × ÷), parentheses, unary minus, decimals, commas in thousands. No exponents, no names. None also
    for over 200 characters, nesting deeper than 32, division by zero, and values beyond ±1e15.
    """
    return None if len(text) > MAX_LENGTH else _value(text)


@functools.lru_cache(maxsize=65536)  # the simulated teacher asks for the same few over and over
def _value(text: str) -> float | None:
    try:
        parser = _Parser(_tokens(text))
        value = parser.sum(0)
    except _Unreadable:
        return None
    if parser.peek() is not None or not math.isfinite(value) or abs(value) > MAX_VALUE:
        return None
    return value


def canonical_number(value: float) -> str:
    """One spelling for one number: at most six decimals, no trailing zeros, no minus zero."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def answer_of(label: str) -> str | None:
    """The canonical answer of an equation or number; None where it is neither."""
    value = evaluate(label)
    return None if value is None else canonical_number(value)


def is_right(label: str, question: Question) -> bool:
    """Whether a label's value is the question's answer within 1e-6."""
    value = evaluate(label)
    return value is not None and abs(value - float(question.answer)) <= TOLERANCE


def last_number(text: str) -> str | None:
    """The last number in a text, as written."""
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def states_answer(text: str, answer: str) -> bool:
    """Whether any number in a rationale is this answer."""
    return any(answer_of(number) == answer for number in _NUMBER.findall(text))


def parse(text: str, question: Question) -> ParsedSample | None:
    """Read a completion `<reasoning> The answer is <equation or number>.`; None where it has no readable answer.

    The last answer phrase counts. After it there must be one complete expression up to the end of the line; the label
    keeps the teacher's spelling.
    """
    parts = split_completion(text, NEXT_QUESTION)
    if parts is None:
        return None
    label = parts[1].strip().split("\n", 1)[0].strip().removesuffix(".").rstrip()
    answer = answer_of(label)
    if answer is None:
        return None
    return ParsedSample(rationale=parts[0], label=label, answer=answer)

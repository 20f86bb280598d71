"""A generated benchmark: word problems of one to three steps, for runs without any data, network or licence.

Its labels are SVAMP's equations, "( ( 8 + 3 ) * 2 )", but whole numbers are written without ".0", so that one number
can be one token of a small vocabulary. No problem occurs twice, in one split or in two, even with names and objects
blanked. Knows nothing about who answers the questions; `Question.facts` says how each was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcrd.config import ConfigError, GeneratedTaskConfig
from qcrd.records import Question
from qcrd.seeding import generator
from qcrd.tasks.base import Parser
from qcrd.tasks.equations import ANSWER_PHRASE, answer_of, is_right, parse, states_answer
from qcrd.tasks.parsers import last_number
from qcrd.tasks.stories import DISTRACTORS, EVENTS, NAMES, OBJECTS, QUESTIONS, STARTS, STORIES

__all__ = [
    "ANSWER_PHRASE",
    "NAME",
    "PARSERS",
    "PROMPT",
    "SIMULATED",
    "STOP",
    "answer_of",
    "capacity",
    "check",
    "format_prompt",
    "has_gold_labels",
    "is_right",
    "load",
    "parse",
    "problem_key",
    "sizes",
    "source",
    "states_answer",
]

NAME: str = "arithmetic"
SIMULATED: bool = True
STOP: tuple[str, ...] = ("\nQ:",)
PROMPT = Path(__file__).parent / "prompts" / "arithmetic.txt"
PARSERS: Mapping[str, Parser] = {"last_number": last_number}

OPERATORS = "+-*/"
DISTRACTOR_SHARE = 0.3
# Smaller operands read badly ("1 apples", "2 times as many" is the least that multiplies).
SMALLEST = 2

_NAME_WORD = re.compile(rf"\b(?:{'|'.join(NAMES)})\b")
_OBJECT_WORD = re.compile(rf"\b(?:{'|'.join(OBJECTS)})\b")


@dataclass(frozen=True)
class Step:
    """One operation. `left` is the result of the step before."""

    op: str
    left: int
    right: int
    result: int


def sizes(config: GeneratedTaskConfig) -> dict[str, int]:
    """As the settings say."""
    return {"train": config.train_size, "validation": config.validation_size, "test": config.test_size}


def has_gold_labels(config: GeneratedTaskConfig) -> bool:
    """Always."""
    return True


def check(config: GeneratedTaskConfig) -> None:
    """Raise `ConfigError` where more problems are asked for than there are.

    Only half of all different problems may be asked for, so that drawing new ones stays quick.
    """
    wanted = sizes(config)
    held_out = wanted["validation"] + wanted["test"]
    allowed = capacity(config) // 2
    if wanted["train"] + held_out > allowed:
        raise ConfigError(
            f"task.train_size: {wanted['train']} is not allowed; with these steps and numbers there can be "
            f"{allowed} problems in all, of which validation and test take {held_out}"
        )


def source(config: GeneratedTaskConfig) -> dict[str, str]:
    """No files: the settings decide everything."""
    return {}


def load(config: GeneratedTaskConfig) -> list[Question]:
    """The generated questions: train, validation, test.

    The test split is drawn first and the training split last, so a larger training split changes neither of the others.
    """
    check(config)
    taken: set[str] = set()
    made: dict[str, list[Question]] = {}
    for split in ("test", "validation", "train"):
        made[split] = _split(config, split, taken)
    return [*made["train"], *made["validation"], *made["test"]]


def format_prompt(few_shot: str, question: str) -> str:
    """The few-shot examples, then this question."""
    return f"{few_shot.rstrip()}\n\nQ: {question}\nA:"


def problem_key(question: Question) -> str:
    """The problem without names and objects: two questions with one key differ in nothing that matters."""
    return _OBJECT_WORD.sub("OBJECT", _NAME_WORD.sub("NAME", question.text))


def largest_result(max_number: int) -> int:
    """Bound on every intermediate result, so that products stay about as long as the numbers of the text."""
    return max(100, 5 * max_number)


def _right_operands(op: str, left: int, max_number: int) -> range | list[int]:
    """The numbers that may follow `left op`: results are whole, at least 1 (division: 2) and not too large."""
    largest = largest_result(max_number)
    if op == "+":
        return range(SMALLEST, min(max_number, largest - left) + 1)
    if op == "-":
        return range(SMALLEST, min(max_number, left - 1) + 1)
    if op == "*":
        return range(SMALLEST, min(max_number, largest // left) + 1)
    return [right for right in range(SMALLEST, min(max_number, left // 2) + 1) if left % right == 0]


def _apply(op: str, left: int, right: int) -> int:
    """The result of one step; the division must be exact."""
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    if op == "*":
        return left * right
    return left // right


def capacity(config: GeneratedTaskConfig) -> int:
    """How many different problems (by `problem_key`) these settings allow."""
    largest, numbers = largest_result(config.max_number), config.max_number - SMALLEST + 1
    # Per story: none, or one of the distractors with one of the numbers in one of two places.
    dressings = 1 + 2 * len(DISTRACTORS) * numbers
    start = np.zeros(largest + 1, dtype=object)
    start[SMALLEST : config.max_number + 1] = 1
    total = 0
    if config.min_steps == 1:
        total += sum(int(_after(start, op, config.max_number).sum()) * 2 * len(STORIES[op]) for op in OPERATORS)
    ways = start * (len(STARTS) * len(QUESTIONS))
    for steps in range(1, config.max_steps + 1):
        ways = sum((_after(ways, op, config.max_number) * len(EVENTS[op]) for op in OPERATORS), np.zeros_like(start))
        if steps >= max(2, config.min_steps):
            total += int(ways.sum())
    return total * dressings


def _after(ways: np.ndarray, op: str, max_number: int) -> np.ndarray:
    """In how many ways each value is reached by one more step, from the ways of the values before it."""
    reached = np.zeros_like(ways)
    last = len(ways) - 1
    for right in range(SMALLEST, max_number + 1):
        if op == "+":
            reached[right:] += ways[: last + 1 - right]
        elif op == "-":
            reached[1 : last + 1 - right] += ways[1 + right :]
        elif op == "*":
            top = last // right
            reached[right : top * right + 1 : right] += ways[1 : top + 1]
        else:
            top = last // right
            reached[2 : top + 1] += ways[2 * right : top * right + 1 : right]
    return reached


def _split(config: GeneratedTaskConfig, split: str, taken: set[str]) -> list[Question]:
    """One split; its keys are added to `taken`."""
    rng = generator(config.seed, NAME, split)
    made: list[Question] = []
    while len(made) < sizes(config)[split]:
        question = _draw(rng, config, split, len(made))
        key = problem_key(question)
        if key not in taken:
            taken.add(key)
            made.append(question)
    return made


def _draw(rng: np.random.Generator, config: GeneratedTaskConfig, split: str, number: int) -> Question:
    """One problem, not yet checked against the others."""
    count = int(rng.integers(config.min_steps, config.max_steps + 1))
    steps = _draw_steps(rng, count, config.max_number)
    who, friend = (NAMES[row] for row in rng.choice(len(NAMES), size=2, replace=False))
    obj, obj2 = (OBJECTS[row] for row in rng.choice(len(OBJECTS), size=2, replace=False))
    slots = {"who": who, "friend": friend, "obj": obj, "obj2": obj2}
    if count == 1:
        story = STORIES[steps[0].op][rng.integers(len(STORIES[steps[0].op]))]
        operands = {"a": steps[0].left, "b": steps[0].right}
        body = story.body.format(**slots, **operands)
        asked = story.questions[rng.integers(2)].format(**slots, **operands)
        unit = story.unit or obj
    else:
        sentences = [STARTS[rng.integers(len(STARTS))].format(**slots, a=steps[0].left)]
        for step in steps:
            sentences.append(EVENTS[step.op][rng.integers(len(EVENTS[step.op]))].format(**slots, b=step.right))
        body = " ".join(sentences)
        asked = QUESTIONS[rng.integers(len(QUESTIONS))].format(**slots)
        unit = obj
    if rng.random() < DISTRACTOR_SHARE:
        unused = int(rng.integers(SMALLEST, config.max_number + 1))
        extra = DISTRACTORS[rng.integers(len(DISTRACTORS))].format(**slots, d=unused)
        body = f"{extra} {body}" if rng.random() < 0.5 else f"{body} {extra}"
    text = f"{body}\n{asked}"
    label = str(steps[0].left)
    for step in steps:
        label = f"( {label} {step.op} {step.right} )"
    facts = {
        "who": who,
        "object": unit,
        "steps": [vars(step) for step in steps],
        "numbers": [int(digits) for digits in re.findall(r"[0-9]+", text)],
    }
    return Question(
        id=f"{NAME}-{split}-{number:06d}",
        split=split,
        text=text,
        label=label,
        answer=str(steps[-1].result),
        facts=json.dumps(facts),
    )


def _draw_steps(rng: np.random.Generator, count: int, max_number: int) -> list[Step]:
    """A chain of operations. Operators are drawn first, so that each is frequent although few divisions are exact."""
    operators = [OPERATORS[rng.integers(len(OPERATORS))] for _ in range(count)]
    while True:
        left = int(rng.integers(SMALLEST, max_number + 1))
        steps: list[Step] = []
        for op in operators:
            allowed = _right_operands(op, left, max_number)
            if not allowed:
                break
            right = allowed[int(rng.integers(len(allowed)))]
            steps.append(Step(op, left, right, _apply(op, left, right)))
            left = steps[-1].result
        if len(steps) == count:
            return steps

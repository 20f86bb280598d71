"""The offline teacher: writes chains of thought for generated arithmetic questions. It is simulated, and says so.

It stands in for a language model where there is no network and no key, so that every stage runs as it would with one.
It varies its wording and makes three kinds of mistakes at a chosen rate. Knows nothing about votes or students, and
of a question only `facts`: {"who", "object", "steps": [{"op", "left", "right", "result"}], "numbers"}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcrd.config import ConfigError, SimulatedTeacherConfig
from qcrd.seeding import generator
from qcrd.tasks.equations import evaluate
from qcrd.teacher.backends.base import Answer, Backend, Call, Reply, TeacherError
from qcrd.teacher.prompts import Prompts

MODEL = "simulated"
MISTAKES = ("operator", "slip", "quantity")
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)

PHRASES: dict[str, tuple[str, ...]] = {
    "+": (
        "We add {right} to {left} and get {left} + {right} = {result} {object}.",
        "{left} and {right} together make {left} + {right} = {result} {object}.",
        "For {who} we count {left} + {right} = {result} {object} in all.",
        "The two numbers belong together, so we have {left} + {right} = {result}.",
    ),
    "-": (
        "We take {right} away from {left} and get {left} - {right} = {result} {object}.",
        "From {left} without {right} we have {left} - {right} = {result} {object} left.",
        "For {who} the difference is {left} - {right} = {result} {object}.",
        "The number gets smaller by {right}, so we have {left} - {right} = {result}.",
    ),
    "*": (
        "There are {left} times {right}, which makes {left} * {right} = {result} {object}.",
        "We multiply {left} by {right} and get {left} * {right} = {result} {object}.",
        "For {who} we count {left} * {right} = {result} {object} in all.",
        "The same number comes many times, so we have {left} * {right} = {result}.",
    ),
    "/": (
        "We share {left} in {right} equal parts and get {left} / {right} = {result} {object}.",
        "{left} split by {right} makes {left} / {right} = {result} {object}.",
        "For {who} each part has {left} / {right} = {result} {object}.",
        "All parts are equal, so we have {left} / {right} = {result}.",
    ),
}
ENDINGS = ("The answer is {label}.", "So the answer is {label}.")


@dataclass(frozen=True)
class Solution:
    """Steps as (operator, left, right, result), the label that the teacher states, and the mistake ("" if none)."""

    steps: tuple[tuple[str, int, int, int], ...]
    label: str
    mistake: str


class SimulatedTeacher:
    """A teacher (base.py) that is wrong with probability `error_rate`, independently for each sample."""

    def __init__(self, error_rate: float) -> None:
        self.error_rate = error_rate

    async def ask(self, call: Call) -> Answer:
        """Completions, decided by each one's seed, question and index alone."""
        if not call.facts:
            raise TeacherError(
                f"teacher.kind: the simulated teacher answers generated tasks only; {call.question_id} has no facts"
            )
        texts = (self.write(call, row) for row in range(len(call.indices)))
        return Answer([Reply(text=text, finish_reason="stop") for text in texts])

    async def close(self) -> None:
        """Nothing to close."""

    def write(self, call: Call, row: int = 0) -> str:
        """The text of the call's sample number `row`."""
        facts = json.loads(call.facts)
        rng = generator(call.seeds[row], MODEL, call.question_id, call.indices[row])
        right = solve(facts)
        solution = right
        if rng.random() < self.error_rate:
            wrong = mistakes(facts)
            kinds = [kind for kind in MISTAKES if wrong[kind]]
            kind = kinds[rng.integers(len(kinds))]
            solution = wrong[kind][rng.integers(len(wrong[kind]))]
        sentences = [
            _pick(rng, PHRASES[op]).format(
                left=left, right=operand, result=result, who=facts["who"], object=facts["object"]
            )
            for op, left, operand, result in solution.steps
        ]
        return " ".join([*sentences, _pick(rng, ENDINGS).format(label=solution.label)])


def solve(facts: dict[str, Any]) -> Solution:
    """The right way."""
    solution = _follow(facts["steps"][0]["left"], _operations(facts), "")
    assert solution is not None, facts
    return solution


def mistakes(facts: dict[str, Any]) -> dict[str, list[Solution]]:
    """Every believable wrong solution, by kind; each states a wrong answer. There is always a slip."""
    start, operations = facts["steps"][0]["left"], _operations(facts)
    gold = evaluate(solve(facts).label)
    found: dict[str, list[Solution | None]] = {kind: [] for kind in MISTAKES}
    for position, (op, operand) in enumerate(operations):
        for other in "+-*/":
            if other != op:
                found["operator"].append(_follow(start, _replaced(operations, position, (other, operand)), "operator"))
        for number in facts["numbers"]:
            if number != operand:
                found["quantity"].append(_follow(start, _replaced(operations, position, (op, number)), "quantity"))
        found["slip"] += [_slipped(start, operations, position, off) for off in SLIPS]
    found["quantity"] += [_follow(number, operations, "quantity") for number in facts["numbers"] if number != start]
    # A wrong way to the right answer ("2 * 2" for "2 + 2") is no wrong sample: what counts is the answer.
    return {
        kind: [solution for solution in solutions if solution is not None and evaluate(solution.label) != gold]
        for kind, solutions in found.items()
    }


def _pick(rng: np.random.Generator, phrases: tuple[str, ...]) -> str:
    return phrases[rng.integers(len(phrases))]


def _operations(facts: dict[str, Any]) -> list[tuple[str, int]]:
    return [(step["op"], step["right"]) for step in facts["steps"]]


def _replaced(operations: list[tuple[str, int]], position: int, new: tuple[str, int]) -> list[tuple[str, int]]:
    return [*operations[:position], new, *operations[position + 1 :]]


def _follow(start: int, operations: list[tuple[str, int]], mistake: str) -> Solution | None:
    """Calculate step by step; None where a result is no whole number from 0 up, which nobody would write down."""
    value, label = start, str(start)
    steps: list[tuple[str, int, int, int]] = []
    for op, operand in operations:
        result = evaluate(f"{value} {op} {operand}")
        if result is None or result < 0 or not result.is_integer():
            return None
        steps.append((op, value, operand, int(result)))
        label = f"( {label} {op} {operand} )"
        value = int(result)
    return Solution(tuple(steps), label, mistake)


def _slipped(start: int, operations: list[tuple[str, int]], position: int, off: int) -> Solution | None:
    """The result of one step is off by `off`, and what follows goes on from it.

    The equation of the question would hide the slip, for it still evaluates to the right answer. So the label holds
    only what comes after the slip: the wrong number itself, or the later steps on it.
    """
    before = _follow(start, operations[: position + 1], "slip")
    if before is None or before.steps[-1][3] + off < 0:
        return None
    op, left, operand, result = before.steps[-1]
    after = _follow(result + off, operations[position + 1 :], "slip")
    if after is None:
        return None
    steps = (*before.steps[:-1], (op, left, operand, result + off), *after.steps)
    return Solution(steps, after.label, "slip")


def _check(config: SimulatedTeacherConfig, prompts: Prompts) -> None:
    if not prompts.has_facts:
        raise ConfigError(
            f"teacher.kind: 'simulated' is not allowed for task {prompts.name}: its questions are not made"
        )


BACKEND = Backend(
    kind="simulated",
    settings=SimulatedTeacherConfig,
    costs="nothing",
    simulated=True,
    shown=("error_rate",),
    asked="simulated replies",
    name=lambda config: "simulated",
    identity=lambda config, stop: {"kind": "simulated", "error_rate": config.error_rate, "seed": config.seed},
    check=_check,
    build=lambda config, stop, completions: SimulatedTeacher(config.error_rate),
)

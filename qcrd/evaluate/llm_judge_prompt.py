"""What an LLM judge is asked about a pair of rationales, and how its reply is read (the paper's Table 7, appendix A.2).

The criterion is the paper's in our words (llm_judge.txt): the more accurate rationale, which better explains the
answer. Each pair is asked about in both orders; a verdict that flips with the order is a tie. Rationales are untrusted
text: they are shown as quoted lines, which no text can leave. Knows nothing about which method wrote what, nor how a
reply is got.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qcrd.config import ConfigError
from qcrd.records import SEPARATOR, Explanation, Question
from qcrd.tasks.base import Task
from qcrd.teacher.prompts import Prompts, read_template

NAME = "judge"
"""What stands for a task in the keys of verdicts; it never changes."""
PROMPT = Path(__file__).with_name("llm_judge.txt")
SIMULATED_NAME = "simulated judge (a rule: the rationale that states the right answer is better)"

Verdict = Literal["first", "tie", "second"]
_FIELD = re.compile(r"\{(\w+)\}")
_VERDICT = re.compile(r"^\W*verdict\W*:\W*(a|b|tie)\W*$", re.IGNORECASE)


def llm_judge_prompts(path: str | None) -> Prompts:
    """How the LLM judge is asked, with the template in the file `path` (`llm_judge.prompt`); None: our own.

    Raises `ConfigError` where the file is missing, or no text.
    """
    source = Path(path) if path else PROMPT
    return Prompts(NAME, read_template(source), source, answer_phrase="Verdict:", stop=(), format=_whole_request)


def _whole_request(template: str, question: str) -> str:
    """What the sampling takes for the question is the request with the pair in it."""
    return question


@dataclass(frozen=True)
class Pair:
    """Two rationales to one question."""

    question: Question
    first: str
    second: str


@dataclass(frozen=True)
class JudgedPair:
    """The verdicts on one pair, None where the reply could not be read, and the two replies: `forward` is that to the
    first rationale as A, `backward` that to it as B."""

    question_id: str
    verdict: str | None
    forward: str | None
    backward: str | None
    forward_reply: str
    backward_reply: str


@dataclass(frozen=True)
class ComparisonResult:
    """An LLM judge's verdicts on one column at one temperature (Table 7), over both orders of each pair.

    A verdict that flips with the order is a tie. `items`: question id → "first", "tie" or "second". `agreement`: share
    of the pairs whose two orders gave the same verdict. `unparsed`: pairs left out, since a reply could not be read.
    """

    column: str
    first: str
    second: str
    temperature: float
    items: Mapping[str, str]
    agreement: float
    unparsed: int
    judge: str
    """The judge's name for people; it says so where the judge is simulated."""

    def counts(self) -> tuple[int, int, int]:
        """How often the first was better, neither, the second."""
        verdicts = list(self.items.values())
        return verdicts.count("first"), verdicts.count("tie"), verdicts.count("second")


def pairs_of(
    questions: Sequence[Question], first: Sequence[Explanation], second: Sequence[Explanation], temperature: float
) -> list[Pair]:
    """The rationales at a temperature to the test questions that both sides explained, in the order of `first`.

    Raises `ValueError` where there is none.
    """
    asked = {question.id: question for question in questions}
    sides = [
        {row.question_id: row.text for row in rows if row.split == "test" and row.temperature == temperature}
        for rows in (first, second)
    ]
    pairs = [Pair(asked[id_], text, sides[1][id_]) for id_, text in sides[0].items() if id_ in sides[1]]
    if not pairs:
        raise ValueError(
            f"no test question has rationales of both students at temperature {temperature:g}; "
            "evaluation.explain_temperatures says at which they are written"
        )
    return pairs


def request_text(template: str, question: Question, a: str, b: str) -> str:
    """The request that shows `a` as A and `b` as B. Raises `ConfigError` for a template with other fields."""
    values = {
        "question": _quoted(question.text.replace(SEPARATOR, "\n")), "answer": _quoted(question.label),
        "a": _quoted(a), "b": _quoted(b),
    }  # fmt: skip
    if sorted(_FIELD.findall(template)) != sorted(values):
        fields = ", ".join(f"{{{name}}}" for name in values)
        raise ConfigError(f"llm_judge.prompt: the file must have each of the fields {fields} once, and no other")
    return _FIELD.sub(lambda field: values[field[1]], template)  # at once: a rationale may have "{b}" in it


def _quoted(text: str) -> str:
    """Text as lines that all begin with "| ", whatever line breaks are in it."""
    return "\n".join(f"| {line}" for line in text.splitlines()) or "|"


def read_verdict(reply: str) -> Literal["a", "b", "tie"] | None:
    """The verdict of the last line that is one; None where there is none."""
    found = [match[1].lower() for line in reply.splitlines() if (match := _VERDICT.match(line))]
    return found[-1] if found else None  # pyright: ignore[reportReturnType]


def judged_pair(pair: Pair, forward_reply: str, backward_reply: str) -> JudgedPair:
    """Both replies read: `forward_reply` saw the pair's first rationale as A, `backward_reply` as B."""
    forward: dict[str | None, Verdict] = {"a": "first", "b": "second", "tie": "tie"}
    backward: dict[str | None, Verdict] = {"a": "second", "b": "first", "tie": "tie"}
    there, back = forward.get(read_verdict(forward_reply)), backward.get(read_verdict(backward_reply))
    verdict = None if there is None or back is None else there if there == back else "tie"
    return JudgedPair(pair.question.id, verdict, there, back, forward_reply, backward_reply)


def simulated_reply(task: Task, question: Question, a: str, b: str) -> str:
    """A reply by rule, for runs without a language model: who states the right answer is better, else it is a tie."""
    states = (task.states_answer(a, question.answer), task.states_answer(b, question.answer))
    return "Verdict: " + {(True, False): "A", (False, True): "B"}.get(states, "tie")

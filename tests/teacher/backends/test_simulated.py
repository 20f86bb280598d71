"""The simulated teacher: wrong as often as asked, in each of its ways, and never right by accident."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter

import pytest

from qcrd.config import GeneratedTaskConfig
from qcrd.records import Question
from qcrd.tasks import arithmetic
from qcrd.tasks.equations import evaluate
from qcrd.teacher.backends import simulated
from qcrd.teacher.backends.base import Call, Reply, TeacherError
from qcrd.teacher.backends.simulated import SimulatedTeacher, mistakes, solve

QUESTIONS = arithmetic.load(GeneratedTaskConfig(train_size=500, validation_size=5, test_size=5))


def call_of(question: Question, *indices: int, seed: int = 0) -> Call:
    return Call(question.id, indices, "", question.label, question.facts, (seed,) * len(indices))


def write(question: Question, error_rate: float, index: int = 0, seed: int = 0) -> str:
    return SimulatedTeacher(error_rate).write(call_of(question, index, seed=seed))


def test_without_errors_every_sample_is_right() -> None:
    for question in QUESTIONS:
        sample = arithmetic.parse(write(question, 0.0), question)
        assert sample is not None and sample.label == question.label and sample.answer == question.answer


def test_with_errors_only_every_sample_parses_to_a_wrong_answer() -> None:
    for question in QUESTIONS:
        for index in range(3):
            sample = arithmetic.parse(write(question, 1.0, index), question)
            assert sample is not None and sample.answer != question.answer


def test_the_share_of_wrong_samples_is_the_error_rate() -> None:
    wrong = 0
    for question in QUESTIONS:
        for index in range(5):
            sample = arithmetic.parse(write(question, 0.25, index), question)
            wrong += sample is None or sample.answer != question.answer
    assert wrong / (5 * len(QUESTIONS)) == pytest.approx(0.25, abs=0.03)


def test_what_the_reasoning_says_is_what_it_answers() -> None:
    """The last result of the text is the value of the stated label; at most one sum of a text is false (the slip)."""
    slips = 0
    for question in QUESTIONS:
        sample = arithmetic.parse(write(question, 0.5), question)
        assert sample is not None
        sums = re.findall(r"([0-9]+ [-+*/] [0-9]+) = ([0-9]+)", sample.rationale)
        assert len(sums) == len(json.loads(question.facts)["steps"]) == sample.rationale.count(".")
        assert sums[-1][1] == sample.answer
        false = sum(evaluate(left) != float(right) for left, right in sums)
        assert false <= 1 and (false == 0 or sample.answer != question.answer)
        slips += false
    assert slips > 20


def test_every_mistake_there_is_gives_a_wrong_answer() -> None:
    kinds: Counter[str] = Counter()
    for question in QUESTIONS:
        found = mistakes(json.loads(question.facts))
        assert found["slip"], "a slip is always possible"
        for kind, solutions in found.items():
            kinds[kind] += bool(solutions)
            for solution in solutions:
                answer = arithmetic.answer_of(solution.label)
                assert solution.mistake == kind and answer is not None and answer != question.answer
                assert all(result >= 0 for *_, result in solution.steps)
    assert set(kinds) == {"operator", "slip", "quantity"} and min(kinds.values()) > 0.8 * len(QUESTIONS)


def test_mistakes_by_hand() -> None:
    """ "8 + 3", then "* 2", with a 5 that does not matter."""
    steps = [{"op": "+", "left": 8, "right": 3, "result": 11}, {"op": "*", "left": 11, "right": 2, "result": 22}]
    facts = {"who": "Mia", "object": "cups", "steps": steps, "numbers": [8, 3, 2, 5]}
    assert solve(facts).label == "( ( 8 + 3 ) * 2 )"
    found = {kind: {solution.label for solution in solutions} for kind, solutions in mistakes(facts).items()}
    # 8 / 3 and 11 / 2 are no whole numbers, so nobody writes them.
    assert found["operator"] == {"( ( 8 - 3 ) * 2 )", "( ( 8 * 3 ) * 2 )", "( ( 8 + 3 ) + 2 )", "( ( 8 + 3 ) - 2 )"}
    assert {"( ( 8 + 5 ) * 2 )", "( ( 5 + 3 ) * 2 )", "( ( 8 + 3 ) * 5 )"} <= found["quantity"]
    assert {"( 12 * 2 )", "23", "21"} <= found["slip"] and "22" not in found["slip"]


def test_all_kinds_are_drawn() -> None:
    drawn: Counter[str] = Counter()
    for question in QUESTIONS[:200]:
        label = re.findall(r"answer is (.*)\.$", write(question, 1.0))[0]
        found = mistakes(json.loads(question.facts))
        drawn.update({kind for kind, solutions in found.items() if label in {solution.label for solution in solutions}})
    assert min(drawn[kind] for kind in simulated.MISTAKES) > 40


def test_samples_differ_in_wording_and_repeat_by_seed() -> None:
    question = QUESTIONS[0]
    texts = [write(question, 0.0, index) for index in range(20)]
    assert len(set(texts)) > 10
    assert texts == [write(question, 0.0, index) for index in range(20)]
    assert texts != [write(question, 0.0, index, seed=1) for index in range(20)]


def test_a_sample_of_a_call_is_the_one_it_would_be_alone() -> None:
    for question in QUESTIONS[:20]:
        answer = asyncio.run(SimulatedTeacher(0.5).ask(call_of(question, 4, 0, 2)))
        assert answer.records == [Reply(write(question, 0.5, index), finish_reason="stop") for index in (4, 0, 2)]


def test_rationales_are_short_and_their_words_few() -> None:
    words: set[str] = set()
    for question in QUESTIONS:
        for sentence in write(question, 0.5).split(". "):
            assert len(sentence.split()) <= 20
        words |= set(re.findall(r"[A-Za-z]+", question.text + " " + write(question, 0.5)))
    assert len(words) < 350


def test_the_reply_has_no_token_counts_and_says_that_it_is_simulated() -> None:
    (reply,) = asyncio.run(SimulatedTeacher(0.0).ask(call_of(QUESTIONS[0], 0))).records
    assert isinstance(reply, Reply) and reply.text == write(QUESTIONS[0], 0.0)
    assert (reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("stop", None, None)
    assert simulated.MODEL == "simulated"


def test_a_question_without_facts_is_refused() -> None:
    question = Question(id="chal-1", split="train", text="", label="", answer="")
    with pytest.raises(TeacherError, match="chal-1 has no facts"):
        asyncio.run(SimulatedTeacher(0.0).ask(call_of(question, 0)))

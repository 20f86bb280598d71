"""Generated problems: right, varied, repeatable, and never twice."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from qcrd.config import ConfigError, GeneratedTaskConfig
from qcrd.records import Question
from qcrd.tasks import arithmetic
from qcrd.tasks.equations import evaluate
from qcrd.tasks.stories import DISTRACTORS, EVENTS, NAMES, OBJECTS, QUESTIONS, STARTS, STORIES


def config(seed: int = 0, **generator: int) -> GeneratedTaskConfig:
    small = {"train_size": 300, "validation_size": 60, "test_size": 90}
    return GeneratedTaskConfig.model_validate({"seed": seed, **small, **generator})


def test_every_question_is_whole_and_right() -> None:
    questions = arithmetic.load(config())
    assert Counter(question.split for question in questions) == arithmetic.sizes(config())
    assert questions[12].id == "arithmetic-train-000012"
    for question in questions:
        facts = json.loads(question.facts)
        assert set(facts) == {"who", "object", "steps", "numbers"}
        assert facts["numbers"] == [int(digits) for digits in re.findall(r"\d+", question.text)]
        assert max(facts["numbers"]) <= 20 and min(facts["numbers"]) >= 2
        label = str(facts["steps"][0]["left"])
        value = facts["steps"][0]["left"]
        for step in facts["steps"]:
            assert step["left"] == value and step["right"] in facts["numbers"]
            label = f"( {label} {step['op']} {step['right']} )"
            value = step["result"]
            assert evaluate(f"{step['left']} {step['op']} {step['right']}") == value
            assert 0 <= value <= arithmetic.largest_result(20)
        assert question.label == label
        assert question.answer == str(value) == arithmetic.answer_of(label)
        assert arithmetic.is_right(question.label, question)
        assert question.text.count("\n") == 1 and question.text.endswith("?")
        assert not re.search(r"[{}]", question.text)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_and_operators_are_as_asked(steps: int) -> None:
    questions = arithmetic.load(config(min_steps=steps, max_steps=steps))
    assert {len(json.loads(question.facts)["steps"]) for question in questions} == {steps}
    used = Counter(operator for question in questions for operator in re.findall(r"[-+*/]", question.label))
    assert min(used.values()) > 0.15 * sum(used.values()) and len(used) == 4


def test_no_problem_occurs_twice() -> None:
    """Neither in one split nor in two, with names and objects blanked; also where a quarter of all are drawn."""
    made = GeneratedTaskConfig(max_steps=1, max_number=5)
    full = made.model_copy(update={"train_size": arithmetic.capacity(made) // 4 - 600})
    for settings in (config(), full):
        questions = arithmetic.load(settings)
        keys = [arithmetic.problem_key(question) for question in questions]
        assert len(set(keys)) == len(keys)
        assert len({question.text for question in questions}) == len(questions)
        blanked = " ".join(keys)
        assert not any(re.search(rf"\b{word}\b", blanked) for word in (*NAMES, *OBJECTS))


def test_problem_key_blanks_names_and_objects_only() -> None:
    question = Question(
        id="q", split="train", text="Mia has 3 cups. Ben has 4 cups more.\nHow many?", label="", answer=""
    )
    assert arithmetic.problem_key(question) == "NAME has 3 OBJECT. NAME has 4 OBJECT more.\nHow many?"


def test_the_seed_decides_everything() -> None:
    assert arithmetic.load(config()) == arithmetic.load(config())
    first = {question.text for question in arithmetic.load(config(seed=0))}
    second = {question.text for question in arithmetic.load(config(seed=1))}
    assert len(first & second) < 0.02 * len(first)


def test_a_larger_training_split_leaves_the_others_as_they_are() -> None:
    small, large = arithmetic.load(config()), arithmetic.load(config(train_size=500))
    for split in ("validation", "test"):
        assert [q for q in small if q.split == split] == [q for q in large if q.split == split]


def test_too_many_problems_is_an_error_with_the_number_there_can_be() -> None:
    settings = config(max_steps=1, max_number=5, train_size=10_000)
    allowed = arithmetic.capacity(settings) // 2
    with pytest.raises(ConfigError, match=rf"^task\.train_size: 10000 .* {allowed} problems .* take 150$"):
        arithmetic.check(settings)
    with pytest.raises(ConfigError):
        arithmetic.load(settings)
    arithmetic.check(config(max_steps=1, max_number=5, train_size=allowed - 150))
    with pytest.raises(ConfigError):
        arithmetic.check(config(max_steps=1, max_number=5, train_size=allowed - 149))


def test_capacity_by_hand() -> None:
    """Numbers 2 to 5, one step: 16 sums, 6 differences (3-2, 4-2, 4-3, ...), 16 products, 1 exact division (4/2)."""
    stories = {operator: 2 * len(STORIES[operator]) for operator in "+-*/"}
    plain = 16 * stories["+"] + 6 * stories["-"] + 16 * stories["*"] + stories["/"]
    dressed = plain * (1 + len(DISTRACTORS) * 4 * 2)
    assert arithmetic.capacity(GeneratedTaskConfig(max_steps=1, max_number=5)) == dressed


def test_the_language_is_small_and_names_are_only_slots() -> None:
    stories = [
        text for group in STORIES.values() for story in group for text in (story.body, *story.questions, story.unit)
    ]
    texts = [*stories, *STARTS, *QUESTIONS, *DISTRACTORS, *(event for group in EVENTS.values() for event in group)]
    words = {word for text in texts for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", text))}
    assert not words & {*NAMES, *OBJECTS}
    assert len(words) + len(NAMES) + len(OBJECTS) < 350


def test_the_source_is_the_settings() -> None:
    assert arithmetic.source(config()) == {}

"""What holds for every task: the list, the training limit, and few-shot prompts whose answers are true."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from qcrd.config import (
    BenchmarkTaskConfig,
    ConfigError,
    GeneratedTaskConfig,
    validated,
)
from qcrd.records import Question
from qcrd.tasks import TASKS, arithmetic, cqa, get_task, load_questions, nli, svamp, train_limit

SMALL = GeneratedTaskConfig(train_size=50, validation_size=5, test_size=5)


def test_tasks_are_found_by_name() -> None:
    assert all(name == get_task(name).NAME for name in TASKS)
    with pytest.raises(ConfigError, match=r"^task\.name: 'x' .* the tasks are arithmetic, svamp, cqa, anli1, esnli$"):
        get_task("x")


def test_train_limit_draws_from_the_training_split_alone() -> None:
    config = SMALL
    everything = load_questions(arithmetic, config)
    some = load_questions(arithmetic, config, 20)
    assert len(everything) == 60 and len(some) == 30
    assert [question for question in everything if question in some] == some
    assert [question for question in some if question.split != "train"] == everything[50:]
    ids = [question.id for question in some[:20]]
    assert ids != [question.id for question in everything[:20]]
    assert load_questions(arithmetic, config, 20) == some
    assert load_questions(arithmetic, config, 50) == everything


def test_a_larger_train_limit_contains_a_smaller_one() -> None:
    config = SMALL
    drawn = [{question.id for question in load_questions(arithmetic, config, limit)[:limit]} for limit in (5, 20, 49)]
    assert drawn[0] < drawn[1] < drawn[2]


def test_train_limit_is_drawn_by_the_task_seed(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    drawn = [
        [question.id for question in load_questions(svamp, BenchmarkTaskConfig(name="svamp", seed=seed), 100)][:100]
        for seed in (0, 1)
    ]
    assert set(drawn[0]) != set(drawn[1])


@pytest.mark.parametrize(
    ("limit", "steps", "kept"), [("auto", 6, 48), ("auto", 7, None), (None, 1, None), (20, 1, 20), (50, 1, None)]
)
def test_the_limit_of_an_experiment(limit: int | str | None, steps: int, kept: int | None) -> None:
    changes = {"name": "x", "task": {**SMALL.model_dump(), "train_limit": limit}, "train": {"steps": steps}}
    assert train_limit(arithmetic, validated(changes)) == kept


def test_train_limit_larger_than_the_split() -> None:
    config = validated({"name": "x", "task": {**SMALL.model_dump(), "train_limit": 51}})
    with pytest.raises(ConfigError, match=r"^task\.train_limit: 51 is not allowed; .* has 50 questions$"):
        train_limit(arithmetic, config)


@pytest.mark.parametrize(("name", "count"), [("svamp", 8), ("arithmetic", 6)])
def test_few_shot_examples_are_true(name: str, count: int) -> None:
    """Each example parses, its reasoning's sums are right, and its last sum is the answer that its equation gives."""
    task = get_task(name)
    prompt = task.PROMPT.read_text()
    examples = re.findall(r"Q: (.*?)\nA: (.*?)\n\n", prompt, re.DOTALL)
    assert len(examples) == count
    for question, completion in examples:
        assert question.count("\n") == 1 and task.ANSWER_PHRASE in completion
        sample = task.parse(completion, Question("q", "train", question, "", ""))
        assert sample is not None
        assert re.fullmatch(r"[( ]+[0-9.]+( [-+*/] [0-9.]+ \))+", sample.label)
        assert ("." in sample.label) == (name == "svamp")
        sums = re.findall(r"([0-9]+ [-+*/] [0-9]+) = ([0-9]+)", sample.rationale)
        assert sums and all(task.answer_of(left) == right for left, right in sums)
        assert sums[-1][1] == sample.answer
        mentioned = {float(digits) for digits in re.findall(r"[0-9]+", question)}
        assert {float(digits) for digits in re.findall(r"[0-9.]+", sample.label)} <= mentioned


def test_few_shot_choices_are_balanced() -> None:
    """Each example parses to the choice that it names by letter, and every letter is right once or twice."""
    prompt = cqa.PROMPT.read_text() + "\n"
    examples = re.findall(r"Q: (.*?)\nA: (.*?)\n\n", prompt, re.DOTALL)
    assert len(examples) == 8
    letters = Counter()
    for number, (text, completion) in enumerate(examples):
        question = Question(str(number), "train", text, "", "")
        sample = cqa.parse(completion, question)
        stated = re.search(r"So the answer is \((.)\) (.*)\.$", completion)
        assert sample is not None and stated is not None and sample.rationale
        choices = cqa.choices_of(question)
        assert len(set(choices.values())) == 5
        assert choices[stated[1]] == stated[2] == sample.label
        letters[stated[1]] += 1
    assert set(letters) == set(cqa.LETTERS) and max(letters.values()) == 2


@pytest.mark.parametrize("name", ["anli1", "esnli"])
def test_few_shot_classes_are_balanced(name: str) -> None:
    task = get_task(name)
    prompt = task.PROMPT.read_text() + "\n"
    examples = re.findall(r"Premise: (.*)\nHypothesis: (.*)\nAnswer: (.*)\n\n", prompt)
    assert len(examples) == 8 == prompt.count("Premise: ")
    samples = [task.parse(completion, nli.question_of("q", "train", *pair, "")) for *pair, completion in examples]
    counts = Counter(sample.answer for sample in samples if sample is not None and sample.rationale)
    assert sorted(counts.values()) == [2, 3, 3]
    assert all(completion.count(task.ANSWER_PHRASE) == 1 for *_, completion in examples)


@pytest.mark.parametrize("name", ["arithmetic", "svamp", "cqa"])
def test_the_prompt_ends_where_the_teacher_goes_on(name: str) -> None:
    task = get_task(name)
    prompt = task.format_prompt(task.PROMPT.read_text(), "A body.\nA question?")
    assert re.search(r"\)?\.\n\nQ: A body\.\nA question\?\nA:$", prompt)
    assert task.STOP == ("\nQ:",)

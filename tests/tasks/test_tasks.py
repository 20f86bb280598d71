"""What holds for every task: the list, the training limit, and few-shot prompts whose answers are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qcrd.config import ConfigError, GeneratorConfig, TaskConfig
from qcrd.tasks import TASKS, arithmetic, get_task, load_questions, svamp

SMALL = GeneratorConfig(train_size=50, validation_size=5, test_size=5)


def test_tasks_are_found_by_name() -> None:
    assert all(name == get_task(name).NAME for name in TASKS)
    with pytest.raises(ConfigError, match=r"^task\.name: 'x' is not allowed; the tasks are arithmetic, svamp$"):
        get_task("x")


def test_train_limit_draws_from_the_training_split_alone() -> None:
    everything = load_questions(arithmetic, TaskConfig(generator=SMALL))
    some = load_questions(arithmetic, TaskConfig(generator=SMALL, train_limit=20))
    assert len(everything) == 60 and len(some) == 30
    assert [question for question in everything if question in some] == some
    assert [question for question in some if question.split != "train"] == everything[50:]
    ids = [question.id for question in some[:20]]
    assert ids != [question.id for question in everything[:20]]
    again = load_questions(arithmetic, TaskConfig(generator=SMALL, train_limit=20))
    assert again == some
    assert load_questions(arithmetic, TaskConfig(generator=SMALL, train_limit=50)) == everything


def test_train_limit_is_drawn_by_the_task_seed(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    drawn = [
        [question.id for question in load_questions(svamp, TaskConfig(seed=seed, train_limit=100))][:100]
        for seed in (0, 1)
    ]
    assert set(drawn[0]) != set(drawn[1])


def test_train_limit_larger_than_the_split() -> None:
    with pytest.raises(ConfigError, match=r"^task\.train_limit: 51 is not allowed; .* has 50 questions$"):
        load_questions(arithmetic, TaskConfig(generator=SMALL, train_limit=51))


@pytest.mark.parametrize(("name", "count"), [("svamp", 8), ("arithmetic", 6)])
def test_few_shot_examples_are_true(name: str, count: int) -> None:
    """Each example parses, its reasoning's sums are right, and its last sum is the answer that its equation gives."""
    task = get_task(name)
    prompt = task.PROMPT.read_text()
    examples = re.findall(r"Q: (.*?)\nA: (.*?)\n\n", prompt, re.DOTALL)
    assert len(examples) == count
    for question, completion in examples:
        assert question.count("\n") == 1 and task.ANSWER_PHRASE in completion
        sample = task.parse(completion)
        assert sample is not None
        assert re.fullmatch(r"[( ]+[0-9.]+( [-+*/] [0-9.]+ \))+", sample.label)
        assert ("." in sample.label) == (name == "svamp")
        sums = re.findall(r"([0-9]+ [-+*/] [0-9]+) = ([0-9]+)", sample.rationale)
        assert sums and all(task.answer_of(left) == right for left, right in sums)
        assert sums[-1][1] == sample.answer
        mentioned = {float(digits) for digits in re.findall(r"[0-9]+", question)}
        assert {float(digits) for digits in re.findall(r"[0-9.]+", sample.label)} <= mentioned


@pytest.mark.parametrize("name", list(TASKS))
def test_the_prompt_ends_where_the_teacher_goes_on(name: str) -> None:
    task = get_task(name)
    prompt = task.format_prompt(task.PROMPT.read_text(), "A body.\nA question?")
    assert prompt.endswith(").\n\nQ: A body.\nA question?\nA:")
    assert task.STOP == ("\nQ:",)

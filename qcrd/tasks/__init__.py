"""The list of tasks, and what holds for the questions of all of them: unique ids and how many train."""

from __future__ import annotations

from qcrd.config import ConfigError, ExperimentConfig, TaskConfig
from qcrd.records import Question
from qcrd.seeding import generator
from qcrd.tasks import anli1, arithmetic, cqa, esnli, svamp
from qcrd.tasks.base import Task

TASKS: dict[str, Task] = {"arithmetic": arithmetic, "svamp": svamp, "cqa": cqa, "anli1": anli1, "esnli": esnli}


def get_task(name: str) -> Task:
    """The task of that name. Raises `ConfigError`."""
    if name not in TASKS:
        raise ConfigError(f"task.name: {name!r} is not allowed; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def train_limit(task: Task, config: ExperimentConfig) -> int | None:
    """How many training questions are kept; None where that is all of them. Raises `ConfigError`; reads no file."""
    return config.train_limit(task.sizes(config.task)["train"])


def load_questions(task: Task, config: TaskConfig, train_limit: int | None = None) -> list[Question]:
    """All questions of the task, of the training split at most `train_limit`, in the task's order.

    The limit keeps the first of one permutation that `task.seed` alone decides, so what a larger limit keeps contains
    what a smaller one does. Raises `ValueError` where two questions have the same id.
    """
    questions = task.load(config)
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"task {task.NAME}: question id {question.id!r} occurs twice; ids must be unique")
        seen.add(question.id)
    if train_limit is None:
        return questions
    train = [question.id for question in questions if question.split == "train"]
    drawn = generator(config.seed, "train_limit").permutation(len(train))[:train_limit]
    kept = {train[row] for row in drawn}
    return [question for question in questions if question.split != "train" or question.id in kept]

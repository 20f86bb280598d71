"""The list of tasks, and what holds for the questions of all of them: unique ids and `task.train_limit`."""

from __future__ import annotations

from qcrd.config import ConfigError, TaskConfig
from qcrd.records import Question
from qcrd.seeding import generator
from qcrd.tasks import arithmetic, svamp
from qcrd.tasks.base import Task

TASKS: dict[str, Task] = {"arithmetic": arithmetic, "svamp": svamp}


def get_task(name: str) -> Task:
    """The task of that name. Raises `ConfigError`."""
    if name not in TASKS:
        raise ConfigError(f"task.name: {name!r} is not allowed; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def load_questions(task: Task, config: TaskConfig) -> list[Question]:
    """All questions of the task, of the training split at most `train_limit`, in the task's order.

    The limit draws without replacement, seeded by `task.seed` alone. Raises `ConfigError` where the limit is larger
    than the split, `ValueError` where two questions have the same id.
    """
    questions = task.load(config)
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"task {task.NAME}: question id {question.id!r} occurs twice; ids must be unique")
        seen.add(question.id)
    if config.train_limit is None:
        return questions
    train = [question.id for question in questions if question.split == "train"]
    if config.train_limit > len(train):
        raise ConfigError(
            f"task.train_limit: {config.train_limit} is not allowed; the training split has {len(train)} questions"
        )
    drawn = generator(config.seed, "train_limit").choice(len(train), size=config.train_limit, replace=False)
    kept = {train[row] for row in drawn}
    return [question for question in questions if question.split != "train" or question.id in kept]

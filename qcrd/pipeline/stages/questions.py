"""The questions of the task, in their splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from qcrd.config import ConfigError, ExperimentConfig, GeneratedTaskConfig, TaskConfig
from qcrd.distill.methods import check_labels
from qcrd.pipeline.stage import Planning, Stage, StageRun, Summary, Work
from qcrd.records import Question, read_rows, write_rows
from qcrd.storage.artifacts import Artifact
from qcrd.tasks import get_task, load_questions, train_limit
from qcrd.tasks.base import Task
from qcrd.tracking.record import RunRecord

SPLITS = ("train", "validation", "test")


def read_questions(folder: Path) -> list[Question]:
    """The questions of a finished output."""
    return read_rows(folder / "questions.parquet", Question)


def sizes_of(config: ExperimentConfig) -> dict[str, int]:
    """Questions per split, as far as that is known without reading any."""
    task = get_task(config.task.name)
    sizes = dict(task.sizes(config.task))
    sizes["train"] = train_limit(task, config) or sizes["train"]
    return sizes


class QuestionsStage(Stage):
    name = "questions"
    version = 1

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        return ()

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        task = get_task(config.task.name)
        return {
            "task": {
                "name": config.task.name,
                "seed": config.task.seed,
                "train_limit": train_limit(task, config),  # resolved: the schedule matters only where it cuts
                **_of_kind(config.task),
            },
            "source": task.source(config.task),
        }

    def check(self, config: ExperimentConfig) -> None:
        check_labels(config.method, config.train)
        task = get_task(config.task.name)
        task.check(config.task)
        train_limit(task, config)
        _check_gold_labels(config, task)

    def planned_work(self, planning: Planning) -> Work:
        return Work(", ".join(f"{count} {split}" for split, count in sizes_of(planning.config).items()))

    def run(self, run: StageRun) -> Summary:
        task = get_task(run.config.task.name)
        questions = load_questions(task, run.config.task, train_limit(task, run.config))
        write_rows(run.out / "questions.parquet", Question, questions)
        return dict(Counter(question.split for question in questions))

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        sizes = artifact.marker()["summary"]
        for split in SPLITS:
            name = f"{config.task.name}-{split}"
            record.add_dataset(name, artifact.digest(), sizes.get(split, 0), config.task.name, split)


def _of_kind(task: TaskConfig) -> dict[str, Any]:
    """What decides the questions of one kind of task beside their source."""
    if not isinstance(task, GeneratedTaskConfig):
        return {}
    return {
        "generator": {
            "train_size": task.train_size,
            "validation_size": task.validation_size,
            "test_size": task.test_size,
            "min_steps": task.min_steps,
            "max_steps": task.max_steps,
            "max_number": task.max_number,
        }
    }


def _check_gold_labels(config: ExperimentConfig, task: Task) -> None:
    """Raise `ConfigError` where gold labels are wanted of training questions that have none."""
    if task.has_gold_labels(config.task):
        return
    why = f"the training questions of {task.NAME} that were found have no gold labels"
    if config.train.labels == "gold":
        raise ConfigError(f"train.labels: 'gold' is not allowed, 'teacher' is; {why}")
    if config.rationales.positives != "majority":
        raise ConfigError(f"rationales.positives: {config.rationales.positives!r} is not allowed, 'majority' is; {why}")


QUESTIONS = QuestionsStage()

"""The student's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.distill.methods import get_method, uses_discriminator
from qcrd.distill.schedule import iteration_length
from qcrd.distill.train import train
from qcrd.pipeline.model_identity import check_folder, model_identity, named_model
from qcrd.pipeline.stage import Planning, Stage, StageRun, Summary, Work
from qcrd.pipeline.stages.discriminator import DISCRIMINATOR
from qcrd.pipeline.stages.questions import QUESTIONS, sizes_of
from qcrd.pipeline.stages.training_set import TRAINING_SET
from qcrd.storage.artifacts import Artifact, model_folder
from qcrd.storage.json_lines import read_json_lines
from qcrd.storage.output import Storage
from qcrd.tasks import get_task
from qcrd.tracking.record import RunRecord


class StudentStage(Stage):
    name = "student"
    version = 2
    of_task = False

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        discriminator = (DISCRIMINATOR.name,) if uses_discriminator(config.method, config.discriminator) else ()
        return (QUESTIONS.name, TRAINING_SET.name, *discriminator)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        student, train, method = config.student, config.train, get_method(config.method)
        settings: dict[str, Any] = {
            "method": config.method,
            "seed": config.seed,
            "model": model_identity(student),
            "student": {
                "prefixes": {"predict": student.prefixes.predict, "explain": student.prefixes.explain},
                "dropout": student.dropout,
                "max_input_tokens": student.max_input_tokens,
                "max_target_tokens": student.max_target_tokens,
                "max_label_tokens": student.max_label_tokens,
                "dtype": student.dtype,
            },
            "loss": {field: getattr(config.loss, field) for field in method.loss_fields},
            "train": {
                "steps": train.steps,
                "iteration_steps": train.iteration_steps,
                "global_batch_size": train.global_batch_size,
                "learning_rate": train.learning_rate,
                "weight_decay": train.weight_decay,
                "max_grad_norm": train.max_grad_norm,
                "labels": train.labels,
                "log_every": train.log_every,
            },
            "evaluation": {"validation_limit": config.evaluation.validation_limit},
        }
        if method.negatives:
            settings["negatives"] = _negatives_settings(config)
        if method.discriminator:
            settings["discriminator"] = _online_settings(config)
        return settings

    def check(self, config: ExperimentConfig) -> None:
        if config.negatives.source == "fixed":
            check_folder("negatives.fixed", str(_fixed_folder(config)))

    def planned_work(self, planning: Planning) -> Work:
        train, resources = planning.config.train, planning.config.resources
        length = iteration_length(train.iteration_steps, sizes_of(planning.config)["train"], train.global_batch_size)
        iterations = -(-train.steps // length)
        workers = f" on {resources.workers} workers" if resources.workers > 1 else ""
        steps = f"{train.steps} steps of {train.global_batch_size} questions"
        return Work(f"{steps} in {iterations} iterations of {length}{workers}")

    def run(self, run: StageRun) -> Summary:
        config = run.config
        times = train(
            config, get_task(config.task.name), Storage.of(config.output), run.inputs, run.fingerprint, run.identity,
            run.out, run.on_event,
        )  # fmt: skip
        return {**json.loads((run.out / "training.json").read_text()), **times}

    def metric_rows(self, folder: Path) -> list[dict[str, Any]]:
        return read_json_lines(folder / "metrics.jsonl")

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_student(artifact.fetch() / "best")

    def headline(self, summary: Summary) -> list[list[str]]:
        return [["iterations, best", f"{summary['iterations']}, {summary['best_iteration']}"]]


def _fixed_folder(config: ExperimentConfig) -> Path:
    """The folder on this node of the model that writes fixed negatives."""
    return model_folder(Storage.of(config.output), str(config.negatives.fixed))


def _negatives_settings(config: ExperimentConfig) -> dict[str, Any]:
    negatives = config.negatives
    settings: dict[str, Any] = {
        "source": negatives.source,
        "num_samples": negatives.num_samples,
        "gap": negatives.gap,
        "warmup": negatives.warmup,
        "temperature": negatives.temperature,
        "top_k": negatives.top_k,
        "max_new_tokens": negatives.max_new_tokens,
        "batch_size": negatives.batch_size,
    }
    if negatives.source == "fixed":
        settings["fixed"] = named_model(str(_fixed_folder(config)), None)
    return settings


def _online_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The discriminator's settings while the student trains; its weights before that are an input."""
    discriminator = config.discriminator
    if not discriminator.enabled:
        return {"enabled": False}
    return {
        "enabled": True,
        "seed": discriminator.seed,
        "learning_rate": discriminator.learning_rate,
        "batch_questions": discriminator.batch_questions,
        "max_tokens": discriminator.max_tokens,
        "dtype": discriminator.dtype,
        "max_grad_norm": discriminator.max_grad_norm,
        "update_every": discriminator.update_every,
        "update_steps": discriminator.update_steps,
    }


STUDENT = StudentStage()

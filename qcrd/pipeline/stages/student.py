"""The student's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
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
from qcrd.tracking.record import RunRecord

_WEIGHTS = ("label_weight", "rationale_weight")
LOSS_FIELDS = {
    "dss": _WEIGHTS,
    "mi": (*_WEIGHTS, "mi_weight", "mi_variant"),
    "qcrd": (*_WEIGHTS, "beta", "margin", "scheme", "discriminator_weight", "discriminator_decay"),
}
"""Fields of `LossConfig` that a method reads; the others' loss is L_pred alone."""


class StudentStage(Stage):
    name = "student"
    version = 2
    of_task = False

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        discriminator = (DISCRIMINATOR.name,) if config.uses_discriminator() else ()
        return (QUESTIONS.name, TRAINING_SET.name, *discriminator)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        student, train = config.student, config.train
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
            "loss": {field: getattr(config.loss, field) for field in LOSS_FIELDS.get(config.method, ())},
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
        if config.method == "qcrd":
            settings["negatives"] = _negatives_settings(config)
            settings["discriminator"] = _online_settings(config)
        return settings

    def check(self, config: ExperimentConfig) -> None:
        if config.negatives.source == "fixed":
            check_folder("negatives.fixed", config.negatives.fixed)

    def planned_work(self, planning: Planning) -> Work:
        train, resources = planning.config.train, planning.config.resources
        length = iteration_length(train.iteration_steps, sizes_of(planning.config)["train"], train.global_batch_size)
        iterations = -(-train.steps // length)
        workers = f" on {resources.workers} workers" if resources.workers > 1 else ""
        steps = f"{train.steps} steps of {train.global_batch_size} questions"
        return Work(f"{steps} in {iterations} iterations of {length}{workers}")

    def run(self, run: StageRun) -> Summary:
        times = train(run.config, run.inputs, run.fingerprint, run.identity, run.out, run.on_event)
        return {**json.loads((run.out / "training.json").read_text()), **times}

    def metric_rows(self, folder: Path) -> list[dict[str, Any]]:
        return read_json_lines(folder / "metrics.jsonl")

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_student(artifact.fetch() / "best")

    def headline(self, summary: Summary) -> list[list[str]]:
        return [["iterations, best", f"{summary['iterations']}, {summary['best_iteration']}"]]


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
        folder = model_folder(Storage.of(config.output), str(negatives.fixed))
        settings["fixed"] = named_model(str(folder), None)
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

"""What a report must know of an experiment's method, and the settings that it shows. Knows no method by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcrd.config import ExperimentConfig, ScratchSizes, flatten
from qcrd.config.paper import PaperMeasure
from qcrd.teacher.backends.table import backend_of

_ALWAYS = (
    "method", "seed", "task.name", "task.seed", "task.train_limit", "student.kind", "student.dtype", "train.labels",
    "train.steps", "train.iteration_steps", "train.global_batch_size", "train.learning_rate",
    "evaluation.validation_limit",
)  # fmt: skip
_MODEL = ("student.model", "student.revision")
_SCRATCH = ("student.d_model", "student.num_layers", "student.num_decoder_layers")
_TEACHER = ("teacher.kind", "teacher.num_samples", "rationales.num_samples", "rationales.positives")
_NEGATIVES = (
    "negatives.source", "negatives.num_samples", "negatives.gap", "negatives.warmup", "negatives.temperature",
    "negatives.top_k", "negatives.max_new_tokens",
)  # fmt: skip
_DISCRIMINATOR = (
    "discriminator.kind", "discriminator.learning_rate", "discriminator.max_steps", "discriminator.update_every",
    "discriminator.update_steps",
)  # fmt: skip

SHOWN_OF_PAPER: dict[PaperMeasure, bool] = {
    "test_accuracy": True, "mean_positives": False, "share_only_positives": False, "share_only_negatives": False,
}  # fmt: skip
"""What of a paper's numbers is shown, and whether also that of another student than the experiment's."""


@dataclass(frozen=True)
class MethodFacts:
    """What is true of an experiment by its method.

    `loss_fields`: the fields of `LossConfig` that its loss reads. `contrastive`: whether its loss has a part about
    negatives; `negatives` and `student_negatives`: whether this experiment has any, and from the student or a fixed
    model. `discriminator`: whether one weighs its rationales, unless it is switched off.
    """

    asks_teacher: bool
    explains: bool
    loss_fields: tuple[str, ...]
    contrastive: bool
    negatives: bool
    student_negatives: bool
    discriminator: bool


def shown_settings(config: ExperimentConfig, method: MethodFacts) -> dict[str, Any]:
    """The settings that matter, by dotted name: the report's table of them, and a part of what it is known by."""
    loss = [f"loss.{name}" for name in method.loss_fields if not name.startswith("discriminator_")]
    names = [*_ALWAYS, *(_SCRATCH if isinstance(config.student, ScratchSizes) else _MODEL)]
    if method.asks_teacher:
        names += [*_TEACHER, *(f"teacher.{name}" for name in backend_of(config.teacher).shown)]
    names += loss
    if method.contrastive:
        names += _NEGATIVES
    if method.discriminator:
        names.append("discriminator.enabled")
        if config.discriminator.enabled:
            names += [f"loss.{name}" for name in method.loss_fields if name.startswith("discriminator_")]
            names += _DISCRIMINATOR
    values = flatten(config)
    return {name: values[name] for name in names}

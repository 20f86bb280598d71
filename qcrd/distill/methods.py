"""The methods: one entry each of one table, which says what a method's students learn, from whom, and by which loss.

Adding a method is an entry here and the file of its step. Nothing else compares a method's name with a text: whoever
wants to know something about a method reads its entry. Knows nothing about training loops, stages or Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from qcrd.config import ConfigError, DiscriminatorConfig, LossConfig, NegativesConfig, TrainConfig
from qcrd.distill.batch import Metrics, QuestionBatch
from qcrd.distill.dss_step import dss_step
from qcrd.distill.label_step import finetune_step
from qcrd.distill.mi_step import mi_step
from qcrd.distill.qcrd_step import qcrd_step
from qcrd.models.student import Student
from qcrd.rationales.single_task import PHRASE
from qcrd.rationales.training_set import Target

Step = Callable[[Student, QuestionBatch, LossConfig], tuple[torch.Tensor, Metrics]]
"""A batch's loss with gradient, and its metrics. Of a part of a batch both are its contributions: summed over the parts
they are those of the whole."""
SAMPLED = ("snapshot", "snapshot_and_teacher", "fixed")
"""Values of `negatives.source` for which a model writes negatives while the student trains."""
OF_TEACHER = ("teacher", "snapshot_and_teacher")
"""Values of `negatives.source` that take the teacher's negatives."""


@dataclass(frozen=True)
class Method:
    """One way to train a student.

    `loss_fields`: the fields of `LossConfig` that the step reads; without any, the loss is L_pred alone.
    """

    step: Step
    loss_fields: tuple[str, ...] = ()
    explains: bool = False
    """Whether students learn what `explain: ` asks for. From the others nobody wants a rationale."""
    answer_phrase: str | None = None
    """The target: None for the label alone; else the rationale, this phrase and the label, in one."""
    needs_teacher: bool = True
    """Whether a teacher is asked whatever the labels; one that gives the labels is asked in any case."""
    negatives: bool = False
    """Whether the loss has negatives."""
    discriminator: bool = False
    """Whether a discriminator weighs rationales, unless it is switched off."""
    voted_labels: bool = False
    """Which of the teacher's labels are trained on: the voted one, or the first sample's."""
    labels: Literal["gold", "teacher"] | None = None
    """The only value of `train.labels` that is allowed; None: both are."""


_WEIGHTS = ("label_weight", "rationale_weight")
METHODS: dict[str, Method] = {
    "finetune": Method(finetune_step, needs_teacher=False),
    "single_task": Method(finetune_step, answer_phrase=PHRASE),
    "distill_label": Method(finetune_step, labels="teacher"),
    "dss": Method(dss_step, _WEIGHTS, explains=True),
    "mi": Method(mi_step, (*_WEIGHTS, "mi_weight", "mi_variant"), explains=True),
    "qcrd": Method(
        qcrd_step,
        (*_WEIGHTS, "beta", "margin", "scheme", "discriminator_weight", "discriminator_decay"),
        explains=True,
        negatives=True,
        discriminator=True,
        voted_labels=True,
    ),
}


def get_method(name: str) -> Method:
    """The method of that name. Raises `ConfigError`."""
    if name not in METHODS:
        raise ConfigError(f"method: {name!r} is not allowed; the methods are {', '.join(METHODS)}")
    return METHODS[name]


def check_labels(method: str, train: TrainConfig) -> None:
    """Raise `ConfigError` where a method does not train on such labels, or there is no such method."""
    allowed = get_method(method).labels
    if allowed is not None and train.labels != allowed:
        raise ConfigError(
            f"train.labels: {train.labels!r} is not allowed; method = {method} trains on {allowed!r} labels"
        )


def target_of(method: str, train: TrainConfig) -> Target:
    """What a method's students learn to write when they are asked for a label."""
    entry = get_method(method)
    labels = "gold" if train.labels == "gold" else "voted" if entry.voted_labels else "first"
    return Target(labels, entry.answer_phrase)


def uses_teacher(method: str, train: TrainConfig) -> bool:
    """Whether anybody is asked: fine-tuning on gold labels needs no teacher."""
    return get_method(method).needs_teacher or train.labels == "teacher"


def uses_discriminator(method: str, discriminator: DiscriminatorConfig) -> bool:
    return get_method(method).discriminator and discriminator.enabled


def uses_student_negatives(method: str, negatives: NegativesConfig) -> bool:
    """Whether negatives are sampled from the student or a fixed model."""
    return get_method(method).negatives and negatives.source in SAMPLED and negatives.num_samples > 0


def uses_teacher_negatives(method: str, negatives: NegativesConfig) -> bool:
    """Whether the teacher's negatives are among those of the contrastive loss."""
    return get_method(method).negatives and negatives.source in OF_TEACHER

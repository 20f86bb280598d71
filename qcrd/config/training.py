"""Settings of the training: negatives, loss, optimisation, checkpoints, and the evaluation of what was trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qcrd.config.base import Positive, Settings


class NegativesConfig(Settings):
    """Negative rationales: where they come from and how they are sampled."""

    source: Literal["snapshot", "fixed", "teacher", "snapshot_and_teacher", "none"] = "snapshot"
    num_samples: int = Field(default=1, ge=0, description="k: samples a question visited")
    gap: int = Field(default=5, ge=1, description="j: iteration t samples from snapshot max(0, t - j)")
    warmup: Literal["initial", "skip"] = "initial"
    fixed: str | None = Field(default=None, description="for source=fixed: a model folder")
    temperature: float = Field(default=1.5, ge=0)
    top_k: int = Field(default=50, ge=0, description="0: the whole vocabulary")
    max_new_tokens: Positive = 64
    batch_size: Positive = Field(default=128, description="sequences of one generation batch")
    placement: Literal["inline", "async"] = Field(
        default="inline",
        description="inline: before each iteration, by the training workers; async: by actors of their own, while the "
        "iteration before trains. The texts are the same",
    )


class LossConfig(Settings):
    """Section 5 of the method: L = a1*L_pred + a2*L_cl + a3*L_D."""

    label_weight: float = Field(default=0.5, ge=0)
    rationale_weight: float = Field(default=0.5, ge=0)
    discriminator_weight: float = Field(default=0.5, ge=0)
    discriminator_decay: float = Field(default=0.9, gt=0, le=1)
    beta: float = Field(default=0.2, gt=0)
    margin: float = Field(default=3.0, gt=0)
    scheme: Literal["minmax", "maxmin", "sampling", "mean", "weighted_mean"] = "minmax"
    mi_weight: float = Field(default=0.1, ge=0, description="of the mutual-information term (method mi)")
    mi_variant: Literal["official", "masked"] = Field(
        default="official",
        description="official: the reference code's second softmax, and its maximum over padding too; masked: neither",
    )


class TrainConfig(Settings):
    """Optimisation of the student."""

    steps: Positive = 10_000
    iteration_steps: Positive | Literal["epoch"] = 250
    global_batch_size: Positive = 8
    micro_batch_size: Positive | None = Field(
        default=None, description="questions of one forward and backward pass of a worker; None: all of its share"
    )
    learning_rate: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    labels: Literal["gold", "teacher"] = "gold"
    log_every: Positive = 10


class CheckpointConfig(Settings):
    """Checkpoints of a training run in progress."""

    keep: Positive = 2


class EvaluationConfig(Settings):
    """Greedy label predictions."""

    batch_size: Positive = 64
    num_examples: int = Field(default=5, ge=0, description="questions whose rationales the report shows")
    validation_limit: Positive | None = Field(
        default=None, description="validation questions labelled, at each iteration and at the end: the first ones"
    )
    test_limit: Positive | None = Field(default=None, description="test questions labelled: the first of the split")
    explained_questions: int = Field(
        default=50, ge=0, description="test questions, drawn by task.seed, that the student explains at the end"
    )
    explain_temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0,), description="temperatures of these explanations; 0 is greedy and always there"
    )

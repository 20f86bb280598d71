"""Settings of the models: the student and the discriminator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qcrd.config.base import Positive, Settings, Share
from qcrd.config.kinds import with_told_kind


class NamedModel(Settings):
    """A model that is there."""

    model: str = Field(default="t5-base", description="folder or hub name")
    revision: str | None = Field(default=None, description="of a hub name: branch, tag or commit")


class ScratchSizes(Settings):
    """Sizes of a T5 initialised from scratch; its tokenizer is trained on the task unless one is named."""

    d_model: Positive = 128
    d_kv: Positive = 32
    d_ff: Positive = 256
    num_layers: Positive = 2
    num_decoder_layers: Positive = 2
    num_heads: Positive = 4
    initializer_factor: float = Field(default=1.0, gt=0, description="T5's initialisation is scaled by this")
    vocab_size: int = Field(default=512, ge=64, description="upper bound for the tokenizer trained on the task")
    tokenizer: str | None = Field(default=None, description="folder or hub name of an existing tokenizer")


class PrefixesConfig(Settings):
    """What tells the student which of its two tasks it is asked."""

    predict: str = "predict: "
    explain: str = "explain: "


class StudentSettings(Settings):
    """What every kind of student has."""

    prefixes: PrefixesConfig = PrefixesConfig()
    dropout: Share | None = Field(default=None, description="None: as the model's own config has it, 0 from scratch")
    max_input_tokens: Positive = 1024
    max_target_tokens: Positive = 256
    max_label_tokens: Positive = 64
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"


class Seq2SeqStudentConfig(StudentSettings, NamedModel):
    """A sequence-to-sequence model that is there, such as T5."""

    kind: Literal["seq2seq"] = "seq2seq"


class EncoderPairStudentConfig(StudentSettings, NamedModel):
    """Two copies of an encoder joined to an encoder-decoder."""

    kind: Literal["encoder_pair"] = "encoder_pair"


class ScratchStudentConfig(StudentSettings, ScratchSizes):
    """A T5 with random weights."""

    kind: Literal["scratch"] = "scratch"


StudentConfig = Annotated[
    Seq2SeqStudentConfig | EncoderPairStudentConfig | ScratchStudentConfig,
    Field(discriminator="kind"),
    with_told_kind("seq2seq", Seq2SeqStudentConfig, EncoderPairStudentConfig, ScratchStudentConfig),
]
"""The small model: the settings of one kind of student."""


class DiscriminatorSettings(Settings):
    """What every kind of discriminator has: an encoder over question + rationale, with a head."""

    enabled: bool = Field(default=True, description="False is the paper's ablation without it: s+ = 1, s- = 0")
    hidden_size: Positive | None = Field(default=None, description="of the head; None: the encoder's d_model")
    seed: int = 0
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_questions: Positive = 8
    max_steps: Positive = 500
    eval_every: Positive = 100
    holdout: float = Field(default=0.1, gt=0, lt=1)
    target_score: float = Field(default=0.95, gt=0.5, lt=1, description="stop once s+ >= this and s- <= 1 - this")
    augmentation: Literal["rules", "stanza"] = "rules"
    max_tokens: Positive = 512
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the encoder's passes; weights, head and optimizer stay float32"
    )
    max_grad_norm: float = Field(default=1.0, gt=0)
    update_every: Positive = Field(default=1, description="iterations between online updates")
    update_steps: int = Field(default=25, ge=0, description="optimizer steps of one online update")


class PretrainedDiscriminatorConfig(DiscriminatorSettings, NamedModel):
    """The encoder of a model that is there."""

    kind: Literal["pretrained"] = "pretrained"


class ScratchDiscriminatorConfig(DiscriminatorSettings, ScratchSizes):
    """A T5 encoder with random weights."""

    kind: Literal["scratch"] = "scratch"
    dropout: Share = 0.0


DiscriminatorConfig = Annotated[
    PretrainedDiscriminatorConfig | ScratchDiscriminatorConfig,
    Field(discriminator="kind"),
    with_told_kind("pretrained", PretrainedDiscriminatorConfig, ScratchDiscriminatorConfig),
]
"""The discriminator: the settings of one kind."""

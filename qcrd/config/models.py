"""Settings of the models: the student and the discriminator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qcrd.config.base import Positive, Settings, Share


class ScratchConfig(Settings):
    """Sizes of a T5 initialised from scratch; its tokenizer is trained on the task unless one is named."""

    d_model: Positive = 128
    d_kv: Positive = 32
    d_ff: Positive = 256
    num_layers: Positive = 2
    num_decoder_layers: Positive = 2
    num_heads: Positive = 4
    dropout: Share = 0.0
    initializer_factor: float = Field(default=1.0, gt=0, description="T5's initialisation is scaled by this")
    vocab_size: int = Field(default=512, ge=64, description="upper bound for the tokenizer trained on the task")
    tokenizer: str | None = Field(default=None, description="folder or hub name of an existing tokenizer")


class PrefixesConfig(Settings):
    """What tells the student which of its two tasks it is asked."""

    predict: str = "predict: "
    explain: str = "explain: "


class StudentConfig(Settings):
    """The small model. `seq2seq`: a folder or hub name; `encoder_pair`: two copies of an encoder joined to an
    encoder-decoder; `scratch`: a T5 with random weights."""

    kind: Literal["seq2seq", "encoder_pair", "scratch"] = "seq2seq"
    model: str = Field(default="t5-base", description="folder or hub name")
    revision: str | None = None
    scratch: ScratchConfig = ScratchConfig()
    prefixes: PrefixesConfig = PrefixesConfig()
    dropout: Share | None = Field(default=None, description="None: as the model's own config has it")
    max_input_tokens: Positive = 1024
    max_target_tokens: Positive = 256
    max_label_tokens: Positive = 64
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"


class DiscriminatorConfig(Settings):
    """The discriminator: an encoder over question + rationale."""

    enabled: bool = Field(default=True, description="False is the ablation w/o QJ: s+ = 1, s- = 0")
    kind: Literal["pretrained", "scratch"] = "pretrained"
    model: str = "t5-base"
    revision: str | None = None
    scratch: ScratchConfig = ScratchConfig()
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

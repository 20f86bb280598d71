"""The student: any Hugging Face sequence-to-sequence model, behind the calls that the method needs.

Knows nothing about losses, tasks or Ray. Model weights are read as safetensors only.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    EncoderDecoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from qcrd.config import EncoderPairStudentConfig, ScratchSizes, StudentConfig
from qcrd.models.batching import Ids
from qcrd.models.packed_t5 import PackedT5
from qcrd.models.padded_seq2seq import PaddedSeq2Seq
from qcrd.models.tokenizer import eos_of, load_tokenizer, pad_of
from qcrd.seeding import stable_seed

_DROPOUT_FIELDS = (
    "dropout_rate",
    "dropout",
    "hidden_dropout_prob",
    "attention_dropout",
    "attention_probs_dropout_prob",
)


class Passes(Protocol):
    """What a student computes: packed_t5.py for T5, padded_seq2seq.py for any other model."""

    def encode(self, rows: Sequence[Ids]) -> Any: ...

    def sequence_nll(self, encoded: Any, question_R: Sequence[int], targets: Sequence[Ids]) -> torch.Tensor: ...

    def weighted_nll(
        self, encoded: Any, question_R: Sequence[int], targets: Sequence[Ids], weights_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def target_logits(self, encoded: Any, question_R: Sequence[int], targets: Sequence[Ids]) -> list[torch.Tensor]: ...

    def start(self, rows: Sequence[Ids], max_new_tokens: int) -> Any: ...


@dataclass
class Student:
    """A model with the ids that it needs. R targets, each of one of the encoded questions; T tokens, V vocabulary."""

    model: PreTrainedModel
    pad_id: int
    eos_id: int
    start_id: int
    dtype: str

    def __post_init__(self) -> None:
        if isinstance(self.model, T5ForConditionalGeneration):
            self.passes: Passes = PackedT5(self.model, self.start_id)
        else:
            self.passes = PaddedSeq2Seq(self.model, self.pad_id, self.start_id)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def twin(self) -> Student:
        """The same model with weights of its own."""
        return replace(self, model=copy.deepcopy(self.model))

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """bf16 is mixed precision: weights and optimizer stay fp32. fp16 is not offered (T5 overflows)."""
        if self.dtype == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def encode(self, rows: Sequence[Ids]) -> Any:
        """Encoder states of some questions, for the three calls below."""
        with self.precision():
            return self.passes.encode(rows)

    def sequence_nll(self, encoded: Any, question_R: Sequence[int], targets: Sequence[Ids]) -> torch.Tensor:
        """l(r) of each target, (R,), in nats a token: without gradient and with the decoder's dropout off."""
        if not targets:
            return torch.zeros(0, dtype=self.model.dtype, device=self.device)
        with self.precision(), self.decoder_dropout_off():
            return self.passes.sequence_nll(encoded, question_R, targets)

    def weighted_nll(
        self, encoded: Any, question_R: Sequence[int], targets: Sequence[Ids], weights_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of weights * l(r) with gradient, l(r) of each target, (R,), without)."""
        if not targets:
            nothing = torch.zeros(0, dtype=self.model.dtype, device=self.device)
            return nothing.sum().requires_grad_(), nothing
        with self.precision():
            return self.passes.weighted_nll(encoded, question_R, targets, weights_R)

    def target_logits(self, encoded: Any, question_R: Sequence[int], targets: Sequence[Ids]) -> list[torch.Tensor]:
        """Teacher-forced logits of each target's tokens, (T, V) each, with gradient, in at least fp32.

        All of them exist at once: for what is no sum of l(r). Tokens after the EOS are read like any other.
        """
        with self.precision():
            logits = self.passes.target_logits(encoded, question_R, targets)
        return [row.to(torch.promote_types(row.dtype, torch.float32)) for row in logits]

    @contextlib.contextmanager
    def decoder_dropout_off(self) -> Iterator[None]:
        """The decoder in evaluation mode, the encoder as it was."""
        decoder = self.model.get_decoder()
        was_training = decoder.training
        decoder.eval()
        try:
            yield
        finally:
            decoder.train(was_training)


def _model_dropout(name: str, revision: str | None, dropout: float | None) -> dict[str, float]:
    """The dropout fields that a pretrained config has, set to `dropout`."""
    if dropout is None:
        return {}
    fields = AutoConfig.from_pretrained(name, revision=revision).to_dict()
    return {field: dropout for field in _DROPOUT_FIELDS if field in fields}


def t5_config(scratch: ScratchSizes, vocab_size: int, pad_id: int, eos_id: int, dropout: float) -> T5Config:
    """Sizes for a T5 with random weights."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=scratch.d_model,
        d_kv=scratch.d_kv,
        d_ff=scratch.d_ff,
        num_layers=scratch.num_layers,
        num_decoder_layers=scratch.num_decoder_layers,
        num_heads=scratch.num_heads,
        dropout_rate=dropout,
        initializer_factor=scratch.initializer_factor,
        pad_token_id=pad_id,
        eos_token_id=eos_id,
    )
    config.decoder_start_token_id = pad_id
    return config


def _encoder_pair(config: EncoderPairStudentConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Two copies of one encoder joined to an encoder-decoder (its cross attention starts at random weights)."""
    dropout = _model_dropout(config.model, config.revision, config.dropout)
    options = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in dropout.items()}
    model: PreTrainedModel = EncoderDecoderModel.from_encoder_decoder_pretrained(config.model, config.model, **options)
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    model.config.decoder_start_token_id = start
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = eos_of(tokenizer)
    return model


def build_student(
    config: StudentConfig, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device
) -> Student:
    """The student at its initial weights (snapshot 0). Random weights are drawn from `seed` alone."""
    torch.manual_seed(stable_seed(seed, "student_initialisation"))
    if config.kind == "scratch":
        t5 = t5_config(config, len(tokenizer), pad_of(tokenizer), eos_of(tokenizer), config.dropout or 0.0)
        model: PreTrainedModel = T5ForConditionalGeneration(t5)
    elif config.kind == "encoder_pair":
        model = _encoder_pair(config, tokenizer)
    else:
        dropout = _model_dropout(config.model, config.revision, config.dropout)
        model = AutoModelForSeq2SeqLM.from_pretrained(
            config.model, revision=config.revision, use_safetensors=True, dtype=torch.float32, **dropout
        )
    return as_student(model, tokenizer, config.dtype, device)


def load_student(folder: Path, dtype: str, device: torch.device) -> tuple[Student, PreTrainedTokenizerBase]:
    """A student that `save_student` wrote, with its tokenizer."""
    tokenizer = load_tokenizer(str(folder))
    is_pair = AutoConfig.from_pretrained(folder).model_type == "encoder-decoder"
    kind = EncoderDecoderModel if is_pair else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    return as_student(model, tokenizer, dtype, device), tokenizer


def as_student(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str, device: torch.device) -> Student:
    """Wrap a model. Raises `ValueError` where it does not say with which token its decoder starts."""
    start_id = model.config.decoder_start_token_id
    if start_id is None:
        raise ValueError(f"model of type {model.config.model_type!r} has no decoder_start_token_id: not seq2seq")
    model = model.to(device=device, dtype=torch.float64 if dtype == "float64" else torch.float32)  # pyright: ignore[reportCallIssue]
    model.train()
    return Student(model, pad_of(tokenizer), eos_of(tokenizer), int(start_id), dtype)

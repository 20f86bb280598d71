"""Small real models for the tests of distillation: a T5 of a few thousand weights in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import torch
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5LayerNorm

from qcrd.config import (
    ScratchStudentConfig,
    StudentConfig,
)
from qcrd.distill.batch import QuestionBatch
from qcrd.models.student import Student, as_student, build_student
from qcrd.models.tokenizer import encode_inputs, encode_targets, train_tokenizer

TEXTS = [
    "predict: explain: Tom has 8 apples and buys 3 more. How many apples does he have?",
    "We add 8 and 3 and get 8 + 3 = 11 apples. ( 8 + 3 )",
    "Ann had 12 pens. She gave away 5 pens. How many pens are left?",
    "Taking 5 from 12 leaves 12 - 5 = 7 pens. ( 12 - 5 )",
    "Each box holds 4 toys. There are 6 boxes. How many toys are there? 6 * 4 = 24 ( 6 * 4 )",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, 120)


def tiny_config(dtype: str = "float64", dropout: float = 0.0) -> StudentConfig:
    return ScratchStudentConfig(
        d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
        dropout=dropout, dtype=dtype,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def tiny_student(dtype: str = "float64", dropout: float = 0.0, seed: int = 0) -> Student:
    return build_student(tiny_config(dtype, dropout), tiny_tokenizer(), seed, torch.device("cpu"))


def bert_pair(dtype: str = "float64") -> Student:
    """An encoder-decoder of two small BERTs, dropout off."""
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert))
    model.config.decoder_start_token_id, model.config.pad_token_id = 2, 0
    return as_student(model, tiny_tokenizer(), dtype, torch.device("cpu"))


def gated_student() -> Student:
    """T5 v1.1: gated feed-forward layers, output weights of their own."""
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(tiny_tokenizer()), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    return as_student(T5ForConditionalGeneration(config), tiny_tokenizer(), "float64", torch.device("cpu"))


@contextlib.contextmanager
def exact_norms() -> Iterator[None]:
    """transformers' T5 with norms in the dtype of its weights: it takes them in fp32 even in float64."""

    def forward(self: T5LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    with patch.object(T5LayerNorm, "forward", forward):
        yield


QUESTIONS = ["Tom has 8 apples and buys 3 more.", "Ann had 12 pens. She gave away 5 pens.", "Each box holds 4 toys."]
LABELS = ["( 8 + 3 )", "( 12 - 5 )", "( 6 * 4 )"]
POSITIVES = [["We add 8 and 3 and get 11.", "8 + 3 = 11 apples."], ["12 - 5 = 7 pens.", "Taking 5 leaves 7."], []]
NEGATIVES = [["pens pens 3"], ["Tom 12 + 5 apples", "5 away"], ["6 boxes"]]


def question_batch() -> QuestionBatch:
    """Three questions: two positives and one or two negatives, and one with a negative alone."""
    tokenizer = tiny_tokenizer()

    def ids(texts: list[str]) -> list[list[int]]:
        return encode_targets(tokenizer, texts, 64)

    return QuestionBatch(
        predict_ids=encode_inputs(tokenizer, ["predict: " + q for q in QUESTIONS], 99),
        explain_ids=encode_inputs(tokenizer, ["explain: " + q for q in QUESTIONS], 99),
        label_ids=ids(LABELS),
        rationale_ids=[*ids([side[0] for side in POSITIVES[:2]]), []],
        positives=[ids(side) for side in POSITIVES],
        negatives=[ids(side) for side in NEGATIVES],
        quality_positives=[[0.9, 0.4], [0.8, 0.7], []],
        quality_negatives=[[0.2], [0.1, 0.6], [0.3]],
        draws=[(0.7, 0.2), (0.1, 0.9), (0.5, 0.5)],
    )


def gradients_of(loss: torch.Tensor, student: Student) -> dict[str, torch.Tensor]:
    student.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}


def assert_equal_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, value in theirs.items():
        assert float((ours[name] - value).norm()) <= 1e-10 * max(float(value.norm()), 1e-3), name

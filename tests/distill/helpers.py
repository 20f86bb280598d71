"""Small real models for the tests of distillation: a T5 of a few thousand weights in float64."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from qcrd.config import ScratchConfig, StudentConfig
from qcrd.distill.student import Student, build_student, train_tokenizer

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
    scratch = ScratchConfig(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2)
    return StudentConfig(kind="scratch", scratch=scratch, dropout=dropout, dtype=dtype)  # pyright: ignore[reportArgumentType]


def tiny_student(dtype: str = "float64", dropout: float = 0.0, seed: int = 0) -> Student:
    return build_student(tiny_config(dtype, dropout), tiny_tokenizer(), seed, torch.device("cpu"))

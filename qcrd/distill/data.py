"""What training reads from the artifacts to its left: examples, tokenizer, discriminator, validation questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from qcrd.models.tokenizer import load_tokenizer
from qcrd.records import Example, Question, read_rows


@dataclass(frozen=True)
class TrainingData:
    """Inputs of a training run. `discriminator_folder` is None where the method has no discriminator."""

    examples: list[Example]
    validation: list[Question]
    tokenizer: PreTrainedTokenizerBase
    discriminator_folder: Path | None


def load_training_data(inputs: Mapping[str, Path], validation_limit: int | None = None) -> TrainingData:
    """Read the folders of the stages `questions`, `training_set` and, where there is one, `discriminator`.

    Of the validation questions the first `validation_limit`; None: all.
    """
    questions = read_rows(inputs["questions"] / "questions.parquet", Question)
    validation = [question for question in questions if question.split == "validation"]
    return TrainingData(
        examples=read_rows(inputs["training_set"] / "examples.parquet", Example),
        validation=validation[:validation_limit],
        tokenizer=load_tokenizer(str(inputs["training_set"] / "tokenizer")),
        discriminator_folder=inputs["discriminator"] / "discriminator" if "discriminator" in inputs else None,
    )

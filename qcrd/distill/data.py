"""What training reads from the artifacts to its left: examples, tokenizer, discriminator, validation questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from qcrd.config import ExperimentConfig
from qcrd.models.student import load_tokenizer
from qcrd.records import Example, Question, read_rows


@dataclass(frozen=True)
class TrainingData:
    """Inputs of a training run. `discriminator_folder` is None where the method has no discriminator."""

    examples: list[Example]
    validation: list[Question]
    tokenizer: PreTrainedTokenizerBase
    discriminator_folder: Path | None


def load_training_data(config: ExperimentConfig, inputs: Mapping[str, Path]) -> TrainingData:
    """Read the folders of the stages `questions`, `training_set` and, where there is one, `discriminator`."""
    questions = read_rows(inputs["questions"] / "questions.parquet", Question)
    validation = [question for question in questions if question.split == "validation"]
    return TrainingData(
        examples=read_rows(inputs["training_set"] / "examples.parquet", Example),
        validation=validation[: config.evaluation.validation_limit],
        tokenizer=load_tokenizer(str(inputs["training_set"] / "tokenizer")),
        discriminator_folder=inputs["discriminator"] / "discriminator" if "discriminator" in inputs else None,
    )

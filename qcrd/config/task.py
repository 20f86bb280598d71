"""Settings of the task: which questions, from which file, in which splits."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from qcrd.config.base import Positive, Settings


class GeneratorConfig(Settings):
    """How many problems a generated task makes, and of what kind. Benchmarks read from files ignore it."""

    train_size: Positive = 2000
    validation_size: Positive = 200
    test_size: Positive = 400
    min_steps: int = Field(default=1, ge=1, le=3)
    max_steps: int = Field(default=3, ge=1, le=3)
    max_number: int = Field(default=20, ge=5, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"task.generator.min_steps: {self.min_steps} is not allowed; at most max_steps = {self.max_steps}"
            )
        return self


class TaskConfig(Settings):
    """The benchmark: which questions, from which file, in which splits."""

    name: str = "arithmetic"
    seed: int = 0
    path: str | None = Field(
        default=None,
        description="folder of the questions' files (SVAMP: file or URL), or 'download'; default: under QCRD_DATA",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="checksum the file must have")
    train_limit: Positive | Literal["auto"] | None = Field(
        default="auto",
        description="training questions, drawn by task.seed; auto: as many as the steps can visit; None: all",
    )
    train_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the training questions; a smaller one is part of a larger one"
    )
    generator: GeneratorConfig = GeneratorConfig()

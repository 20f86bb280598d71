"""Settings of the task: which questions, from which file, in which splits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qcrd.config.base import Positive, Settings
from qcrd.config.kinds import with_told_kind


class TaskSettings(Settings):
    """What every kind of task has."""

    seed: int = 0
    train_limit: Positive | Literal["auto"] | None = Field(
        default="auto",
        description="training questions, drawn by task.seed; auto: as many as the steps can visit; None: all",
    )
    train_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the training questions; a smaller one is part of a larger one"
    )


class GeneratedTaskConfig(TaskSettings):
    """Questions that are made: how many, and of what kind."""

    kind: Literal["generated"] = "generated"
    name: Literal["arithmetic"] = "arithmetic"
    train_size: Positive = 2000
    validation_size: Positive = 200
    test_size: Positive = 400
    min_steps: int = Field(default=1, ge=1, le=3)
    max_steps: int = Field(default=3, ge=1, le=3)
    max_number: int = Field(default=20, ge=5, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"task.min_steps: {self.min_steps} is not allowed; at most max_steps = {self.max_steps}")
        return self


class BenchmarkTaskConfig(TaskSettings):
    """A published benchmark, from its files."""

    kind: Literal["benchmark"] = "benchmark"
    name: str
    path: str | None = Field(
        default=None,
        description="folder of the questions' files (SVAMP: file or URL), or 'download'; default: under QCRD_DATA",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="checksum the file must have")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == GeneratedTaskConfig.model_fields["name"].default:
            raise ValueError(f"task.name: {self.name!r} is not allowed with task.kind = benchmark; it is generated")
        return self


TaskConfig = Annotated[
    GeneratedTaskConfig | BenchmarkTaskConfig,
    Field(discriminator="kind"),
    with_told_kind("generated", GeneratedTaskConfig, BenchmarkTaskConfig),
]
"""The questions: the settings of one kind of task."""

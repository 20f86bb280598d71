"""A number that a paper printed, handed over by a recipe to stand beside what is measured here; it decides nothing."""

from __future__ import annotations

from typing import Literal

from qcrd.config.base import Positive, Settings

PaperMeasure = Literal[
    "test_accuracy", "mean_positives", "share_only_positives", "share_only_negatives", "training_hours"
]  # fmt: skip


class PaperNumber(Settings):
    """One printed number, and of which experiments it speaks: None or nothing stands for any.

    An accuracy is in %. `heading` and `note`: what a report writes above it and below it. `models`: names of the
    student; `discriminator`: whether one is enabled. `steps`: those of `training_hours`.
    """

    measure: PaperMeasure
    value: float
    heading: str = ""
    note: str = ""
    task: str | None = None
    method: str | None = None
    models: tuple[str, ...] = ()
    discriminator: bool | None = None
    labels: Literal["gold", "teacher"] = "gold"
    steps: Positive | None = None

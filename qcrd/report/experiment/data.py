"""Everything that a report reads, from the finished folders of the stages before it.

Knows the files of those folders; nothing about how a report looks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qcrd.config import ExperimentConfig
from qcrd.records import Example, Explanation, Prediction, Question, Sample, Score, read_rows
from qcrd.report.experiment.settings import MethodFacts
from qcrd.storage.json_lines import read_json_lines
from qcrd.teacher.backends.table import backend_of

MetricRow = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class ReportData:
    """What was measured. A field is None where the experiment has no such stage."""

    config: ExperimentConfig
    method: MethodFacts
    inputs: Mapping[str, Path]
    summaries: Mapping[str, Mapping[str, Any]]
    questions: list[Question]
    samples: list[Sample] | None
    statistics: dict[str, Any] | None
    examples: list[Example]
    discriminator_rows: list[MetricRow] | None
    metric_rows: list[MetricRow]
    training: dict[str, Any]
    predictions: list[Prediction]
    explanations: list[Explanation]
    scores: list[Score]
    evaluation: dict[str, Any]

    def subject(self) -> str:
        """Method and task for titles; it says so where the teacher is simulated."""
        simulated = ", simulated teacher" if backend_of(self.config.teacher).simulated else ""
        return f"{self.config.method} on {self.config.task.name}{simulated}"

    def num_predictions(self, checkpoint: str, split: str) -> int:
        return sum(p.checkpoint == checkpoint and p.split == split for p in self.predictions)

    def rows_after_iteration(self, iteration: int) -> list[MetricRow]:
        """Metric rows of the steps after an iteration; empty where the run did not get beyond it."""
        ends = [row["step"] for row in self.metric_rows if row.get("train/iteration") == iteration]
        return [row for row in self.metric_rows if row["step"] > ends[0]] if ends else []

    def online_updates(self) -> int:
        """Optimizer steps of the discriminator while the student trained."""
        return sum(int(value) for _, value in series(self.metric_rows, "discriminator/updates"))


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have a finite value of `key`."""
    return [(row["step"], float(row[key])) for row in rows if key in row and math.isfinite(row[key])]


def read_report_data(
    config: ExperimentConfig, method: MethodFacts, inputs: Mapping[str, Path],
    summaries: Mapping[str, Mapping[str, Any]],
) -> ReportData:  # fmt: skip
    """Read the folders. Raises `FileNotFoundError` where a stage's folder lacks a file that the stage writes."""

    def rows(stage: str, name: str, kind: type[T]) -> list[T]:
        return read_rows(inputs[stage] / name, kind)

    return ReportData(
        config=config,
        method=method,
        inputs=inputs,
        summaries=summaries,
        questions=rows("questions", "questions.parquet", Question),
        samples=rows("samples", "samples.parquet", Sample) if "samples" in inputs else None,
        statistics=_json(inputs["rationales"] / "statistics.json") if "rationales" in inputs else None,
        examples=rows("training_set", "examples.parquet", Example),
        discriminator_rows=read_json_lines(inputs["discriminator"] / "pretraining.jsonl")
        if "discriminator" in inputs
        else None,
        metric_rows=read_json_lines(inputs["student"] / "metrics.jsonl"),
        training=_json(inputs["student"] / "training.json"),
        predictions=rows("predictions", "predictions.parquet", Prediction),
        explanations=rows("predictions", "explanations.parquet", Explanation),
        scores=rows("predictions", "scores.parquet", Score),
        evaluation=_json(inputs["predictions"] / "evaluation.json"),
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())

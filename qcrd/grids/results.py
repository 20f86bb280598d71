"""What a grid's report shows of a cell, read off the finished stages of its experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcrd.config.grid import STAGE_OF, Cell
from qcrd.grids.cells import right_of
from qcrd.records import Explanation, Prediction, Question, Score, read_rows
from qcrd.report.grid.data import CellResult
from qcrd.storage.artifacts import Artifact
from qcrd.storage.json_lines import read_json_lines


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def read_result(cell: Cell, seed: int, made: Mapping[str, Artifact]) -> CellResult:
    """What the finished stages of a cell say."""
    summaries = {name: artifact.marker()["summary"] for name, artifact in made.items()}
    value = value_of(cell, summaries)
    if "predictions" not in made:
        return CellResult(cell.row, cell.column, seed, value, source=str(made[STAGE_OF[cell.measure]].path))
    folder = made["predictions"].fetch()
    explanations = read_rows(folder / "explanations.parquet", Explanation)
    asked = {row.question_id for row in explanations}
    questions = read_rows(made["questions"].fetch() / "questions.parquet", Question)
    metrics = _numbers(summaries["student"]) | _numbers(summaries["predictions"]) | _numbers(summaries["report"])
    right = right_of(read_rows(folder / "predictions.parquet", Prediction)) if cell.measure == "test_accuracy" else {}
    return CellResult(
        cell.row, cell.column, seed, value,
        right=right,
        metrics=metrics,
        rows=read_json_lines(made["student"].fetch() / "metrics.jsonl"),
        explanations=explanations,
        scores=read_rows(folder / "scores.parquet", Score),
        question_texts={question.id: question.text for question in questions if question.id in asked},
        source=str(folder),
    )  # fmt: skip


def value_of(cell: Cell, summaries: Mapping[str, Mapping[str, Any]]) -> float:
    """What a cell measures, from the summaries of its stages."""
    summary = summaries[STAGE_OF[cell.measure]]
    if cell.measure == "test_accuracy":
        return float(summary["eval/test_accuracy_best"])
    if cell.measure == "training_hours":
        return float(summary["seconds"]) / 3600
    if cell.measure in ("mean_positives", "share_only_positives", "share_only_negatives"):
        return float(summary["by_gold"][cell.measure])
    if cell.measure == "vote_accuracy":
        return float(summary[cell.measure])
    if cell.measure == "sample_accuracy":  # of all samples, as the vote's is of all questions
        return float(summary[cell.measure]) * float(summary["parse_rate"])
    return float(summary[cell.measure.removesuffix("_size")])

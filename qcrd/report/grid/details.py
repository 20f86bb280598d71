"""A grid's details: rationales at several temperatures, densities of scores, loss health.

Knows rationales, scores and flat metrics, nothing about accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qcrd.config.grid import Grid
from qcrd.records import Explanation
from qcrd.report.experiment.figures import HELD_OUT, score_densities
from qcrd.report.experiment.health import score_table, scores_by_source
from qcrd.report.figures import plain
from qcrd.report.grid.claims import subject_of
from qcrd.report.grid.data import CellResult, GridResults
from qcrd.report.markdown import NOT_MEASURED, cell, number, percent, table

_HEALTH = {
    "hinge_active_last": ("active hinges, last", True),
    "auroc_real": ("discriminator's AUROC, real negatives", False),
    "truncated_negatives": ("truncated negatives", True),
    "parse_rate": ("parse rate", True),
    "test_rationale_accuracy": ("rationales that state the right answer", True),
    "test_consistency": ("rationales that state the predicted label", True),
}
"""Last part of a metric's name → its title, and whether it is a share."""


def temperatures_section(grid: Grid, results: GridResults) -> list[str]:
    """Figure 5: the student's rationales for one question of each column, at each temperature."""
    lines = ["## Rationales at several temperatures", ""]
    for column in grid.columns:
        cells = [next((one for one in results.of(row, column) if one.explanations), None) for row in grid.rows]
        found = [one for one in cells if one is not None]
        question = _shared_question(found)
        if question is None:
            lines += [f"{cell(column)}: {NOT_MEASURED}.", ""]
            continue
        rows = []
        for one in found:
            own = sorted((e for e in one.explanations if e.question_id == question), key=lambda e: e.temperature)
            for said in own:
                cut = "yes" if said.truncated else "no"
                rows.append([cell(one.row), f"{said.temperature:g}", cell(said.text), number(said.score), cut])
        text = next((one.question_texts[question] for one in found if question in one.question_texts), question)
        lines += [f"### {cell(column)}", "", f"Question {cell(question)}: {cell(text, 3000)}", ""]
        lines += table(
            [cell(grid.row_title), "τ", "rationale", "discriminator's score", "cut at the token limit"], rows
        )
        lines += [f"Seed {', '.join(map(str, dict.fromkeys(one.seed for one in found)))}.", ""]
    return lines


def _shared_question(found: Sequence[CellResult]) -> str | None:
    """The first question of the first cell that has the most (row, temperature) pairs."""
    if not found:
        return None
    told: dict[str, int] = {}
    asked: Sequence[Explanation] = [e for one in found for e in one.explanations if e.split == "test"]
    for said in asked:
        told[said.question_id] = told.get(said.question_id, 0) + 1
    return max(told, key=lambda question: told[question], default=None)


def densities_section(grid: Grid, results: GridResults, figures: Path) -> list[str]:
    """Figure 6: densities of the discriminator's scores, and the numbers beside them. One figure a cell with any."""
    lines = ["## Score densities", ""]
    with_scores = [
        (one, result) for one in grid.cells if (result := _first_with_scores(results.of(one.row, one.column)))
    ]
    if not with_scores:
        return [*lines, f"Scores: {NOT_MEASURED}.", ""]
    for index, (one, result) in enumerate(with_scores, 1):
        on_test = "test" in one.config.teacher.splits
        which = "test questions, on which neither student nor discriminator was trained" if on_test else HELD_OUT
        name = f"{one.row}, {one.column}, seed {result.seed}"
        scores = scores_by_source(result.scores)
        score_densities(figures / f"score_densities_{index}", plain(f"{subject_of(grid)}\n{name}"), scores, which)
        lines += [f"### {cell(name)}", "", *score_table({cell(key): values for key, values in scores.items()})]
        lines += [f"![Score densities](figures/score_densities_{index}.png)", "", f"Scored: {which}.", ""]
    return lines


def _first_with_scores(found: Sequence[CellResult]) -> CellResult | None:
    return next((one for one in found if one.scores), None)


def health_section(grid: Grid, results: GridResults) -> list[str]:
    """Loss health and rationale quality of the cells that have any, mean over their finished seeds."""
    cells = [one for one in grid.cells if one.measure == "test_accuracy"]
    measured = [(one, health) for one in cells if (health := _health(results.of(one.row, one.column)))]
    keys = [key for key in _HEALTH if any(key in values for _, values in measured)]
    if not keys:
        return []
    header = [cell(grid.row_title), "column", *(_HEALTH[key][0] for key in keys)]
    rows = [[cell(one.row), cell(one.column), *_health_line(values, keys)] for one, values in measured]
    note = "Mean over the finished seeds; `not measured`: the cell has no such number."
    return ["## Loss health and rationales", "", *table(header, rows), note, ""]


def _health_line(values: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    return [percent(values.get(key)) if _HEALTH[key][1] else number(values.get(key)) for key in keys]


def _health(found: Sequence[CellResult]) -> dict[str, float]:
    """Mean over the seeds that have the number, by the last part of the metric's name."""
    listed: dict[str, list[float]] = {}
    for one in found:
        own = {key.rsplit("/", 1)[-1].removeprefix("discriminator_"): value for key, value in one.metrics.items()}
        for key in _HEALTH.keys() & own.keys():
            listed.setdefault(key, []).append(own[key])
    return {key: float(np.mean(values)) for key, values in listed.items()}

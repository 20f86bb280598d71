"""A grid's plots, as PNG and SVG: its values with intervals, learning curves, accuracy against the training share.

Knows summaries and metric rows, nothing about folders of stages or Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qcrd.config.grid import SHARES, Cell, Grid
from qcrd.report.experiment.data import series
from qcrd.report.figures import ACROSS, Panel, draw_panels, finish, panel_axes, plain
from qcrd.report.grid.claims import Summary, column_student, subject_of
from qcrd.report.grid.data import CellResult, GridResults, is_simulated


def unit_of(cell: Cell) -> str:
    """What an axis of the cell's measure is called."""
    return "accuracy, %" if cell.measure in SHARES else cell.measure.replace("_", " ")


def _errors(found: Sequence[Summary]) -> np.ndarray:
    """Distances from the values down to `low` and up to `high`, 0 where there is no interval."""
    down = [0.0 if one.low is None else max(0.0, one.value - one.low) for one in found]
    up = [0.0 if one.high is None else max(0.0, one.high - one.value) for one in found]
    return np.array([down, up])


def results_chart(path: Path, grid: Grid, summaries: Mapping[tuple[str, str], Summary]) -> bool:
    """Every finished cell as a point with its interval, one panel a column; the paper's value as a hollow one.

    False, and no file, where no cell is finished.
    """
    panels = dict.fromkeys((one.cell.column, unit_of(one.cell)) for one in summaries.values())
    if not panels:
        return False
    figure, drawn = panel_axes(len(panels), 0.9 + 0.32 * len(grid.rows))
    for axes, (column, unit) in zip(drawn, panels, strict=True):
        found = [one for one in summaries.values() if (one.cell.column, unit_of(one.cell)) == (column, unit)]
        rows = list(dict.fromkeys(one.cell.row for one in found))
        places = [rows.index(one.cell.row) for one in found]
        style = {"fmt": "o", "color": "C0", "capsize": 3, "markersize": 5}
        values = [one.value for one in found]
        axes.errorbar(values, places, xerr=_errors(found), label=plain(column_student(grid, column)) or "here", **style)
        printed = [(one.cell.paper.value, place) for one, place in zip(found, places, strict=True) if one.cell.paper]
        if printed and not is_simulated(grid):
            axes.plot(*zip(*printed, strict=True), "D", color="C1", fillstyle="none", label="paper")
        axes.set_yticks(range(len(rows)), [plain(row) for row in rows], fontsize=9)
        axes.set_ylim(len(rows) + 0.4, -0.5)  # the last line is the legend's
        axes.set_xlabel(unit)
        axes.set_title(plain(column), fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower center", ncols=2)
    finish(figure, subject_of(grid), path)
    return True


def training_share(path: Path, grid: Grid, summaries: Mapping[tuple[str, str], Summary]) -> bool:
    """Figure 4: test accuracy against the share of the training set, one line a method, one panel a task.

    False, and no file, where no cell of a test accuracy is finished.
    """
    found = [one for one in summaries.values() if one.cell.measure == "test_accuracy"]
    tasks = dict.fromkeys(one.cell.config.task.name for one in found)
    if not tasks:
        return False
    figure, drawn = panel_axes(len(tasks), 3.4, across=2)
    for axes, task in zip(drawn, tasks, strict=True):
        own = sorted(
            (one for one in found if one.cell.config.task.name == task),
            key=lambda one: one.cell.config.task.train_share,
        )
        for method in dict.fromkeys(one.cell.config.method for one in own):
            line = [one for one in own if one.cell.config.method == method]
            shares = [100 * one.cell.config.task.train_share for one in line]
            values = [one.value for one in line]
            axes.errorbar(shares, values, yerr=_errors(line), label=method, marker="o", markersize=4, capsize=3)
        axes.set_xlabel("share of the training set, %")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(plain(task), fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    finish(figure, subject_of(grid), path)
    return True


def mean_curve(found: Sequence[CellResult]) -> list[tuple[int, float]]:
    """Validation accuracy by step, mean over the seeds, at the steps that all of them have."""
    curves = [dict(series(one.rows, "eval/accuracy")) for one in found if one.rows]
    if not curves:
        return []
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, float(np.mean([curve[step] for curve in curves]))) for step in steps]


def grid_curves(path: Path, grid: Grid, results: GridResults) -> bool:
    """Learning curves, one panel a column, one line a row. False, and no file, where no cell has metric rows."""
    panels = []
    for column in grid.columns:
        lines = {plain(row): mean_curve(results.of(row, column)) for row in grid.rows}
        lines = {row: points for row, points in lines.items() if points}
        if lines:
            panels.append(Panel(plain(column), "validation accuracy", lines, is_share=True))
    if panels:
        draw_panels(path, plain(subject_of(grid)), panels, min(len(panels), ACROSS))
    return bool(panels)

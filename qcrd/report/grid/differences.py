"""What differs between the configs of runs and of a grid's cells. Knows settings as flat values, not their meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qcrd.config import ExperimentConfig, flatten
from qcrd.config.grid import Cell, Grid
from qcrd.report.markdown import cell as shown
from qcrd.report.markdown import table

_NOT_COMPARED = frozenset({"name", "seed", "output"})
"""Differ between the cells of any grid, or are given by the grid."""


def changed_fields(a: ExperimentConfig, b: ExperimentConfig) -> list[tuple[str, Any, Any]]:
    """What changed between two runs' configs: (dotted field, value in `a`, value in `b`), in the order of the config.

    A field that only one of them has (a key of `teacher.extra_body`) is None in the other.
    """
    left, right = flatten(a), flatten(b)
    keys = dict.fromkeys([*left, *right])
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def differences_section(grid: Grid) -> list[str]:
    """The settings in which rows differ within a column, and those in which columns differ within a row."""
    by_row = _table(grid, grid.row_title, lambda cell: cell.row, lambda cell: cell.column)
    by_column = _table(grid, "column", lambda cell: cell.column, lambda cell: cell.row)
    lines = ["## What differs between the cells", ""]
    if not by_row and not by_column:
        return [*lines, "No setting differs: the cells read different measures off the same experiment.", ""]
    return [*lines, *by_row, *by_column, "All other settings are the same in all cells.", ""]


def _table(grid: Grid, title: str, line: Callable[[Cell], str], other: Callable[[Cell], str]) -> list[str]:
    """One line a `line(cell)`; the fields that vary between cells with the same `other(cell)`."""
    firsts: dict[str, Cell] = {}
    found: dict[str, None] = {}
    for cell in grid.cells:
        first = firsts.setdefault(other(cell), cell)
        found |= {field: None for field, _, _ in changed_fields(first.config, cell.config)}
    fields = [field for field in found if field not in _NOT_COMPARED]
    if not fields:
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in grid.cells:
        groups.setdefault(line(cell), []).append(flatten(cell.config))
    rows = [
        [shown(name), *(shown(" / ".join(dict.fromkeys(str(one.get(field)) for one in flat))) for field in fields)]
        for name, flat in groups.items()
    ]
    return table([shown(title), *(f"`{field}`" for field in fields)], rows)

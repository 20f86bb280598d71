"""What was measured in the cells of a grid, as the grid's report reads it. Knows nothing about files or stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qcrd.config.grid import Grid
from qcrd.evaluate.llm_judge_prompt import ComparisonResult
from qcrd.records import Explanation, Score
from qcrd.teacher.backends.table import any_simulated

Place = tuple[str, str, int]
"""Row, column and seed."""


@dataclass(frozen=True)
class CellResult:
    """One finished cell and seed.

    `value`: a share for the measures of `grid.SHARES`, else the number. `right`: test question id → whether the label
    at the best validation checkpoint is right (empty where the measure is not `test_accuracy`), the same questions in
    all cells of a column. `metrics`: flat numbers of all its stages. `rows`: metric rows of training, by step.
    `source`: the folder or file that it was read from.
    """

    row: str
    column: str
    seed: int
    value: float
    right: Mapping[str, bool] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    explanations: Sequence[Explanation] = ()
    scores: Sequence[Score] = ()
    question_texts: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def place(self) -> Place:
        return self.row, self.column, self.seed


@dataclass(frozen=True)
class GridResults:
    """Everything that a grid's report shows. `missing`: place → why there is no number."""

    cells: Sequence[CellResult]
    comparisons: Sequence[ComparisonResult] = ()
    missing: Mapping[Place, str] = field(default_factory=dict)

    def of(self, row: str, column: str) -> list[CellResult]:
        """The finished seeds of a cell, in order of seed."""
        return sorted((one for one in self.cells if (one.row, one.column) == (row, column)), key=lambda one: one.seed)


def is_simulated(grid: Grid) -> bool:
    """Whether any teacher is simulated: then no column of the paper's stands beside the numbers."""
    return any_simulated(cell.config.teacher for cell in grid.cells)

"""A grid of experiments as data: cells by row and column, seeds, what the paper printed, and the claims to test.

A table or figure of the paper is one grid. Knows nothing about how a cell is run (grids/) or shown (report/).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from qcrd.config.base import ConfigError, Settings
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.teacher import TeacherConfig

Measure = Literal[
    "test_accuracy", "training_hours", "sample_accuracy", "vote_accuracy", "mean_positives", "share_only_positives",
    "share_only_negatives", "train_size", "validation_size", "test_size",
]  # fmt: skip
SHARES = frozenset({"test_accuracy", "sample_accuracy", "vote_accuracy"})
"""Measures that are shares of right items: shown in %, as the paper prints them."""
STAGE_OF: dict[str, str] = {
    "test_accuracy": "predictions", "training_hours": "student", "sample_accuracy": "rationales",
    "vote_accuracy": "rationales", "mean_positives": "rationales", "share_only_positives": "rationales",
    "share_only_negatives": "rationales", "train_size": "questions", "validation_size": "questions",
    "test_size": "questions",
}  # fmt: skip
"""The last stage that a measure needs."""
SEEDED = frozenset({"test_accuracy", "training_hours"})
"""Measures that differ between seeds; the others are taken once."""


ANOTHER_CELLS = "another cell's student"
"""`negatives.fixed` of a cell whose negatives are written by another cell's student (`Cell.fixed_negatives_from`)."""


class PaperValue(Settings):
    """What the paper printed in a cell: % for shares of right items, else the number. `flag`: why it is doubtful."""

    value: float
    flag: str = ""


class Cell(Settings):
    """One cell: a complete experiment, whose seed is replaced by each of the grid's, and what is read off it.

    `fixed_negatives_from`: row and column of the cell whose student of the same seed writes this one's negatives; it is
    trained first, and `negatives.fixed`, `ANOTHER_CELLS` until then, becomes that student's folder. `shown`: whether it
    is in the report; a cell that is not is there for another's sake.
    """

    row: str
    column: str
    config: ExperimentConfig
    measure: Measure = "test_accuracy"
    paper: PaperValue | None = None
    fixed_negatives_from: tuple[str, str] | None = None
    shown: bool = True

    @property
    def place(self) -> tuple[str, str]:
        return self.row, self.column


class Claim(Settings):
    """That one row's accuracy is above another's in a column."""

    column: str
    better: str
    worse: str


class Comparison(Settings):
    """Which of two rows' rationales an LLM judge finds better (Table 7), at one temperature of the students.

    `paper`: how often the first was better, both were good, the second was better.
    """

    column: str
    first: str
    second: str
    temperature: float = Field(ge=0)
    paper: tuple[int, int, int] | None = None


class Grid(Settings):
    """A table or figure: its cells, each for every seed.

    `results` names a folder of the checkout with cells that somebody has already finished (see grids/cells.py).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str
    row_title: str = "method"
    cells: tuple[Cell, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    claims: tuple[Claim, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    llm_judge: TeacherConfig | None = Field(default=None, description="the LLM that makes the comparisons")
    figures: tuple[Literal["training_share", "temperatures", "score_densities"], ...] = ()
    results: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        places = Counter(cell.place for cell in self.cells)
        if twice := [place for place, count in places.items() if count > 1]:
            raise ValueError(f"cells: {twice[0]} occurs twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} is not allowed; each once")
        wanted = [(claim.column, row) for claim in self.claims for row in (claim.better, claim.worse)]
        wanted += [(one.column, row) for one in self.comparisons for row in (one.first, one.second)]
        shown = self.shown_cells
        for column, row in wanted:
            if (row, column) not in (cell.place for cell in shown):
                raise ValueError(f"claims and comparisons: there is no cell ({row!r}, {column!r}) that is shown")
        if not shown:
            raise ValueError("cells: none is shown")
        for cell in self.cells:
            self._check_fixed_negatives(cell)
        if self.comparisons and self.llm_judge is None:
            raise ValueError("llm_judge: None is not allowed; comparisons need one")
        for one in self.comparisons:
            for row in (one.first, one.second):
                self._check_explained(row, one)
        return self

    def _check_fixed_negatives(self, cell: Cell) -> None:
        negatives = cell.config.negatives
        given = negatives.source == "fixed" and negatives.fixed == ANOTHER_CELLS
        if cell.fixed_negatives_from is None:
            if given:
                raise ValueError(f"negatives.fixed: {ANOTHER_CELLS!r} is not allowed; {cell.place} names no other cell")
            return
        if negatives.source != "fixed":
            raise ValueError(
                f"negatives.source: {negatives.source!r} is not allowed; {cell.place} takes its negatives from "
                f"another cell's student, so it must be 'fixed'"
            )
        if not given:
            raise ValueError(
                f"negatives.fixed: {negatives.fixed!r} is not allowed; {cell.place} takes the student of "
                f"{cell.fixed_negatives_from}, for which {ANOTHER_CELLS!r} stands"
            )
        other = self.cell(*cell.fixed_negatives_from)
        if other is None:
            raise ValueError(f"fixed_negatives_from: there is no cell {cell.fixed_negatives_from}")
        if other.fixed_negatives_from is not None:
            raise ValueError(f"fixed_negatives_from: {other.place} is not allowed; it names another cell itself")
        if other.measure not in SEEDED or other.config.output != cell.config.output:
            raise ValueError(f"fixed_negatives_from: {other.place} is not allowed; it trains no student in this output")

    def _check_explained(self, row: str, comparison: Comparison) -> None:
        cell = self.cell(row, comparison.column)
        assert cell is not None
        wanted = cell.config.evaluation
        if not wanted.explained_questions:
            raise ValueError("evaluation.explained_questions: 0 is not allowed; the comparisons need rationales")
        if comparison.temperature not in wanted.explain_temperatures:
            raise ValueError(
                f"evaluation.explain_temperatures: {list(wanted.explain_temperatures)} is not allowed; the comparisons "
                f"need {comparison.temperature:g}"
            )

    @property
    def shown_cells(self) -> tuple[Cell, ...]:
        """The cells of its report."""
        return tuple(cell for cell in self.cells if cell.shown)

    @property
    def named_cells(self) -> set[tuple[str, str]]:
        """Row and column of those whose students write other cells' negatives."""
        return {cell.fixed_negatives_from for cell in self.cells if cell.fixed_negatives_from is not None}

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def cell(self, row: str, column: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.place == (row, column)), None)

    def seeds_of(self, cell: Cell) -> tuple[int, ...]:
        """The seeds for which a cell is run."""
        return self.seeds if cell.measure in SEEDED else self.seeds[:1]


@contextlib.contextmanager
def as_llm_judge(*also: type[Exception]) -> Iterator[None]:
    """An LLM judge's settings are a teacher's: a `ConfigError`, and what `also` names, says `llm_judge.` of them."""
    try:
        yield
    except (ConfigError, *also) as error:
        raise type(error)(re.sub(r"(?<![\w./-])teacher\.(?=\w)", "llm_judge.", str(error))) from None

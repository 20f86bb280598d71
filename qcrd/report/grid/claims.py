"""What a grid's finished cells say: one summary a cell, one verdict a claim. Knows nothing about Markdown or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcrd.config import StudentConfig
from qcrd.config.grid import SHARES, STAGE_OF, Cell, Claim, Grid
from qcrd.report.grid.data import CellResult, GridResults, is_simulated
from qcrd.report.statistics import LEVEL, Matrix, PairedTest, accuracy_interval, compare, holm

_SHORT_NAMES = {
    "t5-base": "T5-base", "google-t5/t5-base": "T5-base", "t5-small": "T5-small", "google-t5/t5-small": "T5-small",
}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """The finished seeds of a cell. Values are in % for shares of right items, else the number.

    `low`, `high`: the 95 % interval of a test accuracy, the range over seeds of another seeded measure, else None.
    `items`: test questions; 0 where the measure has none.
    """

    cell: Cell
    value: float
    low: float | None
    high: float | None
    seeds: int
    expected: int
    items: int


@dataclass(frozen=True)
class Tested:
    """A claim and its test, or the reason why there is none."""

    claim: Claim
    test: PairedTest | None
    expected_seeds: int
    reason: str = ""
    p_holm: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the claim is significant after Holm, and in its own direction."""
        return self.test is not None and self.test.difference > 0 and self.p_holm is not None and self.p_holm < LEVEL

    def verdict(self, escaped: Callable[[str], str] = str) -> str:
        """The claim, whether it is shown, and all that is needed to judge that, in one line.

        Names go through `escaped`.
        """
        better, worse, column = (escaped(name) for name in (self.claim.better, self.claim.worse, self.claim.column))
        subject = f"{better} > {worse} on {column}"
        if self.test is None or self.p_holm is None:
            return f"{subject}: not tested: {escaped(self.reason)}"
        test = self.test
        word = "shown" if self.shown else "not shown"
        if self.p_holm < LEVEL and test.difference < 0:
            word = "the opposite is shown"
        seeds = f"{test.seeds} seed{'s' * (test.seeds != 1)}"
        if test.seeds < self.expected_seeds:
            seeds += f" of {self.expected_seeds}"
        difference = f"{100 * test.difference:+.1f} points [{100 * test.low:.1f}, {100 * test.high:.1f}]"
        found = "no true difference would have been found with 80 % power"
        if test.detectable is not None:
            found = f"a true difference of {100 * test.detectable:.1f} points would have been found with 80 % power"
        one = " (one seed: about these two students, not about other seeds)" if test.seeds == 1 else ""
        return (
            f"{subject}: {word}, {_p(test.p)} (Holm {_p(self.p_holm, '')}), difference {difference}, "
            f"n = {seeds} x {test.items} items{one}; {found}"
        )


def _p(value: float, prefix: str = "p = ") -> str:
    if value < 0.001:
        return prefix.replace("= ", "") + "< 0.001"
    return prefix + (f"{value:.2f}" if value >= 0.1 else f"{value:.3f}")


def right_matrix(results: Sequence[CellResult]) -> Matrix | None:
    """(seeds, items) of 0 and 1, items in order of id. None where there are no items or seeds answered other ones."""
    if not results or not results[0].right or any(one.right.keys() != results[0].right.keys() for one in results):
        return None
    order = sorted(results[0].right)
    return np.array([[one.right[item] for item in order] for one in results], dtype=float)


def summarise(grid: Grid, results: GridResults, cell: Cell) -> Summary | None:
    """Mean over the finished seeds; None where none is finished."""
    found = results.of(cell.row, cell.column)
    if not found:
        return None
    scale = 100.0 if cell.measure in SHARES else 1.0
    values = [scale * one.value for one in found]
    low: float | None = None
    high: float | None = None
    right = right_matrix(found) if cell.measure == "test_accuracy" else None
    if right is not None:
        low, high = (100 * end for end in accuracy_interval(right))
    elif cell.measure == "training_hours" and len(values) > 1:
        low, high = min(values), max(values)
    items = 0 if right is None else right.shape[1]
    return Summary(cell, float(np.mean(values)), low, high, len(found), len(grid.seeds_of(cell)), items)


def check_claims(grid: Grid, results: GridResults) -> list[Tested]:
    """Every claim of the grid, tested where it can be; Holm over those tested. None where the teacher is simulated."""
    if is_simulated(grid):
        return []
    tested = [_test(grid, results, claim) for claim in grid.claims]
    adjusted = iter(holm([one.test.p for one in tested if one.test is not None]))
    return [one if one.test is None else replace(one, p_holm=next(adjusted)) for one in tested]


def _test(grid: Grid, results: GridResults, claim: Claim) -> Tested:
    expected = len(grid.seeds)
    pair = [results.of(row, claim.column) for row in (claim.better, claim.worse)]
    seeds = [[one.seed for one in found] for found in pair]
    for row, found in zip((claim.better, claim.worse), pair, strict=True):
        if not found:
            return Tested(claim, None, expected, f"{row} is missing")
    if seeds[0] != seeds[1]:
        return Tested(claim, None, expected, f"the seeds differ ({claim.better} {seeds[0]}, {claim.worse} {seeds[1]})")
    first, second = (right_matrix(found) for found in pair)
    if first is None or second is None:
        return Tested(claim, None, expected, "no answers to the same test questions at each seed")
    if pair[0][0].right.keys() != pair[1][0].right.keys():
        return Tested(claim, None, expected, "the two rows answered different test questions")
    return Tested(claim, compare(first, second), expected)


def student_name(student: StudentConfig) -> str:
    """The student for people; only a model of the hub gets its short name, not a folder that is called the same."""
    if student.kind == "scratch":
        return f"T5 from scratch, d_model {student.d_model}"
    telling = [part for part in student.model.split("/") if part not in ("", ".", "..", "model", "best", "last")]
    last = telling[-1] if telling else student.model
    if student.kind == "encoder_pair":
        return f"{last} encoder pair"
    if student.model in _SHORT_NAMES:
        return _SHORT_NAMES[student.model]
    return student.model if last in _SHORT_NAMES else last


def column_student(grid: Grid, column: str) -> str:
    """The student, or students, whose measures stand in a column; empty where none of its measures needs one."""
    names = dict.fromkeys(
        student_name(cell.config.student)
        for cell in grid.cells
        if cell.column == column and STAGE_OF[cell.measure] in ("student", "predictions")
    )
    return " / ".join(names)


def subject_of(grid: Grid) -> str:
    """The title of the report and its figures; it says so where the teacher is simulated."""
    if not is_simulated(grid):
        return grid.title
    tasks = ", ".join(dict.fromkeys(cell.config.task.name for cell in grid.cells))
    return f"{grid.title}: {tasks}, simulated teacher"

"""Appendix Table 3: where negatives come from, on SVAMP with T5-base: snapshots j iterations old, a fixed DSS student
(which is trained first), the teacher's own negatives by self-consistency.
"""

from experiments.settings import claims, columns, config, seeds, svamp_cells, titled
from qcrd.config import ExperimentConfig
from qcrd.config.grid import Grid

ROWS = {
    "j = 3": {"negatives.gap": 3},
    "j = 5": {"negatives.gap": 5},
    "j = 10": {"negatives.gap": 10},
    "fixed (a DSS student)": {"negatives.source": "fixed"},
    "teacher's": {"negatives.source": "teacher"},
}


def _fixed(preset: str) -> ExperimentConfig:
    (task,) = columns(preset, ["svamp"])
    return config(preset, task, changes={"method": "dss"})


def fixed_paper() -> ExperimentConfig:
    """The student whose samples are the negatives of the row `fixed`."""
    return _fixed("paper")


def fixed_smoke() -> ExperimentConfig:
    return _fixed("smoke")


def recipe(preset: str = "paper") -> Grid:
    fixed = {"negatives.fixed": f"{__file__}:fixed_{preset}"}
    rows = {row: {**changes, **(fixed if "fixed" in row else {})} for row, changes in ROWS.items()}
    cells = svamp_cells(preset, rows, (68.0, 69.0, 68.5, 66.5, 64.5))
    return Grid(
        name="appendix-table3",
        title=titled(preset, "Appendix Table 3: sources of negatives", "SVAMP, T5-base"),
        row_title="negatives",
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "j = 5", [row for row in ROWS if row != "j = 5"]),
    )

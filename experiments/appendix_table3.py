"""Appendix Table 3: where negatives come from, on SVAMP with T5-base: snapshots j iterations old, a fixed DSS student
(which is trained first), the teacher's own negatives by self-consistency.
"""

from experiments.settings import claims, columns, config, seeds, svamp_cells, titled
from qcrd.config.grid import ANOTHER_CELLS, Cell, Grid

DSS = "DSS"
"""The row that the paper's table lacks: the student whose samples are the negatives of the row `fixed`."""
FIXED = "fixed (a DSS student)"
ROWS = {
    "j = 3": {"negatives.gap": 3},
    "j = 5": {"negatives.gap": 5},
    "j = 10": {"negatives.gap": 10},
    FIXED: {"negatives.source": "fixed", "negatives.fixed": ANOTHER_CELLS},
    "teacher's": {"negatives.source": "teacher"},
}


def recipe(preset: str = "paper") -> Grid:
    ((task, title),) = columns(preset, ["svamp"]).items()
    cells = [
        cell.model_copy(update={"fixed_negatives_from": (DSS, title)}) if cell.row == FIXED else cell
        for cell in svamp_cells(preset, ROWS, (68.0, 69.0, 68.5, 66.5, 64.5))
    ]
    writer = Cell(row=DSS, column=title, config=config(preset, task, changes={"method": "dss"}), shown=False)
    return Grid(
        name="appendix-table3",
        title=titled(preset, "Appendix Table 3: sources of negatives", "SVAMP, T5-base"),
        row_title="negatives",
        cells=(*cells, writer),
        seeds=seeds(preset),
        claims=claims(cells, "j = 5", [row for row in ROWS if row != "j = 5"]),
    )

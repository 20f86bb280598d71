"""Figure 5: what the student writes to one question at several temperatures, QCRD on SVAMP with T5-base."""

from experiments.settings import seeds, svamp_cells, titled
from qcrd.config.grid import Grid

TEMPERATURES = (0.0, 0.7, 1.5, 2.0)


def recipe(preset: str = "paper") -> Grid:
    cells = svamp_cells(preset, {"QCRD": {"evaluation.explain_temperatures": TEMPERATURES}}, (69.0,))
    return Grid(
        name="figure5",
        title=titled(preset, "Figure 5: the student's rationales at several temperatures", "T5-base"),
        cells=tuple(cells),
        seeds=seeds(preset)[:1],
        figures=("temperatures",),
    )

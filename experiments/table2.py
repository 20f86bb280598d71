"""Table 2: five methods with T5-small on four benchmarks, gold labels."""

from experiments.settings import METHODS, claims, method_cells, seeds, titled
from qcrd.grid import Grid


def recipe(preset: str = "paper") -> Grid:
    cells = method_cells(preset, "t5-small")
    return Grid(
        name="table2",
        title=titled(preset, "Table 2: test accuracy of five methods", "T5-small"),
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "QCRD", [row for row in METHODS if row != "QCRD"]),
    )

"""Table 1: five methods with T5-base on four benchmarks, gold labels."""

from experiments.settings import METHODS, claims, method_cells, seeds, titled
from qcrd.grid import Grid


def recipe(preset: str = "paper") -> Grid:
    cells = method_cells(preset, "t5-base")
    return Grid(
        name="table1",
        title=titled(preset, "Table 1: test accuracy of five methods", "T5-base"),
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "QCRD", [row for row in METHODS if row != "QCRD"]),
    )

"""Table 5: five ways from many rationales to one loss, on SVAMP with T5-base."""

from experiments.settings import claims, seeds, svamp_cells, titled
from qcrd.config.grid import Grid

ROWS = {
    "minmax": {"loss.scheme": "minmax"},
    "maxmin": {"loss.scheme": "maxmin"},
    "sampling": {"loss.scheme": "sampling"},
    "mean": {"loss.scheme": "mean"},
    "weighted mean": {"loss.scheme": "weighted_mean"},
}


def recipe(preset: str = "paper") -> Grid:
    cells = svamp_cells(preset, ROWS, (69.0, 67.0, 66.5, 65.0, 66.0))
    return Grid(
        name="table5",
        title=titled(preset, "Table 5: many-to-one schemes", "SVAMP, T5-base"),
        row_title="scheme",
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "minmax", [row for row in ROWS if row != "minmax"]),
    )

"""Appendix Table 5: the temperature of negatives, on SVAMP with T5-base."""

from experiments.settings import claims, seeds, svamp_cells, titled
from qcrd.config.grid import Grid

ROWS = {f"τ = {temperature:g}": {"negatives.temperature": temperature} for temperature in (0, 0.7, 1.5, 2)}


def recipe(preset: str = "paper") -> Grid:
    cells = svamp_cells(preset, ROWS, (65.0, 64.5, 69.0, 67.5))
    return Grid(
        name="appendix-table5",
        title=titled(preset, "Appendix Table 5: temperature of negatives", "SVAMP, T5-base"),
        row_title="temperature",
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "τ = 1.5", [row for row in ROWS if row != "τ = 1.5"]),
    )

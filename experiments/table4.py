"""Table 4: QCRD's parts one after the other, on SVAMP with T5-base.

ED: all positives by vote instead of the first sample; NK: negatives; QJ: the discriminator. The table's check marks
are lost in the paper's text: this is the reading of the method's page. Without all three it is DSS.
"""

from experiments.settings import claims, seeds, svamp_cells, titled
from qcrd.config.grid import Grid

ROWS = {
    "none (DSS)": {"method": "dss"},
    "+ ED": {"negatives.source": "none", "discriminator.enabled": False},
    "+ ED + NK": {"discriminator.enabled": False},
    "+ ED + NK + QJ (QCRD)": {},
}


def recipe(preset: str = "paper") -> Grid:
    cells = svamp_cells(preset, ROWS, (65.5, 67.0, 68.5, 69.0))
    rows = list(ROWS)
    steps = [one for better, worse in zip(rows[1:], rows, strict=False) for one in claims(cells, better, [worse])]
    return Grid(
        name="table4",
        title=titled(preset, "Table 4: the parts of QCRD", "SVAMP, T5-base"),
        row_title="parts",
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=(*steps, *claims(cells, rows[-1], rows[:1])),
    )

"""Table 6: how many positives (m teacher samples) and negatives (k student samples), on SVAMP with T5-base.

m = 5, k = 1 is the default and stands in both halves. k = 0 keeps the discriminator, unlike Table 4's row without
negatives.
"""

from experiments.settings import claims, seeds, svamp_cells, titled
from qcrd.config.grid import Grid

POSITIVES = {
    f"m = {m}": {"rationales.num_samples": m, "teacher.num_samples": max(m, 5)} for m in (1, 5, 10, 20)
}  # fmt: skip
NEGATIVES = {f"k = {k}": {"negatives.num_samples": k} for k in (0, 1, 2, 3)}


def recipe(preset: str = "paper") -> Grid:
    cells = svamp_cells(preset, POSITIVES | NEGATIVES, (67.5, 69.0, 68.0, 68.5, 67.0, 69.0, 68.5, 66.0))
    return Grid(
        name="table6",
        title=titled(preset, "Table 6: numbers of positives and negatives", "SVAMP, T5-base"),
        row_title="samples",
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=(
            *claims(cells, "m = 5", ["m = 1", "m = 10", "m = 20"]),
            *claims(cells, "k = 1", ["k = 0", "k = 2", "k = 3"]),
        ),
    )

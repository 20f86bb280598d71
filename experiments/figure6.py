"""Figure 6: densities of the discriminator's scores on SVAMP's test questions: the teacher's positives and negatives,
the student's samples at τ 1.5 and 2.0. The teacher is asked the test questions too, for scoring only.
"""

from experiments.settings import seeds, svamp_cells, titled
from qcrd.config.grid import Grid


def recipe(preset: str = "paper") -> Grid:
    cells = svamp_cells(preset, {"QCRD": {"teacher.splits": ("train", "test")}}, (69.0,))
    return Grid(
        name="figure6",
        title=titled(preset, "Figure 6: densities of the discriminator's scores on test questions", "T5-base"),
        cells=tuple(cells),
        seeds=seeds(preset)[:1],
        figures=("score_densities",),
    )

"""Appendix Table 2: positives and negatives among K = 5 teacher samples; positive means: gives the gold answer.

The teacher is asked, nothing is trained. The training questions that `train.steps` can visit take part, whose samples
the other tables use too: all of SVAMP, CQA and ANLI1, 80,000 of e-SNLI's 549,367.
"""

from experiments.settings import columns, config, printed
from qcrd.config.grid import Cell, Grid

STATISTICS = {
    "mean positives of 5": ("mean_positives", (3.87, 3.89, 3.93, 3.31)),
    "share with only positives": ("share_only_positives", (0.55, 0.68, 0.66, 0.50)),
    "share with only negatives": ("share_only_negatives", (0.08, 0.13, 0.11, 0.20)),
}
PART = "ours: the training questions that the steps of training can visit"


def recipe(preset: str = "paper") -> Grid:
    cells = [
        Cell(
            row=row, column=title, measure=measure,  # pyright: ignore[reportArgumentType]
            config=config(preset, task), paper=printed(preset, value, PART if task == "esnli" else ""),
        )
        for row, (measure, values) in STATISTICS.items()
        for (task, title), value in zip(columns(preset).items(), values, strict=False)
    ]  # fmt: skip
    return Grid(
        name="appendix-table2", title="Appendix Table 2: the teacher's samples", row_title="statistic",
        cells=tuple(cells),
    )  # fmt: skip

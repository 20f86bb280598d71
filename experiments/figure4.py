"""Figure 4: DSS and QCRD against the share of the training set, four benchmarks, T5-base.

A smaller share is a part of a larger one (by `task.seed`). The shares are ours: the figure's axis is not in the text.
10,000 steps of 8 visit at most 80,000 questions, so of e-SNLI's 549,367 all shares from 25 % up come to the same
80,000: their cells are one training, and only 12.5 % (68,671) differs.
"""

from experiments.settings import METHODS, claims, columns, config, seeds, titled
from qcrd.config.grid import Cell, Grid

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


def recipe(preset: str = "paper") -> Grid:
    cells = [
        Cell(
            row=f"{method}, {100 * share:g} %", column=title,
            config=config(preset, task, changes={**METHODS[method], "task.train_share": share}),
        )
        for task, title in columns(preset).items()
        for method in ("DSS", "QCRD")
        for share in SHARES
    ]  # fmt: skip
    return Grid(
        name="figure4",
        title=titled(preset, "Figure 4: test accuracy against the share of the training set", "T5-base"),
        row_title="method, share",
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=tuple(
            one for share in SHARES for one in claims(cells, f"QCRD, {100 * share:g} %", [f"DSS, {100 * share:g} %"])
        ),
        figures=("training_share",),
    )

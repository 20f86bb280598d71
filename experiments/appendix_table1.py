"""Appendix Table 1: questions of each split. Nobody is asked and nothing is trained."""

from experiments.settings import columns, config, printed
from qcrd.config.grid import Cell, Grid

SIZES = {
    "train_size": (720, 8766, 16946, 549367),
    "validation_size": (80, 975, 1000, 9842),
    "test_size": (200, 1221, 1000, 9824),
}


def recipe(preset: str = "paper") -> Grid:
    cells = [
        Cell(
            row=measure.removesuffix("_size"), column=title, measure=measure,  # pyright: ignore[reportArgumentType]
            config=config(preset, task, changes={"task.train_limit": None}), paper=printed(preset, value),
        )
        for measure, values in SIZES.items()
        for (task, title), value in zip(columns(preset).items(), values, strict=False)
    ]  # fmt: skip
    return Grid(name="appendix-table1", title="Appendix Table 1: sizes of the splits", row_title="split", cells=cells)  # pyright: ignore[reportArgumentType]

"""Appendix Table 6: hours of training by method, on SVAMP with T5-base and T5-small.

The time of the iterations that count (negatives, scoring, steps, the discriminator's updates, validation), as the run
itself measured it, on whatever machine it ran: compare with the paper's hours only on one A100-80G.
"""

from experiments.settings import METHODS, columns, config, printed
from qcrd.config.grid import Cell, Grid

ROWS = {
    "Finetuning": METHODS["Finetuning"], "DSS": METHODS["DSS"], "MI": METHODS["MI"], "QCRD": METHODS["QCRD"],
    "QCRD w/o discriminator": {"discriminator.enabled": False},
}  # fmt: skip
HOURS = {"t5-base": (2.0, 4.0, 4.2, 13.0, 12.0), "t5-small": (1.25, 2.5, 2.6, 8.5, 7.5)}


def recipe(preset: str = "paper") -> Grid:
    (task,) = columns(preset, ["svamp"])
    students = {"t5-base": "T5-base", "t5-small": "T5-small"} if preset != "smoke" else {"t5-base": "arithmetic"}
    cells = [
        Cell(
            row=row, column=title, measure="training_hours", config=config(preset, task, student, changes),
            paper=printed(preset, hours),
        )
        for student, title in students.items()
        for (row, changes), hours in zip(ROWS.items(), HOURS[student], strict=True)
    ]  # fmt: skip
    return Grid(name="appendix-table6", title="Appendix Table 6: hours of training", cells=tuple(cells))

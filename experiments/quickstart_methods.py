"""Three methods on the generated task, three seeds, offline: what a comparison looks like, in minutes on two CPU cores.

As in the quickstart the teacher is simulated and the students are T5s of a million weights from scratch. The numbers
compare methods on made-up questions with a made-up teacher; they say nothing about the paper's benchmarks.
"""

from experiments.quickstart import recipe as quickstart
from qcrd.config import with_overrides
from qcrd.config.grid import Cell, Grid


def recipe() -> Grid:
    base = quickstart()
    rows = {"Finetuning": "finetune", "DSS": "dss", "QCRD": "qcrd"}
    cells = [
        Cell(row=row, column="arithmetic", config=with_overrides(base, {"method": method}))
        for row, method in rows.items()
    ]
    return Grid(
        name="quickstart-methods",
        title="three methods on the generated task",
        cells=tuple(cells),
        seeds=(0, 1, 2),
    )

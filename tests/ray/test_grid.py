"""A real grid in small: the student of a cell that nobody sees writes the negatives of another one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.quickstart import recipe as quickstart
from qcrd.config import with_overrides
from qcrd.config.grid import ANOTHER_CELLS, Cell, Grid
from qcrd.console import Display
from qcrd.grids.plan import plan_grid
from qcrd.grids.run import run_grid
from qcrd.storage.fingerprints import folder_digest

pytestmark = [pytest.mark.usefixtures("ray_started"), pytest.mark.ray]
TINY = {
    "task.train_size": 48, "task.validation_size": 12, "task.test_size": 12, "student.d_model": 32,
    "student.d_ff": 64, "train.steps": 10, "train.iteration_steps": 5, "train.global_batch_size": 8,
    "evaluation.explained_questions": 2, "discriminator.enabled": False, "tracking.enabled": False,
    "resources.threads": 1,
}  # fmt: skip


def test_a_cell_trains_on_negatives_of_an_unshown_cells_student(tmp_path: Path):
    base = with_overrides(quickstart(), {**TINY, "output": str(tmp_path)})
    fixed = with_overrides(base, {"negatives.source": "fixed", "negatives.fixed": ANOTHER_CELLS})
    cells = (
        Cell(row="fixed", column="x", config=fixed, fixed_negatives_from=("dss", "x")),
        Cell(row="dss", column="x", config=with_overrides(base, {"method": "dss"}), shown=False),
    )
    grid = Grid(name="small", title="a small grid", cells=cells)
    assert plan_grid(grid).to_run["student"] == 2
    shown = Display(Console(file=io.StringIO(), width=300))
    folder, results = run_grid(grid, shown, tmp_path, parallel=2)
    assert [one.place for one in results.cells] == [("fixed", "x", 0)] and not results.missing
    page = (folder / "report.md").read_text()
    assert "fixed" in page and "dss" not in page

    markers = {
        settings["method"]: path.parent
        for path in tmp_path.glob("student/*/artifact.json")
        if (settings := json.loads(path.read_text())["settings"])
    }
    assert set(markers) == {"dss", "qcrd"}
    told = json.loads((markers["qcrd"] / "artifact.json").read_text())["settings"]["negatives"]
    assert told["fixed"] == {"content": folder_digest(markers["dss"] / "best")}
    assert len(list(tmp_path.glob("predictions/*"))) == 1  # nobody asks how good the unshown one is

    plan = plan_grid(grid)
    assert not plan.to_run and plan.done["student"] == 2
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("student/**/*"))
    run_grid(grid, shown, tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("student/**/*")) == before

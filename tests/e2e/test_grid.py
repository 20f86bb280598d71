"""A grid in small: two cells at once, killed when one is finished, it goes on; in MLflow it is one run with children;
what was finished is accepted from its committed files."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.whole_runs import ROOT, TINY

pytestmark = pytest.mark.e2e
RECIPE = f"""
from experiments.quickstart import recipe as quickstart
from qcrd.config import with_overrides
from qcrd.config.grid import Cell, Grid

def recipe() -> Grid:
    base = with_overrides(quickstart(), dict(pair.split("=") for pair in {TINY!r}))
    cells = tuple(
        Cell(row=method, column="arithmetic", config=with_overrides(base, {{"method": method, "train.steps": 15}}))
        for method in ("finetune", "single_task")
    )
    return Grid(name="small", title="a small grid", cells=cells, results="results")
"""


def start(folder: Path, output: str, *options: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "qcrd", "run", str(folder / "small.py"), f"output={folder / output}", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment,
        start_new_session=True,
    )  # fmt: skip


def finish(folder: Path, output: str) -> str:
    process = start(folder, output)
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text[-3000:]
    return text


def test_a_grid_goes_on_after_a_kill_from_its_committed_cells(tmp_path: Path):
    (tmp_path / "small.py").write_text(RECIPE)
    process = start(tmp_path, "runs", "--parallel", "2")
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("results/*/cell.json"))) < 1:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    killed, _ = process.communicate()
    assert "2 cells at once" in killed
    assert killed.count("▶ questions") == 1  # whoever comes second waits, and finds them
    first = next(iter(tmp_path.glob("results/*/cell.json")))
    before = first.read_bytes()
    text = finish(tmp_path, "runs")
    assert "finished before" in text and first.read_bytes() == before
    (report,) = (tmp_path / "runs" / "grids").iterdir()
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert [(row["row"], row["seed"]) for row in rows] == [("finetune", "0"), ("single_task", "0")]
    page = (report / "report.html").read_text()
    assert "simulated teacher" in page and "http" not in page.split("<body")[1]

    from mlflow import MlflowClient  # seconds, which collecting the unit tests need not wait for

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qcrd").experiment_id])  # pyright: ignore
    named = {run.info.run_name: run for run in runs}
    parent = named["small"]
    assert len(runs) == 3 and parent.info.status == "FINISHED"
    children = [named[f"{row}--arithmetic--seed0"] for row in ("finetune", "single-task")]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)

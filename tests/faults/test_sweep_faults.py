"""A sweep killed -9 in the middle goes on and equals an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qcrd.report.sweep.data import SweepResults
from qcrd.sweeps.record import SweepRecord, read_results
from tests.e2e.whole_runs import ROOT

pytestmark = pytest.mark.faults
RECIPE = """
from ray import tune
from experiments.sweeps.settings import base
from qcrd.config.sweep import Sweep

def recipe() -> Sweep:
    changes = {"method": "dss", "train.steps": 60, "resources.threads": 1}
    space = {"rationales.num_samples": tune.grid_search([1, 3]), "train.learning_rate": tune.grid_search([5e-3, 1e-3])}
    return Sweep(name="small", title="a small sweep", base=base("smoke", changes), space=space, seeds=(0, 1),
                 scheduler="asha", reduction_factor=2)
"""


def start(folder: Path, command: str, output: str, *options: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "qcrd", command, str(folder / "small.py"), f"output={folder / output}", *options]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    return text


def sweep_folder(folder: Path, output: str) -> Path:
    (found,) = (folder / output / "sweeps").iterdir()
    return found


def facts(results: SweepResults) -> list[Any]:
    """All but times."""
    return [(c.key, c.values, c.status, c.curves, c.steps, c.test_accuracy) for c in results.configurations]


def test_a_sweep_goes_on_after_a_kill_and_equals_an_undisturbed_one(tmp_path: Path):
    (tmp_path / "small.py").write_text(RECIPE)
    process = start(tmp_path, "sweep", "killed", "--parallel", "1")
    deadline = time.monotonic() + 240
    while True:  # until one is finished and the next has begun
        assert time.monotonic() < deadline and process.poll() is None
        kinds = [line["kind"] for f in tmp_path.glob("killed/sweeps/*/trials.jsonl") for line in lines_of(f)]
        if "ended" in kinds and kinds[-1] == "result":
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = next(iter(SweepRecord(sweep_folder(tmp_path, "killed")).trials.values()))
    assert first.status == "finished"
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("checkpoints/*/results/*")}
    store = sorted((path.name, path.stat().st_size) for path in (tmp_path / "killed" / "store").rglob("*.jsonl"))

    text = finish(start(tmp_path, "sweep", "killed", "--parallel", "1"))
    assert "▶ samples" not in text and "▶ discriminator" not in text and f"▶ {first.key}" not in text
    assert {path: path.stat().st_mtime_ns for path in results} == results
    assert store == sorted(
        (path.name, path.stat().st_size) for path in (tmp_path / "killed" / "store").rglob("*.jsonl")
    )
    finish(start(tmp_path, "sweep", "calm", "--parallel", "1"))
    killed, calm = (read_results(sweep_folder(tmp_path, output)) for output in ("killed", "calm"))
    assert facts(killed) == facts(calm)
    assert {one.status for one in killed.configurations} <= {"finished", "stopped"}

    runs = mlflow_runs(tmp_path / "killed")
    assert len(runs) == 1 + 4 * 2 and all(run.info.status == "FINISHED" for run in runs)
    stopped = {one.key for one in killed.configurations if one.status == "stopped"}
    tagged = {run.data.tags["qcrd.trial"] for run in runs if run.data.tags.get("qcrd.early_stopped") == "true"}
    assert tagged == stopped

    again = finish(start(tmp_path, "sweep", "killed"))
    assert "▶ student" not in again and "▶ predictions" not in again
    assert facts(read_results(sweep_folder(tmp_path, "killed"))) == facts(killed)
    assert len(mlflow_runs(tmp_path / "killed")) == 9
    page = (sweep_folder(tmp_path, "killed") / "report" / "report.html").read_text()
    assert "simulated teacher" in page and killed.finished[0].key in page


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def mlflow_runs(output: Path) -> list[Any]:
    from mlflow import MlflowClient  # seconds, which collecting the unit tests need not wait for

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("qcrd")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))

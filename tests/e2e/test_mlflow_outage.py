"""What becomes of a run when MLflow is away: a real server that comes late, dies and returns; a run that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from qcrd.config import ExperimentConfig, TrackingConfig
from qcrd.pipeline.recording import start_record
from qcrd.tracking.mlflow_server import tracking_uri
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import read_metrics
from qcrd.tracking.tracker import RunId
from tests.tracked import id_of

pytestmark = pytest.mark.e2e

CHILD = """
import sys
from pathlib import Path
from qcrd.tracking import record as tracking
from qcrd.config import TrackingConfig
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.tracker import RunId
tracking.SYNC_SECONDS = 0.01
output = Path(sys.argv[1])
run = open_run_record(output / "run", RunId("key", "name"), TrackingConfig(), output)
run.begin_sync()
run.flush()
for step in range(10**6):
    run.log("train", {"train/loss": float(step)}, step=step)
    tracking.time.sleep(0.002)
    if step == 300:
        print("going", flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A server of its own session, so that its workers can be ended with it."""
    options = {
        "--backend-store-uri": f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination": str(folder / "server-artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    command = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return server
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
    stop_server(server)
    raise TimeoutError((folder / "server.log").read_text())


def stop_server(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def shown(uri: str, run_id: str) -> list[tuple[str, int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    names = client.get_run(run_id).data.metrics
    return sorted((name, m.step, m.value) for name in names for m in client.get_metric_history(run_id, name))


def recorded(folder: Path) -> list[tuple[str, int, float]]:
    rows = read_metrics(folder)
    return sorted((k, row["step"], v) for row in rows for k, v in row.items() if k not in ("stage", "step", "time"))


def test_server_that_is_absent_then_comes_dies_and_returns(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    port = free_port()
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{port}")
    config = ExperimentConfig(name="outage", output=str(tmp_path), tracking=tracking)
    folder, said = tmp_path / "run", list[str]()
    report = tmp_path / "report.txt"
    report.write_text("here")

    began = time.monotonic()
    run = open_run_record(folder, RunId("key", "outage"), tracking, tmp_path, said.append)
    start_record(run, config, {"note": "x"})
    for step in range(50):
        run.log("train", {"train/loss": 1.0 / (step + 1)}, step=step)
    run.add_artifact(report, "report")
    run.add_dataset("arithmetic", "d" * 64, 10, "questions.jsonl", "training")
    run.close("FINISHED")
    assert time.monotonic() - began < 15
    assert len(said) == 1
    assert len(recorded(folder)) == 50

    server = start_server(tmp_path, port)
    try:
        assert open_run_record(folder, RunId("key", "outage"), tracking, tmp_path).catch_up()
        run = open_run_record(folder, RunId("key", "outage"), tracking, tmp_path, said.append)
        client = MlflowClient(tracking_uri=tracking.uri)
        assert shown(str(tracking.uri), id_of(run)) == recorded(folder)
        assert client.get_run(id_of(run)).info.status == "FINISHED"
        assert [item.path for item in client.list_artifacts(id_of(run), "report")] == ["report/report.txt"]

        start_record(run, config, {"note": "x"})
        run.log("predict", {"eval/accuracy": 0.5})
        assert run.flush()
        stop_server(server)  # in the middle of a run
        began = time.monotonic()
        run.log("report", {"report/tables": 3.0})
        run.close("FINISHED")
        assert time.monotonic() - began < 15
        assert len(said) == 2  # one of each record

        server = start_server(tmp_path, port)
        for _ in range(2):
            assert open_run_record(folder, RunId("key", "outage"), tracking, tmp_path).catch_up()
            assert shown(str(tracking.uri), id_of(run)) == recorded(folder)
        data = client.get_run(id_of(run))
        assert data.inputs is not None
        assert (data.info.status, len(data.inputs.dataset_inputs)) == ("FINISHED", 1)
        experiment = client.get_experiment_by_name(tracking.experiment)
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == 1
    finally:
        stop_server(server)


def test_a_kill_while_mlflow_makes_its_tables_leaves_no_half_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.DEVNULL) as child:
        limit = time.monotonic() + 300
        while not any(path.stat().st_size > 100_000 for path in tmp_path.glob(".mlflow.db.*.tmp/mlflow.db")):
            assert time.monotonic() < limit and child.poll() is None
            time.sleep(0.01)
        child.kill()
    assert not (tmp_path / "mlflow.db").exists()
    run = open_run_record(tmp_path / "run", RunId("key", "name"), TrackingConfig(), tmp_path)
    run.log("train", {"train/loss": 1.0}, step=1)
    run.begin_sync()
    assert run.flush() and not list(tmp_path.glob(".mlflow.db*"))
    run.stop()


def test_killed_run_goes_on_and_no_step_is_shown_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = open_run_record(tmp_path / "run", RunId("key", "name"), TrackingConfig(), tmp_path)
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"going\n"
        child.kill()
        child.wait()
        # its checkpoint was of step 100; what the killed process had sent beyond that is not sent again
        rows = [row for row in read_metrics(tmp_path / "run") if row["step"] <= 100]
        run = open_run_record(tmp_path / "run", RunId("key", "name"), TrackingConfig(), tmp_path)
        run.restart_stage("train", [*{row["step"]: row for row in rows}.values()])
    for step in range(101, 2000):
        run.log("train", {"train/loss": float(step)}, step=step)
    run.begin_sync()
    run.close("FINISHED")
    steps = Counter(step for _, step, _ in shown(tracking_uri(TrackingConfig(), tmp_path), id_of(run)))
    assert steps == Counter(range(2000))

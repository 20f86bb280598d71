"""A sweep in MLflow: eight runs written at once, to SQLite, and to a server that is away, comes, dies and returns."""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import ray
from ray import tune
from rich.console import Console

from experiments.sweeps.settings import base
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.sweeps.run import run_sweep
from qcrd.sweeps.search_space import listed
from qcrd.tracking import record as tracking
from qcrd.tracking.mlflow_tracker import RUN_KEY
from qcrd.tracking.record import is_open, read_items
from tests.e2e.test_mlflow_outage import free_port, recorded, shown, start_server, stop_server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = pytest.mark.faults
GOOD, ALSO_GOOD, USELESS = 5e-3, 4e-3, 1e-9
SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module", autouse=True)
def ray_and_quick_syncs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "SYNC_SECONDS", 0.2)  # so that they meet each other
        yield
    ray.shutdown()


class Heard(Display):
    """A display that does something once it is told a line that begins so."""

    def __init__(self, **then: Callable[[], None]) -> None:
        super().__init__(Console(file=io.StringIO(), width=300))
        self._then = {begin.replace("_", " "): act for begin, act in then.items()}

    def say(self, text: str) -> None:
        super().say(text)
        for begin in [begin for begin in self._then if begin in text]:
            self._then.pop(begin)()

    @property
    def text(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def sweep_of(
    name: str, output: Path, uri: str, rates: list[float], seeds: tuple[int, ...] = SEEDS, steps: int = 80
) -> Sweep:
    """The last of `rates` comes last, where others are there to be compared with."""
    settings: dict[str, Any] = {
        "method": "finetune", "output": str(output), "tracking.uri": uri, "tracking.experiment": name,
        "train.steps": steps, "train.log_every": 2, "resources.threads": 1, "evaluation.explained_questions": 2,
    }  # fmt: skip
    space = {"train.learning_rate": tune.grid_search(rates)}
    whole = Sweep(
        name=name, title="a small sweep", base=base("smoke", settings), space=space, seeds=seeds,
        scheduler="asha", reduction_factor=2,
    )  # fmt: skip
    orders = (whole.model_copy(update={"search_seed": seed}) for seed in range(100))
    return next(sweep for sweep in orders if (listed(sweep) or [{}])[-1] == {"train.learning_rate": rates[-1]})


def runs_of(sweep: Sweep) -> tuple[MlflowClient, Run, dict[str, Run]]:
    """The parent, and the children by the name of their folder; each is there once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=sweep.base.tracking.uri, registry_uri=sweep.base.tracking.uri)
    experiment = client.get_experiment_by_name(sweep.base.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    keys = [run.data.tags[RUN_KEY] for run in runs]
    assert len(set(keys)) == len(keys)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = {run.data.tags[RUN_KEY].partition("/")[2]: run for run in runs if run is not parents[0]}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}
    return client, parents[0], children


def assert_all_there(sweep: Sweep, folder: Path, configurations: int) -> dict[str, Run]:
    """MLflow has what the records say, no more and no less. Returns the children."""
    _, parent, children = runs_of(sweep)
    records = Path(sweep.base.output) / "records" / folder.name
    assert set(children) == {path.name for path in records.glob("*-seed*")}
    assert len(children) == configurations * len(sweep.seeds)
    uri = str(sweep.base.tracking.uri)
    for run, record in [(parent, records), *((run, records / name) for name, run in children.items())]:
        assert run.info.status == "FINISHED"
        assert shown(uri, run.info.run_id) == recorded(record)
        params = next(item["params"] for item in read_items(record) if item["kind"] == "start")
        assert run.data.params == params
    for run in children.values():
        shown_of_all = {"eval/accuracy", "train/label_loss", "student/best_validation_accuracy", "sweep/score"}
        assert shown_of_all <= run.data.metrics.keys()
        assert run.data.tags["qcrd.status"] in ("finished", "stopped")
    return children


def assert_best_is_registered(sweep: Sweep) -> None:
    """One version, of the winner's best seed, which answers."""
    import mlflow

    client, parent, children = runs_of(sweep)
    (version,) = client.search_model_versions(f"name = 'qcrd-{sweep.name}'")
    assert version.run_id is not None
    owner = next(run for run in children.values() if run.info.run_id == version.run_id)
    assert owner.data.tags["qcrd.trial"] == parent.data.tags["qcrd.winner"]
    assert owner.data.metrics["student/best_validation_accuracy"] == max(
        run.data.metrics["student/best_validation_accuracy"]
        for run in children.values() if run.data.tags["qcrd.trial"] == parent.data.tags["qcrd.winner"]
    )  # fmt: skip
    mlflow.set_tracking_uri(sweep.base.tracking.uri or "")
    mlflow.set_registry_uri(sweep.base.tracking.uri or "")
    model = mlflow.pyfunc.load_model(f"models:/qcrd-{sweep.name}@best")
    (answer,) = model.predict(pd.DataFrame({"question": ["Tom has 2 apples and gets 1 more. How many are there?"]}))
    assert isinstance(answer, str)


def test_eight_at_once_on_sqlite_lose_nothing_and_a_restart_adds_nothing(tmp_path: Path) -> None:
    sweep = sweep_of("local", tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}", [GOOD, ALSO_GOOD, USELESS])
    told = Heard()
    folder, _ = run_sweep(sweep, told, parallel=2)
    assert "MLflow" not in told.text
    children = assert_all_there(sweep, folder, configurations=3)
    first = sorted(children.values(), key=lambda run: run.info.start_time)[:8]
    ends = [run.info.end_time for run in first]
    assert max(run.info.start_time for run in first) < min(end for end in ends if end is not None)  # eight at once
    useless = [run for run in children.values() if run.data.params["train.learning_rate"] == str(USELESS)]
    assert [run.data.tags["qcrd.early_stopped"] for run in useless] == ["true"] * len(SEEDS)
    assert_best_is_registered(sweep)

    # a kill between a configuration's end and its children's leaves these open: the next start ends them
    stopped = tmp_path / "records" / folder.name / useless[0].data.tags[RUN_KEY].partition("/")[2]
    lines = (stopped / "items.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "end"
    (stopped / "items.jsonl").write_text("".join(lines[:-1]))
    state = json.loads((stopped / "mlflow.json").read_text())
    (stopped / "mlflow.json").write_text(json.dumps(state | {"items": len(lines) - 1}))
    client, _, _ = runs_of(sweep)
    client.update_run(useless[0].info.run_id, status="RUNNING")
    assert is_open(stopped)
    run_sweep(sweep, told, parallel=2)
    again = assert_all_there(sweep, folder, configurations=3)
    assert {run.info.run_id for run in again.values()} == {run.info.run_id for run in children.values()}
    assert_best_is_registered(sweep)


def test_a_server_that_is_away_or_dies_during_a_sweep_gets_all_in_the_end(tmp_path: Path) -> None:
    port = free_port()
    uri, servers = f"http://127.0.0.1:{port}", list[subprocess.Popen[bytes]]()
    away = sweep_of("away", tmp_path / "away", uri, [GOOD], seeds=(0,), steps=20)
    told = Heard()
    run_sweep(away, told, parallel=2)  # nobody is there, to the end
    assert told.text.count("MLflow cannot be written") == 1

    dies = sweep_of("dies", tmp_path / "dies", uri, [GOOD, ALSO_GOOD, USELESS])
    winner_at = list[float]()

    def kill() -> None:
        limit = time.monotonic() + 30
        while len([run for run in runs_of(dies)[2].values() if "train/label_loss" in run.data.metrics]) < 8:
            assert time.monotonic() < limit
            time.sleep(0.5)
        stop_server(servers[-1])

    def restart() -> None:
        servers.append(start_server(tmp_path, port))
        winner_at.append(time.monotonic())

    try:
        servers.append(start_server(tmp_path, port))
        folder, _ = run_sweep(away, Heard(), parallel=2)
        assert_all_there(away, folder, configurations=1)
        assert_best_is_registered(away)

        told = Heard(**{"✓": kill, "the_winner_is": restart})
        folder, _ = run_sweep(dies, told, parallel=2)
        assert len(servers) == 2 and time.monotonic() - winner_at[0] < 60
        assert told.text.count("MLflow cannot be written") == 1 and "MLflow does not get" not in told.text
        assert_all_there(dies, folder, configurations=3)
        assert_best_is_registered(dies)
    finally:
        for server in servers:
            stop_server(server)

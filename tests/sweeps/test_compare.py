"""`qcrd compare`: which runs are one configuration, a real MLflow store, and the local records where it is away."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ConfigError, ExperimentConfig, TrackingConfig, with_overrides
from qcrd.pipeline.recording import start_record
from qcrd.sweeps.compare import grouped, local_runs, results_of, sweep_folder
from qcrd.sweeps.record import SweepRecord
from qcrd.tracking.mlflow_runs import TrackedRun
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord
from qcrd.tracking.tracker import RunId
from tests.tracked import id_of

OFF = TrackingConfig(enabled=False)
CURVES = {(1, 0): [0.3, 0.5], (1, 1): [0.2, 0.6], (3, 0): [0.4, 0.7]}
"""(negatives.gap, seed) → validation accuracy after each iteration of 10 steps."""


def run(name: str, params: Mapping[str, str], accuracy: list[float], **more: Any) -> TrackedRun:
    told: dict[str, Any] = {"id": name, "tags": {}, "status": "FINISHED", "metrics": {}, "seconds": 100.0}
    base = {"method": "qcrd", "task.name": "svamp", "teacher.kind": "openai", "seed": "0"}
    steps = [(10 * (count + 1), value) for count, value in enumerate(accuracy)]
    return TrackedRun(name=name, params={**base, **params}, accuracy=steps, **told | more)


def record_run(output: Path, gap: int, seed: int, tracking: TrackingConfig, parent: str | None = None) -> RunRecord:
    """A finished run as the pipeline would record it, with a row of another stage that has no accuracy."""
    config = with_overrides(
        ExperimentConfig(name=f"gap{gap}", output=str(output), teacher={"kind": "simulated"}),  # type: ignore[arg-type]
        {"negatives.gap": gap, "seed": seed, "resources.workers": 1 + (seed == 1)},
    )
    key = f"gap{gap}-seed{seed}"
    folder = output / "records" / (f"{parent}/{key}" if parent else key)
    record = open_run_record(folder, RunId(key, key, parent), tracking, output)
    start_record(record, config, {})
    record.log("questions_summary", {"questions/train": 5.0})
    for count, value in enumerate(CURVES[gap, seed]):
        record.log("student", {"eval/accuracy": value, "train/label_loss": 1.0}, step=10 * (count + 1))
    record.log("student_summary", {"student/seconds": 50.0 + gap})
    record.log("predictions_summary", {"eval/test_accuracy_best": 0.4 + 0.1 * seed})
    record.close("FINISHED")
    return record


def test_runs_that_differ_in_seed_and_hardware_are_one_configuration() -> None:
    results = grouped(
        "x",
        [
            run("a-seed0", {"negatives.gap": "3", "resources.device": "cpu", "output": "here"}, [0.4, 0.6]),
            run("a-seed1", {"negatives.gap": "3", "seed": "1", "checkpoint.keep": "2", "name": "b"}, [0.5, 0.8]),
            run(
                "b-seed0", {"negatives.gap": "1", "negatives.source": "fixed"}, [0.9], metrics={"student/seconds": 7.0}
            ),
        ],
        {},
    )
    assert results.fields == ("negatives.gap", "negatives.source")
    a, b = results.configurations
    assert (a.key, b.key) == ("a", "b")
    assert a.values == {"negatives.gap": 3, "negatives.source": None} and b.values["negatives.source"] == "fixed"
    assert a.curves == {0: (0.4, 0.6), 1: (0.5, 0.8)} and a.score == pytest.approx(0.7)
    assert (a.seconds, a.steps, b.seconds, b.steps) == (200, 40, 7, 10)
    assert (results.seeds, results.task, results.method, results.simulated) == ((0, 1), "svamp", "qcrd", False)
    assert grouped("x", [run("a", {"teacher.kind": "simulated"}, [0.1])], {}).simulated


def test_local_records_know_tags_that_came_later(tmp_path: Path) -> None:
    record = record_run(tmp_path, 1, 0, OFF)
    record.add_tags({"qcrd.early_stopped": "true"})
    (found,) = local_runs("gap1-seed0", tmp_path)
    assert grouped("x", [found], {}).configurations[0].status == "stopped"


def test_states_of_runs() -> None:
    def status(**more: Any) -> str:
        return grouped("x", [run("a", {"seed": "1"}, [0.5]), run("b", {}, [0.5], **more)], {}).configurations[0].status

    assert status() == "finished"
    assert status(tags={"qcrd.early_stopped": "true"}) == "stopped"
    assert status(status="RUNNING") == "unfinished"
    assert status(status="KILLED") == status(status="FAILED") == "failed"
    failed = grouped("x", [run("a", {"seed": "4"}, [], status="FAILED")], {}).configurations[0]
    assert failed.reason == "seed 4: FAILED"


def test_of_two_runs_with_the_same_seed_the_longer_counts() -> None:
    results = grouped("x", [run("a", {}, [0.5, 0.6]), run("b", {}, [0.9])], {})
    assert results.configurations[0].curves == {0: (0.5, 0.6)}
    assert results.about["repeated"].startswith("1 runs")
    with pytest.raises(ConfigError, match="'x' has 1 runs, but none has trained a student"):
        grouped("x", [run("teacher", {}, [])], {})


def test_test_accuracy_is_that_of_the_best_on_validation_questions_alone() -> None:
    tested = {"eval/test_accuracy_best": 0.9}
    runs = [run("a", {"x": "1"}, [0.5], metrics=tested), run("b", {"x": "2"}, [0.6], metrics={**tested})]
    a, b = grouped("x", runs, {}).configurations
    assert a.test_accuracy == {} and b.test_accuracy == {0: 0.9}


def test_local_records_by_name_key_and_parent(tmp_path: Path) -> None:
    record_run(tmp_path, 1, 0, OFF)
    parent = open_run_record(tmp_path / "records" / "grid-1", RunId("grid-1", "grid"), OFF, tmp_path)
    parent.start({}, {"name": "grid"}, {})
    record_run(tmp_path, 1, 1, OFF, "grid-1")
    record_run(tmp_path, 3, 0, OFF, "grid-1")
    assert [one.id for one in local_runs("gap1-seed0", tmp_path)] == ["gap1-seed0"]
    assert [one.id for one in local_runs("grid-1", tmp_path)] == ["grid-1/gap1-seed1", "grid-1/gap3-seed0"]
    assert [one.id for one in local_runs("grid-1/gap3-seed0", tmp_path)] == ["grid-1/gap3-seed0"]
    assert local_runs("grid", tmp_path) == []  # its run's name stands in mlflow.json, which there is none of
    (found,) = local_runs("gap3-seed0", tmp_path)
    assert found.accuracy == [(10, 0.4), (20, 0.7)]
    assert (found.status, found.metrics["student/seconds"], found.params["negatives.gap"]) == ("FINISHED", 53.0, "3")
    record = open_run_record(tmp_path / "records" / "gap1-seed0", RunId("k", "n"), OFF, tmp_path)
    record.start({}, {"method": "qcrd"}, {})  # begun again
    assert local_runs("gap1-seed0", tmp_path)[0].status == "RUNNING"


def test_where_a_sweep_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = (tmp_path / "sweeps" / f"lr-{digit * 12}" for digit in "12")
    first.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qcrd").mkdir()
    assert sweep_folder(["lr"], tmp_path) == sweep_folder([first.name], tmp_path) == first
    assert sweep_folder([str(first)], tmp_path / "elsewhere") == first
    assert sweep_folder(["qcrd"], tmp_path) is None  # an experiment's name, not the folder that is here
    assert sweep_folder(["lr", "lr"], tmp_path) is None and sweep_folder(["l"], tmp_path) is None
    other.mkdir()
    with pytest.raises(
        ConfigError, match=f"'lr' is the name of several sweeps; give one of {first.name}, {other.name}"
    ):
        sweep_folder(["lr"], tmp_path)


def test_mlflow_away_the_local_record_stands_in_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/qcrd", "compare", "gap1-seed0", "tracking.uri=http://me:s@cret@host"])
    for gap, seed in CURVES:
        record_run(tmp_path, gap, seed, OFF)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = TrackingConfig(uri=f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}")
        told: list[str] = []
        since = time.monotonic()
        results = results_of(["gap1-seed0", "gap1-seed1", "gap3-seed0"], tmp_path, away, told.append)
        assert time.monotonic() - since < 30  # most of it is the import of mlflow
    assert "no answer from http://***@127.0.0.1" in told[0] and len(told) == 3
    assert results.fields == ("negatives.gap",) and results.simulated
    assert {one.values["negatives.gap"]: one.score for one in results.configurations} == pytest.approx(
        {1: 0.55, 3: 0.7}
    )
    assert results.about["command"] == "qcrd compare gap1-seed0 tracking.uri=http://***@host"
    assert results.about["source"] == f"local records, {tmp_path / 'records'}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """An output folder whose MLflow has a parent run and three children, and their ids by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        output = tmp_path_factory.mktemp("output")
        tracking = TrackingConfig(log_model=False, experiment="mine")
        parent = open_run_record(output / "records" / "grid-1", RunId("grid-1", "grid"), tracking, output)
        parent.start({}, {"name": "grid"}, {})
        assert parent.flush()
        records = [record_run(output, gap, seed, tracking, "grid-1") for gap, seed in CURVES]
        parent.close("FINISHED")
        ids = {record.folder.name: id_of(record) for record in [*records, parent]}
        assert all(ids.values())
        yield output, ids


def scores(references: list[str], output: Path) -> dict[int, tuple[int, float]]:
    """Gap → number of seeds, score; MLflow alone is asked."""
    told: list[str] = []
    results = results_of(references, output, TrackingConfig(), told.append)
    assert told == [] and results.about["source"].startswith("MLflow, sqlite:///")
    assert len(results.fields) < 2
    return {len(one.curves): (one.steps, round(one.score, 6)) for one in results.configurations}


@pytest.mark.e2e
def test_runs_in_mlflow_by_id_experiment_name_and_parent(store: tuple[Path, dict[str, str]]) -> None:
    output, ids = store
    all_of_them = {2: (40, 0.55), 1: (20, 0.7)}
    assert scores(["mine"], output) == all_of_them
    assert scores(["grid"], output) == scores([ids["grid-1"]], output) == all_of_them
    assert scores([ids["gap1-seed0"], ids["gap1-seed1"]], output) == {2: (40, 0.55)}
    assert scores(["gap3-seed0"], output) == {1: (20, 0.7)}
    results = results_of(["mine"], output, TrackingConfig())
    three = next(one for one in results.configurations if one.values["negatives.gap"] == 3)
    assert (three.key, three.status, three.seconds) == ("gap3", "finished", 53.0)
    assert three.test_accuracy == {0: 0.4} and results.simulated


@pytest.mark.e2e
def test_ids_and_experiments_are_known_without_mlflow_too(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    output, ids = store
    gone = TrackingConfig(uri=f"sqlite:///{tmp_path / 'none.db'}")
    for reference in ("mine", "grid", ids["grid-1"]):
        told: list[str] = []
        results = results_of([reference], output, gone, told.append)
        assert sorted(one.score for one in results.configurations) == pytest.approx([0.55, 0.7])
        assert "none.db does not exist" in told[0]
    assert not (tmp_path / "none.db").exists()


@pytest.mark.e2e
def test_what_is_not_found_is_named_with_what_there_is(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    output, _ = store
    for reference in ("nothing", "0" * 32, "it's"):
        with pytest.raises(ConfigError) as caught:
            results_of([reference], output, TrackingConfig())
        assert repr(reference) in str(caught.value)
        assert "local records: grid-1; MLflow's experiments: " in str(caught.value) and "mine" in str(caught.value)
    (tmp_path / "bad.db").write_text("no database")
    with pytest.raises(ConfigError, match=r"MLflow cannot be read: .*not a database"):
        results_of(["nothing"], output, TrackingConfig(uri=f"sqlite:///{tmp_path / 'bad.db'}"))


@pytest.mark.e2e
def test_command_shows_the_table_and_writes_the_page(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    output, _ = store
    command = [sys.executable, "-m", "qcrd", "compare", "mine", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Comparison: mine: qcrd on arithmetic, simulated teacher" in done.stdout
    assert "The one-standard-error rule is not applicable: gap3" in done.stdout
    assert "Importance of the fields: not computed, 2 configurations" in done.stdout
    assert done.stdout.splitlines()[-1] == "page: comparison/report.html"
    assert (tmp_path / "comparison" / "results.csv").is_file()
    single = subprocess.run([*command, "--html", "x/page.html"], capture_output=True, text=True, cwd=tmp_path)
    assert single.stdout.splitlines()[-1] == "page: x/page.html"
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert len((tmp_path / "x" / "page.html").read_text()) == pytest.approx(len(page), abs=100)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["page.html"]


def test_a_sweep_is_found_by_name_key_and_folder_and_read_from_its_record(tmp_path: Path):
    folder = tmp_path / "sweeps" / "small-0123456789ab"
    record = SweepRecord(folder)
    record.describe({
        "name": "small", "title": "a small sweep", "fields": ["negatives.gap"], "seeds": [0], "simulated": True,
        "task": "arithmetic", "method": "qcrd", "about": {},
    })  # fmt: skip
    record.propose("a", {"negatives.gap": 1}, ["f0"])
    for iteration, accuracy in enumerate((0.25, 0.5), start=1):
        record.result("a", {
            "iteration": iteration, "accuracies": [accuracy], "score": accuracy, "seconds": 2.0 * iteration,
            "seed_seconds": [2.0 * iteration], "steps": 10 * iteration,
        })  # fmt: skip
    record.end("a", "finished")
    for reference in ("small", "small-0123456789ab", str(folder)):
        (found,) = results_of([reference], tmp_path, TrackingConfig()).configurations
        assert found.values == {"negatives.gap": 1} and found.curves == {0: (0.25, 0.5)} and found.seconds == 4.0

"""The local record and what MLflow shows of it, against a real MLflow on SQLite."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ExperimentConfig, TrackingConfig
from qcrd.pipeline.recording import start_record
from qcrd.tracking import mlflow_tracker
from qcrd.tracking.mlflow_server import tracking_uri
from qcrd.tracking.opening import open_run_record, tracker_of
from qcrd.tracking.provenance import redacted
from qcrd.tracking.record import RunRecord, read_items, read_metrics
from qcrd.tracking.tracker import Item, MetricRow, NoTracker, RunId
from tests.full_disk import files_end_at
from tests.tracked import id_of

OFF = TrackingConfig(enabled=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One output folder, so that MLflow makes its tables once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path_factory.mktemp("output")


def client(output: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(TrackingConfig(), output))


def history(output: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(output).get_metric_history(run_id, name)]


def record(output: Path, key: str, **settings: Any) -> RunRecord:
    return open_run_record(output / "records" / key, RunId(key, key), TrackingConfig(**settings), output)


def config(output: Path, **settings: Any) -> ExperimentConfig:
    return ExperimentConfig(name="test", output=str(output), **settings)


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, qcrd.tracking.record; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_record_knows_no_tracker_but_by_the_protocol(tmp_path: Path) -> None:
    """Not even by a module of the package that would import mlflow later."""
    from qcrd.tracking import record as module

    assert "mlflow_" not in Path(module.__file__).read_text()
    seen: list[tuple[list[int], list[str]]] = []

    class Listener:
        name, progress = "a listener", time.monotonic()

        def begin(self) -> bool:
            return True

        def sync(self, rows: Sequence[MetricRow], items: Sequence[Item]) -> None:
            seen.append(([row["step"] for row in rows], [item["kind"] for item in items]))
            self.progress = time.monotonic()

    run = RunRecord(tmp_path, tmp_path, Listener())
    run.log("train", {"a": 1.0}, step=1)
    run.start({}, {}, {})
    assert run.flush()
    run.log("train", {"a": 1.0}, step=2)
    assert run.flush()
    run.close("FINISHED")
    run.join()
    rows = [step for steps, _ in seen for step in steps]
    assert rows == [1, 2] and seen[-1][1] == ["start", "end"]


def test_without_a_tracker_nothing_is_copied_and_nobody_waits(tmp_path: Path) -> None:
    said: list[str] = []
    run = open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path, said.append)
    run.start({"a": 1}, {"a": 1}, {})
    run.log("train", {"a": 1.0}, step=1)
    assert not run.is_copying and not run.flush() and not run.catch_up()
    run.close("FINISHED")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "items.jsonl", "metrics.jsonl"]
    assert said == [] and [item["kind"] for item in read_items(tmp_path)] == ["start", "end"]
    assert isinstance(tracker_of(OFF, tmp_path, RunId("k", "n"), tmp_path, said.append), NoTracker)


def test_rows_come_back_as_they_were_logged(tmp_path: Path) -> None:
    run = open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path)
    run.log("train", {"train/loss": 0.5, "train/nan": math.nan, "train/inf": -math.inf}, step=3)
    (row,) = read_metrics(tmp_path)
    assert (row["stage"], row["step"], row["train/loss"], row["train/inf"]) == ("train", 3, 0.5, -math.inf)
    assert math.isnan(row["train/nan"])
    assert abs(row["time"] - time.time()) < 5

    def fail(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=fail)
    with pytest.raises(ValueError, match="metric 'step' is not allowed"):
        run.log("train", {"step": 1.0})


def test_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path).log("train", {"a": 1.0}, step=1)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "tr')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path).log("train", {"a": 1.0}, step=2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_full_disk_leaves_a_record_that_the_next_start_reads(tmp_path: Path) -> None:
    run = open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path)
    run.add_tags({"a": "b"})
    run.log("train", {"a": 1.0}, step=1)
    for name, write in (
        ("items.jsonl", lambda: run.add_tags({"c": "d" * 100})),
        ("metrics.jsonl", lambda: run.log("train", {"a": 1.0}, step=2)),
        ("metrics.jsonl", lambda: run.restart_stage("train", [{"step": step} for step in range(9)])),
    ):
        with files_end_at((tmp_path / name).stat().st_size + 20), pytest.raises(OSError):
            write()
    run.log("train", {"a": 1.0}, step=3)
    run.close("FAILED")  # there is room again
    again = open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path)
    assert [item["kind"] for item in read_items(tmp_path)] == ["tags", "end"]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    assert (run._items, run._rows) == (again._items, again._rows)  # MLflow counts items by their place in the file


def test_a_line_separator_in_a_text_ends_no_line(tmp_path: Path) -> None:
    run = open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path)
    run.start({}, {"title": "a\u2028b\u0085c"}, {})
    open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path)
    assert read_items(tmp_path)[0]["params"] == {"title": "a\u2028b\u0085c"}


def test_restart_of_a_stage_replaces_its_rows_only(tmp_path: Path) -> None:
    run = open_run_record(tmp_path, RunId("k", "n"), OFF, tmp_path)
    run.log("discriminator", {"a": 1.0})
    for step in (1, 2, 3):
        run.log("train", {"b": float(step)}, step=step)
    run.restart_stage("train", [{"step": 1, "b": 1.0, "time": 7.0}])
    run.log("train", {"b": 2.0}, step=2)
    rows = [(row["stage"], row["step"]) for row in read_metrics(tmp_path)]
    assert rows == [("discriminator", 0), ("train", 1), ("train", 2)]
    assert read_metrics(tmp_path)[1]["time"] == 7.0


def test_passwords_in_urls_are_not_recorded(tmp_path: Path) -> None:
    assert redacted({"a": ["http://user:secret@host/x", 3]}) == {"a": ["http://***@host/x", 3]}
    settings = TrackingConfig(enabled=False, uri="postgresql://me:secret@db/x")
    run = open_run_record(tmp_path, RunId("k", "n"), settings, tmp_path)
    start_record(run, ExperimentConfig(name="test", tracking=settings), {})
    run.close("FINISHED")
    assert not any("secret" in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.e2e
def test_mlflow_shows_the_record_and_a_second_run_duplicates_nothing(
    output: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = output / "report.txt"
    report.write_text("first")
    for attempt in (1, 2):
        run = record(output, "twice")
        start_record(run, config(output, seed=attempt), {"note": "x"})
        if attempt == 1:
            for step in range(3):
                run.log("train", {"train/loss": 1.0 / (step + 1), "train/odd@name": math.nan}, step=step)
        run.add_dataset("arithmetic", "d" * 64, 10, "https://example.org/data", "training")
        run.add_artifact(report, "report")
        run.close("FINISHED")
    mlflow = client(output)
    (shown,) = mlflow.search_runs(
        [mlflow.get_experiment_by_name("qcrd").experiment_id], "tags.`qcrd.run_key` = 'twice'"
    )
    assert shown.info.run_id == id_of(run)
    assert shown.info.status == "FINISHED"
    assert shown.data.params["train.learning_rate"] == "1e-05"
    assert shown.data.params["seed"] == "1"  # of the first start
    assert shown.data.tags["qcrd.method"] == "qcrd"
    assert shown.data.tags["qcrd.simulated"] == "false"
    assert shown.data.tags["note"] == "x"
    assert history(output, shown.info.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert math.isnan(shown.data.metrics["train/odd_name"])
    assert [item.dataset.name for item in shown.inputs.dataset_inputs] == ["arithmetic"]
    assert [item.path for item in mlflow.list_artifacts(shown.info.run_id, "report")] == ["report/report.txt"]
    assert capfd.readouterr().out == ""


@pytest.mark.e2e
def test_changed_artifact_is_sent_again(output: Path) -> None:
    from mlflow.artifacts import download_artifacts

    report = output / "changing.txt"
    run = record(output, "changing")
    run.begin_sync()
    for text in ("first", "second"):
        report.write_text(text)
        run.add_artifact(report, "report")
    run.close("FINISHED")
    uri = tracking_uri(TrackingConfig(), output)
    found = download_artifacts(run_id=id_of(run), artifact_path="report/changing.txt", tracking_uri=uri)
    assert Path(found).read_text() == "second"


@pytest.mark.e2e
def test_recomputed_steps_are_not_sent_twice(output: Path) -> None:
    run = record(output, "resumed")
    run.begin_sync()
    run.log("discriminator", {"time/step": 9.0}, step=50)
    for step in (10, 20, 30):
        run.log("train", {"train/loss": float(step), "time/step": 1.0}, step=step)
    assert run.flush()
    run.stop()
    first = id_of(run)
    again = record(output, "resumed")  # a new process, whose checkpoint was of step 10
    again.begin_sync()
    again.restart_stage("train", [{"step": 10, "train/loss": 10.0}])
    for step in (20, 30, 40):
        again.log("train", {"train/loss": float(step)}, step=step)
    again.close("FINISHED")
    assert id_of(again) == first
    assert history(output, first, "train/loss") == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    assert sorted(history(output, first, "time/step")) == [(10, 1.0), (20, 1.0), (30, 1.0), (50, 9.0)]


@pytest.mark.e2e
@pytest.mark.parametrize("arrived", [True, False])
def test_batch_cut_off_by_a_crash_is_sent_once(output: Path, arrived: bool) -> None:
    key = f"crash-{arrived}"
    run = record(output, key)
    run.begin_sync()
    run.log("train", {"train/loss": 1.0}, step=1)
    if arrived:
        run.log("train", {"train/loss": 2.0}, step=2)
    assert run.flush()
    run.stop()
    state = json.loads((run.folder / "mlflow.json").read_text())
    state |= {"sent": {"train": {"train/loss": 1}}, "sending": {"train": {"train/loss": 2}}}
    (run.folder / "mlflow.json").write_text(json.dumps(state))
    again = record(output, key)
    again.restart_stage("train", [{"step": 1, "train/loss": 1.0}])
    again.log("train", {"train/loss": 2.0}, step=2)  # at another time than before
    assert record(output, run.folder.name).catch_up()
    assert history(output, id_of(run), "train/loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.e2e
def test_lost_cursor_finds_the_run_again_and_duplicates_nothing(output: Path) -> None:
    run = record(output, "lost")
    start_record(run, config(output), {})
    run.log("train", {"train/loss": 1.0, "train/nan": math.nan}, step=1)
    run.close("FINISHED")
    first = id_of(run)
    (run.folder / "mlflow.json").unlink()
    again = record(output, "lost")
    start_record(again, config(output, seed=5), {})
    again.close("FINISHED")
    assert id_of(again) == first
    assert len(history(output, first, "train/loss")) == 1
    assert len(history(output, first, "train/nan")) == 1


@pytest.mark.e2e
def test_many_rows_go_in_batches(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "METRICS_PER_BATCH", 7)
    run = record(output, "many")
    for step in range(20):
        run.log("train", {"a": 1.0, "b": 2.0}, step=step)
    run.begin_sync()
    run.close("FAILED")
    assert [step for step, _ in history(output, id_of(run), "b")] == list(range(20))
    assert client(output).get_run(id_of(run)).info.status == "FAILED"


@pytest.mark.e2e
def test_one_bad_item_does_not_hold_up_the_rest(output: Path) -> None:
    said: list[str] = []
    run = open_run_record(output / "records" / "bad", RunId("bad", "bad"), TrackingConfig(), output, said.append)
    report = output / "gone.txt"
    report.write_text("here")
    run.add_artifact(report)
    report.unlink()
    run.begin_sync()
    run.close("FINISHED")
    assert len(said) == 1
    assert "gone.txt" in said[0]
    assert client(output).get_run(id_of(run)).info.status == "FINISHED"
    report.write_text("back")
    assert record(output, run.folder.name).catch_up()
    assert [item.path for item in client(output).list_artifacts(id_of(run))] == ["gone.txt"]


@pytest.mark.e2e
def test_deleted_run_is_made_anew(output: Path) -> None:
    run = record(output, "deleted")
    run.begin_sync()
    run.log("train", {"train/loss": 1.0}, step=1)
    run.close("FINISHED")
    deleted = id_of(run)
    client(output).delete_run(deleted)
    assert record(output, run.folder.name).catch_up()
    assert id_of(run) != deleted
    assert history(output, id_of(run), "train/loss") == [(1, 1.0)]


def test_absent_server_costs_one_warning_and_no_time(tmp_path: Path) -> None:
    said: list[str] = []
    settings = TrackingConfig(uri="http://me:secret@127.0.0.1:9")
    began = time.monotonic()
    run = open_run_record(tmp_path / "r", RunId("k", "n"), settings, tmp_path, said.append)
    start_record(run, ExperimentConfig(name="test", tracking=settings), {})
    run.log("train", {"train/loss": 1.0})
    assert not run.flush()
    run.close("FINISHED")
    assert time.monotonic() - began < 10
    assert len(said) == 1
    assert "MLflow cannot be written" in said[0]
    assert "secret" not in said[0]
    assert len(read_metrics(tmp_path / "r")) == 1

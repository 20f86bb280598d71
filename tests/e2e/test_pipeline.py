"""Whole runs in small: everything happens, a second run skips it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcrd.records import Prediction, Sample, read_rows
from tests.e2e.whole_runs import only, rows_of, run
from tests.teacher.loopback import loopback

pytestmark = pytest.mark.e2e


def test_a_run_does_all_of_qcrd_and_reports_it(whole: tuple[Path, str]):
    output, text = whole
    report = (only(output / "report") / "report.md").read_text()
    assert "test accuracy: " in report and "simulated" in report
    assert "judge's online updates (optimizer steps)" in text and "active hinges after iteration j" in text
    assert len(list((only(output / "report") / "figures").glob("*.png"))) >= 3
    rows = rows_of(only(output / "student"))
    assert sum("eval/accuracy" in row for row in rows) == 4 and sum("train/loss" in row for row in rows) >= 4
    predictions = read_rows(only(output / "predictions") / "predictions.parquet", Prediction)
    assert {p.checkpoint for p in predictions} == {"initial", "best", "last"} and len(predictions) == 3 * 24


def test_mlflow_shows_the_run(whole: tuple[Path, str]):
    from mlflow import MlflowClient

    output, _ = whole
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("qcrd")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["negatives.gap"] == "2"
    for name in ("train/loss", "eval/accuracy", "judge/auroc_augmented", "rationales/parse_rate", "samples/samples",
                 "eval/test_accuracy_best", "report/test_accuracy"):  # fmt: skip
        assert name in found.data.metrics, name
    history = client.get_metric_history(found.info.run_id, "eval/accuracy")
    assert [metric.step for metric in history] == [15, 30, 45, 60]
    assert {item.dataset.name for item in found.inputs.dataset_inputs} >= {"arithmetic-train", "training_set"}
    assert found.outputs.model_outputs
    assert "report" in [item.path for item in client.list_artifacts(found.info.run_id)]


def test_a_second_run_skips_everything_and_says_so(whole: tuple[Path, str]):
    output, _ = whole
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*/artifact.json")}
    text = run(output)
    everything = "questions, samples, rationales, training_set, judge, student, predictions, report"
    assert f"already there: {everything}\n" in text and len(before) == 8
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*/artifact.json")} == before


def test_a_real_http_teacher_goes_all_the_way(tmp_path: Path):
    with loopback() as server:
        overrides = ["teacher.kind=openai", f"teacher.base_url={server.base_url}", "teacher.model=loopback",
                     "train.steps=10", "train.iteration_steps=5"]  # fmt: skip
        text = run(tmp_path / "runs", *overrides, "task.generator.train_size=24", "method=dss")
        assert server.asked.total() == 72
    assert "test accuracy: " in text
    samples = read_rows(only(tmp_path / "runs" / "samples") / "samples.parquet", Sample)
    assert len(samples) == 72 and all("The answer is" in one.text for one in samples)

"""Whole runs in small: everything happens, a second run skips it; kill -9 in training changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qcrd.records import Explanation, Prediction, Question, Score, read_rows
from qcrd.storage.fingerprints import digest_of
from tests.e2e.whole_runs import WHOLE, assert_same, command, only, rows_of, run

pytestmark = pytest.mark.e2e
PREDICT = "import sys, qcrd.cli\ntry: qcrd.cli.main()\nfinally: assert 'ray' not in sys.modules"


def test_a_run_does_all_of_qcrd_and_reports_it(whole: tuple[Path, str]):
    output, text = whole
    report = (only(output / "report") / "report.md").read_text()
    assert "test accuracy: " in report and "simulated" in report
    assert "discriminator's online updates (optimizer steps)" in text and "active hinges after iteration j" in text
    assert len(list((only(output / "report") / "figures").glob("*.png"))) >= 3
    rows = rows_of(only(output / "student"))
    assert sum("eval/accuracy" in row for row in rows) == 4 and sum("train/loss" in row for row in rows) >= 4
    predictions = read_rows(only(output / "predictions") / "predictions.parquet", Prediction)
    assert {p.checkpoint for p in predictions} == {"initial", "best", "last"} and len(predictions) == 3 * 21


def test_mlflow_shows_the_run(whole: tuple[Path, str]):
    from mlflow import MlflowClient

    output, _ = whole
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("qcrd")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["negatives.gap"] == "2"
    for name in ("train/loss", "eval/accuracy", "discriminator/auroc_augmented", "rationales/parse_rate",
                 "samples/samples", "eval/test_accuracy_best", "report/test_accuracy"):  # fmt: skip
        assert name in found.data.metrics, name
    history = client.get_metric_history(found.info.run_id, "eval/accuracy")
    assert [metric.step for metric in history] == [15, 30, 45, 60]
    assert {item.dataset.name for item in found.inputs.dataset_inputs} >= {"arithmetic-train", "training_set"}
    assert found.outputs.model_outputs
    assert "report" in [item.path for item in client.list_artifacts(found.info.run_id)]


def test_a_second_run_skips_everything_and_says_so(whole: tuple[Path, str]):
    output, _ = whole
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*/artifact.json")}
    text = run(output, *WHOLE)
    everything = "questions, samples, rationales, training_set, discriminator, student, predictions, report"
    assert f"already there: {everything}\n" in text and len(before) == 8
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*/artifact.json")} == before


def test_rationales_scores_and_labels_of_test_questions(whole: tuple[Path, str]):
    """The teacher was asked test questions too; `qcrd predict` answers as the student did, in a process without Ray."""
    output, text = whole
    assert "samples 180" in text  # 3 x (48 + 12)
    folder, report = only(output / "predictions"), only(output / "report") / "report.md"
    metrics = json.loads((folder / "evaluation.json").read_text())
    assert metrics["eval/test_explained"] == 6 and metrics["scored_split"] == "test"
    explanations = read_rows(folder / "explanations.parquet", Explanation)
    test = [row for row in explanations if row.split == "test"]
    assert [row.temperature for row in test] == [0.0] * 6 + [0.7] * 6
    assert {row.question_id.split("-")[1] for row in read_rows(folder / "scores.parquet", Score)} == {"test"}
    shown = report.read_text()
    assert shown.count("### test question") == 5 and "| state the gold answer |" in shown
    assert (
        "The questions are test questions; neither the student nor the discriminator was trained on any of them."
        in shown
    )
    assert "| rationales | samples used (the first 3 of each question) | 144 |" in shown

    questions = {q.id: q for q in read_rows(only(output / "questions") / "questions.parquet", Question)}
    asked = [questions[row.question_id] for row in test[:6]]
    lines = "".join(json.dumps({"id": q.id, "text": q.text}) + "\n" for q in asked)
    line = [sys.executable, "-c", PREDICT, "predict", str(output), "-", "--explain"]
    done = subprocess.run(line, input=lines, capture_output=True, text=True, timeout=500, cwd=output.parent)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in found] == [q.id for q in asked] and "6 questions in" in done.stderr
    best = {
        p.question_id: p.text
        for p in read_rows(folder / "predictions.parquet", Prediction)
        if p.checkpoint == "best" and p.split == "test"
    }
    assert len(best) == 9 and [row["label"] for row in found] == [best[q.id] for q in asked]
    assert [row["rationale"] for row in found] == [row.text for row in test[:6]]


def copy_without(output: Path, copy: Path, *folders: str) -> Path:
    return shutil.copytree(output, copy, ignore=lambda folder, _: folders if Path(folder) == output else ())


@pytest.fixture(scope="module")
def killed(whole: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that was killed in training, after its second iteration."""
    folder = tmp_path_factory.mktemp("killed")
    output = copy_without(whole[0], folder / "runs", "checkpoints", "student", "predictions", "report")
    process = subprocess.Popen(
        command(output, *WHOLE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(output.glob("checkpoints/*/checkpoints/iteration-00002/checkpoint.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    everyone = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in everyone:  # as when the machine goes down: driver, raylet and workers at once
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not list(output.glob("checkpoints/*/results"))
    return output


def test_a_run_killed_in_training_goes_on_and_equals_the_other(whole: tuple[Path, str], killed: Path, tmp_path: Path):
    output = copy_without(killed, tmp_path / "runs")
    text = run(output, *WHOLE)
    assert "already there: questions, samples, rationales, training_set, discriminator\n" in text
    assert_same(output, whole[0])
    assert not [*output.glob("checkpoints/*/checkpoints"), *output.glob("checkpoints/*/snapshots")]  # only results stay


def test_two_workers_refuse_another_trainings_checkpoint_and_take_what_one_worker_left(
    whole: tuple[Path, str], killed: Path, tmp_path: Path
):
    output = copy_without(killed, tmp_path / "runs")
    (training,) = (output / "checkpoints").iterdir()
    paths = sorted(training.glob("checkpoints/*/checkpoint.json"))
    texts = [path.read_text() for path in paths]
    for path, text in zip(paths, texts, strict=True):
        record = json.loads(text)
        record["identity"]["settings"]["train"]["learning_rate"] = 0.5
        path.write_text(json.dumps(record | {"identity_digest": digest_of(record["identity"])}))
    two = ("resources.workers=2",)
    done = subprocess.run(command(output, *WHOLE, *two), capture_output=True, text=True, timeout=500, cwd=tmp_path)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.returncode == 1 and "train.learning_rate 0.5 there" in line and "Traceback" not in done.stderr
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    run(output, *WHOLE, *two)
    ours, theirs = rows_of(only(output / "student")), rows_of(only(whole[0] / "student"))
    kept = int(paths[-1].parent.name.removeprefix("iteration-"))
    taken = [row.get("train/iteration") for row in theirs].index(kept) + 1
    assert ours[:taken] == theirs[:taken] and len(ours) == len(theirs)
    assert ours != theirs  # other dropout

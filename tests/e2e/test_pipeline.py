"""Whole runs in small: everything happens, a second run skips it, kill -9 in training changes nothing."""

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
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from qcrd.artifacts import digest_of, file_digest
from qcrd.records import Prediction, Sample, read_rows
from tests.teacher.loopback import loopback

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parent.parent.parent
TINY = [
    "task.generator.train_size=48", "task.generator.validation_size=12", "task.generator.test_size=12",
    "student.scratch.d_model=32", "student.scratch.d_ff=64", "discriminator.max_steps=20",
    "discriminator.eval_every=10",
    "train.steps=60", "train.iteration_steps=15", "train.global_batch_size=8", "discriminator.update_steps=2",
    "checkpoint.keep=2",
]  # fmt: skip


def command(output: Path, *overrides: str) -> list[str]:
    recipe = str(ROOT / "experiments" / "quickstart.py")
    return [sys.executable, "-m", "qcrd", "run", recipe, *TINY, f"output={output}", *overrides]


def run(output: Path, *overrides: str) -> str:
    done = subprocess.run(command(output, *overrides), capture_output=True, text=True, timeout=300, cwd=output.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def only(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if not path.name.endswith(".partial")]
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("whole") / "runs"
    return output, run(output)


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


def test_a_run_killed_in_training_goes_on_and_equals_the_other(whole: tuple[Path, str], tmp_path: Path):
    output = tmp_path / "runs"
    process = subprocess.Popen(
        command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not list(output.glob("checkpoints/*/checkpoints/iteration-00002/checkpoint.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    everyone = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in everyone:  # as when the machine goes down: driver, raylet and workers at once
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not list(output.glob("checkpoints/*/results"))
    text = run(output)
    assert "already there: questions, samples, rationales, training_set, judge\n" in text
    ours, theirs = only(output / "student"), only(whole[0] / "student")
    assert rows_of(ours) == rows_of(theirs)
    for name in ("best", "last"):
        left, right = (load_file(folder / name / "model.safetensors") for folder in (ours, theirs))
        assert all((left[key] == right[key]).all() for key in right)
    for stage in ("samples", "training_set", "predictions"):
        name = next(path.name for path in only(output / stage).glob("*.parquet"))
        assert file_digest(only(output / stage) / name) == file_digest(only(whole[0] / stage) / name)


def without(output: Path, copy: Path, *stages: str) -> Path:
    """A copy of a finished output folder in which some stages are still to run."""
    shutil.copytree(output, copy)
    for stage in stages:
        shutil.rmtree(copy / stage)
    return copy


def test_a_run_whose_driver_alone_died_after_training_takes_the_results(whole: tuple[Path, str], tmp_path: Path):
    output = without(whole[0], tmp_path / "runs", "student", "predictions", "report")
    (results,) = output.glob("checkpoints/*/results")
    written = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    run(output)
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == written
    assert file_digest(only(output / "student") / "metrics.jsonl") == file_digest(
        only(whole[0] / "student") / "metrics.jsonl"
    )


def test_two_workers_refuse_another_trainings_checkpoint_and_take_what_one_worker_left(
    whole: tuple[Path, str], tmp_path: Path
):
    output = without(whole[0], tmp_path / "runs", "student", "predictions", "report")
    (training,) = (output / "checkpoints").iterdir()
    shutil.rmtree(training / "results")
    paths = sorted(training.glob("checkpoints/*/checkpoint.json"))
    texts = [path.read_text() for path in paths]
    for path, text in zip(paths, texts, strict=True):
        record = json.loads(text)
        record["identity"]["settings"]["train"]["learning_rate"] = 0.5
        path.write_text(json.dumps(record | {"identity_digest": digest_of(record["identity"])}))
    two = ("resources.workers=2", "resources.threads=1")
    done = subprocess.run(command(output, *two), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.returncode == 1 and "train.learning_rate 0.5 there" in line and "Traceback" not in done.stderr
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    *_, kept, newest = (path.parent for path in paths)
    shutil.rmtree(newest)
    run(output, *two)
    ours, theirs = rows_of(only(output / "student")), rows_of(only(whole[0] / "student"))
    taken = [row.get("train/iteration") for row in theirs].index(int(kept.name.removeprefix("iteration-"))) + 1
    assert ours[:taken] == theirs[:taken] and len(ours) == len(theirs)
    assert ours != theirs  # other dropout


def test_a_real_http_teacher_goes_all_the_way(tmp_path: Path):
    with loopback() as server:
        overrides = ["teacher.kind=openai", f"teacher.base_url={server.base_url}", "teacher.model=loopback",
                     "train.steps=10", "train.iteration_steps=5"]  # fmt: skip
        text = run(tmp_path / "runs", *overrides, "task.generator.train_size=24", "method=dss")
        assert server.asked.total() == 72
    assert "test accuracy: " in text
    samples = read_rows(only(tmp_path / "runs" / "samples") / "samples.parquet", Sample)
    assert len(samples) == 72 and all("The answer is" in one.text for one in samples)

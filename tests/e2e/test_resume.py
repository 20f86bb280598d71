"""Whole runs that were cut off: kill -9 in training changes nothing, nor does a driver that died after it, nor a node
that is lost with its disk where the output is a bucket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from qcrd.artifacts import digest_of, file_digest
from tests.e2e.whole_runs import WHOLE, command, only, rows_of, run
from tests.nodes import nodes_over_s3

pytestmark = pytest.mark.e2e


def test_a_run_killed_in_training_goes_on_and_equals_the_other(whole: tuple[Path, str], tmp_path: Path):
    output = tmp_path / "runs"
    process = subprocess.Popen(
        command(output, *WHOLE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
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
    text = run(output, *WHOLE)
    assert "already there: questions, samples, rationales, training_set, judge\n" in text
    assert_same(output, whole[0])


def assert_same(output: Path, other: Path) -> None:
    """Two output folders with the same students and predictions."""
    ours, theirs = only(output / "student"), only(other / "student")
    assert rows_of(ours) == rows_of(theirs)
    for name in ("best", "last"):
        left, right = (load_file(folder / name / "model.safetensors") for folder in (ours, theirs))
        assert all((left[key] == right[key]).all() for key in right)
    for stage in ("samples", "training_set", "predictions"):
        name = next(path.name for path in only(output / stage).glob("*.parquet"))
        assert file_digest(only(output / stage) / name) == file_digest(only(other / stage) / name)


def test_a_node_lost_in_training_with_its_disk_changes_nothing_where_the_output_is_a_bucket(
    whole: tuple[Path, str], tmp_path: Path
):
    with nodes_over_s3(tmp_path, "one", "two") as nodes:
        nodes.start([*command(tmp_path, *WHOLE), "resources.threads=2", "tracking.enabled=False"])
        nodes.lose(nodes.node_with("checkpoints/*/checkpoints/iteration-00002"))
        nodes.finish()
        assert_same(nodes.output("samples", "training_set", "student", "predictions", "report"), whole[0])


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
    run(output, *WHOLE)
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
    done = subprocess.run(command(output, *WHOLE, *two), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.returncode == 1 and "train.learning_rate 0.5 there" in line and "Traceback" not in done.stderr
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    *_, kept, newest = (path.parent for path in paths)
    shutil.rmtree(newest)
    run(output, *WHOLE, *two)
    ours, theirs = rows_of(only(output / "student")), rows_of(only(whole[0] / "student"))
    taken = [row.get("train/iteration") for row in theirs].index(int(kept.name.removeprefix("iteration-"))) + 1
    assert ours[:taken] == theirs[:taken] and len(ours) == len(theirs)
    assert ours != theirs  # other dropout

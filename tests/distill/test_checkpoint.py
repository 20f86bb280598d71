"""Checkpoints on a real disk: bits that come back, saves that don't wait, kills and full disks that lose nothing."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qcrd.distill.checkpoint import Checkpoint, CheckpointStore, Progress, clear
from qcrd.storage import atomic as durable
from qcrd.storage.output import Storage

IDENTITY = {"train": {"learning_rate": 0.0001, "betas": (0.9, 0.999)}, "inputs": {"rationales": "abc"}}
FORK = multiprocessing.get_context("fork")
Stores = Callable[..., CheckpointStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Stores]:
    """Opens stores on one folder."""
    opened: list[CheckpointStore] = []

    def open_(identity: Mapping[str, Any] = IDENTITY, keep: int = 2, gap: int = 2) -> CheckpointStore:
        opened.append(CheckpointStore(Storage.of(tmp_path.parent), tmp_path.name, identity, keep, gap))
        return opened[-1]

    yield open_
    for store in opened:
        store.wait()


def student_of(iteration: int, size: int = 1000) -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(size, dtype=torch.float32) + iteration}


def checkpoint_of(iteration: int, best: int, size: int = 1000) -> Checkpoint:
    moments = {"exp_avg": torch.arange(size, dtype=torch.float32) * iteration, "step": torch.tensor(float(iteration))}
    return Checkpoint(
        Progress(iteration, best / 7, best), [{"step": t, "loss": 1 / t} for t in range(1, iteration + 1)],
        {"optimizer": moments},
    )  # fmt: skip


def fill(store: CheckpointStore, last: int, best: int = 1) -> CheckpointStore:
    """A training up to an iteration, of which one was the best."""
    store.save_initial(student_of(0))
    for iteration in range(1, last + 1):
        store.save(iteration, student_of(iteration), checkpoint_of(iteration, min(best, iteration)))
    store.wait()
    return store


@pytest.fixture(scope="module")
def three_iterations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    fill(CheckpointStore(Storage.of(folder.parent), folder.name, IDENTITY, keep=2, gap=2), 3)
    return folder


@pytest.fixture
def trained(three_iterations: Path, tmp_path: Path) -> None:
    """The folder of the test holds a training up to iteration 3."""
    shutil.copytree(three_iterations, tmp_path, dirs_exist_ok=True)


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Equal bits, so that NaN and the sign of zero count."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [one.reshape(-1).contiguous().view(torch.uint8) for one in (found[name], tensor)]
        assert torch.equal(bits[0], bits[1]), name


def assert_is(store: CheckpointStore, iteration: int, best: int, size: int = 1000) -> None:
    """Everything that training needs from a checkpoint is there and right."""
    found, expected = store.read(iteration), checkpoint_of(iteration, best, size)
    assert (found.progress, found.rows) == (expected.progress, expected.rows)
    assert found.tensors.keys() == expected.tensors.keys()
    assert_same(found.tensors["optimizer"], expected.tensors["optimizer"])
    for needed in {0, best, iteration, max(0, iteration - 1)}:
        assert_same(store.snapshot(needed), student_of(needed, size))


def names(store: CheckpointStore, kind: str) -> list[str]:
    return sorted(path.name for path in (store.folder / kind).iterdir())


# -- content ----------------------------------------------------------------------------------------------------


def test_bits_come_back(open_store: Stores):
    flat = torch.randn(60)
    student = {
        "first": flat[:24].view(4, 6), "second": flat[24:], "transposed": torch.randn(3, 5).T,
        "expanded": torch.tensor([1.5]).expand(3), "half": torch.randn(7).bfloat16(),
        "special": torch.tensor([float("nan"), -0.0, float("-inf")], dtype=torch.bfloat16),
        "double": torch.randn(3, dtype=torch.float64) / 3, "step": torch.tensor(7.0), "count": torch.tensor(2**40),
        "empty": torch.zeros(0, 4), "parameter": torch.nn.Parameter(torch.randn(2)),
    }  # fmt: skip
    groups = {"optimizer": {"exp_avg": flat, "step": torch.tensor(3)}, "discriminator": {"head": flat[3:5].double()}}
    rows = [{"step": 2, "loss": 0.1 + 0.2, "text": "a\u2028b"}]
    store = open_store()
    store.save_initial(student)
    store.save(1, student, Checkpoint(Progress(1, 1 / 3, 1), rows, groups))
    store.wait()
    again = open_store()
    assert_same(again.snapshot(1), student)
    found = again.read(1)
    assert (found.progress, found.rows) == (Progress(1, 1 / 3, 1), rows)
    assert found.tensors.keys() == groups.keys()
    for group, tensors in groups.items():
        assert_same(found.tensors[group], tensors)


@pytest.mark.usefixtures("trained")
def test_a_checkpoint_of_another_training_is_refused(open_store: Stores):
    other = {"train": {"learning_rate": 0.001, "betas": [0.9, 0.999]}, "seed": 1}
    expected = (
        r'iteration-00003: checkpoint of another training: inputs\.rationales "abc" there, absent here; '
        r"seed absent there, 1 here; train.learning_rate 0.0001 there, 0.001 here$"
    )
    with pytest.raises(ValueError, match=expected):
        open_store(other).read(3)
    with pytest.raises(ValueError, match=r"; and 3 more$"):
        open_store({**IDENTITY, **{f"key{i}": i for i in range(8)}}).read(3)
    assert open_store(json.loads(json.dumps(IDENTITY))).read(3).progress.iteration == 3


@pytest.mark.usefixtures("trained")
def test_another_format_is_refused_and_not_skipped(open_store: Stores):
    store = open_store()
    path = store.folder / "checkpoints" / "iteration-00003" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    assert store.newest() == 3
    with pytest.raises(ValueError, match="iteration-00003: checkpoint of format 99"):
        store.read(3)


# -- what is kept -----------------------------------------------------------------------------------------------


def test_newest_and_best_stay_with_the_snapshots_they_need(open_store: Stores):
    store = fill(open_store(keep=2, gap=2), 7, best=3)
    assert names(store, "checkpoints") == ["iteration-00003", "iteration-00006", "iteration-00007"]
    assert names(store, "snapshots") == [f"snapshot-{t:05d}.safetensors" for t in (0, 2, 3, 5, 6, 7)]
    assert store.newest() == 7
    for iteration in (3, 6, 7):
        assert_is(store, iteration, 3)
    with pytest.raises(FileNotFoundError):
        store.snapshot(4)
    assert open_store(keep=1, gap=5).newest() == 7  # a reader deletes nothing
    assert len(names(store, "snapshots")) == 6


@pytest.mark.usefixtures("trained")
def test_what_is_there_is_not_written_again(open_store: Stores):
    store = open_store()
    files = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if path.is_file()}
    store.save_initial(student_of(0))
    store.save(3, student_of(3), checkpoint_of(3, 1))
    store.wait()
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if path.is_file()} == files


def test_remains_of_dead_processes_go(open_store: Stores):
    store = open_store()
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname().replace(".", "_")
    owners = {"dead": f"{host}-{dead.pid}", "own": f"{host}-{os.getpid()}", "live": f"{host}-{os.getppid()}",
              "far": f"elsewhere.{host}x-{dead.pid}"}  # fmt: skip
    for owner in owners.values():
        for name in ("snapshots/snapshot-00009.safetensors", "checkpoints/iteration-00009"):
            (store.folder / f"{name}.{owner}.tmp").mkdir()
            (store.folder / f"{name}.{owner}.tmp" / "part").write_text("half")
    fill(store, 1)
    for kind in ("snapshots", "checkpoints"):
        left = [name for name in names(store, kind) if name.endswith(".tmp")]
        assert len(left) == 2 and any(owners["live"] in x for x in left) and any(owners["far"] in x for x in left)
    assert store.newest() == 1


DAMAGES = {
    "snapshot gone": ("snapshots/snapshot-00003.safetensors", None),
    "snapshot cut": ("snapshots/snapshot-00003.safetensors", 3000),
    "optimizer gone": ("checkpoints/iteration-00003/optimizer.safetensors", None),
    "optimizer cut": ("checkpoints/iteration-00003/optimizer.safetensors", 10),
    "rows cut": ("checkpoints/iteration-00003/rows.jsonl", 5),
    "record cut": ("checkpoints/iteration-00003/checkpoint.json", 20),
    "record gone": ("checkpoints/iteration-00003/checkpoint.json", None),
}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_made_again(
    open_store: Stores, caplog: pytest.LogCaptureFixture, damage: str
):
    store = open_store()
    name, length = DAMAGES[damage]
    if length is None:
        (store.folder / name).unlink()
    else:
        os.truncate(store.folder / name, length)
    with caplog.at_level(logging.WARNING):
        assert store.newest() == 2
    assert "iteration-00003 skipped" in caplog.text
    assert_is(store, 2, 1)
    store.save(3, student_of(3), checkpoint_of(3, 1))
    store.wait()
    assert store.newest() == 3
    assert_is(store, 3, 1)


def test_only_whole_checkpoints_count_as_kept(open_store: Stores):
    store = fill(open_store(keep=3), 4)
    for iteration in (3, 4):
        (store.folder / "checkpoints" / f"iteration-{iteration:05d}" / "rows.jsonl").unlink()
    assert store.newest() == 2
    again = open_store(keep=1)
    again.save(3, student_of(3), checkpoint_of(3, 1))
    again.wait()
    assert names(again, "checkpoints") == ["iteration-00001", "iteration-00003"]
    assert_is(again, again.newest() or 0, 1)


def test_a_training_goes_on_below_a_checkpoint_that_is_whole_again(open_store: Stores):
    store = fill(open_store(keep=1), 6)
    store.snapshot_path(1).unlink()  # the best one, which all checkpoints need
    assert store.newest() is None
    for iteration in range(1, 5):
        store.save(iteration, student_of(iteration), checkpoint_of(iteration, 1))
        store.wait()
        assert store.newest() == 6
        assert_is(store, iteration, 1)


def test_a_snapshot_that_a_killed_run_left_without_a_checkpoint_can_be_forgotten(open_store: Stores):
    store = fill(open_store(), 3)
    shutil.rmtree(store.folder / "checkpoints" / "iteration-00003")
    assert store.newest() == 2
    store.forget_after(2)
    assert names(store, "snapshots")[-1] == "snapshot-00002.safetensors"
    assert_is(store, 2, best=1)


def test_an_empty_folder_has_no_checkpoint(open_store: Stores):
    store = open_store()
    assert store.newest() is None
    with pytest.raises(FileNotFoundError):
        store.snapshot(0)


# -- in the background ------------------------------------------------------------------------------------------


class Gated(CheckpointStore):
    """A disk that is as slow as the test wants."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Storage.of(folder.parent), folder.name, IDENTITY, keep=2, gap=2)
        self.snapshot_gate, self.checkpoint_gate = threading.Event(), threading.Event()

    def _write_snapshot(self, iteration: int, student: dict[str, torch.Tensor]) -> None:
        assert iteration == 0 or self.snapshot_gate.wait(20)
        super()._write_snapshot(iteration, student)

    def _write_checkpoint(self, iteration: int, checkpoint: Checkpoint) -> None:
        assert self.checkpoint_gate.wait(20)
        super()._write_checkpoint(iteration, checkpoint)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def test_a_save_holds_its_own_copies_and_keeps_nobody_waiting(tmp_path: Path):
    store = Gated(tmp_path)
    store.save_initial(student_of(0))
    student, checkpoint = student_of(1), checkpoint_of(1, 1)
    store.save(1, student, checkpoint)
    assert store.newest() is None and not store.snapshot_path(1).exists()
    assert_same(store.snapshot(0), student_of(0))  # another snapshot than that being written is not waited for
    student["weight"].zero_()
    checkpoint.tensors["optimizer"]["exp_avg"].zero_()
    checkpoint.rows[0]["loss"] = 9.0
    checkpoint.rows.append({"step": 2})
    checkpoint.progress.best_accuracy = 2.0
    reader, found = in_thread(lambda: store.snapshot(1))
    reader.join(0.05)
    assert reader.is_alive()  # it is still being written
    store.snapshot_gate.set()
    reader.join(20)
    assert_same(found[0], student_of(1))  # there before the checkpoint is
    assert store.newest() is None
    saver, _ = in_thread(lambda: store.save(2, student_of(2), checkpoint_of(2, 1)))
    saver.join(0.05)
    assert saver.is_alive() and not store.snapshot_path(2).exists()  # one save at a time
    store.checkpoint_gate.set()
    saver.join(20)
    store.wait()
    assert store.newest() == 2
    assert_is(store, 1, 1)
    assert_is(store, 2, 1)


@pytest.mark.parametrize("how", ["wait", "save", "snapshot"])
def test_an_error_of_the_thread_is_raised_once(open_store: Stores, how: str):
    store = fill(open_store(), 1)
    shutil.rmtree(store.folder / "snapshots")
    (store.folder / "snapshots").write_text("in the way")
    store.save(2, student_of(2), checkpoint_of(2, 1))
    calls = {
        "wait": store.wait, "snapshot": lambda: store.snapshot(2),
        "save": lambda: store.save(3, student_of(3), checkpoint_of(3, 1)),
    }  # fmt: skip
    with pytest.raises(OSError, match=r"iteration-00002: save failed: .*snapshot-00002.*Not a directory"):
        calls[how]()
    store.wait()


def test_state_that_is_no_json_is_an_error_too(open_store: Stores):
    store = open_store()
    store.save_initial(student_of(0))
    store.save(1, student_of(1), Checkpoint(Progress(1, 0.5, 1), [{"loss": torch.tensor(1.0)}], {}))
    with pytest.raises(OSError, match=r"iteration-00001: save failed: .*not JSON serializable"):
        store.wait()
    assert store.newest() is None and names(store, "checkpoints") == []


# -- kills and full disks ---------------------------------------------------------------------------------------


def save_on_a_full_disk(folder: Path, limit: int) -> None:
    """No file may grow beyond `limit` bytes. (Python ignores the signal, so a write fails with EFBIG.)"""
    store = fill(CheckpointStore(Storage.of(folder.parent), folder.name, IDENTITY, 2, 2), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store.save(2, student_of(2), checkpoint_of(2, 1, 10_000))
    with pytest.raises(OSError, match=r"iteration-00002: save failed: .* not written: .*File too large"):
        store.wait()
    assert store.newest() == 1


@pytest.mark.parametrize("limit", [2_000, 20_000])  # bytes: less than the snapshot, less than the optimizer's state
def test_a_full_disk_is_an_error_and_loses_nothing(open_store: Stores, tmp_path: Path, limit: int):
    process = FORK.Process(target=save_on_a_full_disk, args=(tmp_path, limit))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    store = open_store()
    assert store.newest() == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert_is(store, 1, 1)
    store.save(2, student_of(2), checkpoint_of(2, 1))
    store.wait()
    assert_is(store, store.newest() or 0, 1)


SIZE = 100_000


def best_of(iteration: int) -> int:
    """The best iteration up to one, in a training where every fourth is better than all before."""
    return max(1, iteration - iteration % 4)


def save_for_ever(folder: Path) -> None:
    store = CheckpointStore(Storage.of(folder.parent), folder.name, IDENTITY, 2, 2)
    store.save_initial(student_of(0, SIZE))
    iteration = store.newest() or 0
    while True:
        iteration += 1
        store.save(iteration, student_of(iteration, SIZE), checkpoint_of(iteration, best_of(iteration), SIZE))


def test_kill_9_at_any_moment_leaves_a_whole_newest_checkpoint(
    open_store: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    moments, store, last = random.Random(5), open_store(), 0
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            process = FORK.Process(target=save_for_ever, args=(tmp_path,))
            process.start()
            while process.is_alive() and (store.newest() or 0) <= last:  # reads while the other process writes
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.03))
            process.kill()
            process.join()
            assert process.exitcode == -9
            caplog.clear()
            newest = store.newest() or 0
            assert newest > last and not caplog.records
            for iteration in {int(name[10:15]) for name in names(store, "checkpoints") if not name.endswith(".tmp")}:
                assert_is(store, iteration, best_of(iteration), SIZE)  # none is half written or half deleted
            last = newest
    store.save(last + 1, student_of(last + 1, SIZE), checkpoint_of(last + 1, best_of(last + 1), SIZE))
    store.wait()
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(names(store, "checkpoints")) <= 3 and len(names(store, "snapshots")) <= 6
    assert_is(store, last + 1, best_of(last + 1), SIZE)


def clear_until_killed(folder: Path) -> None:
    def kill(_: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    durable.shutil.rmtree = kill
    clear(Storage.of(folder.parent), folder.name)


def test_what_a_kill_left_of_a_finished_training_goes_with_the_next_start(trained: None, tmp_path: Path):
    process = FORK.Process(target=clear_until_killed, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.tmp"))) == 1  # out of sight, still on the disk
    clear(Storage.of(tmp_path.parent), tmp_path.name)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".safetensors")]

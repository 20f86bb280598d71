"""An output behind a URL: a real S3 protocol on loopback, two nodes with folders of their own."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from s3fs import S3FileSystem

from qcrd.config import ConfigError
from qcrd.distill.checkpoint import Checkpoint, CheckpointStore, Progress, clear
from qcrd.pipeline.check import prepare_output
from qcrd.pipeline.finished_student import student_folder
from qcrd.storage import bucket as bucket_module
from qcrd.storage.artifacts import Artifact, model_folder
from qcrd.storage.bucket import StorageAway
from qcrd.storage.output import FILES, Storage
from tests.s3 import S3
from tests.storage.nodes import BUCKET, Node, write


def test_a_folder_is_seen_whole_or_not_at_all(on_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    here = on_node("a")
    for name in ("one", "deep/two"):
        write(here.folder / "stage/x" / name, name)
    put, count = here._bucket.put, []

    def dies(file: Path, name: str) -> None:
        if count:
            raise KeyboardInterrupt
        count.append(put(file, name))

    monkeypatch.setattr(here._bucket, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        here.publish("stage/x")
    there = on_node("b")
    assert there._bucket.names("stage") == ["stage/x/deep/two"] and not there.has("stage/x")
    with pytest.raises(FileNotFoundError, match=r"s3://output/.*/stage/x is not there"):
        there.fetch("stage/x")
    assert not [path for path in there.folder.rglob("*") if path.is_file()]

    here = on_node("a")
    monkeypatch.setattr(here._bucket, "put", put)
    here.publish("stage/x")
    there = on_node("b")
    assert there.has("stage/x")
    folder = there.fetch("stage/x")
    assert (folder / "one").read_text() == "one" and (folder / "deep/two").read_text() == "deep/two"
    assert there.folder != here.place and there.name_of(folder) == "stage/x"
    there.unpublish("stage/x")
    assert not there._bucket.names("stage") and folder.exists()


def test_a_finished_artifact_is_found_by_another_node(on_node: Node) -> None:
    made = Artifact(on_node("a"), "rationales", "svamp", "abc")
    write(made.begin() / "rows.txt", "text")
    made.finish({"m": 5}, {}, {"rows": 1})
    found = Artifact(on_node("b"), "rationales", "svamp", "abc")
    assert found.is_finished() and found.digest() == made.digest() and found.marker()["summary"] == {"rows": 1}
    assert not found.path.exists()  # nothing is copied before it is read
    assert (found.fetch() / "rows.txt").read_text() == "text"
    assert not Artifact(on_node("b"), "rationales", "svamp", "abd").is_finished()


def test_a_local_folder_that_is_not_there_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not there on node .* all of them share, or a URL"):
        Storage.of(tmp_path).fetch("questions/x")


def checkpoint_of(iteration: int) -> Checkpoint:
    progress = Progress(iteration, 0.5, 1, 1.0)
    return Checkpoint(progress, [{"step": iteration}], {"optimizer": {"m": torch.full((2,), float(iteration))}})


def fill(store: CheckpointStore, iterations: range) -> CheckpointStore:
    store.save_initial({"w": torch.zeros(2)})
    for iteration in iterations:
        store.save(iteration, {"w": torch.full((2,), float(iteration))}, checkpoint_of(iteration))
    store.wait()
    return store


def test_training_goes_on_from_the_newest_checkpoint_of_any_node(on_node: Node) -> None:
    def store_on(node: str) -> CheckpointStore:
        return CheckpointStore(on_node(node), "checkpoints/train-x", {"a": 1}, keep=1, gap=2)

    fill(store_on("a"), range(1, 4))
    moved = store_on("b")
    assert moved.newest() == 3 and moved.read(3).rows == [{"step": 3}]
    assert [float(moved.snapshot(t)["w"][0]) for t in (0, 1, 2, 3)] == [0, 1, 2, 3]
    fill(moved, range(4, 6))
    back = store_on("a")
    assert back.newest() == 5 and float(back.snapshot(4)["w"][0]) == 4
    names = back.storage.published("checkpoints")
    kept = sorted({name.split("/")[3] for name in names if "/checkpoints/" in name.removeprefix("checkpoints/")})
    assert kept == ["iteration-00001", "iteration-00005"]  # the best and the newest
    snapshots = [name[-17:-12] for name in names if "/snapshots/" in name]
    assert snapshots == ["00000", "00001", "00004", "00005"]
    back.storage._bucket.remove([f"checkpoints/train-x/checkpoints/iteration-00005/{FILES}"])  # half published
    assert store_on("c").newest() == 1
    clear(on_node("a"), back.name)
    assert back.storage.published("checkpoints") == [] and list((on_node("a").folder / back.name).iterdir()) == []
    assert store_on("d").newest() is None


def test_a_storage_that_answers_503_is_asked_again_and_then_the_error_says_so(
    s3: S3, on_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = on_node("a")
    write(storage.folder / "stage/x/one", "text")

    def answers_again() -> None:
        while s3.refused < 2:
            time.sleep(0.01)
        s3.refuses = False

    s3.refuses = True
    threading.Thread(target=answers_again).start()
    storage.publish("stage/x")
    assert s3.refused >= 2 and storage.is_published("stage/x")
    monkeypatch.setattr(bucket_module, "RETRY_SECONDS", 0.2)
    s3.refuses = True
    try:
        with pytest.raises(StorageAway, match=r"storage has not answered for 0.2 s: .*Service Unavailable"):
            storage.publish("stage/x")
        with pytest.raises(StorageAway):  # what cannot be asked for is not taken for missing
            storage.has("stage/y")
    finally:
        s3.refuses = False


def test_a_bucket_that_is_not_there_is_an_error_that_names_the_field(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCRD_SCRATCH", str(tmp_path))
    S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match=r"output: 's3://nobodys/x' cannot be written to"):
        prepare_output(Storage.of("s3://nobodys/x"))
    prepare_output(Storage.of(f"s3://{BUCKET}/mine"))


def test_a_student_behind_a_url_is_fetched_and_of_several_one_must_be_named(on_node: Node) -> None:
    here = on_node("a")
    for name in ("x-1", "y-2"):
        write(here.folder / f"student/{name}/best/qcrd.json", "{}")
        here.publish(f"student/{name}")
        if name == "x-1":
            on_node("b")
            assert student_folder(here.place).parts[-3:] == ("student", "x-1", "best")
    on_node("c")
    with pytest.raises(ConfigError, match=rf"2 students; give one of {here.place}/student/x-1, "):
        student_folder(here.place)
    folder = student_folder(f"{here.place}/student/y-2")
    assert folder.is_relative_to(here.folder) and folder.parts[-2:] == ("y-2", "best")
    with pytest.raises(ConfigError, match="cannot be read"):
        student_folder(f"{here.place}/student/z-3")
    there = on_node("d")  # where a student that writes negatives (negatives.fixed) has not been yet
    folder = model_folder(here, f"{here.place}/student/y-2/best")
    assert folder == there.folder / "student/y-2/best" and (folder / "qcrd.json").is_file()
    assert model_folder(here, "/models/t5") == Path("/models/t5")


def test_an_unknown_kind_of_url_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"output: 'nosuch://x' cannot be reached"):
        Storage.of("nosuch://x").has("y")

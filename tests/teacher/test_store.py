"""The store: nothing lost, damaged parts set aside, one winner a key, and the same at a URL as in a folder."""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from qcrd.storage import bucket as storage_module
from qcrd.teacher import store_writer as store_writer_module
from qcrd.teacher.backends.base import Failure, Reply, Result
from qcrd.teacher.store import SampleStore, StoreIndex
from qcrd.teacher.store_format import KEY_TYPE, StoreError, encode_line, question_key, sample_key
from qcrd.teacher.store_writer import StoreWriter
from tests.s3 import S3, s3_server

KEYS = [sample_key(question_key("test", "1 + 1?"), index) for index in range(20)]
FORK = multiprocessing.get_context("fork")


def array(*keys: bytes) -> np.ndarray:
    return np.array(keys, dtype=KEY_TYPE)


def write(place: Path | str, *records: tuple[bytes, Result]) -> str:
    """One part with these records; its path."""
    with StoreWriter(place, 60) as writer:
        writer.write(records)
        return writer._sink.path


def read(place: Path | str, *keys: bytes) -> list[Result | None]:
    store = SampleStore(place)  # with which the copies of a remote store live
    return list(store.index().records(array(*keys)))


def texts(index: StoreIndex, *keys: bytes) -> list[str | None]:
    return [record.text if isinstance(record, Reply) else None for record in index.records(array(*keys))]


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


@pytest.fixture
def memory() -> Iterator[str]:
    """A store in this process' memory, with a name of its own."""
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    fs, path = fsspec.url_to_fs(place)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    return str(tmp_path / "store") if request.param == "folder" else memory


# -- keys and lines -----------------------------------------------------------------------------------------------


def test_keys_tell_apart_all_that_is_in_them():
    keys = {
        sample_key(question_key("i", "q"), 0), sample_key(question_key("i", "q"), 1),
        sample_key(question_key("j", "q"), 0), sample_key(question_key("i", "r"), 0),
        sample_key(question_key('i","', "q"), 0), sample_key(question_key("i", '","q'), 0),
    }  # fmt: skip
    assert len(keys) == 6 and {len(key) for key in keys} == {32}
    # Written down, for a key that changes makes people pay for all of their replies once more.
    assert sample_key(question_key("i", "q"), 0).hex()[:20] == "e31084a90b327609d876"


def test_all_fields_come_back_as_they_were(place: str):
    records: list[tuple[bytes, Result]] = [
        (KEYS[0], Reply('line\nbreak \u2028 "quoted"', "why", "stop", 3, None, 2, True)),
        (KEYS[1], Failure("status 400: no", 400, 1)),
        (KEYS[2], Failure("timeout: no answer", None, 6)),
        (KEYS[3], Reply("", "", "length", 0, 0)),
        (KEYS[4], Reply("half \ud83d of a pair")),
    ]
    write(place, *records)
    assert read(place, *KEYS[:4]) == [record for _, record in records[:4]]
    assert read(place, KEYS[4]) == [Reply("half ? of a pair")]


def test_a_line_is_the_documented_one(tmp_path: Path):
    path = Path(write(tmp_path, (KEYS[0], Reply("a")), (KEYS[1], Failure("b", 500, 2))))
    reply, failure = (json.loads(line) for line in path.read_text().splitlines())
    assert list(reply) == ["key", "reply", "sha256"] and list(failure) == ["key", "error", "sha256"]
    assert reply["key"] == KEYS[0].hex() and failure["error"] == vars(Failure("b", 500, 2))


def test_keys_that_end_in_zero_bytes_survive(place: str):
    zero = next(key for n in range(100_000) if (key := sample_key(b"x", n)).endswith(b"\0"))
    two = next(key for n in range(1_000_000) if (key := sample_key(b"y", n)).endswith(b"\0\0"))
    short: bytes = array(zero)[0]  # as numpy hands it out
    assert len(short) == 31
    write(place, (short, Reply("one")), (two, Reply("two")), (KEYS[0], Failure("x", None, 1)))
    store = SampleStore(place)
    index = store.index()
    assert texts(index, zero, short, two) == ["one", "one", "two"]
    assert index.answered(array(zero, two, KEYS[0], KEYS[1])).tolist() == [True, True, False, False]


# -- which record wins, and what an index says --------------------------------------------------------------------


def test_an_index_answers_for_arrays_of_any_shape_and_in_any_order(place: str):
    write(place, *[(KEYS[n], Reply(f"text {n}")) for n in (4, 0, 2)], (KEYS[1], Failure("no", None, 1)))
    store = SampleStore(place)
    index = store.index()
    keys = array(*KEYS[:6]).reshape(2, 3)
    assert len(index) == 4
    assert index.answered(keys).tolist() == [[True, False, True], [False, True, False]]
    assert index.failed(keys).tolist() == [[False, True, False], [False, False, False]]
    assert ((index.rows(keys) >= 0) == (index.answered(keys) | index.failed(keys))).all()
    assert texts(index, KEYS[2], KEYS[5], KEYS[4], KEYS[0], KEYS[2]) == ["text 2", None, "text 4", "text 0", "text 2"]
    assert list(index.records(array(KEYS[1]))) == [Failure("no", None, 1)]


def test_a_store_that_does_not_exist_is_empty(place: str):
    index = SampleStore(place).index()
    assert len(index) == 0 and list(index.records(array(KEYS[0]))) == [None]
    assert not index.answered(array(*KEYS)).any() and not index.failed(array(*KEYS)).any()


def test_of_two_replies_with_one_key_the_smaller_digest_wins_whatever_the_order(tmp_path: Path):
    lines = {text: encode_line(KEYS[0], Reply(text)) for text in "abc"}
    smallest = min(lines, key=lambda text: lines[text][-67:-3])
    for order in ("abc", "acb", "bac", "bca", "cab", "cba"):
        folder = tmp_path / order
        for number, text in enumerate(order):
            folder.mkdir(exist_ok=True)
            (folder / f"part-{number}.jsonl").write_bytes(lines[text])
        assert read(folder, KEYS[0]) == [Reply(smallest)]
        (tmp_path / f"one-{order}").mkdir()
        (tmp_path / f"one-{order}" / "part-0.jsonl").write_bytes(b"".join(lines[text] for text in order))
        assert read(tmp_path / f"one-{order}", KEYS[0]) == [Reply(smallest)]


def test_a_reply_beats_failures_whatever_the_order(place: str):
    for record in (Failure("timeout", None, 3), Reply("text"), Failure("status 500: x", 500, 3)):
        write(place, (KEYS[0], record))
    store = SampleStore(place)
    index = store.index()
    assert texts(index, KEYS[0]) == ["text"] and index.answered(array(KEYS[0])).all()
    assert not index.failed(array(KEYS[0])).any() and len(index) == 1


# -- writing ------------------------------------------------------------------------------------------------------


def test_replies_are_there_as_soon_as_they_are_written(tmp_path: Path):
    writer = StoreWriter(tmp_path, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    writer.write([(KEYS[1], Reply("one")), (KEYS[2], Failure("no", 400, 1))])
    assert read(tmp_path, *KEYS[:4]) == [Reply("zero"), Reply("one"), Failure("no", 400, 1), None]
    writer.close()


def _write_and_die(place: str) -> None:
    StoreWriter(place, 60).write([(KEYS[0], Reply("zero"))])
    os.kill(os.getpid(), signal.SIGKILL)


def test_replies_outlive_a_writer_that_is_killed(tmp_path: Path):
    process = FORK.Process(target=_write_and_die, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and read(tmp_path, KEYS[0]) == [Reply("zero")]


def test_a_remote_store_has_all_that_was_flushed(memory: str):
    writer = StoreWriter(memory, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    assert read(memory, KEYS[0]) == [None]
    writer.flush()
    assert read(memory, KEYS[0]) == [Reply("zero")]
    writer.write([(KEYS[1], Reply("one"))])
    writer.close()
    assert read(memory, *KEYS[:2]) == [Reply("zero"), Reply("one")]


def test_a_remote_store_is_flushed_in_the_background(memory: str):
    writer = StoreWriter(memory, 0.02)
    writer.write([(KEYS[0], Reply("zero"))])
    deadline = time.monotonic() + 20
    while read(memory, KEYS[0]) == [None] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read(memory, KEYS[0]) == [Reply("zero")]
    writer.close()


def test_a_growing_remote_part_is_read_again_by_the_same_store(memory: str):
    store, writer = SampleStore(memory), StoreWriter(memory, 60)
    for number in range(3):
        writer.write([(KEYS[number], Reply(f"text {number}"))])
        writer.flush()
        assert texts(store.index(), *KEYS[:3]) == [f"text {n}" if n <= number else None for n in range(3)]
    assert len(store.names("part-", ".jsonl")) == 1
    writer.close()


def test_a_remote_part_that_is_full_is_followed_by_another(memory: str, monkeypatch: pytest.MonkeyPatch):
    line = len(encode_line(KEYS[0], Reply("text 0")))
    monkeypatch.setattr(store_writer_module, "REMOTE_PART_BYTES", 2 * line + 1)
    with StoreWriter(memory, 60) as writer:
        for number in range(8):
            writer.write([(KEYS[number], Reply(f"text {number}"))])
            writer.flush()
    store = SampleStore(memory)
    names = store.names("part-", ".jsonl")
    assert [name[-11:] for name in names] == ["-0000.jsonl", "-0001.jsonl", "-0002.jsonl"]
    assert [len(lines_of((store.read_text(name) or "").encode())) for name in names] == [3, 3, 2]
    assert texts(store.index(), *KEYS[:8]) == [f"text {n}" for n in range(8)]


def _write_many(place: str, first: int, go: Any) -> None:
    go.wait()
    with StoreWriter(place, 0.01) as writer:
        for number in range(first, first + 200):
            writer.write([(sample_key(b"many", number), Reply(f"text {number}" * 50))])


def test_two_processes_write_at_once(tmp_path: Path):
    go = FORK.Event()
    processes = [FORK.Process(target=_write_many, args=(str(tmp_path), first, go)) for first in (0, 100)]
    for process in processes:
        process.start()
    go.set()
    while any(process.is_alive() for process in processes):
        SampleStore(tmp_path).index()  # a reader beside them sets nothing aside
    for process in processes:
        process.join()
        assert process.exitcode == 0
    keys = [sample_key(b"many", number) for number in range(300)]
    assert read(tmp_path, *keys) == [Reply(f"text {number}" * 50) for number in range(300)]
    assert len(list(tmp_path.iterdir())) == 2


# -- damage -------------------------------------------------------------------------------------------------------


def damaged(path: Path, how: str) -> None:
    """Damage the second of three lines, or tear the third."""
    first, second, third = lines_of(path.read_bytes())
    path.write_bytes(
        {
            "torn": first + second + third[:40],
            "torn at the line break": first + second + third[:-1],
            "changed text": first + second.replace(b"text 1", b"text 9") + third,
            "changed key": first + second.replace(second[8:12], b"0000", 1) + third,
            "noise": first + b"\0\xff\xfe\n" + third,
            "an empty line": first + b"\n" + third,
        }[how]
    )


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("torn", 2), ("torn at the line break", 2), ("changed text", 1), ("changed key", 1), ("noise", 1),
        ("an empty line", 1),
    ],
)  # fmt: skip
def test_a_damaged_part_is_set_aside_and_its_whole_lines_kept(
    how: str, lost: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = Path(write(tmp_path, *[(KEYS[n], Reply(f"text {n}")) for n in range(3)]))
    damaged(path, how)
    before = path.read_bytes()
    expected = [None if n == lost else f"text {n}" for n in range(3)]
    with caplog.at_level(logging.WARNING):
        index = SampleStore(tmp_path).index()
    assert texts(index, *KEYS[:3]) == expected
    assert index.answered(array(*KEYS[:3])).tolist() == [n != lost for n in range(3)]
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "1 unreadable lines" in record.getMessage()
    aside = path.with_name(f"damaged-{path.name}")
    assert aside.read_bytes() == before and not path.exists()
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["damaged", "part"]
    caplog.clear()
    assert texts(SampleStore(tmp_path).index(), *KEYS[:3]) == expected and caplog.records == []


def test_without_set_aside_nothing_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = Path(write(tmp_path, *[(KEYS[n], Reply(f"text {n}")) for n in range(3)]))
    damaged(path, "changed text")
    before = path.read_bytes()
    assert texts(SampleStore(tmp_path).index(set_aside=False), *KEYS[:3]) == ["text 0", None, "text 2"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before
    assert caplog.records == []


def _hold_a_torn_part(place: str, ready: Any, go: Any) -> None:
    writer = StoreWriter(place, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    line = encode_line(KEYS[1], Reply("one"))
    with Path(writer._sink.path).open("ab") as stream:  # half a line, as a reader may find it
        stream.write(line[:50])
        stream.flush()
        ready.set()
        go.wait()
        stream.write(line[50:])
    os._exit(0)


def test_a_part_whose_writer_lives_is_not_set_aside(tmp_path: Path):
    ready, go = FORK.Event(), FORK.Event()
    process = FORK.Process(target=_hold_a_torn_part, args=(str(tmp_path), ready, go))
    process.start()
    assert ready.wait(10)
    (part,) = tmp_path.iterdir()
    with part.open("rb") as stream, pytest.raises(OSError):
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the writer has it
    assert read(tmp_path, *KEYS[:2]) == [Reply("zero"), None]
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
    go.set()
    process.join()
    assert read(tmp_path, *KEYS[:2]) == [Reply("zero"), Reply("one")]
    assert [path.name for path in tmp_path.iterdir()] == [part.name]


def test_a_damaged_object_is_set_aside(memory: str, caplog: pytest.LogCaptureFixture):
    path = write(memory, *[(KEYS[n], Reply(f"text {n}")) for n in range(3)])
    fs, folder = fsspec.url_to_fs(memory)
    first, second, third = lines_of(fs.cat_file(path))
    fs.pipe_file(path, first + second[:30] + b"\n" + third)
    with caplog.at_level(logging.WARNING):
        store = SampleStore(memory)
        assert texts(store.index(), *KEYS[:3]) == ["text 0", None, "text 2"]
    assert path in caplog.text and len(caplog.records) == 1
    kept, aside = store.names("part-", ".jsonl"), store.names("damaged-", ".jsonl")
    assert len(kept) == 1 and aside == [f"damaged-{path.rsplit('/', 1)[-1]}"]
    assert fs.cat_file(f"{folder}/{kept[0]}") == first + third
    assert texts(SampleStore(memory).index(), *KEYS[:3]) == ["text 0", None, "text 2"]


# -- a disk that is full ------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_that_names_the_part_and_spoils_nothing(tmp_path: Path):
    writer = StoreWriter(tmp_path, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    writer.flush()
    sink = writer._sink
    assert isinstance(sink, store_writer_module._LocalPart)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, sink._file)
    os.close(full)
    for number in (1, 2):
        with pytest.raises(StoreError, match="No space left on device") as error:
            writer.write([(KEYS[number], Reply("more"))])
        assert writer._sink.path in str(error.value)
    writer.close()
    assert read(tmp_path, *KEYS[:3]) == [Reply("zero"), None, None]
    assert lines_of(Path(writer._sink.path).read_bytes()) == [encode_line(KEYS[0], Reply("zero"))]


def _write_up_to_a_limit(place: str) -> None:
    """The file may have 1,000 bytes: of a write beyond that a part is done before the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = StoreWriter(place, 60)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    writer.write([(KEYS[0], Reply("zero"))])
    try:
        writer.write([(KEYS[1], Reply("long" * 500))])
    except StoreError:
        writer.write([(KEYS[2], Reply("two"))])  # paid for as well, and there is room for it
        os._exit(0)
    os._exit(1)


def test_what_did_not_fit_is_not_left_torn(tmp_path: Path):
    process = FORK.Process(target=_write_up_to_a_limit, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read(tmp_path, *KEYS[:3]) == [Reply("zero"), None, Reply("two")]
    (part,) = tmp_path.iterdir()
    assert not part.name.startswith("damaged") and len(lines_of(part.read_bytes())) == 2


def test_what_the_background_met_is_told(tmp_path: Path):
    writer = StoreWriter(tmp_path, 0.01)
    sink = writer._sink
    assert isinstance(sink, store_writer_module._LocalPart)
    reading, writing = os.pipe()  # a pipe cannot be made durable: fsync fails
    os.dup2(writing, sink._file)
    writer.write([(KEYS[0], Reply("zero"))])
    with pytest.raises(StoreError) as error:
        for _ in range(500):
            writer.write([])
            time.sleep(0.01)
    assert writer._sink.path in str(error.value)
    with pytest.raises(StoreError):
        writer.close()
    with pytest.raises(OSError):  # closed all the same
        os.fstat(sink._file)
    os.close(reading)
    os.close(writing)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"the sample store {tmp_path}/file/store cannot be written"):
        StoreWriter(tmp_path / "file" / "store", 60)


# -- small files beside the parts ---------------------------------------------------------------------------------


def test_small_files(place: str):
    store = SampleStore(place)
    assert store.read_text("a.json") is None and store.names("", "") == []
    store.write_text("a.json", "one")
    store.write_text("a.json", "two é")
    store.write_text("b.json", "three")
    store.write_text("b.txt", "four")
    write(place, (KEYS[0], Reply("zero")))
    assert SampleStore(place).read_text("a.json") == "two é"
    assert store.names("", ".json") == ["a.json", "b.json"] and store.names("b", "") == ["b.json", "b.txt"]
    assert read(place, KEYS[0]) == [Reply("zero")]  # they are no parts


@pytest.mark.parametrize("place", ["nowhere://bucket/store", "gs2://x"])
def test_an_unknown_scheme_is_an_error(place: str):
    for make in (lambda: SampleStore(place), lambda: StoreWriter(place, 60)):
        with pytest.raises(StoreError, match=f"the sample store {place} cannot be reached"):
            make()


def test_a_store_may_be_named_as_a_file_url(tmp_path: Path):
    write(f"file://{tmp_path}/s", (KEYS[0], Reply("zero")))
    assert SampleStore(f"file://{tmp_path}/s").is_local and read(tmp_path / "s", KEYS[0]) == [Reply("zero")]


# -- who asks ----------------------------------------------------------------------------------------------------


def _lock_and_say(place: str, has_it: Any) -> None:
    with SampleStore(place).locked("x", lambda: None):
        has_it.set()
        time.sleep(60)


def test_a_lock_ends_with_its_holder(tmp_path: Path):
    has_it = FORK.Event()
    process = FORK.Process(target=_lock_and_say, args=(str(tmp_path), has_it))
    process.start()
    assert has_it.wait(10)
    waited: list[bool] = []

    def on_wait() -> None:
        waited.append(True)
        process.kill()

    with SampleStore(f"file://{tmp_path}").locked("x", on_wait), SampleStore(tmp_path).locked("y", on_wait):
        assert waited == [True]
    process.join()
    assert SampleStore(tmp_path).names("part-", "") == [] and read(tmp_path, KEYS[0]) == [None]


# -- S3 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server("qcrd-test") as server:
        yield server


@pytest.fixture
def bucket(s3: S3) -> str:
    return f"s3://qcrd-test/{uuid.uuid4().hex}/store"


def test_s3_keeps_and_gives_back(bucket: str):
    store = SampleStore(bucket)
    assert len(store.index()) == 0 and not store.is_local
    writer = StoreWriter(bucket, 60)
    writer.write([(KEYS[0], Reply("zero é"))])
    writer.flush()
    assert texts(store.index(), *KEYS[:2]) == ["zero é", None]
    writer.write([(KEYS[1], Reply("one"))])
    writer.close()
    assert texts(store.index(), *KEYS[:2]) == ["zero é", "one"]  # the object grew, so it was fetched again
    write(bucket, (KEYS[2], Failure("no", 400, 1)))
    assert read(bucket, *KEYS[:4]) == [Reply("zero é"), Reply("one"), Failure("no", 400, 1), None]
    store.write_text("a.json", "{}")
    assert store.read_text("a.json") == "{}" and store.read_text("b.json") is None
    assert store.names("a", ".json") == ["a.json"] and len(store.names("part-", ".jsonl")) == 2


def test_s3_objects_that_have_not_changed_are_not_fetched_again(bucket: str):
    write(bucket, (KEYS[0], Reply("zero")))
    store = SampleStore(bucket)
    store.index()
    (copy,) = store._copies.values()
    first = copy.stat().st_mtime_ns
    write(bucket, (KEYS[1], Reply("one")))
    assert texts(store.index(), *KEYS[:2]) == ["zero", "one"]
    assert copy.stat().st_mtime_ns == first and len(store._copies) == 2


def test_s3_objects_that_are_damaged_are_set_aside(bucket: str, caplog: pytest.LogCaptureFixture):
    path = write(bucket, *[(KEYS[n], Reply(f"text {n}")) for n in range(3)])
    fs = fsspec.filesystem("s3")
    first, second, third = lines_of(fs.cat_file(path))
    fs.pipe_file(path, first + second[:-20] + third)
    with caplog.at_level(logging.WARNING, "qcrd"):
        store = SampleStore(bucket)
        assert texts(store.index(), *KEYS[:3]) == ["text 0", None, None]  # the third hangs on to the torn one
    assert path in caplog.text
    assert store.names("damaged-", "") == [f"damaged-{path.rsplit('/', 1)[-1]}"]
    (kept,) = store.names("part-", ".jsonl")
    assert store.read_text(kept) == first.decode()
    assert read(bucket, *KEYS[:3]) == [Reply("text 0"), None, None]


def test_s3_that_is_away_for_too_long_costs_no_reply(bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.2)
    writer = StoreWriter(bucket, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    s3.stop()
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            writer.flush()
    finally:
        s3.start()
        fs = fsspec.filesystem("s3")
        if not fs.exists("qcrd-test"):
            fs.mkdir("qcrd-test")
    writer.write([(KEYS[1], Reply("one"))])
    writer.close()
    assert read(bucket, *KEYS[:2]) == [Reply("zero"), Reply("one")]


def answers_after(s3: S3, refusals: int) -> None:
    """Refuse all from now on, and serve again after so many refusals."""

    def serve() -> None:
        while s3.refused < until:
            time.sleep(0.005)
        s3.refuses = False

    until, s3.refuses = s3.refused + refusals, True
    threading.Thread(target=serve).start()


def test_s3_that_refuses_for_a_while_is_asked_again(bucket: str, s3: S3):
    store, writer = SampleStore(bucket), StoreWriter(bucket, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    answers_after(s3, 1)
    writer.flush()
    answers_after(s3, 1)
    assert texts(store.index(), KEYS[0]) == ["zero"]
    answers_after(s3, 1)
    store.write_text("a.json", "{}")
    answers_after(s3, 1)
    assert store.read_text("a.json") == "{}"
    answers_after(s3, 1)
    assert store.names("a", ".json") == ["a.json"]
    writer.close()


def test_s3_that_refuses_a_flush_in_the_background_stops_nobody(bucket: str, s3: S3):
    writer = StoreWriter(bucket, 0.01)
    answers_after(s3, 3)
    writer.write([(KEYS[0], Reply("zero"))])
    while s3.refuses:
        writer.write([(KEYS[1], Reply("one"))])
        time.sleep(0.01)
    writer.write([(KEYS[2], Reply("two"))])
    writer.close()
    assert read(bucket, *KEYS[:3]) == [Reply("zero"), Reply("one"), Reply("two")]


def test_s3_that_stays_away_is_one_clear_error(bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.2)
    store, writer = SampleStore(bucket), StoreWriter(bucket, 60)
    writer.write([(KEYS[0], Reply("zero"))])
    s3.stop()
    try:
        for call in (
            store.index, lambda: store.read_text("a.json"), lambda: store.write_text("a.json", ""),
            lambda: store.names("a", ""), writer.flush,
        ):  # fmt: skip
            with pytest.raises(StoreError, match=r"^the sample store .*cannot be (read|written): .* has not answered"):
                call()
        monkeypatch.setattr(storage_module, "RETRY_SECONDS", 60.0)
        started = time.monotonic()
        with pytest.raises(StoreError, match="cannot be written"):
            writer.close()  # nobody waits as long once more
        assert time.monotonic() - started < 30
    finally:
        s3.start()
        fsspec.filesystem("s3").mkdir("qcrd-test")


def test_a_bucket_that_does_not_exist_is_an_error(s3: S3):
    writer = StoreWriter("s3://qcrd-none/store", 60)
    writer.write([(KEYS[0], Reply("zero"))])
    with pytest.raises(StoreError, match=r"qcrd-none/store/part-.*bucket"):
        writer.flush()

"""Writing whole or not at all, on a real disk: kills, full disks, threads, and what dead processes leave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from qcrd.storage.atomic import (
    GrowingFile,
    append,
    discard,
    is_being_written,
    is_full,
    move,
    remove_left_overs,
    staged,
    whole_or_absent,
    write_atomically,
)
from tests.full_disk import files_end_at

FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_over(target: Path, process: int) -> Path:
    """What a process of this host would have left, had it been killed while it wrote `target`."""
    host = socket.gethostname().replace(".", "_")
    path = target.with_name(f".{target.name}.3.{host}-{process}.tmp")
    path.mkdir()
    (path / target.name).write_text("half")
    return path


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    write_atomically(path, b"\xff\0")
    assert path.read_bytes() == b"\xff\0" and names(tmp_path) == ["a"]


def test_what_is_not_whole_is_absent_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), staged(path) as written:
        written.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    with files_end_at(5), pytest.raises(OSError, match=rf"{path} not written: .*too large"):
        write_atomically(path, "longer than that")
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with whole_or_absent(target) as written:
        (written / "deep").mkdir(parents=True)
        (written / "deep" / "a").write_text("1")
        assert not target.exists()
    assert (target / "deep" / "a").read_text() == "1" and names(tmp_path) == ["folder"]
    with pytest.raises(OSError, match=rf"{target} not written: .*not empty"), whole_or_absent(target) as written:
        written.mkdir()
        (written / "b").write_text("2")
    assert names(target) == ["deep"] and names(tmp_path) == ["folder"]
    discard(target)
    assert names(tmp_path) == []


def write_until_killed(target: Path) -> None:
    with staged(target) as written:
        written.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_is_hidden_and_goes_with_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "a"
    process = FORK.Process(target=write_until_killed, args=(target,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    (name,) = names(tmp_path)
    assert name.startswith(".a.") and name.endswith(".tmp")
    write_atomically(target, "whole")
    assert names(tmp_path) == ["a"] and target.read_text() == "whole"


def test_only_what_dead_processes_were_writing_goes(tmp_path: Path) -> None:
    dead, alive = dead_process(), os.getppid()
    gone = [left_over(tmp_path / "a", dead), left_over(tmp_path / "a", os.getpid())]
    stays = [left_over(tmp_path / "a", alive), left_over(tmp_path / "b", dead)]
    write_atomically(tmp_path / "a", "1")
    assert not any(path.exists() for path in gone) and all(path.exists() for path in stays)
    with staged(tmp_path / "c") as written:
        written.write_text("2")
        remove_left_overs(tmp_path)  # leaves alone what is being written here
    assert names(tmp_path) == [stays[0].name, "a", "c"]


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    texts = [str(number) * 10_000 for number in range(8)]
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_atomically(tmp_path / "a", text)
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and (tmp_path / "a").read_text() in texts and names(tmp_path) == ["a"]


def test_move_replaces_a_file_and_no_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "1" and names(tmp_path) == ["b"]
    for name in ("x", "y"):
        (tmp_path / name / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        move(tmp_path / "x", tmp_path / "y")


def test_a_growing_file_takes_back_what_does_not_fit_and_is_known_while_its_writer_lives(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines"
    file = GrowingFile(path)
    file.append(b"one\n")
    with files_end_at(6), pytest.raises(OSError, match="too large"):
        file.append(b"two\n")
    file.append(b"three\n")
    file.sync()
    assert is_being_written(path) and path.read_bytes() == b"one\nthree\n"
    file.close()
    assert not is_being_written(path)
    with pytest.raises(FileExistsError):
        GrowingFile(path)
    append(path, b"four\n", durably=True)
    assert path.read_bytes() == b"one\nthree\nfour\n"


def test_a_full_disk_is_told_by_the_text(tmp_path: Path) -> None:
    assert is_full(OSError("x not written: [Errno 28] No space left on device"))
    assert not is_full(OSError("Connection reset by peer"))

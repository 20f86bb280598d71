"""Locks of one machine: between threads, between processes, ended by a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from qcrd.storage.locks import locked

SPAWN = multiprocessing.get_context("spawn")


def test_a_thread_waits_for_another_and_says_so(tmp_path: Path) -> None:
    path, order = tmp_path / "locks" / "a", []
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, lambda: order.append("first waits")):
            inside.set()
            assert leave.wait(20)
            order.append("first ends")

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)

    def waits() -> None:
        order.append("second waits")
        leave.set()

    with locked(path, waits):
        order.append("second has it")
    thread.join()
    assert order == ["second waits", "first ends", "second has it"]
    with locked(path), locked(tmp_path / "locks" / "b"):
        pass
    assert path.exists()


def test_an_error_ends_the_lock(tmp_path: Path) -> None:
    waited: list[bool] = []
    for _ in range(2):
        try:
            with locked(tmp_path / "a", lambda: waited.append(True)):
                raise ValueError
        except ValueError:
            pass
    assert waited == []


def hold_until_killed(path: Path, inside: Event) -> None:
    with locked(path):
        inside.set()
        time.sleep(600)


def test_the_death_of_its_process_ends_a_lock(tmp_path: Path) -> None:
    inside, waiting = SPAWN.Event(), threading.Event()
    process = SPAWN.Process(target=hold_until_killed, args=(tmp_path / "a", inside))
    process.start()
    assert inside.wait(60)

    def kill() -> None:
        waiting.set()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)

    with locked(tmp_path / "a", kill):
        assert waiting.is_set()
    process.join(timeout=60)

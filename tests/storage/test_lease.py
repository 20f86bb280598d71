"""Locks between nodes, in a bucket behind a real S3 protocol: holders that end, die, or stand still."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from qcrd.storage import lease
from qcrd.storage.bucket import StorageAway
from qcrd.storage.output import Storage
from tests.storage.nodes import Node


def test_a_lock_keeps_another_node_out_until_its_holder_ends_or_dies(
    on_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = on_node("a"), on_node("b")
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with here.locked("student-x", lambda: None):
            inside.set()
            assert leave.wait(20)
            order.append("first ends")

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)

    def waits() -> None:
        order.append("second waits")
        leave.set()

    with there.locked("student-x", waits):
        order.append("second has it")
    thread.join()
    assert order == ["second waits", "first ends", "second has it"]
    assert here._bucket.names(".holders") == [".holders/student-x/000000000002"]

    gone = {"host": "elsewhere", "process": os.getpid(), "id": "0"}
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    lease.take(here._bucket, ".holders/student-x", gone, lambda: None)
    started = time.monotonic()
    with there.locked("student-x", lambda: None):
        assert time.monotonic() - started > 0.5


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("in_between", [1, 2])
def test_of_two_that_find_a_holder_dead_one_has_the_lock(
    on_node: Node, monkeypatch: pytest.MonkeyPatch, in_between: int
) -> None:
    """The other one goes on from there only when `in_between` holders have come, and the last of them is inside."""
    quick, slow = Storage(on_node("n").place, "-quick"), Storage(on_node("n").place, "-slow")
    gone = {"host": socket.gethostname(), "process": ended_process(), "id": "0"}
    lease.take(quick._bucket, ".holders/x", gone, lambda: None)
    found, inside, waits = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []
    read = slow._bucket.read

    def stands_still(name: str) -> bytes:
        text = read(name)
        if not found.is_set():
            found.set()
            assert inside.wait(30)
        return text

    monkeypatch.setattr(slow._bucket, "read", stands_still)

    def is_slow() -> None:
        with slow.locked("x", waits.set):
            order.append("slow")
            waits.set()

    thread = threading.Thread(target=is_slow)
    thread.start()
    assert found.wait(30)
    for _ in range(in_between - 1):
        with quick.locked("x", lambda: None):
            pass
    with quick.locked("x", lambda: None):
        inside.set()
        assert waits.wait(30)
        order.append("quick")
    thread.join()
    assert order == ["quick", "slow"]


def test_who_stood_still_for_so_long_that_another_took_over_stops(
    on_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Storage(on_node("n").place, "-a"), Storage(on_node("n").place, "-b")
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    other = {"host": "elsewhere", "process": 1, "id": "0"}
    started = time.monotonic()
    with pytest.raises(StorageAway, match="x: this process stood still"), here.locked("x", lambda: None):
        monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
        lease.take(there._bucket, ".holders/x", other, lambda: None)
        time.sleep(60)
    assert time.monotonic() - started < 30
    (newest,) = here._bucket.names(".holders/x")
    assert json.loads(here._bucket.read(newest)) == other

    monkeypatch.setattr(lease, "BEAT_SECONDS", 60.0)  # where it has not noticed before its end
    with pytest.raises(StorageAway, match="another one has taken over"), here.locked("x", lambda: None):
        lease.take(there._bucket, ".holders/x", other | {"id": "1"}, lambda: None)

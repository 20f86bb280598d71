"""Locks between nodes: leases in a bucket, which its holder renews while it lives. Knows nothing about what they keep
others from."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from qcrd.storage.atomic import is_alive
from qcrd.storage.bucket import Bucket, StorageAway, every

BEAT_SECONDS, STALE_SECONDS = 5.0, 60.0  # of a lease: its holder says that it lives, others believe that it does
LOOK_SECONDS = 1.0  # between two looks at a lease of another node


@contextlib.contextmanager
def leased(bucket: Bucket, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keep out other nodes, while this process lives.

    Nodes are not asked for the time: a holder that has not said anything for `STALE_SECONDS` of ours is gone. One
    that only stood still for so long stops as soon as it finds that another node has taken over: it is interrupted
    as by Ctrl-C, once, and the block raises `StorageAway`.
    """
    owner = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}
    place = f".holders/{name}"
    ours = take(bucket, place, owner, on_wait)
    lost = threading.Event()

    def say(news: dict[str, Any]) -> bool:
        """Whether there was somebody to tell it to: nobody asks for a lease that is not the newest."""
        if bucket.names(place)[-1:] != [ours]:
            return False
        bucket.write(ours, json.dumps({**owner, **news}).encode())
        return True

    def beat() -> None:
        if not say({"beat": time.time()}) and not lost.is_set():
            lost.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        with every(BEAT_SECONDS, beat):
            yield
    finally:
        if not say({"ended": True}):
            raise StorageAway(f"{name}: this process stood still for so long that another one has taken over")


def take(bucket: Bucket, place: str, owner: dict[str, Any], on_wait: Callable[[], None]) -> str:
    """Wait for a lease, and return its name. Of a store it needs that it creates an object only where there is
    none, and that it lists what was created before (S3, GCS).

    Leases of a place are numbered. Whoever finds that the newest is over, or its holder gone, creates the next,
    which one alone can do, and has it if it is the newest then. The newest is never removed, so numbers only rise.
    Hence whatever a slow process does late (creates, beats, ends, removes) is done to older leases, which nobody
    asks any more: two that found the same holder gone cannot both take over.
    """
    seen, since, waited = b"", time.monotonic(), False
    while True:
        names = bucket.names(place)
        try:
            there = bucket.read(names[-1]) if names else b'{"ended": true}'
        except FileNotFoundError:  # there is a newer one
            continue
        lease = json.loads(there)
        if lease.get("id") == owner["id"]:
            bucket.remove(names[:-1])
            return names[-1]
        if there != seen:
            seen, since = there, time.monotonic()
        if "ended" in lease or _has_died(lease) or time.monotonic() - since > STALE_SECONDS:
            number = int(names[-1].rpartition("/")[2]) + 1 if names else 1
            with contextlib.suppress(FileExistsError):  # another one was faster, or the answer to ours was lost
                bucket.write(f"{place}/{number:012d}", json.dumps(owner).encode(), mode="create")
            continue
        if not waited:
            on_wait()
            waited = True
        time.sleep(LOOK_SECONDS)


def _has_died(owner: dict[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine that is gone."""
    return owner["host"] == socket.gethostname() and not is_alive(owner["process"])

"""Events from workers, wherever they run, to the one process that shows and records them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]
"""What a worker tells: its `kind` (progress, metrics, restart) and what belongs to that, as plain data."""


@contextlib.contextmanager
def event_queue(on_event: Callable[[Event], None]) -> Iterator[Queue]:
    """A queue from workers to this process, where one thread hands each event to `on_event`.

    It lies on this node, since another one may be lost while this process lives. An exception in `on_event` is raised
    when the block ends.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    done = threading.Event()
    failures: list[BaseException] = []

    def drain() -> None:
        while not failures:
            try:
                on_event(queue.get(timeout=0.5))
            except Empty:
                if done.is_set():
                    return
            except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits
                failures.append(error)

    thread = threading.Thread(target=drain, name="qcrd-events", daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        done.set()
        thread.join(timeout=30)
        queue.shutdown(force=True)
    if failures:
        raise failures[0]

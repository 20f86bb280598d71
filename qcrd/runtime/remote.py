"""Running a function on the cluster, as one Ray task that brings back the files that it wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.util.queue import Queue

from qcrd.config import ResourcesConfig
from qcrd.runtime.events import Event, event_queue
from qcrd.runtime.session import uses_gpu
from qcrd.storage.output import Storage


class StageFailed(Exception):
    """A model stage ended without results; the message says why in one line. What was reached is kept."""


def run_remotely(
    resources: ResourcesConfig, storage: Storage, work: Callable[..., Any], inputs: Mapping[str, Path], out: Path,
    *arguments: Any, on_event: Callable[[Event], None],
) -> Any:  # fmt: skip
    """Run `work(inputs, out, *arguments, emit=…)` as one Ray task, on a node with a GPU where there is one.

    The node sees the inputs, which it fetches where `storage` is a URL. What it writes comes back through Ray, so that
    `out` need not be visible there. Raises `StageFailed` where the work fails, `OSError` where a place of data does.
    """

    @ray.remote(
        num_cpus=1, num_gpus=resources.gpu_per_worker if uses_gpu(resources) else 0,
        max_retries=resources.max_failures,
        max_calls=1,  # its process would keep what it had at its peak (8 GB were seen), while the student trains
    )  # fmt: skip
    def task(names: dict[str, str], queue: Queue) -> tuple[Any, dict[str, bytes]]:
        fetched = storage.fetch_all(names)
        with tempfile.TemporaryDirectory(prefix="qcrd-") as folder:
            result = work(fetched, Path(folder), *arguments, emit=queue.put)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            return result, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    with event_queue(on_event) as queue:
        try:
            result, files = ray.get(task.remote(storage.names_of(inputs), queue))
        except RayError as error:
            if isinstance(error, OSError):  # Ray's errors of a task are of the type of their cause, too
                raise
            raise StageFailed(cause_of(error)) from error
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return result


def cause_of(error: Exception) -> str:
    """The last line of what Ray says in many; not of a worker that only lost its peer, where another says why."""
    failures: dict[int, Exception] = {}
    if isinstance(error, ray.train.WorkerGroupError):
        failures = error.worker_failures
    texts = [f"training worker {rank}: {str(one).splitlines()[-1]}" for rank, one in sorted(failures.items())]
    return min(texts or [str(error).splitlines()[-1]], key=lambda text: "by peer" in text)

"""Groups of training workers for tests: processes joined by gloo, forked from one server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 300.0
"""How long a group may take."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(  # not qcrd: the server's path may lead to another checkout
    ["torch.distributed", "transformers.models.t5.modeling_t5", "transformers.models.auto.modeling_auto",
     "sklearn.metrics", "scipy.stats", "pyarrow.parquet", "pandas", "pydantic"]
)  # fmt: skip


class GroupDied(Exception):
    """A worker ended with an error, or was killed; the others were killed then."""


def _enter(rank: int, size: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        if size > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
        torch.save(work(*arguments), folder / f"result-{rank}.pt")
        if size > 1:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        raise


def run_group(size: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run `work(*arguments)` in `size` processes of one thread each. Returns their results by rank.

    A group of one has no process group. Raises `GroupDied`.
    """
    folder.mkdir(parents=True)
    processes = [FORKS.Process(target=_enter, args=(rank, size, folder, work, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS
    try:
        running = {process.sentinel: process for process in processes}
        while running:
            for sentinel in wait(list(running), timeout=max(0.0, deadline - time.monotonic())):
                process = running.pop(sentinel)  # pyright: ignore[reportArgumentType]
                process.join()
                if process.exitcode:
                    errors = "\n".join(path.read_text() for path in sorted(folder.glob("error-*.txt")))
                    raise GroupDied(f"exit code {process.exitcode}\n{errors}")
            if time.monotonic() > deadline:
                raise GroupDied(f"not done after {SECONDS:g} s")
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(size)]

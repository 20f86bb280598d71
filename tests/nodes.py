"""Several nodes on this machine: raylets that have a folder of their own each, and share an S3 server alone."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from qcrd.storage.output import Storage
from tests.s3 import S3, s3_server

PLACE = "s3://runs/deep/x"


class Nodes:
    """A running cluster. Head and driver have no CPU; a node's folder is `folder`/its name."""

    def __init__(self, cluster: Any, workers: dict[str, Any], folder: Path, s3: S3) -> None:
        self._cluster, self._workers, self.folder, self.s3 = cluster, workers, folder, s3
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str]) -> None:
        """A driver, with `PLACE` as its output."""
        line = [part for part in command if not part.startswith("output=")] + [f"output={PLACE}"]
        with self.log.open("a") as stream:
            self._process = subprocess.Popen(line, stdout=stream, stderr=subprocess.STDOUT, cwd=self.folder)

    def node_with(self, pattern: str, seconds: float = 400) -> str:
        """Waits until a node has a file of this pattern below its copy of the output; its name."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while True:
            for name in self._workers:
                if list((self.folder / name).glob(f"*/{pattern}")):
                    return name
            assert time.monotonic() < deadline and self._process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def node_of(self, node_id: str) -> str:
        """The name of a node by Ray's id."""
        return next(name for name, node in self._workers.items() if node.node_id == node_id)

    def lose(self, name: str) -> None:
        """A node dies, and its disk with it."""
        self._cluster.remove_node(self._workers.pop(name), allow_graceful=False)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def finish(self, seconds: float = 500) -> str:
        """Waits for the driver, which must succeed; all that it printed."""
        assert self._process is not None and self._process.wait(seconds) == 0, self.log.read_text()[-3000:]
        return self.log.read_text()

    def output(self, *stages: str) -> Path:
        """The output folder as somebody finds it who has the bucket alone."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QCRD_SCRATCH", str(self.folder / "reader"))
            storage = Storage(PLACE).for_reading()
            for stage in stages:
                (name,) = {"/".join(one.split("/")[:2]) for one in storage.published(stage)}
                storage.fetch(name)
            for folder in ("records", "sweeps"):
                storage.pull(folder)
            return storage.folder


@contextlib.contextmanager
def nodes_over_s3(folder: Path, *names: str, cpus: int = 1) -> Iterator[Nodes]:
    """A cluster of nodes with these names, to which the drivers of the test connect."""

    def scratch(node: str) -> dict[str, str]:
        return {"QCRD_SCRATCH": str(folder / node)}

    head = {"num_cpus": 0, "env_vars": scratch("head"), "include_dashboard": False}
    with s3_server("runs") as s3, pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            workers = {name: cluster.add_node(num_cpus=cpus, env_vars=scratch(name)) for name in names}
            cluster.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", cluster.address)
            patch.setenv("QCRD_SCRATCH", str(folder / "driver"))
            yield Nodes(cluster, workers, folder, s3)
        finally:
            cluster.shutdown()

"""Sampling under ten kills, and with a node that dies: nothing lost, little paid twice. For `make test-faults`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import state
from ray.cluster_utils import Cluster

from experiments.benchmarks.teacher import measure_kills
from qcrd.records import Sample, read_rows
from tests.e2e.test_sampling import teacher, wait_until_asked
from tests.e2e.whole_runs import command, only
from tests.ray.test_sample import config_of, run
from tests.teacher.loopback import loopback

pytestmark = pytest.mark.faults


@pytest.mark.timeout(900)
def test_ten_kills_of_one_job():
    numbers = measure_kills(seed=1)
    print(numbers)
    assert numbers["kills"] == 10 and numbers["lost_replies"] == 0
    assert numbers["paid_twice"] <= numbers["in_flight_bound"]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head and two more nodes on this machine, each with its own raylet."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def _nodes_of_actors() -> set[str]:
    actors = state.actor_table(None).values()
    return {one["Address"]["NodeID"] for one in actors if "SamplingActor" in one["ActorClassName"]}


@pytest.mark.timeout(300)
def test_a_node_killed_while_it_samples(cluster: Any, tmp_path: Path):
    killed: list[str] = []

    def kill() -> None:
        while server.asked.total() < 100:
            time.sleep(0.05)
        sampling = _nodes_of_actors()
        victim = next(node for node in cluster.worker_nodes if node.node_id in sampling)
        killed.append(victim.node_id)
        cluster.remove_node(victim, allow_graceful=False)

    with loopback(delay=0.2) as server:
        config = config_of(server, tmp_path, questions=150, concurrency=8, actors=6)
        thread = threading.Thread(target=kill)
        thread.start()
        rows, summary = run(config)
        thread.join()
        assert len(killed) == 1 and summary["errors"] == 0
        assert len(rows) == 450 and all(row.text for row in rows)
        assert server.asked.total() - 450 <= 8  # what was in flight on all nodes
    assert read_rows(tmp_path / "samples.parquet", Sample) == rows


@pytest.mark.timeout(600)
def test_ctrl_c_ends_within_seconds_and_the_same_command_goes_on(tmp_path: Path):
    with loopback(delay=0.3) as server:
        line = command(tmp_path / "runs", *teacher(server, "teacher.concurrency=4"))
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, start_new_session=True
        ) as process:
            wait_until_asked(server, process, 30)
            os.killpg(process.pid, signal.SIGINT)
            pressed = time.monotonic()
            text, _ = process.communicate(timeout=60)
            assert time.monotonic() - pressed < 15, text
        assert process.returncode == 130
        assert "interrupted; what is there is kept, and the same command goes on where this one stopped" in text
        time.sleep(1.0)  # what was in flight has arrived
        asked = server.asked.total()
        assert asked < 144
        server.delay = 0.0
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert server.asked.total() <= 144 + 4  # what was in flight
    samples = read_rows(only(tmp_path / "runs" / "samples") / "samples.parquet", Sample)
    assert len(samples) == 144 and all(one.text for one in samples)

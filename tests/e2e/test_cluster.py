"""Nodes that share a bucket alone: one that samples is lost, with its disk and all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import ray
from ray._private.state import state

from qcrd.records import Sample, read_rows
from tests.e2e.whole_runs import command, only
from tests.nodes import Nodes, nodes_over_s3
from tests.teacher.loopback import Server, loopback

pytestmark = pytest.mark.e2e


def asking(server: Server, questions: int, concurrency: int) -> list[str]:
    """A run that asks a teacher, then trains as little as it can."""
    return [
        *command(Path()), "tracking.enabled=False", "method=dss", "train.steps=10", "train.iteration_steps=5",
        "teacher.kind=openai", f"teacher.base_url={server.base_url}", "teacher.model=loopback",
        f"task.generator.train_size={questions}",
        f"teacher.concurrency={concurrency}", "teacher.actors=4", "teacher.flush_seconds=1", "task.train_limit=None",
    ]  # fmt: skip


def samples_of(nodes: Nodes) -> list[Sample]:
    return read_rows(only(nodes.output("samples") / "samples") / "samples.parquet", Sample)


def lose_a_sampling_node(nodes: Nodes) -> str:
    """Of the nodes with a sampling actor, one; its name."""
    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
    try:
        actors = [one for one in state.actor_table(None).values() if "SamplingActor" in one["ActorClassName"]]
        name = next(name for one in actors if (name := named(nodes, one["Address"]["NodeID"])) is not None)
    finally:
        ray.shutdown()
    nodes.lose(name)
    return name


def named(nodes: Nodes, node_id: str) -> str | None:
    try:
        return nodes.node_of(node_id)
    except StopIteration:  # the head
        return None


def test_a_node_lost_while_it_samples_costs_no_more_than_was_under_way(tmp_path: Path):
    with loopback(delay=0.2) as server, nodes_over_s3(tmp_path, "one", "two") as nodes:
        nodes.start(asking(server, questions=100, concurrency=8))
        while server.asked.total() < 100:
            time.sleep(0.05)
        lose_a_sampling_node(nodes)
        nodes.finish()
        rows = samples_of(nodes)
        assert len(rows) == 300 and all("The answer is" in row.text for row in rows)
        again = server.asked.total() - 300
        print(f"{again} requests of 300 made again")
        assert again <= 8 + 8 / 0.2 * 1.0  # in flight, and replies of flush_seconds

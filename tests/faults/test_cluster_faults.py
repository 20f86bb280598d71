"""Faults in each stage on a cluster whose nodes share a bucket alone; load over four nodes. For `make test-faults`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import state

from qcrd.records import Sample, read_rows
from qcrd.sweeps.record import read_results
from tests.e2e.conftest import whole  # noqa: F401 - a fixture
from tests.e2e.test_mlflow_outage import free_port, recorded, shown, start_server, stop_server
from tests.e2e.whole_runs import ROOT, WHOLE, assert_same, command, only
from tests.faults.test_sweep_faults import RECIPE, facts, finish, start, sweep_folder
from tests.nodes import Nodes, nodes_over_s3
from tests.ray.test_submit import Cluster, client_of, cluster, job_in, wait_for  # noqa: F401 - a fixture
from tests.teacher.loopback import Server, loopback

pytestmark = pytest.mark.faults
WITHOUT_MLFLOW = "tracking.enabled=False"
STAGES = ("samples", "training_set", "student", "predictions", "report")


def asking(server: Server, questions: int, concurrency: int) -> list[str]:
    """A run that asks a teacher, then trains as little as it can."""
    return [
        *command(Path()), "tracking.enabled=False", "method=dss", "train.steps=10", "train.iteration_steps=5",
        "teacher.kind=openai", f"teacher.base_url={server.base_url}", "teacher.model=loopback",
        f"task.train_size={questions}",
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


@pytest.mark.timeout(900)
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("placement", ["inline", "async"])
def test_a_node_lost_in_training_with_its_disk(placement: str, whole: tuple[Path, str], tmp_path: Path):  # noqa: F811
    with nodes_over_s3(tmp_path, "one", "two", cpus=2 if placement == "async" else 1) as nodes:
        nodes.start([*command(tmp_path, *WHOLE), WITHOUT_MLFLOW, f"negatives.placement={placement}"])
        nodes.lose(nodes.node_with("checkpoints/*/checkpoints/iteration-00002"))
        nodes.finish()
        assert_same(nodes.output(*STAGES), whole[0])


@pytest.mark.timeout(900)
def test_a_bucket_that_answers_503_for_twenty_seconds(whole: tuple[Path, str], tmp_path: Path):  # noqa: F811
    with nodes_over_s3(tmp_path, "one") as nodes:
        nodes.start([*command(tmp_path, *WHOLE), WITHOUT_MLFLOW])
        nodes.node_with("checkpoints/*/checkpoints/iteration-00002")
        nodes.s3.refuses = True
        time.sleep(20)
        nodes.s3.refuses = False
        nodes.finish()
        assert nodes.s3.refused > 3
        assert_same(nodes.output(*STAGES), whole[0])


@pytest.mark.timeout(1200)
def test_a_node_lost_while_it_sweeps(tmp_path: Path):
    (tmp_path / "small.py").write_text(RECIPE)
    finish(start(tmp_path, "sweep", "calm", "--parallel", "1"))
    with nodes_over_s3(tmp_path, "one", "two") as nodes, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        line = [sys.executable, "-m", "qcrd", "sweep", str(tmp_path / "small.py"), "tracking.enabled=False"]
        nodes.start([*line, "--parallel", "1"])
        nodes.lose(nodes.node_with("checkpoints/*/checkpoints/iteration-00002"))
        text = nodes.finish()
        assert "failed and is tried again" in text
        (folder,) = (path.parent for path in nodes.output().glob("sweeps/*/trials.jsonl"))
        assert facts(read_results(folder)) == facts(read_results(sweep_folder(tmp_path, "calm")))


@pytest.mark.timeout(900)
def test_an_mlflow_server_that_is_gone_for_a_minute(whole: tuple[Path, str], tmp_path: Path):  # noqa: F811
    """The run ends without it, and the next start sends what it lacks."""
    from mlflow import MlflowClient

    port = free_port()
    uri, server = f"http://127.0.0.1:{port}", start_server(tmp_path, port)
    try:
        with nodes_over_s3(tmp_path, "one") as nodes:
            line = [*command(tmp_path, *WHOLE), f"tracking.uri={uri}"]
            nodes.start(line)
            nodes.node_with("checkpoints/*/checkpoints/iteration-00002")
            stop_server(server)
            time.sleep(60)
            server = start_server(tmp_path, port)
            assert "MLflow cannot be written" in nodes.finish()
            assert_same(nodes.output(*STAGES), whole[0])
            nodes.start(line)
            nodes.finish()
            (record,) = (path.parent for path in nodes.output("report").glob("records/*/metrics.jsonl"))
        client = MlflowClient(tracking_uri=uri)
        (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
        assert run.info.status == "FINISHED" and shown(uri, run.info.run_id) == recorded(record)
    finally:
        stop_server(server)


@pytest.mark.timeout(900)
def test_a_job_whose_driver_is_killed_goes_on_when_it_is_submitted_again(
    whole: tuple[Path, str],  # noqa: F811
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
):
    out = cluster.folder / "killed"
    submit = ["submit", "experiments/quickstart.py", *command(out, *WHOLE)[5:]]
    code, shown = cluster.qcrd(*submit, "--no-wait")
    assert code == 0
    head, client = cluster.folder / "head.log", client_of(cluster.address)
    wait_for(lambda: bool(list(out.glob("checkpoints/*/checkpoints/iteration-00002/checkpoint.json"))), 300, head)
    drivers = [one for one in psutil.process_iter(["cmdline"]) if is_driver(one.info["cmdline"] or [], out)]
    assert drivers
    for one in drivers:
        one.send_signal(signal.SIGKILL)
    wait_for(lambda: client.get_job_status(job_in(shown)).is_terminal(), 120, head)
    code, shown = cluster.qcrd(*submit)
    assert code == 0 and "✓ already there: questions, samples, rationales, training_set, discriminator" in shown
    assert_same(out, whole[0])


def is_driver(words: list[str], out: Path) -> bool:
    return "run" in words and f"output={out}" in words


@pytest.mark.timeout(1200)
def test_two_thousand_questions_five_times_over_four_nodes(tmp_path: Path):
    with loopback(delay=0.1) as server, nodes_over_s3(tmp_path, "one", "two", "three", "four") as nodes:
        nodes.start([*asking(server, questions=2000, concurrency=64), "teacher.num_samples=5"])
        watched: set[str] = set()
        watch = threading.Thread(target=_watch, args=(watched, lambda: server.asked.total() > 5000))
        watch.start()
        nodes.finish(1000)
        watch.join()
        rows = samples_of(nodes)
        assert len(rows) == 10_000 and all(row.text for row in rows) and server.asked.total() == 10_000
        seconds = server.arrivals[-1][0] - server.arrivals[0][0]
        print(f"10,000 requests in {seconds:.0f} s, {10_000 / seconds:.0f} a second; actors on {len(watched)} nodes")
        assert len(watched) > 1


def _watch(nodes: set[str], is_time: Callable[[], bool]) -> None:
    """Where the sampling actors are at a moment."""
    while not is_time():
        time.sleep(0.1)
    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
    for one in state.actor_table(None).values():
        if "SamplingActor" in one["ActorClassName"]:
            nodes.add(one["Address"]["NodeID"])
    ray.shutdown()


SIXTEEN = """
from ray import tune
from experiments.sweeps.settings import base
from qcrd.config.sweep import Sweep

def recipe() -> Sweep:
    space = {"train.learning_rate": tune.grid_search([1e-4 * (1 + i) for i in range(16)])}
    changes = {"method": "finetune", "train.steps": 40, "resources.threads": 1}
    return Sweep(name="sixteen", title="sixteen trials", base=base("smoke", changes), space=space)
"""


@pytest.mark.timeout(1200)
def test_sixteen_trials_over_four_nodes(tmp_path: Path):
    (tmp_path / "small.py").write_text(SIXTEEN)
    with nodes_over_s3(tmp_path, "one", "two", "three", "four") as nodes, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        nodes.start([sys.executable, "-m", "qcrd", "sweep", str(tmp_path / "small.py"), "tracking.enabled=False"])
        nodes.finish(1000)
        (folder,) = (path.parent for path in nodes.output().glob("sweeps/*/trials.jsonl"))
        results = read_results(folder)
        assert [one.status for one in results.configurations] == ["finished"] * 16
        used = [name for name in ("one", "two", "three", "four") if list((tmp_path / name).glob("*/checkpoints/*"))]
        print(f"trials on {len(used)} nodes")
        assert len(used) == 4

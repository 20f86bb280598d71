"""Negatives made by Ray actors equal those made inline, bit for bit, whoever dies; one that does not fit is refused."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch

from qcrd.config import ConfigError, ExperimentConfig, with_overrides
from qcrd.distill.async_negatives import AsyncNegatives
from qcrd.distill.checkpoint import CheckpointStore
from qcrd.distill.data import TrainingData
from qcrd.distill.loop import Training
from qcrd.distill.negatives import NegativeMaker
from qcrd.distill.schedule import schedule_of
from qcrd.distill.train import check_resources
from qcrd.models.generation import Generated
from qcrd.models.student import Student, build_student
from qcrd.models.weights import set_weights, weights_of
from qcrd.records import Example, Question, write_rows
from qcrd.runtime.events import Event
from qcrd.storage.output import Storage
from qcrd.tasks import get_task
from tests.distill.helpers import tiny_tokenizer
from tests.distill.test_loop import config_of, data_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]
CPU = torch.device("cpu")


def config_for(**changes: str) -> ExperimentConfig:
    return config_of(
        **{
            "negatives.placement": "async", "negatives.batch_size": "3", "resources.negatives_cpus": "0.5",
            **changes,
        }
    )  # fmt: skip


@dataclass
class Given:
    """What a training is given: in memory, and as folders for an actor to read."""

    data: TrainingData
    inputs: dict[str, str]

    def student(self, config: ExperimentConfig, seed: int) -> Student:
        return build_student(config.student, self.data.tokenizer, seed, CPU)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    data = data_of(config_for(), folder)
    inputs = {name: folder / name for name in ("questions", "training_set")}
    for path in inputs.values():
        path.mkdir()
    write_rows(inputs["questions"] / "questions.parquet", Question, data.validation)
    write_rows(inputs["training_set"] / "examples.parquet", Example, data.examples)
    data.tokenizer.save_pretrained(inputs["training_set"] / "tokenizer")
    return Given(data, {name: str(path) for name, path in inputs.items()})


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(Storage.of(folder.parent), folder.name, {}, keep=1, gap=2)


def actors_for(
    config: ExperimentConfig, given: Given, store: CheckpointStore, waits: dict[int, float] | None = None
) -> AsyncNegatives:
    on_wait = (lambda iteration, seconds: None) if waits is None else waits.__setitem__
    return AsyncNegatives(config, store.storage, given.inputs, str(store.folder), CPU, on_wait)


def made_here(config: ExperimentConfig, given: Given, store: CheckpointStore, iteration: int) -> list[list[Generated]]:
    """An iteration's batches, as a trainer makes them itself."""
    schedule = schedule_of(config.train, config.seed, len(given.data.examples))

    def load_snapshot(wanted: int, model: torch.nn.Module) -> None:
        set_weights(model, store.snapshot(wanted))

    maker = NegativeMaker(
        config.negatives, config.seed, given.data, schedule, store.storage, load_snapshot,
        lambda: given.student(config, config.seed),
    )  # fmt: skip
    return maker.make(iteration, maker.batches(iteration))


def processes(negatives: AsyncNegatives) -> list[int]:
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in negatives._actors])


def test_an_actor_killed_at_work_is_replaced_and_its_work_redone(given: Given, tmp_path: Path):
    """Two actors. The snapshot that they need comes late; one is killed in the middle of its share."""
    config = config_for(
        **{
            "resources.negatives_actors": "2", "negatives.num_samples": "3", "negatives.max_new_tokens": "100",
            "negatives.batch_size": "1",
        }
    )  # fmt: skip
    store, waits = store_in(tmp_path), {}
    negatives = actors_for(config, given, store, waits)
    before = processes(negatives)
    negatives.ask(2)  # from snapshot 0, which is not there yet
    asked = negatives._asked[2]
    negatives.ask(2)
    assert negatives._asked[2] is asked and len(asked) == 2
    assert ray.wait(asked, timeout=0.5)[0] == []
    store.save_initial(weights_of(given.student(config, seed=7).model))
    assert ray.wait(asked, timeout=0.2)[0] == []
    os.kill(before[0], signal.SIGKILL)
    started = time.perf_counter()
    made = negatives.take(2)
    assert waits[2] == pytest.approx(time.perf_counter() - started, abs=0.1)
    assert made == made_here(config, given, store, 2)
    assert sum(len(one.ids) for batch in made for one in batch) > 1500
    after = processes(negatives)
    assert after[0] != before[0] and after[1] == before[1]


class Watched:
    """Passes everything on, and writes down what the trainer asked for and took."""

    def __init__(self, negatives: AsyncNegatives) -> None:
        self.negatives, self.calls = negatives, []

    def ask(self, iteration: int) -> None:
        self.calls.append(f"ask {iteration}")
        self.negatives.ask(iteration)

    def take(self, iteration: int) -> list[list[Generated]]:
        self.calls.append(f"take {iteration}")
        return self.negatives.take(iteration)


def test_inline_and_async_give_the_same_texts_and_loss_traces(given: Given, tmp_path: Path):
    """One actor, which is killed between two iterations."""
    config, waits, task = config_for(), {}, get_task("arithmetic")
    inline = Training(
        with_overrides(config, {"negatives.placement": "inline"}), given.data, task, store_in(tmp_path / "inline"), CPU,
        lambda event: None,
    )  # fmt: skip
    inline.run()
    store = store_in(tmp_path / "async")
    negatives = Watched(actors_for(config, given, store, waits))

    def kill_after_iteration_2(event: Event) -> None:
        if event["kind"] == "metrics" and event["rows"][0].get("train/iteration") == 2:
            os.kill(processes(negatives.negatives)[0], signal.SIGKILL)

    training = Training(config, given.data, task, store, CPU, kill_after_iteration_2, elsewhere=negatives)
    training.run()
    assert training.rows == inline.rows and any(row.get("negatives/count", 0) > 0 for row in inline.rows)
    for ours, theirs in (
        (training.student.model, inline.student.model),
        (training.discriminator, inline.discriminator),
    ):
        assert ours is not None and theirs is not None
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert sorted(waits) == [1, 2, 3, 4, 5] and all(seconds >= 0 for seconds in waits.values())
    calls = list(dict.fromkeys(negatives.calls))
    assert calls[:5] == ["ask 1", "ask 2", "take 1", "ask 3", "take 2"]  # an iteration ahead, from snapshot t - 2


def test_what_an_actor_raises_reaches_the_trainer(given: Given, tmp_path: Path):
    fixed = tmp_path / "fixed"
    config = config_for(**{"negatives.source": "fixed", "negatives.fixed": str(fixed)})
    other = tiny_tokenizer()
    build_student(config.student, other, 0, CPU).model.save_pretrained(fixed)
    other.save_pretrained(fixed)
    with pytest.raises(ValueError, match=r"^negatives\.fixed: .* has another vocabulary$"):
        actors_for(config, given, store_in(tmp_path / "run")).take(1)


@pytest.mark.parametrize(
    ("changes", "there", "message"),
    [
        ({}, {"CPU": 1.0}, "resources.negatives_cpus: 0.5 .* need 1.5 CPUs, the cluster has 1"),
        (
            {"resources.workers": "2", "resources.negatives_actors": "3"},
            {"CPU": 3.0},
            "2 training workers and 3 negatives actors need 3.5 CPUs, the cluster has 3",
        ),
        ({}, {"CPU": 8.0, "GPU": 1.0}, "resources.negatives_gpus: 1 .* need 2 GPUs, the cluster has 1"),
        ({"resources.device": "cuda"}, {"CPU": 8.0}, None),  # an autoscaler may start nodes that have some
        ({}, {"CPU": 1.5}, None),
        ({"resources.device": "cpu"}, {"CPU": 1.5, "GPU": 1.0}, None),
        ({"resources.negatives_gpus": "0.5"}, {"CPU": 0.5, "GPU": 1.5}, None),
        ({"resources.negatives_gpus": "0"}, {"CPU": 0.5, "GPU": 1.0}, None),
        ({"resources.negatives_gpus": "0.5", "resources.gpu_per_worker": "0.5"}, {"CPU": 0.5, "GPU": 1.0}, None),
        ({"negatives.placement": "inline"}, {"CPU": 1.0}, None),
        ({"method": "dss"}, {"CPU": 1.0}, None),
    ],
)
def test_what_does_not_fit_into_the_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], there: dict[str, float], message: str | None
):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    if message is None:
        check_resources(config_for(**changes))
    else:
        with pytest.raises(ConfigError, match=message):
            check_resources(config_for(**changes))

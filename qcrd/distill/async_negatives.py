"""Negatives off the critical path: Ray actors write the next iteration's while this one trains.

The batches are those that the training workers would have made, from the same snapshot, so the texts are the same.
An actor that dies is started again by Ray and does its work again, with the same result. Knows nothing about losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from safetensors.torch import load

from qcrd.config import ExperimentConfig, ResourcesConfig
from qcrd.distill.checkpoint import snapshot_name
from qcrd.distill.data import load_training_data
from qcrd.distill.negatives import NegativeMaker
from qcrd.distill.schedule import schedule_of
from qcrd.models.generation import Generated
from qcrd.models.student import build_student
from qcrd.models.weights import set_weights
from qcrd.runtime.devices import set_up_cuda
from qcrd.storage.output import Storage

SNAPSHOT_SECONDS = 600.0
"""How long an actor waits for a snapshot that the trainer is still writing."""


def negatives_gpus(resources: ResourcesConfig) -> float:
    """The GPU share of each actor, where training has GPUs."""
    share = resources.negatives_gpus
    return 1.0 if share is None else share


class NegativesActor:
    """One maker of negatives, in a process of its own: actor number `rank` of `count` takes every count-th batch."""

    def __init__(
        self, config: dict[str, Any], storage: Storage, inputs: Mapping[str, str], training: str, device: str,
        threads: int, rank: int, count: int,
    ) -> None:  # fmt: skip
        settings = ExperimentConfig.model_validate(config)
        torch.set_num_threads(threads)
        if device == "cuda":
            set_up_cuda(settings.resources.deterministic)
        self._storage, self._training, self._rank, self._count = storage, training, rank, count
        data = load_training_data(storage.fetch_all(inputs))
        self._maker = NegativeMaker(
            settings.negatives, settings.seed, data, schedule_of(settings.train, settings.seed, len(data.examples)),
            storage, self._load_snapshot,
            lambda: build_student(settings.student, data.tokenizer, settings.seed, torch.device(device)),
        )  # fmt: skip

    def _load_snapshot(self, iteration: int, model: torch.nn.Module) -> None:
        """Set a model's weights to a snapshot's. Raises `FileNotFoundError` where this node does not get to see it."""
        name = snapshot_name(self._training, iteration)
        deadline = time.monotonic() + SNAPSHOT_SECONDS
        while not self._storage.has(name) and time.monotonic() < deadline:
            time.sleep(1.0 if self._storage.is_remote else 0.1)
        set_weights(model, load(self._storage.read_bytes(name)))

    def make(self, iteration: int) -> list[list[Generated]]:
        """This actor's share of an iteration's batches."""
        return self._maker.make(iteration, self._maker.batches(iteration)[self._rank :: self._count])


class AsyncNegatives:
    """The trainer's end: asks the actors for iterations and takes what they wrote."""

    def __init__(
        self, config: ExperimentConfig, storage: Storage, inputs: Mapping[str, str], training: str,
        device: torch.device, on_wait: Callable[[int, float], None],
    ) -> None:  # fmt: skip
        """`inputs`, `training`: names of the stages' folders and of the training's, inside the output `storage`.

        `on_wait` is told for how many seconds an iteration's negatives were late.
        """
        resources = config.resources
        kind: Any = ray.remote(NegativesActor).options(  # pyright: ignore[reportFunctionMemberAccess]
            num_cpus=resources.negatives_cpus, num_gpus=negatives_gpus(resources) if device.type == "cuda" else 0,
            max_restarts=-1, max_task_retries=-1, scheduling_strategy="DEFAULT",
        )  # fmt: skip
        self._on_wait = on_wait
        self._actors = [
            kind.remote(
                config.model_dump(), storage, dict(inputs), training, device.type, torch.get_num_threads(), rank,
                resources.negatives_actors,
            )
            for rank in range(resources.negatives_actors)
        ]  # fmt: skip
        self._asked: dict[int, list[ray.ObjectRef]] = {}

    def ask(self, iteration: int) -> None:
        """Have an iteration's negatives made; asking twice is asking once."""
        if iteration not in self._asked:
            self._asked[iteration] = [actor.make.remote(iteration) for actor in self._actors]

    def take(self, iteration: int) -> list[list[Generated]]:
        """All batches of an iteration, in their order; waits until they are there. Raises what an actor raised."""
        self.ask(iteration)
        started = time.perf_counter()
        try:
            parts = ray.get(self._asked.pop(iteration))
        except RayTaskError as error:
            raise error.cause from error
        self._on_wait(iteration, time.perf_counter() - started)
        count = len(parts)
        return [parts[index % count][index // count] for index in range(sum(map(len, parts)))]

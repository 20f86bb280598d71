"""A sweep's trial where Ray runs it: in Tune's own actor, or on the workers of a nested TorchTrainer.

Both hosts call the same plain function (seeds.py); only how it reports differs. Knows nothing about which
configurations are tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import ray.train
from ray import tune
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.queue import Queue

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.distill.loop import Event
from qcrd.distill.train import scaling_of
from qcrd.runtime.devices import set_up_torch, uses_cuda
from qcrd.runtime.remote import cause_of
from qcrd.runtime.session import cluster_resources, uses_gpu
from qcrd.runtime.workers import Workers
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.sweeps.seeds import SeedRun, train_seeds

CPUS_PER_WORKER = 1


def trials_at_once(config: ExperimentConfig, wanted: int | None) -> int:
    """How many trials run: as many as the cluster holds, such that each has its workers and none waits for another's,
    and not more than `wanted`. Where GPUs are to be used and none is there yet (an autoscaler), all that are wanted."""
    there, workers = cluster_resources(), config.resources.workers
    if uses_gpu(config.resources) and not there.get("GPU", 0):
        return wanted or 1
    if uses_gpu(config.resources):
        share = config.resources.gpu_per_worker
        slots = int(there.get("GPU", 0)) * int(1 / share + 1e-6)
    else:
        slots = int(there.get("CPU", 1)) // CPUS_PER_WORKER
    if slots < workers:
        raise ConfigError(
            f"resources.workers: {workers} is not allowed; the cluster holds {slots} workers of this kind at once"
        )
    return min(wanted or slots, slots // workers)


def resources_of_trial(config: ExperimentConfig) -> tune.PlacementGroupFactory:
    """Of the actor of a trial. With several workers it only waits for them: it reserves no CPU that they need."""
    if config.resources.workers > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    share = {"GPU": config.resources.gpu_per_worker} if uses_gpu(config.resources) else {}
    return tune.PlacementGroupFactory([{"CPU": CPUS_PER_WORKER, **share}])


def _emit_to(queue: Queue, key: str) -> Callable[[int, Event], None]:
    return lambda seed, event: queue.put({**event, "trial": key, "seed": seed})


def run_trial(settings: dict[str, Any], queue: Queue) -> None:
    """One trial in Tune's actor."""
    runs = [SeedRun.from_dict(run) for run in settings["runs"]]
    config = ExperimentConfig.model_validate(runs[0].config)
    with contextlib.ExitStack() as stack:
        for artifact in settings["artifacts"]:
            place = Artifact(Storage(config.output), "student", artifact["name"], artifact["fingerprint"])
            stack.enter_context(place.locked(lambda: None))
        if config.resources.workers == 1:
            device = set_up_torch(config.resources)
            train_seeds(runs, device, _emit_to(queue, settings["key"]), tune.report, reported=settings["reported"])
        else:
            _train_on_workers(config, settings, queue)


def _train_on_workers(config: ExperimentConfig, settings: dict[str, Any], queue: Queue) -> None:
    trainer = TorchTrainer(
        _trial_worker,
        train_loop_config={**settings, "queue": queue},
        scaling_config=scaling_of(config.resources),
        run_config=ray.train.RunConfig(
            name=f"trial-{settings['key']}",
            **Storage(config.output).for_ray("checkpoints"),
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(
                max_failures=config.resources.max_failures, controller_failure_limit=3
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(cause_of(error)) from error


def _trial_worker(settings: dict[str, Any]) -> None:
    """One of several workers of a trial, under Ray Train."""
    runs = [SeedRun.from_dict(run) for run in settings["runs"]]
    config, workers = ExperimentConfig.model_validate(runs[0].config), Workers()
    device = set_up_torch(config.resources, config.resources.workers)
    if uses_cuda(config.resources):
        device = get_device()
    emit = _emit_to(settings["queue"], settings["key"])
    train_seeds(runs, device, emit, ray.train.report, workers, settings["reported"])

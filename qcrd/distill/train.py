"""Ray around the training loop (loop.py) and the discriminator's pretraining: wire, call core, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from qcrd.config import ConfigError, DiscriminatorConfig, ExperimentConfig, ResourcesConfig
from qcrd.distill.async_negatives import AsyncNegatives, negatives_gpus
from qcrd.distill.checkpoint import CheckpointStore, clear
from qcrd.distill.data import load_training_data
from qcrd.distill.discriminator import QuestionRationales, build_discriminator, save_discriminator
from qcrd.distill.discriminator_training import pretrain
from qcrd.distill.loop import Training
from qcrd.distill.methods import uses_student_negatives
from qcrd.distill.results import RESULTS, copy_results, keep_results
from qcrd.runtime.devices import set_up_torch, uses_cuda
from qcrd.runtime.events import Event, event_queue
from qcrd.runtime.remote import StageFailed, cause_of
from qcrd.runtime.session import uses_gpu
from qcrd.runtime.workers import Workers
from qcrd.storage.atomic import is_full, write_atomically
from qcrd.storage.output import Storage
from qcrd.tasks.base import Task

FAILURE = "failure.txt"


def has_negatives_actors(config: ExperimentConfig) -> bool:
    """Whether negatives are written by actors of their own."""
    return uses_student_negatives(config.method, config.negatives) and config.negatives.placement == "async"


def check_resources(config: ExperimentConfig) -> None:
    """Raise `ConfigError` where training and its negatives actors do not fit into the cluster together.

    Training would wait for actors that Ray never starts.
    """
    if not has_negatives_actors(config):
        return
    resources, there = config.resources, ray.cluster_resources()
    needs = {"CPU": (1, resources.negatives_cpus)}  # of a training worker and of an actor
    if uses_gpu(resources):  # then Ray Train reserves no CPU for its workers
        needs = {"CPU": (0, resources.negatives_cpus), "GPU": (resources.gpu_per_worker, negatives_gpus(resources))}
    for kind, (worker, actor) in needs.items():
        needed, has = resources.workers * worker + resources.negatives_actors * actor, there.get(kind, 0)
        if needed > has > 0:  # where there is none yet, an autoscaler may start a node
            raise ConfigError(
                f"resources.negatives_{kind.lower()}s: {actor:g} is not allowed; {resources.workers} training workers "
                f"and {resources.negatives_actors} negatives actors need {needed:g} {kind}s, the cluster has {has:g}"
            )


def pretrain_discriminator(
    inputs: Mapping[str, Path], out: Path, resources: ResourcesConfig, settings: DiscriminatorConfig,
    questions: list[QuestionRationales], *, emit: Callable[[Event], None],
) -> list[dict[str, float]]:  # fmt: skip
    """Build, pretrain and write the discriminator into `out`. Returns its metric rows."""
    device = set_up_torch(resources)
    texts = [text for q in questions for text in (q.text, *q.positives, *q.negatives)]
    discriminator = build_discriminator(settings, texts, device)
    rows, held_out = pretrain(discriminator, settings, questions, emit)
    save_discriminator(discriminator, out / "discriminator")
    (out / "pretraining.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "held_out.json").write_text(json.dumps(held_out) + "\n")
    return rows


def _worker(settings: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs. Returns what is wrong where starting again would not help."""
    config, storage, name = ExperimentConfig.model_validate(settings["config"]), settings["storage"], settings["name"]
    set_up_torch(config.resources, config.resources.workers)
    device = ray.train.torch.get_device() if uses_cuda(config.resources) else torch.device("cpu")
    queue, workers = settings["queue"], Workers()
    if storage.has(f"{name}/{RESULTS}"):
        return None
    data = load_training_data(storage.fetch_all(settings["inputs"]), config.evaluation.validation_limit)
    store = CheckpointStore(storage, name, settings["identity"], config.checkpoint.keep, config.negatives.gap)
    elsewhere = None
    if has_negatives_actors(config) and workers.rank == 0:

        def on_wait(iteration: int, seconds: float) -> None:
            step = (iteration - 1) * training.schedule.iteration_steps
            queue.put({"kind": "metrics", "rows": [{"step": step, "time/negatives_wait": seconds}]})

        elsewhere = AsyncNegatives(config, storage, settings["inputs"], name, device, on_wait)
    try:
        training = Training(config, data, settings["task"], store, device, queue.put, workers, elsewhere)
        training.run()
        if workers.rank == 0:
            keep_results(training)
    except (FloatingPointError, ValueError) as error:
        return str(error)
    except OSError as error:
        if not is_full(error):
            raise
        return str(error)
    return None


def train(
    config: ExperimentConfig, task: Task, storage: Storage, inputs: Mapping[str, Path], fingerprint: str,
    identity: Mapping[str, Any], out: Path, on_event: Callable[[Event], None],
) -> dict[str, float]:  # fmt: skip
    """Train under Ray Train and write the results into `out`. Returns how long it took.

    The run's folder in the output is named by the fingerprint: a second call with the same settings goes on from
    the newest checkpoint there, and one with other settings cannot. Ray starts workers that died again, and they do
    the same. Raises `StageFailed` after too many deaths, and at once for what a new start would not mend: a loss
    that is not finite, a checkpoint of another training, a full disk.
    """
    name = training_name(fingerprint)
    if not storage.has(f"{name}/{RESULTS}"):
        check_resources(config)
        settings = {
            "config": config.model_dump(),
            "task": task,
            "storage": storage,
            "inputs": storage.names_of(inputs),
            "name": name,
            "identity": dict(identity),
        }
        _train_under_ray(config.resources, settings, on_event)
    try:
        results = storage.fetch(f"{name}/{RESULTS}")
    except FileNotFoundError as error:
        raise StageFailed(f"no results after training: {error}") from error
    clear(storage, name)  # where a kill came before the worker did it
    return copy_results(results, out)


def training_name(fingerprint: str) -> str:
    """Where in the output the checkpoints and results of one training lie."""
    return f"checkpoints/train-{fingerprint}"


def scaling_of(resources: ResourcesConfig) -> ScalingConfig:
    """Workers and GPUs of one training."""
    share = {"GPU": resources.gpu_per_worker} if uses_gpu(resources) else None
    return ScalingConfig(num_workers=resources.workers, use_gpu=uses_gpu(resources), resources_per_worker=share)


def _train_under_ray(
    resources: ResourcesConfig, settings: Mapping[str, Any], on_event: Callable[[Event], None]
) -> None:
    """Have workers run `_worker` with these settings."""
    storage, name = settings["storage"], settings["name"]
    with event_queue(on_event) as queue:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={**settings, "queue": queue},
            scaling_config=scaling_of(resources),
            run_config=RunConfig(
                name=Path(name).name,
                **storage.for_ray(str(Path(name).parent)),
                failure_config=FailureConfig(max_failures=resources.max_failures, controller_failure_limit=3),
            ),
        )
        try:
            wrong = trainer.fit().return_value
        except (ray.train.TrainingFailedError, RayError) as error:
            path = storage.folder / name / FAILURE
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, f"{error}\n")
            raise StageFailed(f"{cause_of(error)}; all of it is in {path}") from error
        if wrong is not None:
            raise StageFailed(wrong)

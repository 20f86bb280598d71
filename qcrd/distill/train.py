"""Ray around the training loop and the discriminator's pretraining: wire, call core, report. The loop itself is in loop.py."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.distill.async_negatives import AsyncNegatives, negatives_gpus
from qcrd.distill.checkpoint import CheckpointStore, clear
from qcrd.distill.data import load_training_data
from qcrd.distill.discriminator import QuestionRationales, build_discriminator, save_discriminator
from qcrd.distill.discriminator_training import pretrain
from qcrd.distill.loop import Event, Training
from qcrd.distill.results import RESULTS, copy_results, keep_results
from qcrd.runtime.devices import set_up_cuda
from qcrd.runtime.workers import Workers
from qcrd.storage.atomic import is_full, write_atomically
from qcrd.storage.output import Storage
from qcrd.tasks import get_task

FAILURE = "failure.txt"


class StageFailed(Exception):
    """A model stage ended without results; the message says why in one line. What was reached is kept."""


def uses_gpu(config: ExperimentConfig) -> bool:
    """Whether model stages ask Ray for a GPU: `resources.device`, or for `auto` whether the cluster has one."""
    if config.resources.device == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return config.resources.device == "cuda"


def check_resources(config: ExperimentConfig) -> None:
    """Raise `ConfigError` where training and its negatives actors do not fit into the cluster together.

    Training would wait for actors that Ray never starts.
    """
    if not (config.uses_student_negatives() and config.negatives.placement == "async"):
        return
    resources, there = config.resources, ray.cluster_resources()
    needs = {"CPU": (1, resources.negatives_cpus)}  # of a training worker and of an actor
    if uses_gpu(config):  # then Ray Train reserves no CPU for its workers
        needs = {"CPU": (0, resources.negatives_cpus), "GPU": (resources.gpu_per_worker, negatives_gpus(config))}
    for kind, (worker, actor) in needs.items():
        needed, has = resources.workers * worker + resources.negatives_actors * actor, there.get(kind, 0)
        if needed > has > 0:  # where there is none yet, an autoscaler may start a node
            raise ConfigError(
                f"resources.negatives_{kind.lower()}s: {actor:g} is not allowed; {resources.workers} training workers "
                f"and {resources.negatives_actors} negatives actors need {needed:g} {kind}s, the cluster has {has:g}"
            )


def set_up_torch(config: ExperimentConfig, workers: int = 1) -> torch.device:
    """Threads and device of a worker. Ray sets one thread a CPU that was asked for; a model stage uses all cores."""
    torch.set_num_threads(config.resources.threads or max(1, len(os.sched_getaffinity(0)) // workers))
    if not uses_cuda(config):
        return torch.device("cpu")
    set_up_cuda(config.resources.deterministic)
    if config.resources.gpu_per_worker < 1:  # Ray's shares are only counts
        torch.cuda.set_per_process_memory_fraction(config.resources.gpu_per_worker)
    return torch.device("cuda")


def uses_cuda(config: ExperimentConfig) -> bool:
    """Whether this process computes on a GPU."""
    return config.resources.device != "cpu" and torch.cuda.is_available()


@contextlib.contextmanager
def event_queue(on_event: Callable[[Event], None]) -> Iterator[Queue]:
    """A queue from workers to this process, where one thread hands each event to `on_event`.

    It lies on this node, since another one may be lost while this process lives. An exception in `on_event` is raised
    when the block ends.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    done = threading.Event()
    failures: list[BaseException] = []

    def drain() -> None:
        while not failures:
            try:
                on_event(queue.get(timeout=0.5))
            except Empty:
                if done.is_set():
                    return
            except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits
                failures.append(error)

    thread = threading.Thread(target=drain, name="qcrd-events", daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        done.set()
        thread.join(timeout=30)
        queue.shutdown(force=True)
    if failures:
        raise failures[0]


def everywhere(config: ExperimentConfig) -> dict[str, Any]:
    """A config as plain data that means the same on every node."""
    return config.model_copy(update={"output": Storage.of(config.output).place}).model_dump()


def named(config: ExperimentConfig, inputs: Mapping[str, Path]) -> dict[str, str]:
    """Input folders by their names inside the output."""
    storage = Storage.of(config.output)
    return {stage: storage.name_of(path) for stage, path in inputs.items()}


def run_remotely(
    config: ExperimentConfig, work: Callable[..., Any], inputs: Mapping[str, Path], out: Path, *arguments: Any,
    on_event: Callable[[Event], None],
) -> Any:  # fmt: skip
    """Run `work(config, inputs, out, *arguments, emit=…)` as one Ray task, on a node with a GPU where there is one.

    The node sees the inputs, which it fetches where the output is a URL. What it writes comes back through Ray, so that
    `out` need not be visible there. Raises `StageFailed` where the work fails, `OSError` where a place of data does.
    """

    @ray.remote(
        num_cpus=1, num_gpus=config.resources.gpu_per_worker if uses_gpu(config) else 0,
        max_retries=config.resources.max_failures,
        max_calls=1,  # its process would keep what it had at its peak (8 GB were seen), while the student trains
    )  # fmt: skip
    def task(data: dict[str, Any], names: dict[str, str], queue: Queue) -> tuple[Any, dict[str, bytes]]:
        there = ExperimentConfig.model_validate(data)
        fetched = Storage.of(there.output).fetch_all(names)
        with tempfile.TemporaryDirectory(prefix="qcrd-") as folder:
            result = work(there, fetched, Path(folder), *arguments, emit=queue.put)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            return result, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    with event_queue(on_event) as queue:
        try:
            result, files = ray.get(task.remote(everywhere(config), named(config, inputs), queue))
        except RayError as error:
            if isinstance(error, OSError):  # Ray's errors of a task are of the type of their cause, too
                raise
            raise StageFailed(cause_of(error)) from error
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return result


def pretrain_discriminator(
    config: ExperimentConfig, inputs: Mapping[str, Path], out: Path, questions: list[QuestionRationales], *,
    emit: Callable[[Event], None],
) -> list[dict[str, float]]:  # fmt: skip
    """Build, pretrain and write the discriminator into `out`. Returns its metric rows."""
    device = set_up_torch(config)
    texts = [text for q in questions for text in (q.text, *q.positives, *q.negatives)]
    discriminator = build_discriminator(config.discriminator, texts, device)
    rows, held_out = pretrain(discriminator, config.discriminator, questions, emit)
    save_discriminator(discriminator, out / "discriminator")
    (out / "pretraining.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "held_out.json").write_text(json.dumps(held_out) + "\n")
    return rows


def _worker(settings: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs. Returns what is wrong where starting again would not help."""
    config = ExperimentConfig.model_validate(settings["config"])
    set_up_torch(config, config.resources.workers)
    device = ray.train.torch.get_device() if uses_cuda(config) else torch.device("cpu")
    storage, name, queue, workers = Storage.of(config.output), settings["name"], settings["queue"], Workers()
    if storage.has(f"{name}/{RESULTS}"):
        return None
    data = load_training_data(config, storage.fetch_all(settings["inputs"]))
    store = CheckpointStore(storage, name, settings["identity"], config.checkpoint.keep, config.negatives.gap)
    elsewhere = None
    if config.uses_student_negatives() and config.negatives.placement == "async" and workers.rank == 0:

        def on_wait(iteration: int, seconds: float) -> None:
            step = (iteration - 1) * training.schedule.iteration_steps
            queue.put({"kind": "metrics", "rows": [{"step": step, "time/negatives_wait": seconds}]})

        elsewhere = AsyncNegatives(config, settings["inputs"], name, device, on_wait)
    task = get_task(config.task.name)
    try:
        training = Training(config, data, task, store, device, queue.put, workers, elsewhere)
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
    config: ExperimentConfig, inputs: Mapping[str, Path], fingerprint: str, identity: Mapping[str, Any], out: Path,
    on_event: Callable[[Event], None],
) -> dict[str, float]:  # fmt: skip
    """Train under Ray Train and write the results into `out`. Returns how long it took.

    The run's folder in the output is named by the fingerprint: a second call with the same settings goes on from
    the newest checkpoint there, and one with other settings cannot. Ray starts workers that died again, and they do
    the same. Raises `StageFailed` after too many deaths, and at once for what a new start would not mend: a loss
    that is not finite, a checkpoint of another training, a full disk.
    """
    storage, name = Storage.of(config.output), training_name(fingerprint)
    if not storage.has(f"{name}/{RESULTS}"):
        _train_under_ray(config, inputs, name, identity, on_event)
    try:
        results = storage.fetch(f"{name}/{RESULTS}")
    except FileNotFoundError as error:
        raise StageFailed(f"no results after training: {error}") from error
    clear(storage, name)  # where a kill came before the worker did it
    return copy_results(results, out)


def training_name(fingerprint: str) -> str:
    """Where in the output the checkpoints and results of one training lie."""
    return f"checkpoints/train-{fingerprint}"


def scaling_of(config: ExperimentConfig) -> ScalingConfig:
    """Workers and GPUs of one training."""
    share = {"GPU": config.resources.gpu_per_worker} if uses_gpu(config) else None
    return ScalingConfig(num_workers=config.resources.workers, use_gpu=uses_gpu(config), resources_per_worker=share)


def _train_under_ray(
    config: ExperimentConfig, inputs: Mapping[str, Path], name: str, identity: Mapping[str, Any],
    on_event: Callable[[Event], None],
) -> None:  # fmt: skip
    check_resources(config)
    storage = Storage.of(config.output)
    with event_queue(on_event) as queue:
        settings = {
            "config": everywhere(config),
            "inputs": named(config, inputs),
            "name": name,
            "identity": dict(identity),
            "queue": queue,
        }
        trainer = TorchTrainer(
            _worker,
            train_loop_config=settings,
            scaling_config=scaling_of(config),
            run_config=RunConfig(
                name=Path(name).name,
                **storage.for_ray(str(Path(name).parent)),
                failure_config=FailureConfig(max_failures=config.resources.max_failures, controller_failure_limit=3),
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


def cause_of(error: Exception) -> str:
    """The last line of what Ray says in many; not of a worker that only lost its peer, where another says why."""
    failures: dict[int, Exception] = {}
    if isinstance(error, ray.train.WorkerGroupError):
        failures = error.worker_failures
    texts = [f"training worker {rank}: {str(one).splitlines()[-1]}" for rank, one in sorted(failures.items())]
    return min(texts or [str(error).splitlines()[-1]], key=lambda text: "by peer" in text)

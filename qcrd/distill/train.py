"""Ray around the training loop and the judge's pretraining: wire, call core, report. The loop itself is in loop.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from qcrd.config import ExperimentConfig
from qcrd.distill.data import load_training_data
from qcrd.distill.discriminator import JudgedQuestion, build_discriminator, save_discriminator
from qcrd.distill.judge import pretrain
from qcrd.distill.loop import Event, Training
from qcrd.distill.snapshots import SnapshotStore
from qcrd.tasks import get_task

RESULTS = "results"


def uses_gpu(config: ExperimentConfig) -> bool:
    """Whether model stages ask Ray for a GPU: `resources.device`, or for `auto` whether the cluster has one."""
    if config.resources.device == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return config.resources.device == "cuda"


def set_up_torch(config: ExperimentConfig) -> torch.device:
    """Threads and device of a worker. Ray sets one thread a CPU that was asked for; a model stage uses all cores."""
    torch.set_num_threads(config.resources.threads or len(os.sched_getaffinity(0)))
    if config.resources.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


@contextlib.contextmanager
def event_queue(on_event: Callable[[Event], None]) -> Iterator[Queue]:
    """A queue from workers to this process, where one thread hands each event to `on_event`.

    An exception in `on_event` is raised when the block ends.
    """
    queue = Queue(actor_options={"num_cpus": 0})
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


def run_remotely(
    config: ExperimentConfig, work: Callable[..., Any], *arguments: Any, on_event: Callable[[Event], None]
) -> Any:
    """Run `work(config, *arguments, emit=…)` as one Ray task with a GPU where there is one."""

    @ray.remote(num_cpus=1, num_gpus=1 if uses_gpu(config) else 0, max_retries=config.resources.max_failures)
    def task(data: dict[str, Any], queue: Queue) -> Any:
        return work(ExperimentConfig.model_validate(data), *arguments, emit=queue.put)

    with event_queue(on_event) as queue:
        return ray.get(task.remote(config.model_dump(), queue))


def pretrain_judge(
    config: ExperimentConfig, questions: list[JudgedQuestion], out: Path, *, emit: Callable[[Event], None]
) -> list[dict[str, float]]:
    """Build, pretrain and write the judge into `out`. Returns its metric rows."""
    device = set_up_torch(config)
    texts = [text for q in questions for text in (q.text, *q.positives, *q.negatives)]
    judge = build_discriminator(config.discriminator, texts, device)
    rows, held_out = pretrain(judge, config.discriminator, questions, emit)
    save_discriminator(judge, out / "discriminator")
    (out / "pretraining.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "held_out.json").write_text(json.dumps(held_out) + "\n")
    return rows


class RayHost:
    """The loop's surroundings inside a Ray Train worker."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def save(self, iteration: int, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="qcrd-checkpoint-") as folder:
            write(Path(folder))
            ray.train.report(
                {"iteration": iteration},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"iteration-{iteration:05d}",
            )

    def save_results(self, training: Training) -> None:
        """A last checkpoint that also holds the run's results, unless the newest one does already.

        Ray deletes a checkpoint that is reported again under its name when it makes room for the new one.
        """
        with self.latest() as newest:
            if newest is not None and (newest / RESULTS).is_dir():
                return
        with tempfile.TemporaryDirectory(prefix="qcrd-results-") as folder:
            training.write_checkpoint(Path(folder))
            (Path(folder) / RESULTS).mkdir()
            training.write_results(Path(folder) / RESULTS)
            ray.train.report(
                {"iteration": training.progress.iteration},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=RESULTS,
            )

    def emit(self, event: Event) -> None:
        self.queue.put(event)


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    config = ExperimentConfig.model_validate(settings["config"])
    set_up_torch(config)
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    host = RayHost(settings["queue"])
    data = load_training_data(config, {name: Path(path) for name, path in settings["inputs"].items()})
    training = Training(
        config, data, get_task(config.task.name), SnapshotStore(Path(settings["snapshots"])),
        settings["fingerprint"], host, device,
    )  # fmt: skip
    training.run()
    host.save_results(training)


def train(
    config: ExperimentConfig, inputs: Mapping[str, Path], storage: Path, fingerprint: str, out: Path,
    on_event: Callable[[Event], None],
) -> None:
    """Train under Ray Train and write the results into `out`.

    The run's name is the fingerprint, so a second call with the same settings goes on from the last checkpoint under
    `storage`, and one with other settings cannot.
    """
    name = f"train-{fingerprint}"
    with event_queue(on_event) as queue:
        settings = {
            "config": config.model_dump(),
            "inputs": {stage: str(path) for stage, path in inputs.items()},
            "snapshots": str(storage / name / "snapshots"),
            "fingerprint": fingerprint,
            "queue": queue,
        }
        trainer = TorchTrainer(
            _worker,
            train_loop_config=settings,
            scaling_config=ScalingConfig(num_workers=1, use_gpu=uses_gpu(config), resources_per_worker=None),
            run_config=RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=config.resources.max_failures, controller_failure_limit=3),
                checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError(f"{storage / name}: training ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        results = Path(folder) / RESULTS
        if not results.is_dir():
            raise RuntimeError(f"{folder}: the last checkpoint holds no results")
        shutil.copytree(results, out, dirs_exist_ok=True)

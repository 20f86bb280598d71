"""One configuration of a sweep: the trainings of all its seeds, iteration by iteration, side by side.

After each iteration the host is told how the seeds do together, so that a scheduler judges their mean. Checkpoints and
results lie where a run of the same experiment would look for them: a trial that is started again goes on, and the
winner needs no second training. Knows nothing about Ray, searches or schedulers: `report` is the host's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from qcrd.config import ExperimentConfig
from qcrd.distill.checkpoint import CheckpointStore
from qcrd.distill.data import load_training_data
from qcrd.distill.loop import Training
from qcrd.distill.results import RESULTS, TIMES, keep_results
from qcrd.runtime.events import Event
from qcrd.runtime.workers import Workers
from qcrd.storage.artifacts import MARKER
from qcrd.storage.json_lines import read_json_lines
from qcrd.storage.output import Storage
from qcrd.tasks import get_task

Report = Callable[[dict[str, Any]], None]
MEMORY_HINT = (
    "out of memory: lower train.micro_batch_size or negatives.batch_size, have fewer trials at once (--parallel), or "
    "give each more of a GPU (resources.gpu_per_worker)"
)


@dataclass(frozen=True)
class SeedRun:
    """The training of one seed as plain data, since it travels to where the trial runs.

    Places are named by their paths inside the config's output. `folder`: of its checkpoints and results. `student`:
    where a run of the same experiment puts the finished student.
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    identity: dict[str, Any]
    folder: str
    student: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])


class _SeedTraining:
    """A seed's training, or what an earlier one left."""

    def __init__(self, run: SeedRun, device: torch.device, emit: Callable[[Event], None], workers: Workers) -> None:
        self._workers = workers
        self._training: Training | None = None
        config = ExperimentConfig.model_validate(run.config)
        storage = Storage.of(config.output)
        found = next((name for name in (f"{run.folder}/{RESULTS}", run.student) if storage.has(name)), None)
        if found is not None:
            done = storage.fetch(found)
            self.rows = read_json_lines(done / "metrics.jsonl")
            self.seconds = _seconds_of(done)
            self.iterations = len(self.accuracies)
            emit({"kind": "restart", "rows": self.rows})
            return
        data = load_training_data(storage.fetch_all(run.inputs), config.evaluation.validation_limit)
        store = CheckpointStore(storage, run.folder, run.identity, config.checkpoint.keep, config.negatives.gap)
        task = get_task(config.task.name)
        self._training = Training(config, data, task, store, device, emit, workers)
        self.iterations = self._training.schedule.num_iterations
        self._training.resume()
        self.rows, self.seconds = self._training.rows, self._training.progress.seconds

    @property
    def accuracies(self) -> list[float]:
        """Validation accuracy after each iteration so far."""
        return [row["eval/accuracy"] for row in self.rows if "eval/accuracy" in row]

    def advance_to(self, iteration: int) -> None:
        """Train on, where it has not got so far; the last iteration's end is the time to write the results."""
        training = self._training
        if training is None:
            return
        while training.progress.iteration < min(iteration, self.iterations):
            training.run_iteration()
        self.rows, self.seconds = training.rows, training.progress.seconds
        if iteration >= self.iterations:
            training.store.wait()
            if self._workers.rank == 0:
                keep_results(training)
            self._training = None

    def steps(self, iteration: int) -> int:
        """Optimizer steps of the first iterations."""
        return max(int(row["step"]) for row in self.rows if row.get("train/iteration", iteration + 1) <= iteration)


def _seconds_of(folder: Path) -> float:
    """How long the training took whose results or student lie in `folder`."""
    if (folder / TIMES).is_file():
        return float(json.loads((folder / TIMES).read_text())["seconds"])
    return float(json.loads((folder / MARKER).read_text())["summary"]["seconds"])


def train_seeds(
    runs: Sequence[SeedRun], device: torch.device, emit: Callable[[int, Event], None], report: Report,
    workers: Workers | None = None, reported: int = 0,
) -> None:  # fmt: skip
    """Train all seeds of one configuration to their end. `report` gets, after each iteration that all have finished:

    `iteration`; `accuracies`, the validation accuracy of each seed then; `score`, the mean over the seeds of the best
    so far; `seconds` of training and `steps` over all seeds; `seed_seconds`, the seconds of each. The first `reported`
    iterations are not told again. Raises `MemoryError` with a hint, and what a training raises.
    """
    workers = workers or Workers()
    try:
        trainings = [_SeedTraining(run, device, _emit_of(emit, run.seed), workers) for run in runs]
        for iteration in range(1, max(training.iterations for training in trainings) + 1):
            for training in trainings:
                training.advance_to(iteration)
            if iteration > reported:
                report(_result(iteration, trainings))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryError(f"{MEMORY_HINT} ({str(error).splitlines()[0] if str(error) else 'no details'})") from error


def _emit_of(emit: Callable[[int, Event], None], seed: int) -> Callable[[Event], None]:
    return lambda event: emit(seed, event)


def _result(iteration: int, trainings: Sequence[_SeedTraining]) -> dict[str, Any]:
    curves = [one.accuracies[:iteration] for one in trainings]
    return {
        "iteration": iteration,
        "accuracies": [curve[-1] for curve in curves],
        "score": sum(max(curve) for curve in curves) / len(curves),
        "seconds": sum(one.seconds for one in trainings),
        "seed_seconds": [one.seconds for one in trainings],
        "steps": sum(one.steps(iteration) for one in trainings),
    }

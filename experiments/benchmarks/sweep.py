"""What a sweep costs beyond its training: `python -m experiments.benchmarks.sweep`, about 11 minutes on two cores.

The task is generated; teachers are simulated; no language model is asked. It prints a table, and as its last line JSON:

- trial_overhead_seconds: wall time of a trial with one worker beyond the seconds that its training measured itself:
  12 short trials, one at a time, from the first one's proposal to the last one's end;
- nested_overhead_seconds: the same of trials whose two workers are under a TorchTrainer;
- teacher_requests_ratio: requests that a simulated endpoint saw from a sweep over m = 1, 5, 10, 20, over those of a run
  of m = 20 alone;
- asha_steps_ratio: training steps of ASHA (reduction factor 4) over those of the full grid of 16 configurations;
  asha_score_loss: validation accuracy of the grid's winner less that which ASHA's winner has in the grid, and
  score_standard_error: of the difference of two accuracies on the validation questions.
"""

from __future__ import annotations

import io
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from experiments.benchmarks.teacher import Numbers, endpoint, show_numbers
from experiments.quickstart import recipe as quickstart
from experiments.sweeps.settings import base as smoke
from qcrd.config import (
    ExperimentConfig,
    GeneratedTaskConfig,
    with_overrides,
)
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.pipeline.run import Options, run
from qcrd.pipeline.session import start_ray, stop_ray
from qcrd.report.sweep.data import SweepResults
from qcrd.sweeps.record import SweepRecord
from qcrd.sweeps.run import run_sweep

SHORT = {
    "method": "finetune", "task.train_size": 64, "task.validation_size": 16,
    "task.test_size": 16, "student.d_model": 32, "student.d_ff": 64, "train.steps": 20,
    "train.iteration_steps": 5, "train.global_batch_size": 8, "evaluation.explained_questions": 0,
    "tracking.enabled": False,
}  # fmt: skip


def quiet() -> Display:
    """Nothing of the sweeps themselves."""
    return Display(Console(file=io.StringIO()))


def step(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def overhead(folder: Path, trials: int, changes: dict[str, Any]) -> float:
    """Seconds per trial, one at a time, beyond what its training measured."""
    base = with_overrides(quickstart(), {**SHORT, **changes, "output": str(folder)})
    rates = [1e-3 * (1 + number / 10) for number in range(trials)]
    space = {"train.learning_rate": tune.grid_search(rates)}
    sweep = Sweep(name="short", title="short trials", base=base, space=space)
    place, _ = run_sweep(sweep, quiet(), parallel=1)
    record = SweepRecord(place)
    begun = min(line["time"] for line in record.lines if line["kind"] == "proposed")
    over = max(line["time"] for line in record.lines if line["kind"] == "ended")
    return (over - begun - sum(trial.seconds for trial in record.trials.values())) / trials


def requests_ratio(folder: Path) -> float:
    """Requests of a sweep over m over those of the largest m alone."""
    counts = []
    for name in ("sweep", "alone"):
        with endpoint(0.0) as served:
            changes = {
                **SHORT, "method": "qcrd", "discriminator.enabled": False, "negatives.source": "none",
                "teacher.kind": "openai", "teacher.base_url": served.base_url, "teacher.model": "simulated-endpoint",
                "teacher.samples_per_request": 1, "teacher.num_samples": 20, "output": str(folder / name),
            }  # fmt: skip
            base = with_overrides(quickstart(), changes)
            if name == "sweep":
                space = {"rationales.num_samples": tune.grid_search([1, 5, 10, 20])}
                run_sweep(Sweep(name="m", title="m", base=base, space=space), quiet())
            else:
                run(base, quiet(), Options(until="samples"))
            counts.append(int(served.read("count")))
    return counts[0] / counts[1]


def learnable(folder: Path) -> ExperimentConfig:
    changes = {"method": "dss", "train.steps": 320, "tracking.enabled": False, "output": str(folder)}
    return smoke("smoke", changes)


def asha_against_grid(folder: Path) -> Numbers:
    """The same 16 configurations with and without early ends, in folders of their own."""
    space = {
        "train.learning_rate": tune.grid_search([3e-4, 1e-3, 3e-3, 1e-2]),
        "loss.rationale_weight": tune.grid_search([0.2, 0.8]), "train.weight_decay": tune.grid_search([0.0, 0.1]),
    }  # fmt: skip
    made: dict[str, SweepResults] = {}
    for scheduler in ("none", "asha"):
        sweep = Sweep(
            name="rates", title="16 configurations", base=learnable(folder / scheduler), space=space,
            scheduler=scheduler, grace_iterations=2, reduction_factor=4,
        )  # fmt: skip
        _, made[scheduler] = run_sweep(sweep, quiet())
        step(f"{scheduler}: {sum(one.steps for one in made[scheduler].configurations)} steps")
    grid, asha = made["none"], made["asha"]
    scores = {one.key: one.score for one in grid.configurations}
    best, chosen = grid.finished[0].score, scores[asha.finished[0].key]
    task = learnable(folder).task
    assert isinstance(task, GeneratedTaskConfig)
    questions = task.validation_size
    error = math.sqrt(sum(p * (1 - p) / questions for p in (best, chosen)))
    steps = [sum(one.steps for one in results.configurations) for results in (asha, grid)]
    return {
        "asha_steps_ratio": steps[0] / steps[1], "grid_best_score": best, "asha_score_loss": best - chosen,
        "score_standard_error": error, "asha_finished": float(len(asha.finished)),
    }  # fmt: skip


def main() -> None:
    started = time.perf_counter()
    start_ray()
    numbers: Numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        numbers["trial_overhead_seconds"] = overhead(folder / "short", 12, {})
        step(f"overhead of a trial: {numbers['trial_overhead_seconds']:.2f} s")
        numbers["nested_overhead_seconds"] = overhead(folder / "nested", 2, {"resources.workers": 2})
        step(f"overhead of a trial of two workers: {numbers['nested_overhead_seconds']:.2f} s")
        numbers["teacher_requests_ratio"] = requests_ratio(folder / "m")
        step(f"requests: {numbers['teacher_requests_ratio']:.3f} of those of m = 20")
        numbers |= asha_against_grid(folder / "asha")
        stop_ray()
    numbers["benchmark_seconds"] = time.perf_counter() - started
    show_numbers("Sweeps of simulated work on this machine", numbers)


if __name__ == "__main__":
    main()

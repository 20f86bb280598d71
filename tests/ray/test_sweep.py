"""Sweeps on a real Ray Tune: a trial goes on where it was, trials never wait for each other, failures stay alone."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray import tune
from rich.console import Console

from experiments.quickstart import recipe as quickstart
from experiments.sweeps.settings import base as smoke
from qcrd.config import ExperimentConfig, with_overrides
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.distill.train import set_up_torch
from qcrd.pipeline.run import DEFAULT_OPTIONS, Options, open_record, prepared, run, run_inputs_of
from qcrd.pipeline.stages.student import STUDENT
from qcrd.sweeps import seeds as trial_module
from qcrd.sweeps.record import TRIALS
from qcrd.sweeps.run import run_sweep
from qcrd.sweeps.seeds import SeedRun, train_seeds
from qcrd.sweeps.trials import seed_run

pytestmark = pytest.mark.usefixtures("ray_started")
TINY = {
    "method": "finetune", "task.train_size": 48, "task.validation_size": 12,
    "task.test_size": 12, "student.d_model": 32, "student.d_ff": 64, "train.steps": 40,
    "train.iteration_steps": 10, "train.global_batch_size": 8, "evaluation.explained_questions": 2,
    "tracking.enabled": False, "resources.threads": 1,
}  # fmt: skip


def base(output: Path, **changes: Any) -> ExperimentConfig:
    return with_overrides(quickstart(), {**TINY, "output": str(output), **changes})


def display() -> Display:
    return Display(Console(file=io.StringIO(), width=300))


def told(shown: Display) -> str:
    assert isinstance(shown.console.file, io.StringIO)
    return shown.console.file.getvalue()


def sweep_of(output: Path, values: list[float], changes: dict[str, Any] | None = None, **settings: Any) -> Sweep:
    space = {"train.learning_rate": tune.grid_search(values)}
    return Sweep(name="small", title="a small sweep", base=base(output, **(changes or {})), space=space, **settings)


def run_of(config: ExperimentConfig) -> SeedRun:
    return seed_run(prepared(STUDENT, config))


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.faults
def test_seeds_in_lockstep_equal_runs_alone_and_go_on_after_a_kill(tmp_path: Path):
    configs = [base(tmp_path / "trial", seed=seed) for seed in (0, 1)]
    run_inputs_of(STUDENT, configs[0], display(), open_record(configs[0], display()), DEFAULT_OPTIONS)
    runs = [SeedRun.from_dict(run_of(config).as_dict()) for config in configs]
    reports: list[dict[str, Any]] = []
    events: list[tuple[int, str]] = []

    def report_and_die(row: dict[str, Any]) -> None:
        reports.append(row)
        if row["iteration"] == 2:
            raise Killed

    device = set_up_torch(configs[0].resources)
    with pytest.raises(Killed):
        train_seeds(runs, device, lambda seed, event: events.append((seed, event["kind"])), report_and_die)
    assert {(0, "restart"), (1, "restart"), (1, "metrics")} <= set(events)
    train_seeds(runs, device, lambda seed, event: None, reports.append, reported=len(reports))
    assert [row["iteration"] for row in reports] == [1, 2, 3, 4] and [row["steps"] for row in reports] == [
        20, 40, 60, 80,
    ]  # fmt: skip

    for seed in (0, 1):
        alone = run(base(tmp_path / "alone", seed=seed), display(), Options(until="student"))
        summary = alone["student"].marker()["summary"]
        lines = (alone["student"].path / "metrics.jsonl").read_text()
        assert lines == (tmp_path / "trial" / runs[seed].folder / "results" / "metrics.jsonl").read_text()
        assert max(row["accuracies"][seed] for row in reports) == summary["best_validation_accuracy"]
    best = [max(row["accuracies"][seed] for row in reports) for seed in (0, 1)]
    assert reports[-1]["score"] == pytest.approx(sum(best) / 2)

    again: list[dict[str, Any]] = []  # finished trainings are read, not repeated
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trial" / runs[0].folder).rglob("*")}
    train_seeds(runs, device, lambda seed, event: None, again.append)
    names = ("iteration", "accuracies", "score", "steps")
    assert [[row[name] for name in names] for row in again] == [[row[name] for name in names] for row in reports]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trial" / runs[0].folder).rglob("*")} == before


@pytest.mark.ray
def test_memory_that_runs_out_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = base(tmp_path)
    run_inputs_of(STUDENT, config, display(), open_record(config, display()), DEFAULT_OPTIONS)

    def full(self: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trial_module.Training, "run_iteration", full)
    with pytest.raises(MemoryError, match=r"train\.micro_batch_size .*Tried to allocate 2\.00 GiB"):
        train_seeds([run_of(config)], torch.device("cpu"), lambda seed, event: None, lambda row: None)


@pytest.mark.faults
def test_trials_with_two_workers_each_finish_though_two_do_not_fit(tmp_path: Path):
    """Deadlock test: two trials of two workers, where two CPUs hold one of them. One and two workers agree."""
    common = {"train.steps": 20, "student.dtype": "float64"}
    two = sweep_of(tmp_path / "two", [1e-3, 2e-3], {"resources.workers": 2, **common})
    _, results = run_sweep(two, display(), parallel=2)
    assert [one.status for one in results.configurations] == ["finished"] * 2
    one = sweep_of(tmp_path / "one", [1e-3, 2e-3], common)
    _, alone = run_sweep(one, display(), parallel=2)
    assert {c.key: c.curves for c in results.configurations} == {c.key: c.curves for c in alone.configurations}


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_are_refused(tmp_path: Path):
    changes = {"resources.workers": 64, "train.global_batch_size": 64}
    with pytest.raises(ValueError, match=r"resources\.workers: 64"):
        run_sweep(sweep_of(tmp_path, [1e-3], changes), display())


@pytest.mark.faults
def test_a_trial_that_fails_is_tried_again_then_reported_and_the_sweep_goes_on(tmp_path: Path):
    shown = display()
    sweep = sweep_of(tmp_path, [1e-3, 1e30], {"train.max_grad_norm": 1e30}, max_failures=1)
    folder, results = run_sweep(sweep, shown, parallel=1)
    good, bad = results.configurations
    assert good.status == "finished" and len(good.test_accuracy) == 1
    assert bad.status == "failed" and "gradient norm nan" in bad.reason and not bad.test_accuracy
    text = told(shown)
    assert text.count("failed and is tried again") == 1 and "tested" in (folder / "trials.jsonl").read_text()


@pytest.mark.ray
def test_a_killed_trial_goes_on_and_equals_an_undisturbed_one(tmp_path: Path):
    changes = {"train.steps": 200}
    _, expected = run_sweep(sweep_of(tmp_path / "calm", [1e-3], changes), display())
    sweep = sweep_of(tmp_path / "killed", [1e-3], changes)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if list((tmp_path / "killed").glob("checkpoints/*/checkpoints/iteration-00003/checkpoint.json")):
                for process in psutil.Process().children(recursive=True):
                    if "run_trial" in " ".join(process.cmdline()) or "ImplicitFunc" in process.name():
                        killed.append(process.pid)
                        os.kill(process.pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    shown = display()
    folder, results = run_sweep(sweep, shown)
    thread.join()
    assert killed and "failed and is tried again" in told(shown)
    (ours,), (theirs,) = results.configurations, expected.configurations
    assert (ours.status, ours.curves, ours.test_accuracy) == ("finished", theirs.curves, theirs.test_accuracy)

    lines = (folder / TRIALS).read_text().splitlines(keepends=True)  # as if the driver had died before the trial's end
    assert [json.loads(line)["kind"] for line in lines[-2:]] == ["ended", "tested"]
    (folder / TRIALS).write_text("".join(lines[:-2]))
    _, results = run_sweep(sweep, display())
    assert (results.configurations[0].status, results.configurations[0].curves) == ("finished", theirs.curves)

    text = "".join(lines).replace(json.loads(lines[0])["students"][0], "0" * 12)
    (folder / TRIALS).write_text(text)
    with pytest.raises(ValueError, match=r"an input of .* has changed"):
        run_sweep(sweep, display())


@pytest.mark.faults
def test_optuna_with_asha_and_a_budget_which_a_larger_one_continues(tmp_path: Path):
    space = {"train.learning_rate": tune.loguniform(1e-5, 1e-2), "train.weight_decay": tune.choice([0.0, 0.1])}
    learnable = smoke("smoke", {"method": "finetune", "output": str(tmp_path), "tracking.enabled": False})
    sweep = Sweep(
        name="joint", title="a joint sweep", base=learnable, space=space, searcher="optuna", num_configurations=6,
        scheduler="asha", reduction_factor=2, budget_hours=1e-6,
    )  # fmt: skip
    shown = display()
    _, results = run_sweep(sweep, shown, parallel=1)
    assert "the budget of 1e-06 hours is spent" in told(shown)
    assert [one.status for one in results.configurations] == ["unfinished"]
    _, results = run_sweep(sweep.model_copy(update={"budget_hours": None}), display(), parallel=2)
    statuses = [one.status for one in results.configurations]
    assert len(statuses) == 6 and set(statuses) == {"finished", "stopped"}
    tested = [one for one in results.configurations if one.test_accuracy]
    assert tested == results.finished[:1] and all(one.iterations == 8 for one in results.finished)
    assert not list(tmp_path.glob("checkpoints/*/checkpoints"))  # of those that were stopped neither

"""A sweep's trials on Ray Tune, until all configurations have ended or the budget is spent.

With one worker a trial trains in Tune's own actor; several workers train under a nested TorchTrainer (tune_trial.py).
Unfinished trials go on from their checkpoints, and the scheduler is told what the record knows, so Tune's own state is
never read.
"""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

from ray import tune
from ray.util.queue import Queue

from qcrd.distill.checkpoint import clear
from qcrd.distill.train import event_queue, training_name
from qcrd.pipeline.run import prepared
from qcrd.pipeline.stages.student import STUDENT
from qcrd.storage.output import Storage
from qcrd.sweeps.children import SweepChildren
from qcrd.sweeps.plan import SCHEDULE_FIELDS, iterations_of
from qcrd.sweeps.search_space import grid
from qcrd.sweeps.trials import Trials
from qcrd.sweeps.tune_search import Proposals, Spent, Watch, scheduler_of
from qcrd.sweeps.tune_trial import resources_of_trial, run_trial

TUNE = "tune"
"""Tune's own folder in the sweep's."""


def run_trials(trials: Trials, children: SweepChildren) -> None:
    """All configurations that are not ended yet. `children` gets the news of their trainings."""
    try:
        with event_queue(children.on_event) as trials.queue:
            _fit(trials, trials.queue)
    finally:
        trials.queue = None
        children.close_all()
    if trials.is_spent():
        trials.display.warn(f"the budget of {trials.sweep.budget_hours:g} hours is spent; a larger one goes on")


def _fit(trials: Trials, queue: Queue) -> None:
    """Run Tune to its end."""
    sweep, record, storage = trials.sweep, trials.record, Storage.of(trials.sweep.base.output)
    going_on = [trial for trial in record.trials.values() if trial.status in ("unfinished", "failed")]
    iterations = _most_iterations(trials)
    scheduler = scheduler_of(sweep, iterations, record.lines)
    for key in scheduler.stopped:
        if record.trials[key].status == "unfinished" and len(record.trials[key].results) < iterations:
            record.end(key, "stopped")
    place = f"sweeps/{record.folder.name}"
    trainable: Any = tune.with_resources(partial(run_trial, queue=queue), resources_of_trial(sweep.base))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1, search_alg=Proposals(going_on, trials.proposer, trials.begin), scheduler=scheduler,
            max_concurrent_trials=trials.at_once, trial_name_creator=lambda trial: str(trial.config["key"]),
            reuse_actors=sweep.base.resources.workers == 1,
        ),
        run_config=tune.RunConfig(
            name=TUNE, **storage.for_ray(place), verbose=0, callbacks=[Watch(trials)],
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures), stop=Spent(trials.is_spent),
        ),
    )  # fmt: skip

    def forget() -> None:
        """Tune's own state, which nobody reads."""
        shutil.rmtree(record.folder / TUNE, ignore_errors=True)
        storage.unpublish(f"{place}/{TUNE}")

    forget()  # an earlier start's
    tuner.fit()
    forget()


def _most_iterations(trials: Trials) -> int:
    """Iterations of the longest configuration."""
    sweep = trials.sweep
    fields = [field for field in SCHEDULE_FIELDS if field in sweep.space]
    listed = grid(sweep, fields) if trials.configurations is None else trials.configurations
    configs = [sweep.config(values, sweep.seeds[0], trials.most) for values in listed]
    return max(iterations_of(prepared(STUDENT, config)) for config in configs)


def clear_stopped(trials: Trials) -> None:
    """Delete the checkpoints of configurations that the scheduler has ended: they are never trained on."""
    storage = Storage.of(trials.sweep.base.output)
    here = {storage.name_of(path) for path in storage.folder.glob("checkpoints/*")}
    there = {"/".join(name.split("/")[:2]) for name in storage.published("checkpoints")}
    stopped = [trial for trial in trials.record.trials.values() if trial.status == "stopped"]
    for training in {training_name(fingerprint) for trial in stopped for fingerprint in trial.students}:
        if training in here | there:
            clear(storage, training)

"""Running a sweep on Ray Tune: what trials share once, then configurations, then the winner's test.

A trial is one configuration with all its seeds (distill/trial.py). With one worker it trains in Tune's own actor;
several workers train under a nested TorchTrainer. The sweep's record (sweep_record.py) is all that a restart needs:
finished configurations are not proposed again, unfinished ones go on from their checkpoints, and the scheduler and the
searcher are told what the record knows, so Tune's own state is never read. A population (scheduler = pbt) trains in
folders of its own (distill/population.py); started again, its members go on from there with the values that they had
last, under a new scheduler. In MLflow a sweep is one run with a child for each configuration and seed
(sweep_children.py).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.util.queue import Queue

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.distill.checkpoint import clear
from qcrd.distill.population import newest_life, read_member
from qcrd.distill.results import RESULTS
from qcrd.distill.train import everywhere, named, training_name
from qcrd.grids.run import about
from qcrd.pipeline.run import (
    DEFAULT_OPTIONS,
    Options,
    Stages,
    StudentJob,
    prepare_output,
    prepare_student,
    recorded_alone,
    run,
    student_job,
)
from qcrd.pipeline.stages_of import stages_of, with_trained_student
from qcrd.report.sweep.data import SweepResults
from qcrd.report.sweep.page import write_sweep_report
from qcrd.runtime.events import event_queue
from qcrd.runtime.session import cluster_resources, start_ray, uses_gpu
from qcrd.storage.output import Storage
from qcrd.sweeps.children import SweepChildren
from qcrd.sweeps.plan import SCHEDULE_FIELDS, check_sweep, iterations_of, label_of, shared_configurations, sweep_folder
from qcrd.sweeps.record import REPORT, SweepRecord, Trial, read_results
from qcrd.sweeps.search_space import (
    ListProposer,
    OptunaProposer,
    Proposer,
    Values,
    description,
    grid,
    key_of,
    listed,
    most_samples,
)
from qcrd.sweeps.seeds import SeedJob
from qcrd.sweeps.tune_search import Population, Proposals, Spent, Watch, scheduler_of
from qcrd.sweeps.tune_trial import resources_of_trial, run_member, run_trial, trials_at_once
from qcrd.teacher.backends.table import backend_of
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import read_metrics
from qcrd.tracking.tracker import RunId

TUNE_DEFAULTS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
TUNE = "tune"
CHECKPOINTS_KEPT = 3  # of a population's member: one may wait for its turn until the donor hands over the next but one


class _SweepRun:
    """One start of a sweep: what Tune's parts have in common."""

    def __init__(
        self, sweep: Sweep, record: SweepRecord, children: SweepChildren, display: Display, options: Options,
        at_once: int,
    ) -> None:  # fmt: skip
        self.sweep, self.record, self.children, self.display, self.options = sweep, record, children, display, options
        self.at_once, self.most = at_once, most_samples(sweep)
        self.configurations = listed(sweep)
        """All of them, where they are known beforehand."""
        self.proposer: Proposer = self._new_proposer()
        self.queue: Queue | None = None
        """The way of the trials' news, while there are trials."""
        self._gpus = uses_gpu(sweep.base.resources)

    def _new_proposer(self) -> Proposer:
        known = list(self.record.trials.values())
        if self.configurations is not None:
            return ListProposer(self.configurations, {trial.key for trial in known})
        proposer = OptunaProposer(self.sweep, [trial.values for trial in known])
        for trial in known:
            if trial.status != "unfinished":
                proposer.tell(trial.values, trial.score if trial.status != "failed" else None, trial.seconds)
        return proposer

    # -- shared work ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """All that trials share: samples, rationales, training sets, discriminators, fixed students."""
        todo = shared_configurations(self.sweep)
        for number, values in enumerate(todo, start=1):
            what = f" {number}/{len(todo)} ({label_of(values)})" if len(todo) > 1 else ""
            self.display.say(f"▶ what trials share{what}")
            for seed in self.sweep.seeds if self.sweep.base.fixed_recipe else self.sweep.seeds[:1]:
                config = self.sweep.config(values, seed, self.most)
                prepare_student(config, self.display, self.children.parent, self.options)

    # -- trials -----------------------------------------------------------------------------------------------

    def hours(self) -> float:
        """Of training so far: of GPUs, or of workers where there are none."""
        resources = self.sweep.base.resources
        each = resources.workers * (resources.gpu_per_worker if self._gpus else 1.0)
        return sum(trial.seconds for trial in self.record.trials.values()) * each / 3600

    def is_spent(self) -> bool:
        return self.sweep.budget_hours is not None and self.hours() >= self.sweep.budget_hours

    def begin(self, values: Values) -> dict[str, Any] | None:
        """What a trial is told; None once the budget is spent."""
        if self.is_spent():
            return None
        key = key_of(values)
        jobs = self._jobs(values)
        self.record.propose(key, values, [job.artifact.fingerprint for job in jobs])
        self.display.say(f"▶ {key} ({label_of(values)})")
        return {
            "key": key,
            "values": values,
            "iterations": iterations_of(jobs[0]),
            "reported": len(self.record.trials[key].results),
            "artifacts": [{"name": job.artifact.name, "fingerprint": job.artifact.fingerprint} for job in jobs],
            "jobs": self._told(jobs),
        }

    def begin_member(self, key: str, values: Values) -> dict[str, Any]:
        """What a population's member is told. It may know better than the record what became of it."""
        self.record.propose(key, values, [job.artifact.fingerprint for job in self._jobs(values)])
        trial, folder = self.record.trials[key], self.record.folder / "population" / key
        history, life = trial.history, newest_life(folder)
        if life is not None:
            history = read_member(life)["history"]
        values = history[-1]["values"]
        jobs = self._jobs(values)
        self.display.say(f"▶ {key} ({label_of(values)})")
        return {
            "key": key,
            "values": values,
            "iterations": iterations_of(jobs[0]),
            "reported": len(trial.results) if history == trial.history else history[-1]["iteration"],
            "folder": str(folder),
            "perturb": list(self.sweep.perturb),
            "every": self.sweep.perturb_iterations,
            "taken": None,
            "jobs": self._told(jobs),
        }

    def _told(self, jobs: Sequence[StudentJob]) -> list[dict[str, Any]]:
        return [
            SeedJob(
                everywhere(job.config), named(job.config, job.inputs), job.identity,
                training_name(job.artifact.fingerprint), job.artifact.full_name,
            ).as_dict()
            for job in jobs
        ]  # fmt: skip

    def _jobs(self, values: Values) -> list[StudentJob]:
        """A configuration's trainings, one a seed."""
        configs = [self.sweep.config(values, seed, self.most) for seed in self.sweep.seeds]
        return [student_job(self._with_threads(config)) for config in configs]

    def check_record(self) -> None:
        """Raise `ConfigError` where the record is about other trainings: an input has changed since."""
        for trial in self.record.trials.values():
            jobs = self._jobs(trial.history[0]["values"])
            if trial.students != [job.artifact.fingerprint for job in jobs]:
                raise ConfigError(
                    f"SWEEP: an input of {trial.key} ({label_of(trial.values)}) has changed since it was trained: it "
                    f"cannot be compared with what is trained now; rename the sweep, or delete {self.record.folder}"
                )

    def _with_threads(self, config: ExperimentConfig) -> ExperimentConfig:
        """Negatives by the trial itself, and its share of the cores."""
        threads = config.resources.threads
        if threads is None and not self._gpus:
            threads = max(1, int(cluster_resources().get("CPU", 1)) // (self.at_once * config.resources.workers))
        return config.model_copy(
            update={
                "resources": config.resources.model_copy(update={"threads": threads}),
                "negatives": config.negatives.model_copy(update={"placement": "inline"}),
            }
        )

    def on_result(self, key: str, result: Mapping[str, Any]) -> None:
        self.record.result(key, result)
        self._progress()

    def _progress(self) -> None:
        trials = self.record.trials.values()
        ended = sum(trial.status != "unfinished" for trial in trials)
        best = max((trial.score for trial in trials if trial.score is not None), default=math.nan)
        number = len(self.configurations or []) or self.sweep.num_configurations or len(trials)
        steps = sum(trial.results[-1]["steps"] for trial in trials if trial.results)
        self.display.progress("configurations", ended, number, f"best validation accuracy {best:.1%}, {steps} steps")

    def on_end(self, key: str, iterations: int) -> None:
        trial = self.record.trials[key]
        reached = len(trial.results)
        if reached >= iterations:
            self._end(key, "finished")
        elif not self.is_spent():
            self._end(key, "stopped")
        else:
            self.display.say(f"  {key}: the budget is spent after iteration {reached}")
        self._news_are_over(key)

    def on_failure(self, key: str, reason: str, again: bool) -> None:
        if again:
            self.display.warn(f"{key} failed and is tried again: {reason}")
        else:
            self._end(key, "failed", reason)
            self._news_are_over(key)

    def _news_are_over(self, key: str) -> None:
        """Said in line behind the news themselves."""
        if self.queue is not None:
            self.queue.put({"kind": "over", "trial": key, "seed": 0})

    def _end(self, key: str, status: Any, reason: str = "") -> None:
        trial = self.record.trials[key]
        self.record.end(key, status, reason)
        self.proposer.tell(trial.values, None if status == "failed" else trial.score, trial.seconds)
        told = {"finished": "✓", "stopped": "■", "failed": "!"}[status]
        after = f" after iteration {len(trial.results)}" if status == "stopped" else ""
        score = "" if trial.score is None else f", validation accuracy {trial.score:.1%}"
        text = f"{told} {key} {status}{after} ({label_of(trial.values)}){score}"
        if status == "failed":
            self.display.warn(f"{key} failed ({label_of(trial.values)}): {reason}")
        else:
            self.display.say(text)
        self._progress()


def run_sweep(
    sweep: Sweep, display: Display, options: Options = DEFAULT_OPTIONS, parallel: int | None = None
) -> tuple[Path, SweepResults]:
    """Run what is missing of a sweep, evaluate its winner, and write its report. Returns the folder and the results.

    `parallel`: trials at once; None: as many as the cluster holds. Raises `ConfigError` before anything is written.
    """
    check_sweep(sweep)
    for name, value in TUNE_DEFAULTS.items():
        os.environ.setdefault(name, value)
    start_ray()
    at_once = trials_at_once(sweep.base, parallel)
    folder, config, storage = sweep_folder(sweep), sweep.base, Storage.of(sweep.base.output)
    output, simulated = storage.folder, backend_of(config.teacher).simulated
    prepare_output(storage)
    with contextlib.ExitStack() as stack:
        folders = (f"records/{folder.name}", f"sweeps/{folder.name}")
        stack.enter_context(recorded_alone(storage, *folders, display=display, without=(TUNE,)))
        record = SweepRecord(folder)
        record.describe({
            "name": sweep.name, "title": sweep.title, "fields": list(sweep.space), "seeds": list(sweep.seeds),
            "space": description(sweep), "searcher": sweep.searcher, "scheduler": sweep.scheduler,
            "simulated": simulated, "task": config.task.name, "method": config.method, "about": about(),
        })  # fmt: skip
        parent = open_run_record(
            output / "records" / folder.name, RunId(folder.name, sweep.name), config.tracking, output, display.warn
        )
        parent.start(
            sweep.model_dump(mode="json", exclude={"space"}) | {"space": description(sweep)},
            {"name": sweep.name, "title": sweep.title, "searcher": sweep.searcher, "scheduler": sweep.scheduler,
             "fields": ", ".join(sweep.space), "seeds": list(sweep.seeds)},
            {"qcrd.sweep": sweep.name, "qcrd.simulated": str(simulated).lower(), "qcrd.task": config.task.name,
             "qcrd.method": config.method},
        )  # fmt: skip
        children = SweepChildren(sweep, record, parent, display)
        one = _SweepRun(sweep, record, children, display, options, at_once)
        status = "FAILED"
        try:
            parent.flush()  # the children are tagged with its id
            one.prepare()
            one.check_record()
            _run_trials(one)
            children.close_left_over()
            _clear_stopped(one)
            register_winner = _test_winner(one)
            results = read_results(folder)
            numbers, step = write_sweep_report(results, folder / REPORT), len(record.lines)
            if not any((row["stage"], row["step"]) == ("sweep", step) for row in read_metrics(parent.folder)):
                parent.log("sweep", numbers, step)
            parent.add_artifact(folder / REPORT, "report")
            children.backfill()
            register_winner()  # last: a backfill may have registered an earlier winner
            status = "FINISHED"
            return folder, results
        finally:
            children.join()
            parent.close(status)


def _run_trials(one: _SweepRun) -> None:
    """All configurations that are not ended yet, on Tune."""
    going_on = [trial for trial in one.record.trials.values() if trial.status in ("unfinished", "failed")]
    try:
        with event_queue(one.children.on_event) as one.queue:
            if one.sweep.scheduler == "pbt":
                _run_population(one, one.queue, going_on)
            else:
                _run_proposals(one, one.queue, going_on)
    finally:
        one.queue = None
        one.children.close_all()
    if one.is_spent():
        one.display.warn(f"the budget of {one.sweep.budget_hours:g} hours is spent; a larger one goes on")


def _clear_stopped(one: _SweepRun) -> None:
    """Delete the checkpoints of configurations that the scheduler has ended: they are never trained on."""
    storage = Storage.of(one.sweep.base.output)
    here = {storage.name_of(path) for path in storage.folder.glob("checkpoints/*")}
    there = {"/".join(name.split("/")[:2]) for name in storage.published("checkpoints")}
    stopped = [trial for trial in one.record.trials.values() if trial.status == "stopped"]
    for training in {training_name(fingerprint) for trial in stopped for fingerprint in trial.students}:
        if training in here | there:
            clear(storage, training)


def _run_proposals(one: _SweepRun, queue: Queue, going_on: list[Trial]) -> None:
    """Configurations that know nothing of each other, one by one."""
    sweep, record = one.sweep, one.record
    iterations = _most_iterations(one)
    scheduler = scheduler_of(sweep, iterations, record.lines)
    for key in scheduler.stopped:
        if record.trials[key].status == "unfinished" and len(record.trials[key].results) < iterations:
            record.end(key, "stopped")
    trainable = tune.with_resources(partial(run_trial, queue=queue), resources_of_trial(sweep.base))
    _fit(
        one, trainable, None, num_samples=-1, search_alg=Proposals(going_on, one.proposer, one.begin),
        scheduler=scheduler, max_concurrent_trials=one.at_once,
    )  # fmt: skip


def _run_population(one: _SweepRun, queue: Queue, going_on: list[Trial]) -> None:
    """All configurations at once, of which bad ones take over the state of good ones."""
    if one.is_spent():
        return
    members = [one.begin_member(trial.key, trial.values) for trial in going_on]
    while (values := one.proposer.propose()) is not None:
        members.append(one.begin_member(key_of(values), values))
    if not members:
        return
    trainable = tune.with_resources(partial(run_member, queue=queue), resources_of_trial(one.sweep.base))
    keys = tune.grid_search([member["key"] for member in members])
    _fit(one, trainable, {"key": keys}, scheduler=Population(one.sweep, members, one.at_once))


def _fit(one: _SweepRun, trainable: Any, space: dict[str, Any] | None, **how: Any) -> None:
    """Run Tune to its end. `how`: what goes to its `TuneConfig`."""
    folder, storage = one.record.folder, Storage.of(one.sweep.base.output)
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            **how, trial_name_creator=lambda trial: str(trial.config["key"]),
            reuse_actors=one.sweep.base.resources.workers == 1,
        ),
        run_config=tune.RunConfig(
            name=TUNE, **storage.for_ray(f"sweeps/{folder.name}"), verbose=0, callbacks=[Watch(one)],
            failure_config=tune.FailureConfig(max_failures=one.sweep.max_failures), stop=Spent(one.is_spent),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )  # fmt: skip

    def forget() -> None:
        """Tune's own state, which nobody reads."""
        shutil.rmtree(folder / TUNE, ignore_errors=True)
        storage.unpublish(f"sweeps/{folder.name}/{TUNE}")

    forget()  # an earlier start's
    tuner.fit()
    forget()


def _most_iterations(one: _SweepRun) -> int:
    """Iterations of the longest configuration."""
    sweep = one.sweep
    fields = [field for field in SCHEDULE_FIELDS if field in sweep.space]
    found = []
    for values in grid(sweep, fields) if one.configurations is None else one.configurations:
        job = student_job(sweep.config(values, sweep.seeds[0], one.most))
        found.append(iterations_of(job))
    return max(found)


def _test_winner(one: _SweepRun) -> Callable[[], None]:
    """Take the best configuration through the stages that are left, all seeds. Returns what registers its best
    student."""
    sweep, record, display = one.sweep, one.record, one.display
    finished = read_results(record.folder).finished
    if not finished:
        display.warn("no configuration is finished, so none is evaluated on the test set")
        return lambda: None
    best = finished[0]
    display.say(f"▶ the winner is {best.key} ({label_of(best.values)}): its test, once for each seed")
    students: dict[int, Path] = {}
    for seed in sweep.seeds:
        config = sweep.config(best.values, seed, one.most)
        stages = _stages_of_member(one, best.key, seed) if sweep.scheduler == "pbt" else stages_of
        made = run(config, display, one.options, one.children.open(best.key, seed), stages)
        record.test(best.key, seed, float(made["predictions"].marker()["summary"]["eval/test_accuracy_best"]))
        students[seed] = made["student"].fetch() / "best"
    by_accuracy = max(sweep.seeds, key=lambda seed: best.best()[seed])
    one.children.parent.add_tags({"qcrd.winner": best.key})
    return lambda: one.children.register(best.key, by_accuracy, students[by_accuracy])


def _stages_of_member(one: _SweepRun, key: str, seed: int) -> Stages:
    """The stages of a population's member, whose student no single configuration gives."""
    life = newest_life(one.record.folder / "population" / key)
    assert life is not None
    history = one.record.trials[key].history
    return partial(with_trained_student, results=life / f"seed{seed}" / RESULTS, schedule=history)

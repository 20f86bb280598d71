"""Running a sweep on Ray Tune: what trials share once, then configurations, then the winner's test.

A trial is one configuration with all its seeds (distill/trial.py). With one worker it trains in Tune's own actor;
several workers train under a nested TorchTrainer. The sweep's record (sweep_record.py) is all that a restart needs:
finished configurations are not proposed again, unfinished ones go on from their checkpoints, and the scheduler and the
searcher are told what the record knows, so Tune's own state is never read. A population (scheduler = pbt) trains in
folders of its own (distill/population.py); started again, its members go on from there with the values that they had
last, under a new scheduler. In MLflow a sweep is one run with a child
for each configuration and seed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.util.queue import Queue

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.console import Display
from qcrd.distill.loop import Event
from qcrd.distill.population import newest_life, read_member
from qcrd.distill.results import RESULTS
from qcrd.distill.train import event_queue, training_folder, uses_gpu
from qcrd.distill.trial import SeedJob
from qcrd.pipeline import (
    DEFAULT_OPTIONS,
    Options,
    Stages,
    StudentJob,
    cluster_resources,
    prepare_student,
    run,
    start_ray,
    student_job,
)
from qcrd.plan_sweep import SCHEDULE_FIELDS, check_sweep, iterations_of, label_of, shared_configurations, sweep_folder
from qcrd.report.sweep_data import SweepResults
from qcrd.report.sweep_page import write_sweep_report
from qcrd.run_grid import about
from qcrd.search_space import (
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
from qcrd.stages import stages_of, with_trained_student
from qcrd.sweep import Sweep
from qcrd.sweep_record import REPORT, SweepRecord, Trial, read_results
from qcrd.tracking import RunRecord, is_behind, is_open, read_metrics
from qcrd.tune_search import Over, Population, Proposals, Spent, Watch, scheduler_of
from qcrd.tune_trial import resources_of_trial, run_member, run_trial, trials_at_once

TUNE_DEFAULTS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
CHECKPOINTS_KEPT = 3  # of a population's member: one may wait for its turn until the donor hands over the next but one


# -- the sweep -----------------------------------------------------------------------------------------------------


class _SweepRun:
    """One start of a sweep: what Tune's parts have in common."""

    def __init__(
        self, sweep: Sweep, record: SweepRecord, parent: RunRecord, display: Display, options: Options, at_once: int
    ) -> None:  # fmt: skip
        self.sweep, self.record, self.parent, self.display, self.options = sweep, record, parent, display, options
        self.at_once, self.most = at_once, most_samples(sweep)
        self.output = Path(sweep.base.output).resolve()
        self.proposer: Proposer = self._new_proposer()
        self._children: dict[tuple[str, int], RunRecord] = {}
        self._closed: list[RunRecord] = []
        self._gpus = uses_gpu(sweep.base)

    def _new_proposer(self) -> Proposer:
        known = list(self.record.trials.values())
        configurations = listed(self.sweep)
        if configurations is not None:
            return ListProposer(configurations, {trial.key for trial in known})
        proposer = OptunaProposer(self.sweep, [trial.values for trial in known])
        for trial in known:
            if trial.status != "unfinished":
                proposer.tell(trial.values, trial.score if trial.status != "failed" else None, trial.seconds)
        return proposer

    # -- shared work ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """All that trials share: samples, rationales, training sets, judges, fixed students."""
        todo = shared_configurations(self.sweep)
        for number, values in enumerate(todo, start=1):
            what = f" {number}/{len(todo)} ({label_of(values)})" if len(todo) > 1 else ""
            self.display.say(f"▶ what trials share{what}")
            for seed in self.sweep.seeds if self.sweep.base.fixed_recipe else self.sweep.seeds[:1]:
                prepare_student(self.sweep.config(values, seed, self.most), self.display, self.parent, self.options)

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
            "artifacts": [
                {"root": str(job.artifact.root), "name": job.artifact.name, "fingerprint": job.artifact.fingerprint}
                for job in jobs
            ],
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
                job.config.model_dump(mode="json"), {name: str(path) for name, path in job.inputs.items()},
                job.identity, str(training_folder(self.output / "checkpoints", job.artifact.fingerprint)),
                str(job.artifact.path),
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
        listed_number = len(listed(self.sweep) or []) or self.sweep.num_configurations or len(trials)
        steps = sum(trial.results[-1]["steps"] for trial in trials if trial.results)
        self.display.progress(
            "configurations", ended, listed_number, f"best validation accuracy {best:.1%}, {steps} steps"
        )

    def on_end(self, key: str, iterations: int) -> None:
        trial = self.record.trials[key]
        reached = len(trial.results)
        if reached >= iterations:
            self._end(key, "finished")
        elif not self.is_spent():
            self._end(key, "stopped")
        else:
            self.display.say(f"  {key}: the budget is spent after iteration {reached}")

    def on_failure(self, key: str, reason: str, again: bool) -> None:
        if again:
            self.display.warn(f"{key} failed and is tried again: {reason}")
        else:
            self._end(key, "failed", reason)

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

    # -- MLflow -----------------------------------------------------------------------------------------------

    def child_folder(self, key: str, seed: int) -> Path:
        return self.parent.folder / f"{key}-seed{seed}"

    def open_child(self, key: str, seed: int) -> RunRecord:
        """The record of one configuration and seed. One of this process that still copies ends first."""
        folder, values = self.child_folder(key, seed), self.record.trials[key].values
        name = label_of(values) if len(values) == 1 else key
        for child in self._closed:
            if child.folder == folder:
                child.join()
        return RunRecord(
            folder, f"{self.parent.folder.name}/{folder.name}", f"{name}, seed {seed}",
            self.sweep.base.tracking, self.output, self.display.warn, self.parent.folder.name, self.parent.outage_told,
        )  # fmt: skip

    def on_event(self, event: Event) -> None:
        """A trial's news, for the child's record."""
        key, seed = event["trial"], event["seed"]
        if event["kind"] == "over":
            self._close_children(key)
            return
        if (key, seed) not in self._children:
            child = self.open_child(key, seed)
            child.start(self.sweep.config(self.record.trials[key].values, seed, self.most), {"qcrd.trial": key})
            self._children[key, seed] = child
        child = self._children[key, seed]
        if event["kind"] == "metrics":
            for row in event["rows"]:
                child.log("student", {k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        elif event["kind"] == "restart":
            child.restart_stage("student", event["rows"])

    def _close_children(self, key: str) -> None:
        trial = self.record.trials[key]
        for place in [place for place in self._children if place[0] == key]:
            child = self._children.pop(place)
            if trial.status in ("finished", "stopped"):  # it will not go on, so a value at step 0 is the last
                index = self.sweep.seeds.index(place[1])
                child.restart_stage("trial", [{
                    "step": 0, "student/seconds": trial.results[-1]["seed_seconds"][index],
                    "student/best_validation_accuracy": max(row["accuracies"][index] for row in trial.results),
                    "sweep/score": round(trial.results[-1]["score"], 6),
                }])  # fmt: skip
            child.add_tags({"qcrd.early_stopped": str(trial.status == "stopped").lower(), "qcrd.status": trial.status})
            if len(trial.history) > 1:
                child.add_tags({"qcrd.history": json.dumps(trial.history)})
            child.close("FAILED" if trial.status in ("failed", "unfinished") else "FINISHED", wait=False)
            self._closed.append(child)

    def close_all(self) -> None:
        for key in {key for key, _ in self._children}:
            self._close_children(key)

    def close_left_over(self) -> None:
        """End the children of configurations that are over, where a kill came before that."""
        for key in [key for key, trial in self.record.trials.items() if trial.status != "unfinished"]:
            for seed in self.sweep.seeds:
                if is_open(self.child_folder(key, seed)):
                    self._children[key, seed] = self.open_child(key, seed)
            self._close_children(key)

    def join(self) -> None:
        """Wait until the children that are over are copied, as far as that goes on."""
        for child in self._closed:
            child.join()

    def backfill(self) -> None:
        """Send what MLflow lacks of children that are over, where it can be reached."""
        self.join()
        if not self.parent.flush():  # it first: the children are linked to it
            return
        for key, seed in itertools.product(self.record.trials, self.sweep.seeds):
            behind = is_behind(self.child_folder(key, seed), self.sweep.base.tracking, self.output)
            if behind and not self.open_child(key, seed).catch_up():
                return

    def register(self, key: str, seed: int, student: Path) -> None:
        """Register a student as the sweep's best. Its own child's record says so, behind what logs it."""
        child = self.open_child(key, seed)
        child.register_student(student, f"qcrd-{self.sweep.name}", "best")
        child.catch_up()


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
    held = trials_at_once(sweep.base)
    folder, config, output = sweep_folder(sweep), sweep.base, Path(sweep.base.output).resolve()
    record = SweepRecord(folder)
    with record.locked():
        record.describe({
            "name": sweep.name, "title": sweep.title, "fields": list(sweep.space), "seeds": list(sweep.seeds),
            "space": description(sweep), "searcher": sweep.searcher, "scheduler": sweep.scheduler,
            "simulated": sweep.simulated, "task": config.task.name, "method": config.method, "about": about(),
        })  # fmt: skip
        parent = RunRecord(
            output / "records" / folder.name, folder.name, sweep.name, config.tracking, output, display.warn
        )
        parent.start_with(
            sweep.model_dump(mode="json", exclude={"space"}) | {"space": description(sweep)},
            {"name": sweep.name, "title": sweep.title, "searcher": sweep.searcher, "scheduler": sweep.scheduler,
             "fields": ", ".join(sweep.space), "seeds": list(sweep.seeds)},
            {"qcrd.sweep": sweep.name, "qcrd.simulated": str(sweep.simulated).lower(), "qcrd.task": config.task.name,
             "qcrd.method": config.method},
        )  # fmt: skip
        one = _SweepRun(sweep, record, parent, display, options, min(parallel or held, held))
        status = "FAILED"
        try:
            parent.flush()  # the children are tagged with its id
            one.prepare()
            one.check_record()
            _run_trials(one)
            one.close_left_over()
            register_winner = _test_winner(one)
            results = read_results(folder)
            numbers, step = write_sweep_report(results, folder / REPORT), len(record.lines)
            if not any((row["stage"], row["step"]) == ("sweep", step) for row in read_metrics(parent.folder)):
                parent.log("sweep", numbers, step)
            parent.add_artifact(folder / REPORT, "report")
            one.backfill()
            register_winner()  # last: a backfill may have registered an earlier winner
            status = "FINISHED"
            return folder, results
        finally:
            one.join()
            parent.close(status)


def _run_trials(one: _SweepRun) -> None:
    """All configurations that are not ended yet, on Tune."""
    going_on = [trial for trial in one.record.trials.values() if trial.status in ("unfinished", "failed")]
    with _events(one) as queue:
        if one.sweep.scheduler == "pbt":
            _run_population(one, queue, going_on)
        else:
            _run_proposals(one, queue, going_on)
    if one.is_spent():
        one.display.warn(f"the budget of {one.sweep.budget_hours:g} hours is spent; a larger one goes on")


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
        one, queue, trainable, None, num_samples=-1, search_alg=Proposals(going_on, one.proposer, one.begin),
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
    _fit(one, queue, trainable, {"key": keys}, scheduler=Population(one.sweep, members, one.at_once))


def _fit(one: _SweepRun, queue: Queue, trainable: Any, space: dict[str, Any] | None, **how: Any) -> None:
    """Run Tune to its end. `how`: what goes to its `TuneConfig`."""
    folder = one.record.folder

    def on_over(key: str) -> None:
        queue.put({"kind": "over", "trial": key, "seed": 0})

    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            **how, trial_name_creator=lambda trial: str(trial.config["key"]),
            reuse_actors=one.sweep.base.resources.workers == 1,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[Watch(one), Over(on_over)],
            failure_config=tune.FailureConfig(max_failures=one.sweep.max_failures), stop=Spent(one.is_spent),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )  # fmt: skip
    shutil.rmtree(folder / "tune", ignore_errors=True)  # an earlier start's, which nobody reads
    tuner.fit()
    shutil.rmtree(folder / "tune", ignore_errors=True)


@contextlib.contextmanager
def _events(one: _SweepRun) -> Iterator[Queue]:
    """The way of the trials' news to the records of their children, which are closed at the end."""
    try:
        with event_queue(one.on_event) as queue:
            yield queue
    finally:
        one.close_all()


def _most_iterations(one: _SweepRun) -> int:
    """Iterations of the longest configuration."""
    sweep = one.sweep
    fields = [field for field in SCHEDULE_FIELDS if field in sweep.space]
    found = []
    for values in grid(sweep, fields) if listed(sweep) is None else listed(sweep) or []:
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
        made = run(config, display, one.options, one.open_child(best.key, seed), stages)
        record.test(best.key, seed, float(made["predictions"].marker()["summary"]["eval/test_accuracy_best"]))
        students[seed] = made["student"].path / "best"
    by_accuracy = max(sweep.seeds, key=lambda seed: best.best()[seed])
    one.parent.add_tags({"qcrd.winner": best.key})
    return lambda: one.register(best.key, by_accuracy, students[by_accuracy])


def _stages_of_member(one: _SweepRun, key: str, seed: int) -> Stages:
    """The stages of a population's member, whose student no single configuration gives."""
    life = newest_life(one.record.folder / "population" / key)
    assert life is not None
    history = one.record.trials[key].history
    return partial(with_trained_student, results=life / f"seed{seed}" / RESULTS, schedule=history)

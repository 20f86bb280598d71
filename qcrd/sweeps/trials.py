"""The trials of one start of a sweep: what each is told, what its end means, and when no more is begun.

A trial is one configuration with all its seeds. The sweep's record (record.py) is all that a restart needs: finished
configurations are not proposed again, and the searcher is told what the record knows. Knows nothing about how Tune
runs them (tuning.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.util.queue import Queue

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.distill.train import training_name
from qcrd.pipeline.run import PreparedStage, prepared
from qcrd.pipeline.stages.student import STUDENT
from qcrd.runtime.session import cluster_resources, uses_gpu
from qcrd.storage.output import Storage
from qcrd.sweeps.plan import iterations_of, label_of
from qcrd.sweeps.record import SweepRecord
from qcrd.sweeps.search_space import ListProposer, OptunaProposer, Proposer, Values, key_of, listed, most_samples
from qcrd.sweeps.seeds import SeedRun


def seed_run(student: PreparedStage) -> SeedRun:
    """A student that can be trained, as plain data that means the same on every node."""
    storage = Storage.of(student.config.output)
    return SeedRun(
        student.config.model_copy(update={"output": storage.place}).model_dump(), storage.names_of(student.inputs),
        student.identity,
        training_name(student.artifact.fingerprint), student.artifact.full_name,
    )  # fmt: skip


class Trials:
    """Those of one start of a sweep."""

    def __init__(self, sweep: Sweep, record: SweepRecord, display: Display, at_once: int) -> None:
        """`at_once`: how many train at a time, which share the cores."""
        self.sweep, self.record, self.display = sweep, record, display
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
        students = self._students(values)
        self.record.propose(key, values, [one.artifact.fingerprint for one in students])
        self.display.say(f"▶ {key} ({label_of(values)})")
        return {
            "key": key,
            "values": values,
            "iterations": iterations_of(students[0]),
            "reported": len(self.record.trials[key].results),
            "artifacts": [{"name": one.artifact.name, "fingerprint": one.artifact.fingerprint} for one in students],
            "runs": [seed_run(one).as_dict() for one in students],
        }

    def _students(self, values: Values) -> list[PreparedStage]:
        """A configuration's trainings, one a seed."""
        configs = [self.sweep.config(values, seed, self.most) for seed in self.sweep.seeds]
        return [prepared(STUDENT, self._with_threads(config)) for config in configs]

    def check_record(self) -> None:
        """Raise `ConfigError` where the record is about other trainings: an input has changed since."""
        for trial in self.record.trials.values():
            if trial.students != [one.artifact.fingerprint for one in self._students(trial.values)]:
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

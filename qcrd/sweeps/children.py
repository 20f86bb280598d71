"""The records of a sweep's children, one for each configuration and seed, under the sweep's own: open while a trial's
news come in, closed when it is over, sent again where MLflow was away. Knows nothing about Ray, nor what is next.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.distill.results import kept_rows
from qcrd.distill.train import training_name
from qcrd.pipeline.recording import start_record
from qcrd.runtime.events import Event
from qcrd.storage.output import Storage
from qcrd.sweeps.plan import label_of
from qcrd.sweeps.record import SweepRecord
from qcrd.sweeps.search_space import most_samples
from qcrd.tracking.mlflow_tracker import is_behind
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord, is_open, read_metrics
from qcrd.tracking.tracker import RunId


class SweepChildren:
    """The children of one sweep. `on_event` is called from one thread, the rest while no news come in."""

    def __init__(self, sweep: Sweep, record: SweepRecord, parent: RunRecord, display: Display) -> None:
        """`parent`: the record of the sweep's own run."""
        self.parent = parent
        self._sweep, self._record, self._display = sweep, record, display
        self._storage, self._most = Storage.of(sweep.base.output), most_samples(sweep)
        self._open: dict[tuple[str, int], RunRecord] = {}
        self._closed: list[RunRecord] = []

    def _folder(self, key: str, seed: int) -> Path:
        return self.parent.folder / f"{key}-seed{seed}"

    def open(self, key: str, seed: int) -> RunRecord:
        """The record of one configuration and seed. One of this process that still copies ends first."""
        folder, values = self._folder(key, seed), self._record.trials[key].values
        name = label_of(values) if len(values) == 1 else key
        for child in self._closed:
            if child.folder == folder:
                child.join()
        parent = self.parent.folder.name
        return open_run_record(
            folder, RunId(f"{parent}/{folder.name}", f"{name}, seed {seed}", parent), self._sweep.base.tracking,
            self._storage.folder, self._display.warn, self.parent.outage_told,
        )  # fmt: skip

    def on_event(self, event: Event) -> None:
        """A trial's news, for the child's record."""
        key, seed = event["trial"], event["seed"]
        if event["kind"] == "over":
            self._close(key)
            return
        if (key, seed) not in self._open:
            child = self.open(key, seed)
            config = self._sweep.config(self._record.trials[key].values, seed, self._most)
            start_record(child, config, {"qcrd.trial": key})
            self._open[key, seed] = child
        child = self._open[key, seed]
        if event["kind"] == "metrics":
            for row in event["rows"]:
                child.log("student", {k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        elif event["kind"] == "restart":
            child.restart_stage("student", event["rows"])

    def _close(self, key: str) -> None:
        trial = self._record.trials[key]
        for place in [place for place in self._open if place[0] == key]:
            child = self._open.pop(place)
            if trial.status in ("finished", "stopped"):  # it will not go on, so a value at step 0 is the last
                index = self._sweep.seeds.index(place[1])
                child.restart_stage("trial", [{
                    "step": 0, "student/seconds": trial.results[-1]["seed_seconds"][index],
                    "student/best_validation_accuracy": max(row["accuracies"][index] for row in trial.results),
                    "sweep/score": round(trial.results[-1]["score"], 6),
                }])  # fmt: skip
            child.add_tags({"qcrd.early_stopped": str(trial.status == "stopped").lower(), "qcrd.status": trial.status})
            child.close("FAILED" if trial.status in ("failed", "unfinished") else "FINISHED", wait=False)
            self._closed = [*(one for one in self._closed if one.is_copying), child]

    def close_all(self) -> None:
        for key in {key for key, _ in self._open}:
            self._close(key)

    def close_left_over(self) -> None:
        """End the children of configurations that are over, where a kill came before that."""
        for key in [key for key, trial in self._record.trials.items() if trial.status != "unfinished"]:
            for seed in self._sweep.seeds:
                if is_open(self._folder(key, seed)):
                    self._open[key, seed] = self.open(key, seed)
                    self._add_lost_news(key, seed)
            self._close(key)

    def _add_lost_news(self, key: str, seed: int) -> None:
        """Rows that were under way at the kill, from the training's own files."""
        child = self._open[key, seed]
        known = max((row["step"] for row in read_metrics(child.folder) if row["stage"] == "student"), default=-1)
        rows = [row for row in kept_rows(self._storage, self._training(key, seed)) if row["step"] > known]
        self.on_event({"kind": "metrics", "trial": key, "seed": seed, "rows": rows})

    def _training(self, key: str, seed: int) -> str:
        """Where in the output the training of a configuration and seed has its checkpoints and results."""
        return training_name(self._record.trials[key].students[self._sweep.seeds.index(seed)])

    def join(self) -> None:
        """Wait until the children that are over are copied, as far as that goes on."""
        for child in self._closed:
            child.join()

    def backfill(self) -> None:
        """Send what MLflow lacks of children that are over, where it can be reached."""
        self.join()
        if not self.parent.flush():  # it first: the children are linked to it
            return
        for key, seed in itertools.product(self._record.trials, self._sweep.seeds):
            behind = is_behind(self._folder(key, seed), self._sweep.base.tracking, self._storage.folder)
            if behind and not self.open(key, seed).catch_up():
                return

    def register(self, key: str, seed: int, student: Path) -> None:
        """Register a student as the sweep's best. Its own child's record says so, behind what logs it."""
        child = self.open(key, seed)
        child.register_student(student, f"qcrd-{self._sweep.name}", "best")
        child.catch_up()

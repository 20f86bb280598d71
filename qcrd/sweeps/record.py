"""What a sweep has done so far, on the disk: one file of facts, one line each, which only grows.

    <output>/sweeps/<name>-<key>/sweep.json     what is swept, and how
                                 trials.jsonl   proposed, result, ended, tested: a line when it happened
                                 report/        tables and plots, made anew whenever there is more

A sweep that is started again reads these lines and nothing else of its past. Knows nothing about Ray or MLflow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcrd.config import ConfigError
from qcrd.report.sweep.data import Configuration, Status, SweepResults
from qcrd.storage.atomic import write_atomically
from qcrd.storage.json_lines import append_line, cut_torn_line, json_line, read_json_lines

SWEEP, TRIALS, REPORT = "sweep.json", "trials.jsonl", "report"


@dataclass
class Trial:
    """One configuration's past."""

    key: str
    values: dict[str, Any]
    students: list[str]
    """Fingerprint of each seed's student."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """One for each iteration that all seeds have finished, in order (see seeds.py)."""
    status: Status = "unfinished"
    reason: str = ""
    test_accuracy: dict[int, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        return self.results[-1]["score"] if self.results else None

    @property
    def seconds(self) -> float:
        return self.results[-1]["seconds"] if self.results else 0.0


class SweepRecord:
    """The record of one sweep. One process writes to it."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there, but for a torn last line."""
        self.folder = folder
        self.trials: dict[str, Trial] = {}
        self.lines: list[dict[str, Any]] = []
        """All facts, in the order in which they happened."""
        path = folder / TRIALS
        for line in read_json_lines(path) if path.exists() else []:
            self._take(line)

    def describe(self, about: Mapping[str, Any]) -> None:
        """Begin to write: what is swept (name, title, fields, seeds, task, method, simulated, about). A torn last line
        is cut off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cut_torn_line(self.folder / TRIALS)
        write_atomically(self.folder / SWEEP, json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    def propose(self, key: str, values: Mapping[str, Any], students: Sequence[str]) -> None:
        """A configuration is about to be trained, or to go on; the first time counts."""
        if key not in self.trials:
            self._add({"kind": "proposed", "key": key, "values": dict(values), "students": list(students)})
        elif self.trials[key].status != "unfinished":
            self._add({"kind": "ended", "key": key, "status": "unfinished", "reason": ""})

    def result(self, key: str, row: Mapping[str, Any]) -> None:
        """An iteration's end. One that is known, from before a restart, changes nothing."""
        if row["iteration"] > len(self.trials[key].results):
            names = ("iteration", "accuracies", "score", "seconds", "seed_seconds", "steps")
            self._add({"kind": "result", "key": key, **{name: row[name] for name in names}})

    def end(self, key: str, status: Status, reason: str = "") -> None:
        if self.trials[key].status != status:
            self._add({"kind": "ended", "key": key, "status": status, "reason": reason})

    def test(self, key: str, seed: int, accuracy: float) -> None:
        """The winner's accuracy on the test set."""
        if self.trials[key].test_accuracy.get(seed) != accuracy:
            self._add({"kind": "tested", "key": key, "seed": seed, "accuracy": accuracy})

    def _add(self, line: dict[str, Any]) -> None:
        text = json_line({**line, "time": time.time()})
        append_line(self.folder / TRIALS, text, sync=True)
        self._take(json.loads(text))

    def _take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        key, kind = line["key"], line["kind"]
        if kind == "proposed":
            self.trials[key] = Trial(key, line["values"], line["students"])
        elif kind == "result":
            self.trials[key].results.append(line)
        elif kind == "ended":
            self.trials[key].status, self.trials[key].reason = line["status"], line["reason"]
        elif kind == "tested":
            self.trials[key].test_accuracy[line["seed"]] = line["accuracy"]


def read_results(folder: Path) -> SweepResults:
    """A sweep's results so far. Raises `ConfigError` where the folder is none of a sweep."""
    if not (folder / SWEEP).is_file():
        raise ConfigError(f"SWEEP: {str(folder)!r} is no sweep's folder: it has no {SWEEP}")
    about = json.loads((folder / SWEEP).read_text())
    seeds = tuple(about["seeds"])
    configurations = []
    for trial in SweepRecord(folder).trials.values():
        curves = {seed: tuple(row["accuracies"][i] for row in trial.results) for i, seed in enumerate(seeds)}
        steps = trial.results[-1]["steps"] if trial.results else 0
        configurations.append(
            Configuration(
                trial.key, trial.values, trial.status, curves, trial.seconds, steps, trial.reason, trial.test_accuracy,
            )
        )  # fmt: skip
    return SweepResults(
        about["name"], about["title"], tuple(about["fields"]), seeds, configurations, about["simulated"],
        about["task"], about["method"], about["about"],
    )  # fmt: skip

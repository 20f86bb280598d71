"""What a stage is: what it reads, what decides its output, what it would do, what it does, and what people see of it.

Each stage is one object in one file of `stages/`. Whatever needs to know one stage from another is said here as a
property that a stage has, so that planning and running know none of them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qcrd.config import ExperimentConfig
from qcrd.console import Display
from qcrd.runtime.events import Event
from qcrd.storage.artifacts import Artifact
from qcrd.teacher.cost import CostEstimate
from qcrd.tracking.record import RunRecord

Summary = dict[str, Any]
"""Counts and metrics of a finished stage, for people and for the stages after it; it may hold times."""


@dataclass(frozen=True)
class Planning:
    """What a plan knows: the experiment, and the stages before that are finished.

    `download`: whether questions may be fetched to be counted. `count`: whether what a stage lacks is counted at all.
    """

    config: ExperimentConfig
    finished: Mapping[str, Artifact]
    download: bool
    count: bool


@dataclass(frozen=True)
class Work:
    """What a stage that has to run would do, in words, and what it would cost where it costs money."""

    text: str = ""
    cost: CostEstimate | None = None


@dataclass(frozen=True)
class StageRun:
    """What a stage is given: settings, folders to read, the folder to fill, and where to tell how it goes.

    `identity` is what the fingerprint stands for: the stage's version and settings, and the digests of its inputs.
    `retry_errors`: whether samples that failed are asked for again. `accept_missing`: whether samples that are missing
    become error rows instead of being asked for.
    """

    config: ExperimentConfig
    name: str
    inputs: dict[str, Path]
    summaries: dict[str, Summary]
    out: Path
    fingerprint: str
    identity: dict[str, Any]
    display: Display
    record: RunRecord
    retry_errors: bool
    accept_missing: bool

    def on_event(self, event: Event) -> None:
        """Progress and metric rows from wherever the work is done."""
        if event["kind"] == "progress":
            self.display.progress(self.name, event["done"], event["total"], event["info"])
        elif event["kind"] == "metrics":
            for row in event["rows"]:
                self.record.log(self.name, {k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        elif event["kind"] == "restart":
            self.record.restart_stage(self.name, event["rows"])


class Stage(ABC):
    """One stage. It reads finished folders and fills one new folder.

    `version` is raised when the stage's code changes results. `of_task`: whether the output is named after the task,
    since experiments share it, or after the experiment. `costs_money`: whether running it may spend money, so that
    everything after it is looked at first.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    of_task: ClassVar[bool] = True
    costs_money: ClassVar[bool] = False

    def is_part_of(self, config: ExperimentConfig) -> bool:
        """Whether an experiment has this stage."""
        return True

    @abstractmethod
    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        """The stages whose folders it reads, in order."""

    @abstractmethod
    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        """The settings that decide its output, written by hand as plain data: half of the stage's identity.

        A setting that is new enters only where it differs from its default, so that what was made before it is found.
        """

    def check(self, config: ExperimentConfig) -> None:  # noqa: B027 - a stage may have it
        """Raise `ConfigError` for what can be known to be wrong at once, before anything is written or asked."""

    def check_inputs_to_come(self, config: ExperimentConfig) -> None:  # noqa: B027 - a stage may have it
        """Raise `ConfigError` for what takes longer to look at; done before a stage that costs money runs."""

    def planned_work(self, planning: Planning) -> Work:
        """What it would do. Reads and asks nothing that costs money, writes nothing."""
        return Work()

    @abstractmethod
    def run(self, run: StageRun) -> Summary:
        """Fill the folder `run.out`. Returns what is kept with it."""

    def errors(self, summary: Summary) -> int:
        """How many items of a finished output failed, and can be asked for again by `--retry-errors`."""
        return 0

    def metric_rows(self, folder: Path) -> list[dict[str, Any]] | None:
        """The metric rows of a finished output, for the record of a run that did not make it; None: it has none."""
        return None

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:  # noqa: B027 - a stage may have it
        """Give the tracker what it shows of a finished output beside numbers."""

    def headline(self, summary: Summary) -> list[list[str]]:
        """Rows (what was measured, value) that a person wants to see at the end of a run."""
        return []

    def closing_lines(self, summary: Summary) -> list[str]:
        """Sentences that a person wants to read last: results and warnings."""
        return []


def short(value: Any) -> str:
    """A value of a summary as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

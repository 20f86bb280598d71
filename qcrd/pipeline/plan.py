"""What a run would do: each stage as done or to run, with counts and prices. Writes and asks nothing."""

from __future__ import annotations

from dataclasses import dataclass

from qcrd.config import ExperimentConfig
from qcrd.console import Display
from qcrd.pipeline.check import check, stages_until
from qcrd.pipeline.identity import artifact_of
from qcrd.pipeline.stage import Planning
from qcrd.storage.artifacts import Artifact
from qcrd.teacher.cost import CostEstimate, cost_rows


@dataclass(frozen=True)
class PlannedStage:
    """One line of a plan."""

    stage: str
    state: str
    work: str
    cost: CostEstimate | None = None


def plan(
    config: ExperimentConfig, download: bool = False, until: str | None = None, count: bool = True
) -> list[PlannedStage]:
    """Stages up to `until` as done or to run, with counts of teacher requests, their price, and training steps.

    Only with `download` are questions fetched, without which those behind a URL have no price yet. Without `count` no
    question is read, and what is missing has neither count nor price. Raises `ConfigError`.
    """
    check(config, until)
    finished: dict[str, Artifact] = {}
    planned = []
    for stage in stages_until(config, until):
        artifact = artifact_of(config, stage, finished)
        if artifact is not None and artifact.is_finished():
            finished[stage.name] = artifact
            planned.append(PlannedStage(stage.name, "done", str(artifact.path)))
        else:
            work = stage.planned_work(Planning(config, finished, download, count))
            planned.append(PlannedStage(stage.name, "to run", work.text, work.cost))
    return planned


def show_cost(cost: CostEstimate, display: Display) -> None:
    """What missing samples cost, as a table with its notes."""
    columns, rows, notes = cost_rows(cost)
    display.table(f"What the {cost.samples} missing samples cost", columns, rows)
    for note in notes:
        display.say(note)

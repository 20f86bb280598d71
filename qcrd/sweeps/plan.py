"""What is known of a sweep before a trial runs: its key, what trials share, what it would cost. Writes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcrd.config.grid import Cell, Grid
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.distill.schedule import schedule_of
from qcrd.grids.plan import GridPlan, plan_grid
from qcrd.pipeline.check import check
from qcrd.pipeline.identity import experiment_identity
from qcrd.pipeline.run import PreparedStage
from qcrd.pipeline.stages import stages_of
from qcrd.pipeline.stages.student import STUDENT
from qcrd.pipeline.stages.training_set import TRAINING_SET
from qcrd.storage.artifacts import MARKER
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.output import Storage
from qcrd.sweeps.record import SweepRecord
from qcrd.sweeps.search_space import Values, description, finite_values, grid, key_of, listed, most_samples

SCHEDULE_FIELDS = ("train.steps", "train.iteration_steps", "train.global_batch_size", "task.train_share")


def sweep_key(sweep: Sweep) -> str:
    """Names a sweep by what decides its outcome: with more configurations or hours the same sweep goes on."""
    settings = sweep.model_dump(mode="json", exclude={"base", "space", "title", "num_configurations", "max_failures",
                                                      "budget_hours"})  # fmt: skip
    kinds = [field for field, space in sweep.space.items() if _are_kinds(finite_values(field, space))]
    experiments = [experiment_identity(sweep.config(values, 0, most_samples(sweep))) for values in grid(sweep, kinds)]
    return f"{sweep.name}-{digest_of([settings, description(sweep), experiments])[:12]}"


def _are_kinds(values: Sequence[Any] | None) -> bool:
    """Whether values are no numbers: such a field (`method`) may decide which other settings count."""
    return values is not None and not all(type(value) in (int, float) for value in values)


def sweep_folder(sweep: Sweep) -> Path:
    return Storage.of(sweep.base.output).folder / "sweeps" / sweep_key(sweep)


def label_of(values: Mapping[str, Any]) -> str:
    """A configuration in a few words; a field without its section where that leaves no doubt."""
    short = {field: field.rpartition(".")[2] for field in values}
    often = Counter(short.values())
    names = {field: name if often[name] == 1 else field for field, name in short.items()}
    return ", ".join(f"{names[field]} {value}" for field, value in values.items())


def shared_fields(sweep: Sweep) -> list[str]:
    """Swept fields that decide a stage before the student's training."""
    most = most_samples(sweep)

    def settings(values: Values) -> str:
        config = sweep.config(values, 0, most)
        stages = stages_of(config)
        before = stages[: stages.index(STUDENT)]
        return digest_of([[stage.name, stage.settings(config)] for stage in before])

    found = []
    for field, space in sweep.space.items():
        values = finite_values(field, space)
        if values is None:
            values = [space.lower, space.upper]
        if len({settings({field: value}) for value in values}) > 1:
            found.append(field)
    return found


def shared_configurations(sweep: Sweep) -> list[Values]:
    """Configurations that together need all that trials share. Raises `ConfigError` where they can't be listed."""
    fields = shared_fields(sweep)
    configurations = listed(sweep)
    if configurations is None:
        configurations = grid(sweep, fields)
    parts: dict[str, Values] = {}
    for values in configurations:
        part = {field: values[field] for field in fields}
        parts.setdefault(key_of(part), part)
    return list(parts.values())


def check_sweep(sweep: Sweep) -> None:
    """Everything that can be known to be wrong beforehand. Raises `ConfigError`."""
    most = most_samples(sweep)
    for values in [*(listed(sweep) or []), *shared_configurations(sweep)]:
        sweep.config(values, sweep.seeds[0], most)
    check(sweep.config({}, sweep.seeds[0], most))
    if sweep.searcher == "optuna" and sweep.scheduler in ("asha", "median"):
        grid(sweep, [field for field in SCHEDULE_FIELDS if field in sweep.space])  # raises


def iterations_of(student: PreparedStage) -> int:
    """How many iterations a student's training has."""
    marker = json.loads((student.inputs[TRAINING_SET.name] / MARKER).read_text())
    return schedule_of(student.config.train, student.config.seed, marker["summary"]["examples"]).num_iterations


@dataclass(frozen=True)
class SweepPlan:
    """`cells`: the configurations that are known, else one for all that trials share."""

    sweep: Sweep
    cells: GridPlan
    known: bool
    ended: int

    def show(self, display: Display) -> None:
        sweep, seeds = self.sweep, len(self.sweep.seeds)
        self.cells.show(display)
        number = len(self.cells.grid.cells) if self.known else sweep.num_configurations or 0
        often = f"at most {number} configurations" if not self.known else f"{number} configurations"
        display.say(f"{often} x {seeds} seeds, {self.ended} of them ended before; then the winner's test.")
        if not self.known:
            display.say("Counted above is what all share and one student for each combination of it.")
        if sweep.scheduler != "none":
            display.say(f"Each student is counted with all its steps; {sweep.scheduler} ends some early.")
        if sweep.budget_hours is not None:
            display.say(f"No trial is begun or goes on after {sweep.budget_hours:g} hours of training in all.")


def plan_sweep(sweep: Sweep, download: bool = False) -> SweepPlan:
    """Plan a sweep. Raises `ConfigError`."""
    check_sweep(sweep)
    configurations, most = listed(sweep), most_samples(sweep)
    known = configurations is not None
    cells = tuple(
        Cell(row=label_of(values) or "base", column=sweep.base.task.name, config=sweep.config(values, 0, most))
        for values in (configurations or shared_configurations(sweep))
    )
    grid = Grid(name=sweep.name, title=sweep.title, cells=cells, seeds=sweep.seeds)
    record = SweepRecord(sweep_folder(sweep))
    ended = sum(trial.status in ("finished", "stopped") for trial in record.trials.values())
    return SweepPlan(sweep, plan_grid(grid, download, until=STUDENT.name), known, ended)

"""A grid's cells, one for each seed, as experiments to run: in which order, until which stage, and known by what."""

from __future__ import annotations

from dataclasses import dataclass

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.config.grid import STAGE_OF, Cell, Grid
from qcrd.grids.cells import cell_identity
from qcrd.pipeline.check import check
from qcrd.pipeline.run import prepared
from qcrd.pipeline.stages.predictions import PREDICTIONS
from qcrd.pipeline.stages.report import REPORT
from qcrd.pipeline.stages.student import STUDENT
from qcrd.report.grid.data import Place
from qcrd.report.paper import HUB_NAMES, PAPER_STEPS, TRAINING_HOURS
from qcrd.storage.artifacts import Artifact
from qcrd.storage.fingerprints import digest_of


@dataclass(frozen=True)
class CellRun:
    """One cell and seed: the experiment to run, and the last stage that is needed of it.

    `writer`: the run whose student writes its negatives. While that student is not trained, a text that has that run's
    identity stands for the student's folder in `config`: so this one is planned and known before, wherever it lies.
    """

    cell: Cell
    config: ExperimentConfig
    until: str
    writer: CellRun | None = None

    @property
    def place(self) -> Place:
        return self.cell.row, self.cell.column, self.config.seed

    def with_student(self, student: Artifact) -> ExperimentConfig:
        """The experiment whose negatives the writer's student writes, which is finished."""
        return _with_fixed(self.config, f"{student.storage.place}/{student.full_name}/best")

    def planned_config(self) -> ExperimentConfig:
        """The experiment as far as it is known: with the writer's student where that is finished."""
        student = None if self.writer is None else finished_student(self.writer.config)
        return self.config if student is None else self.with_student(student)


def _with_fixed(config: ExperimentConfig, fixed: str) -> ExperimentConfig:
    return config.model_copy(update={"negatives": config.negatives.model_copy(update={"fixed": fixed})})


def finished_student(config: ExperimentConfig) -> Artifact | None:
    """An experiment's student, where it is finished."""
    try:
        artifact = prepared(STUDENT, config).artifact
    except ValueError:  # a stage before it is not finished
        return None
    return artifact if artifact.is_finished() else None


def paper_hours(config: ExperimentConfig) -> float | None:
    """Hours of a student's training on one A100-80G, in proportion to the paper's; None where it gives none."""
    student = HUB_NAMES.get(config.student.model, "") if config.student.kind == "seq2seq" else ""
    hours = TRAINING_HOURS.get((student, config.method))
    if not config.uses_discriminator():
        hours = TRAINING_HOURS.get((student, f"{config.method} w/o D"), hours)
    return None if hours is None else hours * config.train.steps / PAPER_STEPS


def _seeded(grid: Grid, cell: Cell, seed: int) -> CellRun:
    """One cell for one seed."""
    config, writer = with_overrides(cell.config, {"seed": seed}), None
    if cell.fixed_negatives_from is not None:
        other = grid.cell(*cell.fixed_negatives_from)
        assert other is not None
        writer = _seeded(grid, other, seed)
        config = _with_fixed(config, f"the student of {cell_identity(writer.config)}")
    return CellRun(cell, config, _last_stage(cell), writer)


def _last_stage(cell: Cell) -> str:
    """A cell that is trained gets the report of one experiment, too, unless nobody sees it."""
    stage = STAGE_OF[cell.measure]
    if not cell.shown:
        return STUDENT.name
    return REPORT.name if stage in (STUDENT.name, PREDICTIONS.name) else stage


def runs_of(grid: Grid) -> list[CellRun]:
    """All cells and seeds, seed by seed, so that a grid that stops early has whole columns of few seeds. Of one seed
    those come first whose students write others' negatives, then the longest, as far as the paper tells, so that no GPU
    waits for one that began last."""
    named = grid.named_cells
    cells = sorted(grid.cells, key=lambda cell: (cell.place not in named, -(paper_hours(cell.config) or 0.0)))
    return [_seeded(grid, cell, seed) for seed in grid.seeds for cell in cells if seed in grid.seeds_of(cell)]


def grid_key(grid: Grid) -> str:
    """Names a grid by its cells: more seeds, and the same grid goes on."""
    cells = [[*cell.place, cell.measure, cell_identity(_seeded(grid, cell, 0).config)] for cell in grid.cells]
    return f"{grid.name}-{digest_of(cells)[:12]}"


def check_cells(grid: Grid) -> None:
    """`pipeline.check` for all cells. Raises `ConfigError`."""
    for cell in grid.cells:
        check(_seeded(grid, cell, grid.seeds[0]).config, _last_stage(cell))

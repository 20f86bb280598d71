"""A cell whose negatives are written by another cell's student: planned and known before that student is trained."""

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from experiments import appendix_table3
from experiments.appendix_table3 import DSS, FIXED
from qcrd.cli import load
from qcrd.config import ConfigError, ExperimentConfig, TrackingConfig, with_overrides
from qcrd.config.grid import ANOTHER_CELLS, Cell, Claim, Grid
from qcrd.console import Display
from qcrd.distill.train import StageFailed
from qcrd.grids import run as run_grid
from qcrd.grids import runner
from qcrd.grids.cell_runs import CellRun, grid_key, runs_of
from qcrd.grids.cells import cell_folder, cell_identity, write_cell
from qcrd.grids.plan import plan_grid
from qcrd.pipeline.run import Options
from qcrd.report.grid.data import CellResult
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.tracker import RunId
from tests.test_cli import ROOT

TABLE_A3 = str(ROOT / "experiments" / "appendix_table3.py")


def loaded(*overrides: str, seeds: str | None = None) -> Grid:
    grid = load(TABLE_A3, overrides, "smoke", seeds)
    assert isinstance(grid, Grid)
    return grid


def run_named(grid: Grid, row: str) -> CellRun:
    return next(one for one in runs_of(grid) if one.cell.row == row)


def two(output: Path, **dss: Any) -> Grid:
    """A cell and the one whose student writes its negatives; `dss`: settings of the latter alone."""
    base = with_overrides(appendix_table3.recipe("smoke").cells[0].config, {"output": str(output)})
    base = base.model_copy(update={"tracking": TrackingConfig(enabled=False)})
    fixed = with_overrides(base, {"negatives.source": "fixed", "negatives.fixed": ANOTHER_CELLS})
    cells = (
        Cell(row="fixed", column="x", config=fixed, fixed_negatives_from=("dss", "x")),
        Cell(row="dss", column="x", config=with_overrides(base, {"method": "dss", **dss}), shown=False),
    )
    return Grid(name="g", title="G", cells=cells, seeds=(0, 1))


# -- as data --------------------------------------------------------------------------------------------------------


def test_the_papers_table_has_five_rows():
    for preset in ("paper", "smoke"):
        grid = appendix_table3.recipe(preset)
        assert [cell.row for cell in grid.shown_cells] == list(appendix_table3.ROWS) and len(grid.shown_cells) == 5
        assert [cell.row for cell in grid.cells if not cell.shown] == [DSS]
        assert grid.cells[5].config.method == "dss" and grid.cells[5].config.output == grid.cells[0].config.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: {"fixed_negatives_from": ("other", "x")}}, r"there is no cell \('other', 'x'\)"),
        ({0: {"fixed_negatives_from": None}}, r"\('fixed', 'x'\) names no other cell"),
        ({0: {"negatives.source": "snapshot"}}, "negatives.source: 'snapshot' is not allowed; .* must be 'fixed'"),
        ({0: {"negatives.fixed": "/models/x"}}, "negatives.fixed: '/models/x' is not allowed"),
        ({0: {"fixed_negatives_from": ("fixed", "x")}}, "it names another cell itself"),
        ({1: {"measure": "vote_accuracy"}}, "it trains no student"),
        ({1: {"output": "elsewhere"}}, "it trains no student in this output"),
        ({0: {"shown": False}}, "none is shown"),
    ],
)
def test_what_a_cell_names_must_make_sense(tmp_path: Path, changes: dict[int, dict[str, Any]], message: str):
    grid = two(tmp_path)
    cells = list(grid.cells)
    for number, change in changes.items():
        for key, value in change.items():
            in_cell = key in Cell.model_fields
            update = {key: value} if in_cell else {"config": with_overrides(cells[number].config, {key: value})}
            cells[number] = cells[number].model_copy(update=update)
    with pytest.raises(ValidationError, match=message):
        Grid(name="g", title="G", cells=tuple(cells))


def test_a_claim_is_about_cells_that_are_shown(tmp_path: Path):
    grid = two(tmp_path)
    with pytest.raises(ValidationError, match=r"no cell \('dss', 'x'\) that is shown"):
        Grid(name="g", title="G", cells=grid.cells, claims=(Claim(column="x", better="fixed", worse="dss"),))


def test_overrides_hold_for_the_student_that_writes_negatives():
    grid = loaded("train.steps=7", "teacher.seed=9", "negatives.top_k=3")
    one = run_named(grid, FIXED)
    assert one.writer is not None
    other = one.writer.config
    assert (other.train.steps, other.teacher.seed, other.method) == (7, 9, "dss")
    assert (one.config.negatives.top_k, one.config.train.steps) == (3, 7)
    with pytest.raises(ConfigError, match=r"negatives\.fixed: '/models/x' is not allowed"):
        loaded("negatives.fixed=/models/x")


def test_the_writer_has_the_same_seed_and_output_and_comes_first():
    grid = loaded("output=elsewhere", seeds="4,5")
    runs = runs_of(grid)
    assert [(one.config.seed, one.cell.row) for one in runs if one.cell.row in (DSS, FIXED)] == [
        (4, DSS), (4, FIXED), (5, DSS), (5, FIXED),
    ]  # fmt: skip
    assert [one.cell.row for one in runs[:1]] == [DSS] and len(runs) == 12
    for one in runs:
        assert (one.writer is not None) == (one.cell.row == FIXED)
        if one.writer is not None:
            assert (one.writer.config.method, one.writer.config.output) == ("dss", "elsewhere")
            assert one.writer.config.seed == one.config.seed
        assert one.until == ("student" if one.cell.row == DSS else "report")


def test_its_identity_has_the_writers_and_no_path(tmp_path: Path):
    here, there, other = two(tmp_path / "a"), two(tmp_path / "b"), two(tmp_path / "a", **{"loss.label_weight": 0.7})
    (a, b, c) = (run_named(grid, "fixed").config for grid in (here, there, other))
    assert cell_identity(a) == cell_identity(b) != cell_identity(c)
    assert grid_key(here) == grid_key(there) != grid_key(other)
    assert cell_identity(a) != cell_identity(with_overrides(a, {"negatives.source": "teacher"}))
    writer = run_named(here, "fixed").writer
    assert writer is not None and cell_identity(writer.config) in str(a.negatives.fixed)
    assert str(tmp_path) not in str(a.negatives.fixed)


def test_the_plan_counts_the_writers_stages_too_before_anything_is_trained(tmp_path: Path):
    plan = plan_grid(two(tmp_path))
    assert plan.runs == 4
    # seeds share all before the student; both rows share samples, rationales and the training set
    counted = {name: plan.to_run[name] for name in ("questions", "samples", "discriminator", "student", "report")}
    assert counted == {"questions": 1, "samples": 1, "discriminator": 1, "student": 4, "report": 2}
    assert plan.students == {"dss": 2, "qcrd": 2} and not plan.done and not list(tmp_path.iterdir())


# -- when it runs ---------------------------------------------------------------------------------------------------


class Pipeline:
    """Stands for the pipeline's `run`: says which students were asked for, with which negatives."""

    def __init__(self, output: Path, failing: str = "") -> None:
        self.output, self.failing = output, failing
        self.asked: list[tuple[str, int, str | None, str | None]] = []
        self._lock = threading.Lock()

    def __call__(self, config: ExperimentConfig, _: Display, options: Options, __: object) -> dict[str, Artifact]:
        with self._lock:
            self.asked.append((config.method, config.seed, config.negatives.fixed, options.until))
        if config.method == self.failing:
            raise StageFailed("no space")
        return {"student": Artifact(Storage.of(self.output), "student", config.method, f"f{config.seed}")}


def run_all(grid: Grid, output: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, parallel: int = 1):
    monkeypatch.setattr(runner, "run", pipeline)
    monkeypatch.setattr(runner, "read_result", lambda cell, seed, _: CellResult(*cell.place, seed, 0.5))
    monkeypatch.setattr(runner.CellRunner, "_commit", lambda *_: None)
    parent = open_run_record(output / "records" / "g", RunId("g", "g"), TrackingConfig(enabled=False), output)
    return run_grid._run_cells(grid, Display(Console(file=io.StringIO())), parent, output, Options(), parallel)


@pytest.mark.parametrize("parallel", [1, 4])
def test_it_trains_on_negatives_of_the_writers_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int):
    pipeline = Pipeline(tmp_path)
    made = run_all(two(tmp_path), tmp_path, monkeypatch, pipeline, parallel)
    assert sorted(place[0::2] for place in made.results) == [("fixed", 0), ("fixed", 1)] and not made.missing
    for seed in (0, 1):
        (fixed,) = [one for one in pipeline.asked if one[:2] == ("qcrd", seed)]
        assert fixed[2:] == (f"{tmp_path}/student/dss-f{seed}/best", "report")
        (dss,) = [one for one in pipeline.asked if one[:2] == ("dss", seed)]
        assert dss[3] == "student" and pipeline.asked.index(dss) < pipeline.asked.index(fixed)


def test_without_the_writers_student_it_is_missing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = Pipeline(tmp_path, failing="dss")
    made = run_all(two(tmp_path), tmp_path, monkeypatch, pipeline)
    assert {method for method, *_ in pipeline.asked} == {"dss"} and not made.results
    why = made.missing["fixed", "x", 0]
    assert why == "dss, x, whose student writes the negatives, is missing: no space"


def test_a_writer_is_trained_only_for_cells_that_are_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grid = two(tmp_path / "out").model_copy(update={"results": "kept"})
    one = run_named(grid, "fixed")
    result = CellResult("fixed", "x", 0, 0.25, source="")
    write_cell(cell_folder(tmp_path / "out" / "kept", one.cell, one.config), result, [], {})
    pipeline = Pipeline(tmp_path / "out")
    made = run_all(grid, tmp_path / "out", monkeypatch, pipeline)
    assert [asked[:2] for asked in pipeline.asked] == [("dss", 1), ("qcrd", 1)]
    assert {place: found.value for place, found in made.results.items()} == {
        ("fixed", "x", 0): 0.25, ("fixed", "x", 1): 0.5,
    }  # fmt: skip


def test_a_finished_writer_that_is_shown_still_gives_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grid = two(tmp_path / "out")
    cells = (grid.cells[0], grid.cells[1].model_copy(update={"shown": True}))
    grid = grid.model_copy(update={"cells": cells, "results": "kept", "seeds": (0,)})
    one = run_named(grid, "dss")
    write_cell(cell_folder(tmp_path / "out" / "kept", one.cell, one.config), CellResult("dss", "x", 0, 0.25), [], {})
    pipeline = Pipeline(tmp_path / "out")
    made = run_all(grid, tmp_path / "out", monkeypatch, pipeline)
    assert [(asked[0], asked[3]) for asked in pipeline.asked] == [("dss", "student"), ("qcrd", "report")]
    assert made.results["dss", "x", 0].value == 0.25 and made.results["fixed", "x", 0].value == 0.5

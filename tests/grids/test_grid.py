"""Grids as data, as files and in the plan: what two cells share counts once, and a finished cell is known again."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import ValidationError
from rich.console import Console

from experiments import (
    appendix_table1,
    appendix_table2,
    appendix_table6,
    figure4,
    table1,
    table3,
    table5,
    table6,
)
from qcrd.cli import load
from qcrd.config import ConfigError, ExperimentConfig, with_overrides
from qcrd.config.grid import Cell, Claim, Grid
from qcrd.console import Display
from qcrd.evaluate import llm_judge_prompt
from qcrd.grids import run as run_grid
from qcrd.grids import runner
from qcrd.grids.cell_runs import grid_key, paper_hours, runs_of
from qcrd.grids.cells import cell_folder, cell_identity, read_cell, write_cell
from qcrd.grids.plan import plan_grid
from qcrd.grids.results import value_of
from qcrd.grids.runner import CellRunner
from qcrd.pipeline import check as checking
from qcrd.pipeline import run as pipeline
from qcrd.pipeline.run import Options
from qcrd.pipeline.stage import Stage, StageRun
from qcrd.pipeline.stages import samples
from qcrd.records import Explanation, Prediction, Question, Score
from qcrd.report.grid.data import CellResult
from qcrd.runtime.remote import StageFailed
from qcrd.tasks import get_task, load_questions
from qcrd.tasks.base import Task
from qcrd.teacher.asking import Stopped
from tests.test_cli import ROOT

TABLE5, TABLE7 = (str(ROOT / "experiments" / f"{name}.py") for name in ("table5", "table7"))


def with_output(grid: Grid, output: Path, **changes: object) -> Grid:
    cells = [
        cell.model_copy(update={"config": with_overrides(cell.config, {"output": str(output), **changes})})
        for cell in grid.cells
    ]
    return grid.model_copy(update={"cells": tuple(cells)})


def test_a_grid_refuses_what_cannot_be():
    cell = Cell(row="a", column="b", config=ExperimentConfig(name="x"))
    for bad in (
        {"cells": (cell, cell)},
        {"seeds": (1, 1)},
        {"claims": (Claim(column="b", better="a", worse="other"),)},
    ):
        with pytest.raises(ValidationError):
            Grid(**{"name": "g", "title": "t", "cells": (cell,), **bad})  # pyright: ignore[reportArgumentType]


def test_overrides_and_seeds_hold_for_every_cell(tmp_path: Path):
    grid = load(TABLE5, ["train.steps=7", f"output={tmp_path}"], "smoke", "3,5")
    assert isinstance(grid, Grid) and grid.seeds == (3, 5)
    assert {cell.config.train.steps for cell in grid.cells} == {7}
    assert Counter(one.config.seed for one in runs_of(grid)) == {3: 5, 5: 5}
    with pytest.raises(ConfigError, match="--preset: 'fast' is not allowed; the presets are paper, smoke"):
        load(TABLE5, [], "fast", None)
    with pytest.raises(ConfigError, match="has no presets"):
        load(str(ROOT / "experiments" / "quickstart.py"), [], "smoke", None)
    with pytest.raises(ConfigError, match="--seeds"):
        load(str(ROOT / "experiments" / "quickstart.py"), [], None, "1,2")


def test_overrides_of_the_judge_llm():
    grid = load(
        TABLE7, ["llm_judge.kind=openai", "llm_judge.model=m", "llm_judge.budget_usd=2", "train.steps=7"], "smoke", None
    )
    assert isinstance(grid, Grid) and grid.llm_judge is not None
    assert (grid.llm_judge.model, grid.llm_judge.budget_usd, grid.llm_judge.num_samples) == ("m", 2.0, 1)
    assert {cell.config.teacher.kind for cell in grid.cells} == {"simulated"}
    for file, override, message in (
        (TABLE7, "llm_judge.modl=m", "llm_judge.modl: unknown key"),
        (TABLE5, "llm_judge.model=m", "llm_judge.model: not allowed; no LLM judge is asked in table5"),
        (TABLE7, "evaluation.explained_questions=0", "evaluation.explained_questions: 0 is not allowed"),
        (TABLE7, "evaluation.explain_temperatures=[0]", r"evaluation.explain_temperatures: \[0.0\] is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(file, [override], "smoke", None)


def test_more_seeds_are_the_same_grid_and_other_cells_are_not():
    grid = table5.recipe("smoke")
    assert grid_key(grid) == grid_key(grid.model_copy(update={"seeds": (0, 1)}))
    assert grid_key(grid) != grid_key(grid.model_copy(update={"cells": grid.cells[1:]}))


def test_of_one_seed_the_longest_trainings_come_first():
    grid = table1.recipe("paper")
    runs = [(one.config.seed, one.config.method) for one in runs_of(grid)]
    order = ("qcrd", "mi", "dss", "finetune", "single_task")  # of the last the paper tells no hours
    assert runs == [(seed, method) for seed in grid.seeds for method in order for _ in range(4)]


def test_measures_without_a_seed_are_taken_once():
    grid = table3.recipe("smoke").model_copy(update={"seeds": (0, 1, 2)})
    counts = Counter(one.cell.row for one in runs_of(grid))
    assert counts["Teacher"] == 1 and counts["QCRD"] == 3


def test_the_plan_counts_what_cells_share_once(tmp_path: Path):
    plan = plan_grid(with_output(table6.recipe("smoke"), tmp_path))
    # m = 5 and k = 1 are one experiment; k = 0 and all m share the questions
    assert plan.runs == 8 and plan.to_run["questions"] == 1 and plan.to_run["student"] == 7
    assert plan.to_run["discriminator"] == 4  # one for each m
    assert list(tmp_path.iterdir()) == []


def test_cells_that_share_samples_have_their_questions_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []

    def load_counted(task: Task, *settings: Any) -> list[Question]:
        read.append(task.NAME)
        return load_questions(task, *settings)

    monkeypatch.setattr(samples, "load_questions", load_counted)
    grid = with_output(table5.recipe("smoke"), tmp_path)
    plan = plan_grid(grid)
    assert plan.runs > plan.to_run["samples"] == len(read) > 0


def test_the_plan_of_the_paper_prices_samples_and_hours(shared_data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    plan = plan_grid(with_output(table6.recipe(), tmp_path))
    assert len(plan.costs) == 1 and plan.costs[0].samples == 720 * 20  # m = 1, 5, 10 are among the 20
    assert plan.students == {"qcrd": 21} and plan.hours["qcrd"] == pytest.approx(21 * 13.0)
    console = Console(file=io.StringIO(), width=200)
    plan.show(Display(console))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "273.0 GPU hours" in shown and "The teacher's samples cost at most $" in shown


def test_shares_of_the_training_set_are_nested_and_stop_where_no_step_comes():
    sizes = {}
    for cell in figure4.recipe().cells:
        if cell.row.startswith("QCRD"):
            available = {"svamp": 720, "esnli": 549_367}.get(cell.config.task.name, 10_000)
            sizes[cell.config.task.name, cell.config.task.train_share] = cell.config.train_limit(available) or available
    assert [sizes["svamp", share] for share in figure4.SHARES] == [90, 180, 360, 540, 720]
    assert [sizes["esnli", share] for share in figure4.SHARES] == [68_671, 80_000, 80_000, 80_000, 80_000]


def test_a_finished_cell_is_read_back_and_one_of_other_settings_is_not(tmp_path: Path):
    cell = table5.recipe("smoke").cells[0]
    config = with_overrides(cell.config, {"seed": 2})
    folder = cell_folder(tmp_path, cell, config)
    assert folder.name.startswith("minmax--arithmetic--seed2-") and read_cell(folder) is None
    result = CellResult(
        "minmax", "arithmetic", 2, 0.5, right={"a": True, "b": False}, metrics={"eval/x": 0.5},
        rows=[{"step": 1, "train/loss": 2.0}], explanations=[Explanation("a", "test", 0.0, 0, "so", False, None)],
        scores=[Score("a", "student_1.5", 0.25)], source=str(folder),
    )  # fmt: skip
    predictions = [Prediction("a", "test", "best", "1", "1", True), Prediction("b", "test", "best", "2", "2", False)]
    write_cell(folder, result, predictions, {"command": "qcrd run"})
    assert read_cell(folder) == result
    before = (folder / "cell.json").read_bytes()
    write_cell(folder, result, [], {"command": "another"})
    assert (folder / "cell.json").read_bytes() == before
    moved = with_overrides(config, {"output": "elsewhere", "resources.workers": 2, "name": "other"})
    assert cell_identity(moved) == cell_identity(config)
    for change in ({"train.steps": 50}, {"seed": 3}, {"task.seed": 1}, {"teacher.error_rate": 0.3}):
        assert cell_identity(with_overrides(config, change)) != cell_identity(config), change


def test_hours_of_qcrd_without_a_discriminator_are_the_papers_own(tmp_path: Path):
    cells = [cell for cell in appendix_table6.recipe().cells if cell.row.startswith("QCRD")]
    hours = {(cell.row, cell.column): paper_hours(cell.config) for cell in cells}
    assert hours == {(cell.row, cell.column): cell.paper.value for cell in cells if cell.paper}


def test_sizes_are_counted_without_a_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run_grid.check_grid(appendix_table1.recipe())
    with pytest.raises(ConfigError, match=r"teacher\.api_key_env"):
        run_grid.check_grid(appendix_table2.recipe())


def test_the_plan_prices_the_judge_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    asked = ["llm_judge.kind=openai", "llm_judge.model=gpt-4o-mini", "llm_judge.max_tokens=100", f"output={tmp_path}"]
    grid = load(TABLE7, asked, "smoke", None)
    assert isinstance(grid, Grid) and grid.llm_judge is not None
    config = grid.cells[0].config
    test = [one for one in load_questions(get_task("arithmetic"), config.task) if one.split == "test"]
    prompts = [llm_judge_prompt.request_text(llm_judge_prompt.PROMPT.read_text(), one, "", "") for one in test]
    shown = sum(-(-len(prompt.encode()) // 4) for prompt in prompts) / 60
    requests = 2 * 2 * 10  # temperatures, orders, questions
    most = requests * (0.15 * (shown + 2 * 48) + 0.60 * 100) / 1e6  # two rationales of at most 48 tokens
    plan = plan_grid(grid)
    assert plan.llm_judge_requests == requests and plan.llm_judge_usd == pytest.approx(most, rel=1e-3)
    console = Console(file=io.StringIO(), width=200)
    plan.show(Display(console))
    assert f"at most 40 requests to the LLM judge (gpt-4o-mini), both orders of each pair, at most ${most:.2f}." in (
        console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    )


def test_a_sample_that_cannot_be_parsed_is_a_wrong_one():
    cell = Cell(row="a", column="b", config=ExperimentConfig(name="x"), measure="sample_accuracy")
    assert value_of(cell, {"rationales": {"sample_accuracy": 1.0, "parse_rate": 0.1}}) == pytest.approx(0.1)


def small(output: Path, *rows: str, **changes: object) -> Grid:
    config = ExperimentConfig.model_validate(
        {"name": "x", "output": str(output), "tracking": {"enabled": False}, "method": "finetune"}
    )
    cells = tuple(Cell(row=row, column="b", config=with_overrides(config, {"name": row, **changes})) for row in rows)
    return Grid(name="g", title="G", cells=cells)


def test_a_cell_that_fails_is_missing_and_the_report_is_written_whatever_the_judge_llm_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> None:
        raise StageFailed("the discriminator needs at least two questions")

    def stops(*_: object) -> None:
        raise Stopped("teacher.budget_usd")

    monkeypatch.setattr(runner, "run", fails)
    monkeypatch.setattr(run_grid, "cells_at_once", lambda _: 1)
    monkeypatch.setattr(run_grid, "compare", stops)
    arguments = (Display(Console(file=io.StringIO())), tmp_path, Options(), None, tmp_path)
    with pytest.raises(Stopped):
        run_grid._run_recorded(small(tmp_path, "one", "two"), *arguments)
    (report,) = tmp_path.glob("grids/*/report.md")
    assert report.read_text().count("the discriminator needs at least two questions") == 2


def test_of_several_cells_at_once_each_makes_its_own_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    placements: list[str] = []
    monkeypatch.setattr(CellRunner, "_run", lambda _, one, *__: placements.append(one.config.negatives.placement))
    grid = small(tmp_path, "one", "two", **{"negatives.placement": "async"})
    for parallel in (1, 2):
        run_grid._run_cells(grid, Display(Console(file=io.StringIO())), None, tmp_path, Options(), parallel)  # pyright: ignore[reportArgumentType]
    assert placements == ["async", "async", "inline", "inline"]


def test_what_failed_is_asked_again_once_whatever_the_number_of_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "start_ray", lambda: None)
    made: list[Path] = []

    class Asking(Stage):
        name = "samples"
        version = 1

        def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
            return ()

        def settings(self, config: ExperimentConfig) -> dict[str, Any]:
            return {}

        def run(self, run: StageRun) -> dict[str, int]:
            made.append(run.out)
            (run.out / "samples").write_text(str(len(made)))
            return {"errors": 1}

        def errors(self, summary: dict[str, Any]) -> int:
            return summary["errors"]

    monkeypatch.setattr(checking, "stages_of", lambda _: [Asking()])
    display = Display(Console(file=io.StringIO()))
    found = []
    for retry in (False, True, True):
        options = Options(retry_errors=retry, until="samples")
        for name in ("one", "two", "three"):
            config = small(tmp_path, name).cells[0].config
            found.append(pipeline.run(config, display, options)["samples"].digest())
    assert len(made) == 3 and [found.index(digest) for digest in found] == [0, 0, 0, 3, 3, 3, 6, 6, 6]


@pytest.mark.parametrize(
    ("gpus", "changes", "at_once"),
    [
        (0, {}, 1), (8, {}, 8), (8, {"resources.workers": "4"}, 2), (1, {"resources.gpu_per_worker": "0.25"}, 4),
        (2, {"resources.gpu_per_worker": "0.6"}, 2), (2, {"resources.gpu_per_worker": "0.3"}, 6),
        (8, {"resources.device": "cpu"}, 1),
    ],
)  # fmt: skip
def test_as_many_cells_at_once_as_the_gpus_have_room_for(
    monkeypatch: pytest.MonkeyPatch, gpus: int, changes: dict[str, str], at_once: int
):
    there = {"CPU": 16.0, "GPU": float(gpus)}
    monkeypatch.setattr(run_grid, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    cell = Cell(row="a", column="b", config=with_overrides(ExperimentConfig(name="x"), changes))
    assert run_grid.cells_at_once(Grid(name="g", title="G", cells=(cell,))) == at_once

"""Running a grid: every cell and seed through the pipeline, what they share once, then the grid's report.

Cells go one after the other, or several at once where the cluster has GPUs for them; each stage's lock keeps two cells
from making the same artifact twice. A start goes on where the last one stopped. A cell that fails is missing in the
report, with the reason; the others go on. In MLflow a grid is one run with a child for each cell and seed.
"""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.config.grid import STAGE_OF, Cell, Grid
from qcrd.console import Display
from qcrd.distill.train import StageFailed, uses_gpu
from qcrd.evaluate.llm_judge import LlmJudge, check_llm_judge, compare_rationales
from qcrd.evaluate.llm_judge_prompt import pairs_of
from qcrd.grids.cells import cell_folder, cell_name, read_cell, right_of, slug, write_cell
from qcrd.pipeline.run import (
    DEFAULT_OPTIONS,
    Options,
    check,
    cluster_resources,
    prepare_output,
    recorded_alone,
    run,
    start_ray,
    stop_ray,
)
from qcrd.records import Explanation, Prediction, Question, Score, read_rows
from qcrd.report.grid.data import CellResult, ComparisonResult, GridResults, Place, is_simulated
from qcrd.report.grid.report import write_grid_report
from qcrd.storage.artifacts import Artifact
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.json_lines import read_json_lines
from qcrd.storage.output import Storage
from qcrd.tasks import get_task
from qcrd.teacher.requests import store_place
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.provenance import command_line, git_state
from qcrd.tracking.record import RunRecord
from qcrd.tracking.tracker import RunId


@dataclass(frozen=True)
class Job:
    """One cell and seed: the experiment to run, and the last stage that the cell's measure needs."""

    cell: Cell
    config: ExperimentConfig
    until: str

    @property
    def place(self) -> Place:
        return self.cell.row, self.cell.column, self.config.seed


@dataclass
class Finished:
    """What became of the jobs so far."""

    artifacts: dict[Place, dict[str, Artifact]] = field(default_factory=dict)
    cells: dict[Place, CellResult] = field(default_factory=dict)
    missing: dict[Place, str] = field(default_factory=dict)


def paper_hours(config: ExperimentConfig) -> float | None:
    """Hours of a student's training, in proportion to the paper's steps; None where the recipe hands over none."""
    printed = config.printed("training_hours")
    return None if printed is None or printed.steps is None else printed.value * config.train.steps / printed.steps


def jobs_of(grid: Grid) -> list[Job]:
    """All cells and seeds, seed by seed, so that a grid that stops early has whole columns of few seeds; of one seed
    the longest first, as far as the paper tells, so that no GPU waits for one that began last."""
    cells = sorted(grid.cells, key=lambda cell: paper_hours(cell.config) or 0.0, reverse=True)
    return [
        Job(cell, with_overrides(cell.config, {"seed": seed}), _last_stage(cell))
        for seed in grid.seeds
        for cell in cells
        if seed in grid.seeds_of(cell)
    ]


def _last_stage(cell: Cell) -> str:
    """A cell that is trained gets the report of one experiment, too."""
    stage = STAGE_OF[cell.measure]
    return "report" if stage in ("student", "predictions") else stage


def grid_key(grid: Grid) -> str:
    """Names a grid by its cells: more seeds, and the same grid goes on."""
    cells = [[cell.row, cell.column, cell.measure, cell.config.identity() | {"seed": 0}] for cell in grid.cells]
    return f"{grid.name}-{digest_of(cells)[:12]}"


def check_grid(grid: Grid) -> None:
    """`pipeline.check` for all cells. Raises `ConfigError`."""
    for cell in grid.cells:
        check(cell.config, _last_stage(cell))
    if grid.llm_judge is not None:
        for comparison in grid.comparisons:
            cell = grid.cell(comparison.first, comparison.column)
            assert cell is not None
            check_llm_judge(_llm_judge(grid, cell.config))


def _llm_judge(grid: Grid, config: ExperimentConfig) -> LlmJudge:
    """The grid's LLM judge of students that are trained as `config` says."""
    assert grid.llm_judge is not None
    store = store_place(config.teacher, Storage.of(config.output))
    return LlmJudge(grid.llm_judge, get_task(config.task.name), store)


def cells_at_once(grid: Grid) -> int:
    """As many as the cluster's GPUs can train at the same time; one where it has none."""
    config = grid.cells[0].config
    if not uses_gpu(config):
        return 1
    needed = max(cell.config.resources.workers for cell in grid.cells)
    on_one = int(1 / max(cell.config.resources.gpu_per_worker for cell in grid.cells))
    return max(1, int(cluster_resources().get("GPU", 0)) * on_one // needed)


def run_grid(
    grid: Grid, display: Display, results_root: Path, options: Options = DEFAULT_OPTIONS, parallel: int | None = None
) -> tuple[Path, GridResults]:
    """Run what is missing of a grid, and write its report. Returns the report's folder and what was measured.

    `results_root` is the folder that `grid.results` is relative to. `parallel`: cells at once; None: `cells_at_once`.
    Raises `ConfigError` before anything is written, and `Stopped` where the teacher's budget is spent.
    """
    check_grid(grid)
    start_ray()
    config, key = grid.cells[0].config, grid_key(grid)
    storage = Storage.of(config.output)
    prepare_output(storage)
    with recorded_alone(storage, f"records/{key}", f"grids/{key}", display=display):
        return _run_recorded(grid, display, results_root, options, parallel, storage.folder)


def _run_recorded(
    grid: Grid, display: Display, results_root: Path, options: Options, parallel: int | None, output: Path
) -> tuple[Path, GridResults]:
    config, key = grid.cells[0].config, grid_key(grid)
    folder = output / "records" / key
    record = open_run_record(folder, RunId(key, grid.name), config.tracking, output, display.warn)
    record.start(
        grid.model_dump(mode="json"),
        {"name": grid.name, "title": grid.title, "cells": len(grid.cells), "seeds": list(grid.seeds)},
        {"qcrd.grid": grid.name, "qcrd.simulated": str(is_simulated(grid)).lower()},
    )
    status = "FAILED"
    try:
        record.flush()  # the children are tagged with its id
        finished = _run_jobs(grid, display, record, results_root, options, parallel)
        comparisons: list[ComparisonResult] = []
        results = GridResults(list(finished.cells.values()), comparisons, finished.missing)
        report = output / "grids" / key
        try:
            _compare(grid, finished, output, display, options.retry_errors, comparisons)
        finally:  # students are trained, whatever the judge says
            record.log("grid", write_grid_report(grid, results, report, about()))
            record.add_artifact(report, "report")
        status = "FAILED" if results.missing else "FINISHED"
        return report, results
    finally:
        record.close(status)


def _run_jobs(
    grid: Grid, display: Display, record: RunRecord, results_root: Path, options: Options, parallel: int | None
) -> Finished:
    jobs, finished = jobs_of(grid), Finished()
    committed = None if grid.results is None else results_root / grid.results

    at_once = min(parallel or cells_at_once(grid), len(jobs))
    if at_once > 1:  # actors for negatives would wait for what other cells' workers hold, for ever
        jobs = [replace(job, config=with_overrides(job.config, {"negatives.placement": "inline"})) for job in jobs]

    def run_one(number: int) -> None:
        count = f"{number + 1}/{len(jobs)}"
        own = display if at_once == 1 else Display(display.console, prefix=f"[{count}] ")
        _run_job(jobs[number], count, own, record, committed, options, finished)

    if at_once == 1:
        for number in range(len(jobs)):
            run_one(number)
    else:
        display.say(f"{at_once} cells at once")
        _in_threads(run_one, len(jobs), at_once)
    return finished


def _in_threads(run_one: Callable[[int], None], count: int, at_once: int) -> None:
    """All calls; the first exception ends those that have not begun, and is raised."""
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="qcrd-cell")
    futures = [pool.submit(run_one, number) for number in range(count)]
    try:
        for future in futures:
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_ray()
        raise
    pool.shutdown()


def _run_job(
    job: Job, count: str, display: Display, parent: RunRecord, committed: Path | None, options: Options,
    finished: Finished,
) -> None:  # fmt: skip
    name = f"{job.cell.row}, {job.cell.column}, seed {job.config.seed}"
    if committed is not None and (found := read_cell(cell_folder(committed, job.cell, job.config))) is not None:
        display.say(f"✓ cell {count} ({name}): finished before, {found.source}")
        finished.cells[job.place] = found
        return
    display.say(f"▶ cell {count} ({name})")
    child = cell_name(job.cell, job.config.seed)
    record = open_run_record(
        parent.folder / child, RunId(f"{parent.folder.name}/{child}", child, parent.folder.name), job.config.tracking,
        Storage.of(job.config.output).folder, display.warn, parent.outage_told,
    )  # fmt: skip
    try:
        made = run(job.config, display, replace(options, until=job.until), record)
    except StageFailed as failed:
        display.warn(f"cell {count} ({name}) failed: {failed}")
        finished.missing[job.place] = str(failed)
        return
    result = read_result(job.cell, job.config.seed, made)
    finished.artifacts[job.place], finished.cells[job.place] = made, result
    if committed is not None:
        folder = cell_folder(committed, job.cell, job.config)
        predictions = read_rows(made["predictions"].fetch() / "predictions.parquet", Prediction)
        write_cell(folder, result, [p for p in predictions if p.split == "test" and p.checkpoint == "best"], about())
        display.say(f"  kept in {folder}")


def about() -> dict[str, str]:
    """By which command, at which commit and on what machine numbers were made."""
    code, has = git_state(Path(__file__).parent), cluster_resources()
    return {
        "command": command_line(sys.argv[1:]),
        "commit": code["commit"] + (" (with changes)" if code["dirty"] == "true" else ""),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.machine()}, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs",
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def read_result(cell: Cell, seed: int, made: Mapping[str, Artifact]) -> CellResult:
    """What the finished stages of a cell say."""
    summaries = {name: artifact.marker()["summary"] for name, artifact in made.items()}
    value = _value(cell, summaries)
    if "predictions" not in made:
        return CellResult(cell.row, cell.column, seed, value, source=str(made[STAGE_OF[cell.measure]].path))
    folder = made["predictions"].fetch()
    explanations = read_rows(folder / "explanations.parquet", Explanation)
    asked = {row.question_id for row in explanations}
    questions = read_rows(made["questions"].fetch() / "questions.parquet", Question)
    metrics = _numbers(summaries["student"]) | _numbers(summaries["predictions"]) | _numbers(summaries["report"])
    right = right_of(read_rows(folder / "predictions.parquet", Prediction)) if cell.measure == "test_accuracy" else {}
    return CellResult(
        cell.row, cell.column, seed, value,
        right=right,
        metrics=metrics,
        rows=read_json_lines(made["student"].fetch() / "metrics.jsonl"),
        explanations=explanations,
        scores=read_rows(folder / "scores.parquet", Score),
        question_texts={question.id: question.text for question in questions if question.id in asked},
        source=str(folder),
    )  # fmt: skip


def _value(cell: Cell, summaries: Mapping[str, Mapping[str, Any]]) -> float:
    summary = summaries[STAGE_OF[cell.measure]]
    if cell.measure == "test_accuracy":
        return float(summary["eval/test_accuracy_best"])
    if cell.measure == "training_hours":
        return float(summary["seconds"]) / 3600
    if cell.measure in ("mean_positives", "share_only_positives", "share_only_negatives"):
        return float(summary["by_gold"][cell.measure])
    if cell.measure == "vote_accuracy":
        return float(summary[cell.measure])
    if cell.measure == "sample_accuracy":  # of all samples, as the vote's is of all questions
        return float(summary[cell.measure]) * float(summary["parse_rate"])
    return float(summary[cell.measure.removesuffix("_size")])


# -- the LLM judge's comparisons ----------------------------------------------------------------------------------


def _compare(
    grid: Grid, finished: Finished, output: Path, display: Display, retry_errors: bool, results: list[ComparisonResult]
) -> None:
    """All comparisons whose two cells are there, of the first seed, into `results`."""
    for comparison in grid.comparisons:
        sides = [
            finished.artifacts.get((row, comparison.column, grid.seeds[0]))
            for row in (comparison.first, comparison.second)
        ]
        if sides[0] is None or sides[1] is None:
            display.warn(f"no comparison in {comparison.column}: a cell is missing")
            continue
        cell = grid.cell(comparison.first, comparison.column)
        assert cell is not None
        questions = read_rows(sides[0]["questions"].fetch() / "questions.parquet", Question)
        folders = [side["predictions"].fetch() for side in sides if side is not None]
        explained = [read_rows(folder / "explanations.parquet", Explanation) for folder in folders]
        name = slug(f"{comparison.column} {comparison.first} {comparison.second} {comparison.temperature:g}")

        def on_progress(done: int, total: int, info: Mapping[str, Any], name: str = name) -> None:
            display.progress(f"judge: {name}", done, total)

        out = output / "grids" / grid_key(grid) / "comparisons"
        out.mkdir(parents=True, exist_ok=True)
        pairs = pairs_of(questions, explained[0], explained[1], comparison.temperature)
        judge = _llm_judge(grid, cell.config)
        results.append(compare_rationales(judge, comparison, pairs, out / f"{name}.parquet", on_progress, retry_errors))

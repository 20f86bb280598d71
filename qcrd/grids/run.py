"""Running a grid: every cell and seed through the pipeline, what they share once, then the grid's report.

Cells go one after the other, or several at once where the cluster has GPUs for them; each stage's lock keeps two cells
from making the same artifact twice. A start goes on where the last one stopped. A cell that fails is missing in the
report, with the reason; the others go on. In MLflow a grid is one run with a child for each cell and seed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from qcrd.config import with_overrides
from qcrd.config.grid import Grid
from qcrd.console import Display
from qcrd.distill.train import uses_gpu
from qcrd.grids.cell_runs import check_cells, grid_key, runs_of
from qcrd.grids.cells import about
from qcrd.grids.comparisons import check_comparisons, compare
from qcrd.grids.runner import CellRunner
from qcrd.pipeline.check import prepare_output
from qcrd.pipeline.run import DEFAULT_OPTIONS, Options, recorded_alone
from qcrd.report.grid.data import ComparisonResult, GridResults, is_simulated
from qcrd.report.grid.report import write_grid_report
from qcrd.runtime.session import cluster_resources, start_ray, stop_ray
from qcrd.storage.output import Storage
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord
from qcrd.tracking.tracker import RunId


def check_grid(grid: Grid) -> None:
    """Everything that can be known to be wrong beforehand. Raises `ConfigError`."""
    check_cells(grid)
    check_comparisons(grid)


def cells_at_once(grid: Grid) -> int:
    """As many as the cluster's GPUs can train at the same time; one where it has none."""
    config = grid.cells[0].config
    if not uses_gpu(config.resources):
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
        made = _run_cells(grid, display, record, results_root, options, parallel)
        comparisons: list[ComparisonResult] = []
        results = GridResults(list(made.results.values()), comparisons, made.missing)
        report = output / "grids" / key
        try:
            compare(grid, made.artifacts, report / "comparisons", display, options.retry_errors, comparisons)
        finally:  # students are trained, whatever the judge says
            shown = grid.model_copy(update={"cells": grid.shown_cells})
            record.log("grid", write_grid_report(shown, results, report, about()))
            record.add_artifact(report, "report")
        status = "FAILED" if results.missing else "FINISHED"
        return report, results
    finally:
        record.close(status)


def _run_cells(
    grid: Grid, display: Display, record: RunRecord, results_root: Path, options: Options, parallel: int | None
) -> CellRunner:
    runs = runs_of(grid)
    committed = None if grid.results is None else results_root / grid.results
    at_once = min(parallel or cells_at_once(grid), len(runs))
    if at_once > 1:  # actors for negatives would wait for what other cells' workers hold, for ever
        runs = [replace(one, config=with_overrides(one.config, {"negatives.placement": "inline"})) for one in runs]
    runner = CellRunner(runs, record, committed, options)

    def run_one(number: int) -> None:
        own = display if at_once == 1 else Display(display.console, prefix=f"[{number + 1}/{len(runs)}] ")
        runner.run(number, own)

    if at_once == 1:
        for number in range(len(runs)):
            run_one(number)
    else:
        display.say(f"{at_once} cells at once")
        _in_threads(run_one, len(runs), at_once)
    return runner


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

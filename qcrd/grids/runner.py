"""The cells of a grid, each run in a record of its own, after the cell whose student writes its negatives."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qcrd.config import ExperimentConfig
from qcrd.console import Display
from qcrd.distill.train import StageFailed
from qcrd.grids.cell_runs import CellRun
from qcrd.grids.cells import about, cell_folder, cell_name, read_cell, write_cell
from qcrd.grids.results import read_result
from qcrd.pipeline.run import Options, run
from qcrd.pipeline.stages.student import STUDENT
from qcrd.records import Prediction, read_rows
from qcrd.report.grid.data import CellResult, Place
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord
from qcrd.tracking.tracker import RunId


class CellRunner:
    """Runs the cells of one start of a grid, in their order, one by one or several at once.

    `artifacts`, `results`, `missing`: what became of the cells so far. Cells that are not shown have no result.
    """

    def __init__(self, runs: Sequence[CellRun], parent: RunRecord, committed: Path | None, options: Options) -> None:
        """`parent`: the grid's own record. `committed`: the folder of cells that were finished elsewhere."""
        self._runs, self._parent, self._committed, self._options = runs, parent, committed, options
        self.artifacts: dict[Place, dict[str, Artifact]] = {}
        self.results: dict[Place, CellResult] = {}
        self.missing: dict[Place, str] = {}
        found = {one.place: self._read_committed(one) for one in runs}
        self._found = {place: result for place, result in found.items() if result is not None}
        self._writers = {
            one.writer.place for one in runs if one.writer is not None and one.place not in self._found
        }  # fmt: skip
        """Whose students are needed."""
        self._over = {one.place: threading.Event() for one in runs}

    def _read_committed(self, one: CellRun) -> CellResult | None:
        if self._committed is None or not one.cell.shown:
            return None
        return read_cell(cell_folder(self._committed, one.cell, one.config))

    def run(self, number: int, display: Display) -> None:
        """Run a cell. One that another one waits for must have begun before that."""
        one = self._runs[number]
        what = f"{number + 1}/{len(self._runs)} ({', '.join(one.cell.place)}, seed {one.config.seed})"
        try:
            self._run(one, what, display)
        finally:
            self._over[one.place].set()

    def _run(self, one: CellRun, what: str, display: Display) -> None:
        until, found = one.until, self._found.get(one.place)
        if found is not None:
            display.say(f"✓ cell {what}: finished before, {found.source}")
            self.results[one.place] = found
            until = STUDENT.name  # which no committed file has
        if one.place not in self._writers and (found is not None or not one.cell.shown):
            return
        display.say(f"▶ cell {what}")
        try:
            config = one.config if one.writer is None else self._with_student(one, one.writer, display)
            made = run(config, display, replace(self._options, until=until), self._record_of(one, display))
        except StageFailed as failed:
            display.warn(f"cell {what} failed: {failed}")
            self.missing[one.place] = str(failed)
            return
        self.artifacts[one.place] = made
        if found is None and one.cell.shown:
            self.results[one.place] = read_result(one.cell, one.config.seed, made)
            self._commit(one, made, display)

    def _with_student(self, one: CellRun, writer: CellRun, display: Display) -> ExperimentConfig:
        """Waits for the writer. Raises `StageFailed` where that has no student."""
        if not self._over[writer.place].is_set():
            display.say(f"  {', '.join(writer.cell.place)}: its student writes the negatives; waiting")
        self._over[writer.place].wait()
        made = self.artifacts.get(writer.place)
        if made is None:
            why = self.missing.get(writer.place, "it was stopped")
            raise StageFailed(f"{', '.join(writer.cell.place)}, whose student writes the negatives, is missing: {why}")
        return one.with_student(made[STUDENT.name])

    def _record_of(self, one: CellRun, display: Display) -> RunRecord:
        name, parent, config = cell_name(one.cell, one.config.seed), self._parent, one.config
        return open_run_record(
            parent.folder / name, RunId(f"{parent.folder.name}/{name}", name, parent.folder.name), config.tracking,
            Storage.of(config.output).folder, display.warn, parent.outage_told,
        )  # fmt: skip

    def _commit(self, one: CellRun, made: dict[str, Artifact], display: Display) -> None:
        if self._committed is None:
            return
        folder = cell_folder(self._committed, one.cell, one.config)
        rows = read_rows(made["predictions"].fetch() / "predictions.parquet", Prediction)
        kept = [row for row in rows if row.split == "test" and row.checkpoint == "best"]
        write_cell(folder, self.results[one.place], kept, about())
        display.say(f"  kept in {folder}")

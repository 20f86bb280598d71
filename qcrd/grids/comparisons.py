"""A grid's comparisons: which of two rows' rationales an LLM judge finds better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.config.grid import Grid
from qcrd.console import Display
from qcrd.evaluate.llm_judge import LlmJudge, check_llm_judge, compare_rationales
from qcrd.evaluate.llm_judge_prompt import pairs_of
from qcrd.grids.cells import slug
from qcrd.records import Explanation, Question, read_rows
from qcrd.report.grid.data import ComparisonResult, Place
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.tasks import get_task
from qcrd.teacher.requests import store_place


def check_comparisons(grid: Grid) -> None:
    """Raise `ConfigError` where the LLM judge cannot be asked."""
    for comparison in grid.comparisons:
        cell = grid.cell(comparison.first, comparison.column)
        assert cell is not None
        check_llm_judge(_llm_judge(grid, cell.config))


def _llm_judge(grid: Grid, config: ExperimentConfig) -> LlmJudge:
    """The grid's LLM judge of students that are trained as `config` says."""
    assert grid.llm_judge is not None
    store = store_place(config.teacher, Storage.of(config.output))
    return LlmJudge(grid.llm_judge, get_task(config.task.name), store)


def compare(
    grid: Grid, finished: Mapping[Place, Mapping[str, Artifact]], folder: Path, display: Display, retry_errors: bool,
    results: list[ComparisonResult],
) -> None:  # fmt: skip
    """All comparisons whose two cells are there, of the first seed, into `results`; what was said lies in `folder`."""
    for comparison in grid.comparisons:
        sides = [finished.get((row, comparison.column, grid.seeds[0])) for row in (comparison.first, comparison.second)]
        if sides[0] is None or sides[1] is None:
            display.warn(f"no comparison in {comparison.column}: a cell is missing")
            continue
        cell = grid.cell(comparison.first, comparison.column)
        assert cell is not None
        questions = read_rows(sides[0]["questions"].fetch() / "questions.parquet", Question)
        predictions = [side["predictions"].fetch() for side in sides if side is not None]
        explained = [read_rows(one / "explanations.parquet", Explanation) for one in predictions]
        name = slug(f"{comparison.column} {comparison.first} {comparison.second} {comparison.temperature:g}")

        def on_progress(done: int, total: int, info: Mapping[str, Any], name: str = name) -> None:
            display.progress(f"judge: {name}", done, total)

        folder.mkdir(parents=True, exist_ok=True)
        pairs = pairs_of(questions, explained[0], explained[1], comparison.temperature)
        judge = _llm_judge(grid, cell.config)
        place = folder / f"{name}.parquet"
        results.append(compare_rationales(judge, comparison, pairs, place, on_progress, retry_errors))

"""The report of a grid, a table or figure of the paper: report.md, report.html, figures and CSV files.

It shows what was handed to it; a cell without a number is "missing". Knows nothing about stages, Ray or MLflow.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcrd.config.grid import SHARES, Grid
from qcrd.report.grid.claims import Summary, Tested, check_claims, subject_of, summarise
from qcrd.report.grid.data import GridResults, is_simulated
from qcrd.report.grid.details import densities_section, health_section, temperatures_section
from qcrd.report.grid.differences import differences_section
from qcrd.report.grid.figures import grid_curves, results_chart, training_share
from qcrd.report.grid.sections import (
    claims_section,
    comparison_p,
    comparisons_section,
    llm_judge_is_simulated,
    made_section,
    missing_places,
    missing_section,
    results_section,
)
from qcrd.report.html import page
from qcrd.report.markdown import cell as shown
from qcrd.storage.atomic import whole_or_absent, write_atomically


def write_grid_report(grid: Grid, results: GridResults, out: Path, about: Mapping[str, str]) -> dict[str, float]:
    """Write the report of a grid into the folder `out`. Returns its headline numbers as flat metrics.

    `about`: how it was made (command, commit, hardware, date), shown as it is. Accuracies in the metrics are in %, as
    in the report; results.csv has shares.
    """
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    summaries, tested = _summaries(grid, results), check_claims(grid, results)
    chart = _figure("Values and intervals", "results", results_chart(figures / "results", grid, summaries))
    lines = _main_sections(grid, results, summaries, tested, chart)
    if "training_share" in grid.figures:
        drawn = training_share(figures / "training_share", grid, summaries)
        lines += ["## Accuracy against the training share", "", *_figure("Training share", "training_share", drawn)]
    if "temperatures" in grid.figures:
        lines += temperatures_section(grid, results)
    if "score_densities" in grid.figures:
        lines += densities_section(grid, results, figures)
    if grid_curves(figures / "learning_curves", grid, results):
        lines += ["## Learning curves", "", "Accuracy on the validation questions, mean over the finished seeds.", ""]
        lines += _figure("Learning curves", "learning_curves", True)
    lines += [*health_section(grid, results), *differences_section(grid), *made_section(grid, results, about)]
    text = "\n".join(lines).rstrip() + "\n"
    write_atomically(out / "report.md", text)
    write_atomically(out / "report.html", page(text, subject_of(grid), figures))
    _write_results(out / "results.csv", grid, results)
    _write_tests(out / "tests.csv", tested)
    if results.comparisons:
        _write_comparisons(out / "comparisons.csv", grid, results)
    return _metrics(grid, results, summaries, tested)


def headline(grid: Grid, results: GridResults) -> str:
    """Results, verdicts and comparisons for the terminal, as Markdown without figures."""
    return "\n".join(_main_sections(grid, results, _summaries(grid, results), check_claims(grid, results), []))


def _summaries(grid: Grid, results: GridResults) -> dict[tuple[str, str], Summary]:
    found = {(one.row, one.column): summarise(grid, results, one) for one in grid.cells}
    return {place: one for place, one in found.items() if one is not None}


def _main_sections(
    grid: Grid, results: GridResults, summaries: Mapping[tuple[str, str], Summary], tested: Sequence[Tested],
    chart: Sequence[str],
) -> list[str]:  # fmt: skip
    """What was measured and what it shows; `chart` stands behind the table."""
    return [
        f"# {shown(subject_of(grid))}",
        "",
        *_simulated_note(grid),
        *results_section(grid, summaries),
        *chart,
        *missing_section(grid, results),
        *claims_section(tested),
        *comparisons_section(grid, results),
    ]


def _simulated_note(grid: Grid) -> list[str]:
    if not is_simulated(grid):
        return []
    return [
        "> **The teacher is simulated: no language model was asked.** The numbers show that the whole grid runs; they "
        "say nothing about the methods on real questions, so nothing is tested.",
        "",
    ]


def _figure(title: str, name: str, drawn: bool) -> list[str]:
    return [f"![{title}](figures/{name}.png)", ""] if drawn else [f"{title}: nothing to draw yet.", ""]


def _metrics(
    grid: Grid, results: GridResults, summaries: Mapping[tuple[str, str], Summary], tested: Sequence[Tested]
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for (row, column), one in summaries.items():
        prefix = f"grid/{_key(row)}/{_key(column)}"
        metrics[f"{prefix}/mean"] = one.value
        metrics[f"{prefix}/seeds"] = float(one.seeds)
        if one.low is not None and one.high is not None:
            metrics[f"{prefix}/low"], metrics[f"{prefix}/high"] = one.low, one.high
    metrics["grid/missing"] = float(sum(len(seeds) for seeds in missing_places(grid, results).values()))
    if tested:
        metrics["grid/claims_tested"] = float(sum(one.test is not None for one in tested))
        metrics["grid/claims_shown"] = float(sum(one.shown for one in tested))
    return metrics


def _key(name: str) -> str:
    """A name as part of a metric's name, which MLflow allows few characters."""
    return re.sub(r"[^\w.\- ]", "_", name)


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with whole_or_absent(path) as written, written.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _write_results(path: Path, grid: Grid, results: GridResults) -> None:
    """One line a cell and seed. Shares lie in [0, 1], the paper's, too."""
    with_paper = not is_simulated(grid)
    header = ["row", "column", "seed", "measure", "value", "items", *(["paper_value"] if with_paper else []), "source"]
    rows: list[list[object]] = []
    for one in grid.cells:
        scale = 100 if one.measure in SHARES else 1
        printed: list[object] = ["" if one.paper is None else round(one.paper.value / scale, 6)] if with_paper else []
        for result in results.of(one.row, one.column):
            measured = [one.row, one.column, result.seed, one.measure, result.value, len(result.right) or ""]
            rows.append([*measured, *printed, result.source])
    _write(path, header, rows)


def _write_tests(path: Path, tested: Sequence[Tested]) -> None:
    """One line a claim. Differences in points."""
    header = ["column", "better", "worse", "test", "seeds", "items", "difference", "low", "high", "p", "p_holm"]
    rows: list[list[object]] = []
    for one in tested:
        test, claim = one.test, one.claim
        values: list[object] = [""] * 9
        if test is not None:
            points = [100 * value for value in (test.difference, test.low, test.high)]
            detectable = "" if test.detectable is None else 100 * test.detectable
            values = [test.name, test.seeds, test.items, *points, test.p, one.p_holm, detectable]
        rows.append([claim.column, claim.better, claim.worse, *values, one.verdict()])
    _write(path, [*header, "detectable_with_80_percent_power", "verdict"], rows)


def _write_comparisons(path: Path, grid: Grid, results: GridResults) -> None:
    """One line a comparison."""
    header = ["column", "first", "second", "temperature", "first_better", "tie", "second_better", "agreement"]
    tested = not llm_judge_is_simulated(grid)
    rows = [
        [
            one.column, one.first, one.second, one.temperature, *one.counts(), one.agreement, one.unparsed, one.judge,
            *([comparison_p(one)] if tested else []),
        ]
        for one in results.comparisons
    ]  # fmt: skip
    _write(path, [*header, "unparsed", "judge", *(["p_sign_test"] if tested else [])], rows)

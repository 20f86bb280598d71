"""The main sections of a grid's report: its table, what is missing, verdicts, comparisons, and how it was made.

A simulated grid has neither the paper's numbers nor verdicts. Knows nothing about files or figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcrd.config.grid import SHARES, Cell, Grid
from qcrd.distill.methods import uses_teacher
from qcrd.report.grid.claims import Summary, Tested, column_student
from qcrd.report.grid.data import ComparisonResult, GridResults, is_simulated
from qcrd.report.markdown import cell as shown
from qcrd.report.markdown import percent, table
from qcrd.report.statistics import sign_test
from qcrd.teacher.backends.table import backend_of

MISSING = "missing"
_COUNTS = frozenset({"train_size", "validation_size", "test_size"})
_METHODS = (
    "Test accuracies: mean over the seeds and 95 % interval. With one seed the interval is Wilson's and covers the "
    "choice of test questions only; with several it covers seeds and questions, both taken as random (crossed random "
    "effects, Wilson's form with the effective number of questions, Cochran's weighted t quantiles)."
)
_TESTS = (
    "Paired tests on the same test questions and seeds, two-sided at 5 %: one seed, exact McNemar (which says nothing "
    "about other seeds); several, a t test whose variance covers seeds and questions (Cochran's weighted quantiles). "
    "Holm's correction runs over the claims that were tested; `shown` means that Holm's p is below 0.05. Intervals are "
    "95 % and the power is that of one test at 5 %, both without correction."
)


def value_text(cell: Cell, value: float) -> str:
    """A value of a cell as it is shown, with its unit."""
    if cell.measure in SHARES:
        return f"{value:.2f} %"
    return f"{value:.0f}" if cell.measure in _COUNTS else f"{value:.3g}"


def _summary_text(summary: Summary) -> str:
    text = value_text(summary.cell, summary.value)
    if summary.low is not None and summary.high is not None:
        if summary.cell.measure in SHARES:
            text += f" [{summary.low:.1f}, {summary.high:.1f}]"
        else:
            text += f" ({summary.low:.3g} .. {summary.high:.3g})"
    return text + (f", {summary.seeds} of {summary.expected} seeds" if summary.seeds < summary.expected else "")


def missing_places(grid: Grid, results: GridResults) -> dict[tuple[str, str, str], list[int]]:
    """(row, column, reason) → the seeds without a number."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for cell in grid.cells:
        done = {one.seed for one in results.of(cell.row, cell.column)}
        for seed in grid.seeds_of(cell):
            if seed not in done:
                reason = results.missing.get((cell.row, cell.column, seed), "not run")
                found.setdefault((cell.row, cell.column, reason), []).append(seed)
    return found


def results_section(grid: Grid, summaries: Mapping[tuple[str, str], Summary]) -> list[str]:
    """The table: our mean and interval beside the paper's value, with the flags as footnotes."""
    flags: dict[str, int] = {}
    header = [shown(grid.row_title)]
    for column in grid.columns:
        header.append(shown(f"{column}: {_ours(grid, column)}"))
        if _has_paper(grid, column):
            header.append(shown(f"{column}: paper"))
    rows = []
    for row in grid.rows:
        line = [shown(row)]
        for column in grid.columns:
            cell, summary = grid.cell(row, column), summaries.get((row, column))
            line.append("" if cell is None else MISSING if summary is None else _summary_text(summary))
            if _has_paper(grid, column):
                line.append(_paper_text(cell, flags))
        rows.append(line)
    lines = ["## Results", "", *table(header, rows)]
    lines += [line for text, number in flags.items() for line in (f"†{number}: {shown(text)}", "")]
    return lines + _notes(summaries)


def missing_section(grid: Grid, results: GridResults) -> list[str]:
    """Why there are numbers missing; nothing where there are none."""
    listed = [
        [shown(row), shown(column), ", ".join(map(str, seeds)), shown(reason)]
        for (row, column, reason), seeds in missing_places(grid, results).items()
    ]
    header = [shown(grid.row_title), "column", "seeds", "why there is no number"]
    return ["## Missing", "", *table(header, listed)] if listed else []


def _ours(grid: Grid, column: str) -> str:
    return column_student(grid, column) or "ours"


def _has_paper(grid: Grid, column: str) -> bool:
    return not is_simulated(grid) and any(cell.paper for cell in grid.cells if cell.column == column)


def _paper_text(cell: Cell | None, flags: dict[str, int]) -> str:
    if cell is None or cell.paper is None:
        return ""
    text = value_text(cell, cell.paper.value) if cell.measure in SHARES else f"{cell.paper.value:g}"
    return f"{text} †{flags.setdefault(cell.paper.flag, len(flags) + 1)}" if cell.paper.flag else text


def _notes(summaries: Mapping[tuple[str, str], Summary]) -> list[str]:
    lines = []
    items = {one.cell.column: one.items for one in summaries.values() if one.items}
    if items:
        sizes = ", ".join(f"{column} {count}" for column, count in items.items())
        lines += [_METHODS, "", f"Test questions: {shown(sizes)}.", ""]
    if any(one.cell.measure == "training_hours" for one in summaries.values()):
        lines += ["Training hours: mean and range over the seeds, measured on the machine named below.", ""]
    return lines


def claims_section(tested: Sequence[Tested]) -> list[str]:
    """One plain verdict a claim."""
    if not tested:
        return []
    lines = [f"- {one.verdict(shown)}" for one in tested]
    return ["## Verdicts", "", *lines, "", _TESTS, ""]


def llm_judge_is_simulated(grid: Grid) -> bool:
    """Whether comparisons carry no verdict: the students' teacher or the judge is simulated."""
    return is_simulated(grid) or (grid.llm_judge is not None and backend_of(grid.llm_judge).simulated)


def comparisons_section(grid: Grid, results: GridResults) -> list[str]:
    """Table 7: how often the LLM judge found which row's rationale better."""
    if not grid.comparisons:
        return []
    real = not llm_judge_is_simulated(grid)
    header = ["column", "first", "second", "τ", "first / tie / second", "agreement of the orders", "unparsed", "judge"]
    header += ["sign test, ties left out", "paper: first / both good / second"] if real else []
    found = {(one.column, one.first, one.second, one.temperature): one for one in results.comparisons}
    rows = []
    for one in grid.comparisons:
        result = found.get((one.column, one.first, one.second, one.temperature))
        line = [shown(one.column), shown(one.first), shown(one.second), f"{one.temperature:g}"]
        line += [MISSING, "", "", ""] if result is None else _counts(result)
        if real:
            line.append("" if result is None else f"p = {comparison_p(result):.3f}")
            line.append("" if one.paper is None else " / ".join(map(str, one.paper)))
        rows.append(line)
    lines = ["## Which rationales an LLM judge finds better", "", *table(header, rows)]
    lines += ["Each pair is shown in both orders; a verdict that flips with the order is a tie.", ""]
    if real:
        lines += ["The p values of the sign tests are not corrected for their number.", ""]
    return lines


def comparison_p(result: ComparisonResult) -> float:
    """The sign test of a comparison, on the pairs that are no tie."""
    first, _, second = result.counts()
    return sign_test(first, second)


def _counts(result: ComparisonResult) -> list[str]:
    counts = " / ".join(map(str, result.counts()))
    return [counts, percent(result.agreement), str(result.unparsed), shown(result.judge)]


def made_section(grid: Grid, results: GridResults, about: Mapping[str, str]) -> list[str]:
    """Command, commit, hardware and whatever else the caller says, the seeds, teachers, and every number's source."""
    asked = [cell.config.teacher for cell in grid.cells if uses_teacher(cell.config.method, cell.config.train)]
    teachers = sorted({backend_of(teacher).name(teacher) for teacher in asked})
    told = {**about, "seeds": ", ".join(map(str, grid.seeds)), "teacher": ", ".join(teachers) or "none"}
    lines = ["## How it was made", "", *table(["what", "value"], [[shown(k), shown(v)] for k, v in told.items()])]
    sources = [[shown(one.row), shown(one.column), str(one.seed), shown(one.source)] for one in results.cells]
    return lines + table(["row", "column", "seed", "source"], sources)

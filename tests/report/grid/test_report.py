"""A grid's report: numbers beside the paper's, verdicts, what is missing, and what hostile text may not do to it."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import (
    EncoderPairStudentConfig,
    ExperimentConfig,
    OpenAITeacherConfig,
    ScratchStudentConfig,
    Seq2SeqStudentConfig,
    SimulatedTeacherConfig,
    validated,
)
from qcrd.config.grid import Cell, Claim, Comparison, Grid, PaperValue
from qcrd.records import Explanation, Score
from qcrd.report.grid.claims import check_claims, student_name
from qcrd.report.grid.data import CellResult, ComparisonResult, GridResults
from qcrd.report.grid.details import health_section
from qcrd.report.grid.differences import changed_fields, differences_section
from qcrd.report.grid.figures import mean_curve
from qcrd.report.grid.report import headline, write_grid_report
from qcrd.report.grid.sections import claims_section, comparisons_section, missing_places
from qcrd.report.html import page

HOSTILE = (
    "| a | b |\n\n```\n# heading\n<script>alert(1)</script> <img src=http://x.org/y onerror=z> <br> $\\frac$ "
    "[l](http://x.org) ![p](http://x.org/p.png) <http://x.org> &lt;b&gt; \\| end\r\n\x00|"
)
ABOUT = {"command": "qcrd run experiments/table1.py", "commit": "0123abc", "hardware": "1 A100 & <2> cores"}


def config(method: str = "qcrd", **changes: Any) -> ExperimentConfig:
    data = {"name": "cell", "method": method, "teacher": {"kind": "openai"}, "task": {"name": "svamp"}}
    return validated(data | changes)


def small_grid(**changes: Any) -> Grid:
    """DSS and QCRD on SVAMP, three seeds, and a teacher's accuracy; the paper's numbers, one of them doubtful."""
    teacher = config(task={"name": "cqa"})
    cells = (
        Cell(row="DSS", column="SVAMP", config=config("dss"), paper=PaperValue(value=65.5)),
        Cell(row="QCRD", column="SVAMP", config=config(), paper=PaperValue(value=69.0, flag="an average | of what?")),
        Cell(row="QCRD", column="CQA", config=teacher, measure="sample_accuracy", paper=PaperValue(value=66.3)),
        Cell(row="DSS", column="hours", config=config("dss"), measure="training_hours", paper=PaperValue(value=4)),
    )
    claims = (Claim(column="SVAMP", better="QCRD", worse="DSS"),)
    return Grid(**{"name": "t", "title": "A table", "cells": cells, "seeds": (0, 1, 2), "claims": claims} | changes)


def answers(right: int, items: int = 50, start: int = 0) -> dict[str, bool]:
    return {f"test-{i}": (i - start) % items < right for i in range(items)}


def result(row: str, seed: int, right: Mapping[str, bool], **changes: Any) -> CellResult:
    value = sum(right.values()) / len(right)
    rows = [{"step": step, "eval/accuracy": (seed + step / 10) / 10} for step in (10, 20)]
    made = CellResult(row, "SVAMP", seed, value, right, rows=rows, source=f"runs/{row}/{seed}")
    return replace(made, **changes)


def small_results() -> GridResults:
    """Two of three seeds of each row; QCRD answers 40 and 42 of 50, DSS the first 10 and 11."""
    cells = [result("DSS", seed, answers(10 + seed)) for seed in (0, 1)]
    cells += [result("QCRD", seed, answers(40 + 2 * seed)) for seed in (0, 1)]
    cells.append(CellResult("QCRD", "CQA", 0, 0.6905, source="runs/teacher"))
    cells += [CellResult("DSS", "hours", seed, hours) for seed, hours in ((0, 1.5), (1, 2.5), (2, 2.0))]
    return GridResults(cells, missing={("QCRD", "SVAMP", 2): "budget | spent", ("DSS", "SVAMP", 2): "killed"})


def simulated(grid: Grid) -> Grid:
    changed = {"kind": "simulated"}
    cells = [
        one.model_copy(update={"config": validated(one.config.model_dump() | {"teacher": changed})})
        for one in grid.cells
    ]
    return grid.model_copy(update={"cells": tuple(cells)})


def write(grid: Grid, results: GridResults, out: Path) -> tuple[str, str, dict[str, float]]:
    metrics = write_grid_report(grid, results, out, ABOUT)
    return (out / "report.md").read_text(), (out / "report.html").read_text(), metrics


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Tags(HTMLParser):
    """Tags and the attributes that can reach outside."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


Report = tuple[str, str, dict[str, float], Path]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("grid")
    return *write(small_grid(), small_results(), out), out


def test_our_values_stand_beside_the_papers(report: Report) -> None:
    text, _, metrics, _ = report
    assert text.splitlines()[0] == "# A table"
    header = "| method | SVAMP: T5-base | SVAMP: paper | CQA: ours | CQA: paper | hours: T5-base | hours: paper |"
    assert header in text
    qcrd = next(line for line in text.splitlines() if line.startswith("| QCRD | 82.00 %"))
    assert ", 2 of 3 seeds | 69.00 % †1 | 69.05 % | 66.30 % |  |  |" in qcrd
    assert "†1: an average &#124; of what?" in text
    dss = next(line for line in text.splitlines() if line.startswith("| DSS | 21.00 %"))
    assert dss.endswith("| 65.50 % |  |  | 2 (1.5 .. 2.5) | 4 |")
    assert "| QCRD | SVAMP | 2 | budget &#124; spent |" in text
    assert metrics["grid/QCRD/SVAMP/mean"] == 82.0 and metrics["grid/QCRD/SVAMP/seeds"] == 2
    assert metrics["grid/QCRD/SVAMP/low"] < 82 < metrics["grid/QCRD/SVAMP/high"]
    assert metrics["grid/missing"] == 2 and metrics["grid/claims_tested"] == 1


def test_the_terminal_shows_what_the_report_says_without_figures(tmp_path: Path) -> None:
    grid, results = small_grid(), small_results()
    text = write(grid, results, tmp_path)[0]
    said = headline(grid, results)
    sections = [one for one in text.split("\n## ") if one.startswith(("# ", "Results", "Missing", "Verdicts"))]
    assert "![" in text and "![" not in said and "How it was made" not in said
    shown = [line for line in "\n## ".join(sections).splitlines() if line and not line.startswith("![")]
    assert [line for line in said.splitlines() if line] == shown


def test_how_it_was_made(report: Report) -> None:
    text, page_text, _, out = report
    assert (
        "| commit | 0123abc |" in text
        and "| seeds | 0, 1, 2 |" in text
        and "| teacher | gpt-3.5-turbo (openai) |" in text
        and "| QCRD | SVAMP | 1 | runs/QCRD/1 |" in text
    )
    assert "1 A100 &amp; &lt;2&gt; cores" in page_text
    for name in ("results", "learning_curves"):
        assert (out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        svg = base64.b64encode((out / "figures" / f"{name}.svg").read_bytes()).decode()
        assert f"data:image/svg+xml;base64,{svg}" in page_text


def test_csv_files_hold_the_numbers(report: Report) -> None:
    _, _, _, out = report
    rows = read_csv(out / "results.csv")
    assert len(rows) == 8
    assert rows[2] == {
        "row": "QCRD", "column": "SVAMP", "seed": "0", "measure": "test_accuracy", "value": "0.8", "items": "50",
        "paper_value": "0.69", "source": "runs/QCRD/0",
    }  # fmt: skip
    assert [(row["column"], row["value"], row["items"], row["paper_value"]) for row in rows[4:6]] == [
        ("CQA", "0.6905", "", "0.663"), ("hours", "1.5", "", "4.0")
    ]  # fmt: skip
    (test,) = read_csv(out / "tests.csv")
    assert (test["better"], test["worse"], test["seeds"], test["items"]) == ("QCRD", "DSS", "2", "50")
    assert float(test["difference"]) == pytest.approx(61) and test["p"] == test["p_holm"]
    assert not (out / "comparisons.csv").exists()


def test_simulated_grid_has_no_paper_and_no_verdicts(tmp_path: Path) -> None:
    results = replace(small_results(), missing={})
    text, page_text, metrics = write(simulated(small_grid(title="Smoke")), results, tmp_path)
    assert text.splitlines()[0] == "# Smoke: svamp, cqa, simulated teacher"
    assert "| method | SVAMP: T5-base | CQA: ours | hours: T5-base |" in text
    assert "| QCRD | 82.00 % [" in text and "| DSS | SVAMP | 2 | not run |" in text
    for shown in (text, page_text, (tmp_path / "results.csv").read_text()):
        assert "paper" not in shown and "Verdicts" not in shown and "65.5" not in shown
    assert read_csv(tmp_path / "tests.csv") == [] and "grid/claims_tested" not in metrics
    assert "<title>Smoke: svamp, cqa, simulated teacher</title>" in page_text


def test_verdict_line() -> None:
    grid = small_grid(seeds=(0,))
    # 30 and 24 of 50, 8 won and 2 lost: p = 2 (1 + 10 + 45) / 1024
    qcrd = {f"test-{i}": i < 30 for i in range(50)}
    dss = {f"test-{i}": i < 22 or i in (40, 41) for i in range(50)}
    results = GridResults([result("DSS", 0, dss), result("QCRD", 0, qcrd)])
    (one,) = check_claims(grid, results)
    assert one.test is not None and one.test.p == pytest.approx(112 / 1024)
    assert one.verdict().startswith("QCRD > DSS on SVAMP: not shown, p = 0.11 (Holm 0.11), difference +12.0 points [")
    assert "n = 1 seed x 50 items (one seed: about these two students, not about other seeds); a true" in one.verdict()
    assert claims_section([one])[2].startswith("- QCRD > DSS on SVAMP: not shown")


def test_verdict_words_and_holm() -> None:
    claims = (Claim(column="SVAMP", better="QCRD", worse="DSS"), Claim(column="SVAMP", better="DSS", worse="QCRD"))
    results = GridResults([result("DSS", 0, answers(20)), result("QCRD", 0, answers(40))])
    shown, opposite = check_claims(small_grid(seeds=(0,), claims=claims), results)
    assert shown.shown and ": shown, p < 0.001 (Holm < 0.001), difference +40.0 points" in shown.verdict()
    assert not opposite.shown and ": the opposite is shown, " in opposite.verdict()
    assert shown.p_holm == pytest.approx(2 * 2 / 2**20)


def test_claims_that_cannot_be_tested_say_why() -> None:
    def reason(dss: list[CellResult], qcrd: list[CellResult]) -> str:
        (one,) = check_claims(small_grid(), GridResults([*dss, *qcrd]))
        return one.verdict()

    both = [result("QCRD", seed, answers(30)) for seed in (0, 1)]
    start = "QCRD > DSS on SVAMP: not tested: "
    assert reason([], both) == start + "DSS is missing"
    assert reason([result("DSS", 1, answers(20))], both) == start + "the seeds differ (QCRD [0, 1], DSS [1])"
    others = [result("DSS", seed, answers(20, items=40)) for seed in (0, 1)]
    assert reason(others, both) == start + "the two rows answered different test questions"
    mixed = [result("DSS", 0, answers(20)), result("DSS", 1, answers(20, items=40))]
    assert reason(mixed, both) == start + "no answers to the same test questions at each seed"


def test_missing_cells() -> None:
    places = missing_places(small_grid(), GridResults([], missing={("DSS", "SVAMP", 1): "killed"}))
    assert places[("DSS", "SVAMP", "killed")] == [1] and places[("DSS", "SVAMP", "not run")] == [0, 2]
    assert places[("QCRD", "CQA", "not run")] == [0]  # a measure that is taken once


def test_students_are_named() -> None:
    names = {
        "T5-small": Seq2SeqStudentConfig(model="google-t5/t5-small"),
        "flan-t5-base": Seq2SeqStudentConfig(model="google/flan-t5-base"),
        "/models/t5-base": Seq2SeqStudentConfig(model="/models/t5-base"),
        "MiniLM-L6 encoder pair": EncoderPairStudentConfig(model="/data/MiniLM-L6/"),
        "minilm encoder pair": EncoderPairStudentConfig(model="/packages/minilm/model"),
        "./model": Seq2SeqStudentConfig(model="./model"),
        "T5 from scratch, d_model 128": ScratchStudentConfig(),
    }
    assert {name: student_name(student) for name, student in names.items()} == {name: name for name in names}


def comparison_grid(kind: str) -> tuple[Grid, GridResults]:
    asked = [
        Comparison(column="SVAMP", first="DSS", second="QCRD", temperature=0, paper=(21, 0, 29)),
        Comparison(column="SVAMP", first="DSS", second="QCRD", temperature=0.7),
    ]
    llm_judge = {"openai": OpenAITeacherConfig(), "simulated": SimulatedTeacherConfig()}[kind]
    items = {"a": "first", "b": "tie", "c": "second", "d": "second", "e": "second", "f": "second", "g": "second"}
    done = ComparisonResult("SVAMP", "DSS", "QCRD", 0.0, items, 0.875, 1, "gpt | 4")
    told = {"explain_temperatures": (0.0, 0.7)}
    cells = tuple(
        cell.model_copy(update={"config": config(cell.config.method, evaluation=told)}) for cell in small_grid().cells
    )
    return small_grid(cells=cells, comparisons=tuple(asked), llm_judge=llm_judge), GridResults([], [done])


def test_comparisons() -> None:
    text = "\n".join(comparisons_section(*comparison_grid("openai")))
    # 1 against 5: 2 (1 + 6) / 64
    assert "| SVAMP | DSS | QCRD | 0 | 1 / 1 / 5 | 87.5 % | 1 | gpt &#124; 4 | p = 0.219 | 21 / 0 / 29 |" in text
    assert "| SVAMP | DSS | QCRD | 0.7 | missing |" in text
    judged = "\n".join(comparisons_section(*comparison_grid("simulated")))
    assert "1 / 1 / 5" in judged and "paper" not in judged and "sign test" not in judged


def test_health_is_the_mean_over_seeds() -> None:
    results = GridResults(
        [
            result("QCRD", seed, answers(10), metrics={"discriminator/auroc_real": 0.9 + seed / 10, **hinges})
            for seed, hinges in ((0, {"report/hinge_active_last": 0.25}), (1, {}))
        ]
    )
    text = "\n".join(health_section(small_grid(), results))
    assert "| method | column | active hinges, last | discriminator's AUROC, real negatives |" in text
    assert "| QCRD | SVAMP | 25.0 % | 0.950 |" in text and "DSS" not in text
    told = GridResults([*results.cells, result("DSS", 0, answers(10), metrics={"eval/test_consistency": 0.5})])
    assert "| DSS | SVAMP | not measured | not measured | 50.0 % |" in "\n".join(health_section(small_grid(), told))
    assert health_section(small_grid(), GridResults([])) == []


def test_curves_are_means_at_common_steps() -> None:
    curves = [[(10, 0.2), (20, 0.4), (30, 0.9)], [(10, 0.4), (20, 0.5)]]
    found = [
        CellResult("a", "b", seed, 0.0, rows=[{"step": step, "eval/accuracy": value} for step, value in curve])
        for seed, curve in enumerate(curves)
    ]
    assert mean_curve(found) == [(10, pytest.approx(0.3)), (20, pytest.approx(0.45))] and mean_curve([]) == []


def test_changed_fields() -> None:
    other = config("dss", seed=1, train={"learning_rate": 1e-4}, teacher={"kind": "openai", "extra_body": {"top_k": 4}})
    changes = changed_fields(config(), other)
    assert ("method", "qcrd", "dss") in changes and ("train.learning_rate", 1e-5, 1e-4) in changes
    assert ("teacher.extra_body.top_k", None, 4) in changes and ("seed", 0, 1) in changes
    assert changed_fields(other, other) == []


def test_what_differs_between_cells() -> None:
    text = "\n".join(differences_section(small_grid()))
    assert "| method | `method` |" in text and "| DSS | dss |" in text and "| QCRD | qcrd |" in text
    assert "| column | `method` | `task.name` |" not in text
    assert "| column | `task.name` |" in text and "| CQA | cqa |" in text and "`seed`" not in text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A grid with every figure, whose texts are hostile."""
    shares = [validated(config().model_dump() | {"task": {"train_share": share}}) for share in (0.5, 1.0)]
    cells = tuple(
        Cell(row=f"QCRD $\\frac$ <b> {one.task.train_share}", column="a | b <script>", config=one) for one in shares
    )
    figures = ("training_share", "temperatures", "score_densities")
    grid = small_grid(cells=cells, claims=(), seeds=(0,), figures=figures, title="</title><script>alert(2)</script>")
    told = [Explanation("q1", "test", tau, 0, HOSTILE, tau > 1, 0.25) for tau in (0.0, 1.5)]
    told += [Explanation("q0", "train", 0.0, 0, "a training question", False, None)]
    scores = [Score("q1", "teacher_positive", 0.9), Score("q1", "student_1.5", 0.75), Score("q2", "student_1.5", 0.5)]
    made = [
        result(cell.row, 0, answers(20 + i), column=cell.column, explanations=told, source=HOSTILE, scores=scores * i,
               question_texts={"q1": HOSTILE})
        for i, cell in enumerate(cells)
    ]  # fmt: skip
    out = tmp_path_factory.mktemp("hostile")
    text, page_text, _ = write(grid, GridResults(made), out)
    return text, page_text, out


def test_hostile_text_breaks_no_page(hostile: tuple[str, str, Path]) -> None:
    text, page_text, _ = hostile
    tags = Tags()
    tags.feed(page_text)
    assert tags.tags == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "img", "table", "thead", "tbody", "tr",
        "th", "td", "br", "code",
    }  # fmt: skip
    assert len(tags.sources) == 4 and all(one.startswith("data:image/svg+xml;base64,") for one in tags.sources)
    assert tags.attributes == {"lang", "charset", "http-equiv", "content", "alt", "src"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page_text and "<td>| a | b |<br>" in page_text
    assert "![p](http://x.org/p.png)" in page_text and "&amp;lt;b&amp;gt;" in page_text  # shown as they were written
    lines = text.splitlines()
    for before, line in pairwise(lines):
        if line.startswith("|") and before.startswith("|"):
            assert line.count("|") == before.count("|"), line


def test_figures_of_the_paper(hostile: tuple[str, str, Path]) -> None:
    text, _, out = hostile
    names = {"results", "training_share", "learning_curves", "score_densities_1"}
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    assert "| teacher, positive | 1 | 0.900 | 100.0 % |" in text and "| student, τ = 1.5 | 2 | 0.625 | 50.0 % |" in text
    assert "Scored: training questions held out of the discriminator's pretraining." in text
    assert (
        text.count("| 0.250 | no |") == 2 and text.count("| 0.250 | yes |") == 2 and "a training question" not in text
    )


def test_only_own_line_breaks_become_tags(tmp_path: Path) -> None:
    shown = page("a<br>b &lt;br&gt; <b>c</b> <a href='x'>y</a> [z](http://x.org) javascript:1", "<t>", tmp_path)
    body = shown.split("<body>")[1]
    assert "<p>a<br>\nb &lt;br&gt; &lt;b&gt;c&lt;/b&gt; &lt;a href='x'&gt;y&lt;/a&gt; [z](http://x.org)" in body
    assert "<title>&lt;t&gt;</title>" in shown

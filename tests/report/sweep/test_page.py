"""A sweep's report: what its page shows, that it needs no network, and what hostile text may not do to it."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qcrd.report.sweep.data import Configuration, SweepResults
from qcrd.report.sweep.page import write_sweep_report
from qcrd.report.sweep.plots import parallel_coordinates, score_and_cost
from qcrd.report.sweep.sections import choice_line, importance_line
from qcrd.report.sweep.statistics import Importance, best_choice
from tests.report.sweeps import one, sweep

HOSTILE = "</script><img src=http://x.org/y onerror=z> | <b> $x$ [l](http://x.org)"
PLOTS = ("score_and_cost", "parallel_coordinates", "importance", "effects", "learning_curves")


def configurations() -> list[Configuration]:
    """Six finished with three seeds, one stopped after iteration 2, one failed."""
    made = []
    for index, rate in enumerate((1e-5, 1e-4, 1e-3)):
        for gap in (1, 3):
            score = 0.3 + 0.1 * index + 0.01 * gap
            curves = {seed: [score - 0.1, score + 0.01 * seed, score - 0.01] for seed in (0, 1, 2)}
            values = {"train.learning_rate": rate, "negatives.gap": gap, "negatives.source": "snapshot"}
            made.append(one(f"c{len(made)}", values, curves, seconds=300.0 - 10 * index))
    made[-1].test_accuracy.update({0: 0.5, 1: 0.54})
    values = {"train.learning_rate": 1e-2, "negatives.gap": 1, "negatives.source": HOSTILE}
    early = one("early", values, {seed: [0.2, 0.25] for seed in (0, 1, 2)}, "stopped", seconds=30.0)
    return [*made, early, one("broken", values, {0: [0.1]}, "failed", reason=HOSTILE)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("report")
    about = {"command": "qcrd sweep x.py"}
    return folder, write_sweep_report(sweep(configurations(), simulated=True, about=about), folder)


class Tags(HTMLParser):
    """Start tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_page_is_whole_and_loads_nothing(written: tuple[Path, dict[str, float]]) -> None:
    page = (written[0] / "report.html").read_text()
    tags = Tags(page).tags
    assert {tag for tag, _ in tags} >= {"table", "script", "h2"} and "img" not in {tag for tag, _ in tags}
    assert not [attributes for _, attributes in tags if attributes.keys() & {"src", "href", "action", "onerror"}]
    assert {str(attributes.get("id")) for tag, attributes in tags if tag == "div"} >= set(PLOTS)
    for name in PLOTS:
        assert f'Plotly.newPlot(                        "{name}"' in page
    assert page.count("plotly.js v") == 1  # its licence's head
    (policy,) = [a["content"] or "" for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "http" not in policy and "form-action 'none'" in policy
    assert page.count('"showSendToCloud": false') == len(PLOTS)  # plotly would offer to upload the plot


def test_page_says_that_the_teacher_is_simulated(written: tuple[Path, dict[str, float]]) -> None:
    page = (written[0] / "report.html").read_text()
    assert "<h1>A sweep: qcrd on svamp, simulated teacher</h1>" in page
    assert page.count("qcrd on svamp, simulated teacher\\u003c\\u002fsup\\u003e") == len(PLOTS)
    assert "simulated" not in str(score_and_cost(sweep(configurations())))


def test_text_of_the_report(written: tuple[Path, dict[str, float]]) -> None:
    text = (written[0] / "report.md").read_text()
    assert "8 configurations (6 finished, 1 stopped, 1 failed), 3 seeds" in text
    assert "| 1 | c5 | 54.0 \\[51.5, 56.5\\] |  | 3 | 1:33 | 30 | 0.001 | 3 | snapshot |" in text
    assert "| 2 | c4 | 52.0 \\[49.5, 54.5\\] | -2.0 \\[-2.0, -2.0\\] | 3 |" in text
    assert "| early | stopped after iteration 2 | 25.0 | 0:10 | 20 | 0.01 | 1 |" in text
    assert "| broken | failed after iteration 1 |" in text
    assert "after iteration 2, the last one that each of the 7 configurations reached" in text
    assert "Test set, evaluated once: c5 has 52.0 % (seed 0: 50.0 %, seed 1: 54.0 %)." in text
    assert "| train.learning\\_rate | 1e-05 | 33.0 % | [32.0, 34.0] | 2 |" in text
    for name in ("learning_curves", "effects"):
        assert f"(figures/{name}.png)" in text
        assert (written[0] / "figures" / f"{name}.png").stat().st_size > 1000
        assert (written[0] / "figures" / f"{name}.svg").is_file()
    assert "figures/importance.png" not in text  # drawn in the page alone


def test_csv_has_a_row_a_configuration_and_seed(written: tuple[Path, dict[str, float]]) -> None:
    rows = list(csv.DictReader((written[0] / "results.csv").open(newline="")))
    assert len(rows) == 6 * 3 + 3 + 1
    row = next(row for row in rows if (row["configuration"], row["seed"]) == ("c5", "1"))
    assert float(row["best_validation_accuracy"]) == pytest.approx(0.54)
    assert float(row["last_validation_accuracy"]) == pytest.approx(0.52)
    assert (row["iterations"], row["test_accuracy"], row["train.learning_rate"]) == ("3", "0.54", "0.001")
    assert rows[-1]["reason"] == HOSTILE


def test_headline_numbers(written: tuple[Path, dict[str, float]]) -> None:
    numbers = written[1]
    assert (numbers["sweep/finished"], numbers["sweep/stopped"], numbers["sweep/failed"]) == (6, 1, 1)
    assert numbers["sweep/best_score"] == pytest.approx(0.54)
    assert numbers["sweep/best_low"] == pytest.approx(0.54 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert numbers["sweep/steps"] == 6 * 90 + 60 + 10
    assert numbers["sweep/seconds"] == 2 * (300 + 290 + 280) + 30 + 60


def test_written_again_is_the_same_and_leaves_nothing_beside(
    written: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    about = {"command": "qcrd sweep x.py"}
    write_sweep_report(sweep(configurations()[:2]), tmp_path)
    write_sweep_report(sweep(configurations(), simulated=True, about=about), tmp_path)
    for name in ("report.md", "report.html", "results.csv", "figures/effects.svg", "figures/learning_curves.png"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html", "results.csv", "figures"}
    assert len(list((tmp_path / "figures").iterdir())) == 4


def test_a_sweep_that_has_only_begun(tmp_path: Path) -> None:
    waiting = [one("a", {"gap": 1}, {}, "unfinished", 0.0), one("b", {"gap": 2}, {0: []}, "failed", reason="killed")]
    numbers = write_sweep_report(sweep(waiting), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Nothing is finished yet" in text and "unfinished, not begun" in text and "No iteration is finished" in text
    assert "sweep/best_score" not in numbers and numbers["sweep/unfinished"] == 1
    assert not list((tmp_path / "figures").iterdir())
    assert "Plotly.newPlot(   " not in (tmp_path / "report.html").read_text()


def test_axes_of_parallel_coordinates() -> None:
    figure = parallel_coordinates(sweep(configurations()))
    assert figure is not None
    rate, gap, source, score = figure.data[0].dimensions  # pyright: ignore[reportAttributeAccessIssue]
    assert list(rate["values"]) == pytest.approx([-5, -5, -4, -4, -3, -3, -2])  # 3 decades: by the logarithm
    assert list(rate["ticktext"]) == ["1e-05", "0.0001", "0.001", "0.01"]
    assert list(gap["values"]) == [1, 3, 1, 3, 1, 3, 1]
    assert list(source["values"]) == [0, 0, 0, 0, 0, 0, 1] and source["ticktext"][0] == "snapshot"
    assert "<img" not in source["ticktext"][1]
    assert list(score["values"])[-1] == pytest.approx(25)


def results_with(seeds: int) -> SweepResults:
    low = one("low", {"gap": 1}, {seed: [0.59] for seed in range(seeds)}, seconds=30.0 * seeds)
    high = one("high", {"gap": 3}, {seed: [0.58 + 0.02 * seed] for seed in range(seeds)}, seconds=90.0 * seeds)
    return sweep([low, high])


def test_lines_of_choice_and_importance() -> None:
    three = results_with(3)
    choice = best_choice(three)
    assert choice is not None
    assert choice_line(three, choice) == (
        "Within one standard error (1.15 points) of the best, cheapest first: low (gap 1), 59.0 %, 0:30 a seed. "
        "Then, by cost: high."
    )
    single = results_with(1)
    choice = best_choice(single)
    assert choice is not None
    assert choice_line(single, choice).startswith(
        "The one-standard-error rule is not applicable: low, the best, has one"
    )
    shown = importance_line(Importance({"gap": 0.75, "source": 0.25}, 9))
    assert shown == "Importance of the fields: gap 75 %, source 25 % (9 configurations)."

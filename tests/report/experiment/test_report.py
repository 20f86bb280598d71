"""The report: its numbers, its warnings, its figures, and what hostile text may not do to it."""

from __future__ import annotations

import json
import math
import struct
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from experiments.paper import ACCURACIES, STATISTICS, TRAINING_HOURS, numbers
from qcrd.config import ExperimentConfig, flatten, validated, with_overrides
from qcrd.pipeline.identity import experiment_identity
from qcrd.pipeline.stages.report import REPORT, facts_of
from qcrd.rationales.consistency import statistics
from qcrd.records import (
    Example,
    Explanation,
    Prediction,
    Question,
    Rationale,
    Sample,
    Score,
    Vote,
    read_rows,
    write_rows,
)
from qcrd.report.experiment import report
from qcrd.report.experiment.report import headline_lines, write_report
from qcrd.report.markdown import cell, table

HOSTILE = (
    "| a | b |\n\n```\n# heading\n<script>alert(1)</script> <b>bold</b> `tick` **x** [l](http://x) \\| end\r\n\x00|"
)
ITERATIONS, STEPS = 8, 10
METHODS = ["finetune", "single_task", "distill_label", "dss", "mi", "qcrd"]


@dataclass
class World:
    """A tiny, consistent experiment: 20 training questions, of which 16 have a right vote."""

    folder: Path
    config: ExperimentConfig
    hinge: float = 0.4
    auroc: float | None = 0.97
    truncated: float = 0.1
    unparsed: int = 0
    test_right: dict[str, int] = field(default_factory=lambda: {"initial": 2, "best": 30, "last": 28})
    text: str = "I add 2 and 3"
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    explained: int = 7
    evaluation: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, figures: bool = False) -> tuple[str, dict[str, float], Path]:
        """Write the folders and the report. Returns the report's text, the metrics and the folder.

        Drawing takes most of the time, so only tests that look at figures have them drawn.
        """
        inputs: dict[str, Path] = {}
        for stage in ("questions", "samples", "rationales", "training_set", "discriminator", "student", "predictions"):
            if stage not in self.without:
                inputs[stage] = self.folder / stage / "x-0123"
                inputs[stage].mkdir(parents=True)
                getattr(self, f"_{stage}")(inputs[stage])
        out = self.folder / "report"
        out.mkdir()
        with nullcontext() if figures else mock.patch.object(report, "_draw"):
            self.summary = write_report(self.config, facts_of(self.config), inputs, self.summaries, out)
        metrics = {key: value for key, value in self.summary.items() if not isinstance(value, list)}
        return (out / "report.md").read_text(), metrics, out

    def _questions(self, folder: Path) -> None:
        sizes = {"train": 20, "validation": 10, "test": 40}
        rows = [
            Question(f"{split}-{i}", split, f"What is {i} + 1?", f"( {i} + 1 )", f"{i + 1}.0")
            for split, size in sizes.items()
            for i in range(size)
        ]
        write_rows(folder / "questions.parquet", Question, rows)

    def _samples(self, folder: Path) -> None:
        rows = [
            Sample(f"train-{q}", k, f"{q}-{k}", self.text, "", "stop", "", None, 1, 10, 5)
            for q in range(20)
            for k in range(5)
        ]
        rows[0] = Sample("train-0", 0, "0-0", "", "", "", "timeout | 30 s", None, 6, None, None)
        write_rows(folder / "samples.parquet", Sample, rows)

    def _rationales_rows(self) -> tuple[list[Vote], list[Rationale]]:
        """Questions 0-11: five right. 12-15: three right, two wrong. 16-19: five wrong, in agreement."""
        votes, rationales = [], []
        left = self.unparsed
        for q in range(20):
            right = 5 if q < 12 else 3 if q < 16 else 0
            answers: list[str | None] = ["r" if k < right else "w" for k in range(5)]
            if left > 0 and q < 12:
                answers[4], left = None, left - 1
            majority = "r" if right else "w"
            parsed = [a for a in answers if a is not None]
            agreement = parsed.count(majority) / len(parsed)
            votes.append(Vote(f"train-{q}", majority, majority, agreement, False, 5, len(parsed)))
            rationales += [
                Rationale(f"train-{q}", k, self.text, "l", a, a == majority, a == "r") for k, a in enumerate(answers)
            ]
        return votes, rationales

    def _rationales(self, folder: Path) -> None:
        votes, rationales = self._rationales_rows()
        write_rows(folder / "votes.parquet", Vote, votes)
        write_rows(folder / "rationales.parquet", Rationale, rationales)
        (folder / "statistics.json").write_text(json.dumps(statistics(votes, rationales)))

    def _training_set(self, folder: Path) -> None:
        asked = "rationales" not in self.without
        rows = []
        for q in range(20):
            good = [self.text] * 3 if asked and q else []
            bad = [self.text + " (wrong)"] if asked and q >= 12 else []
            sides = ([[1]] * len(good), good, [[1]] * len(bad), bad)
            rows.append(Example(f"train-{q}", f"What is {q} + 1?", [1], [1], [1], [1], *sides, "r"))
        write_rows(folder / "examples.parquet", Example, rows)

    def _discriminator(self, folder: Path) -> None:
        row: dict[str, float] = {
            "step": 100, "discriminator/loss": -0.7, "discriminator/mean_positive": 0.93,
            "discriminator/mean_negative": 0.08,
            "discriminator/auroc_augmented": 0.991,
        }  # fmt: skip
        if self.auroc is not None:
            row["discriminator/auroc_real"] = self.auroc
        (folder / "pretraining.jsonl").write_text(json.dumps(row) + "\n")

    def _student(self, folder: Path) -> None:
        rows: list[dict[str, float]] = []
        for iteration in range(1, ITERATIONS + 1):
            end = iteration * STEPS
            row: dict[str, float] = {"step": end, "train/label_loss": 3 / iteration, "train/loss": 3 / iteration}
            if self.config.method == "dss":
                row["train/rationale_loss"] = 4 / iteration
            summary: dict[str, float] = {"step": end, "eval/accuracy": 0.1 * iteration, "train/iteration": iteration}
            if self.config.method == "qcrd":
                row |= {
                    "train/contrastive_loss": 2 / iteration, "train/hinge_active": self.hinge if iteration > 5 else 0.9,
                    "train/positive_nll": 2 / iteration, "train/negative_nll": 3.5 - iteration / 10,
                    "train/positive_quality": 0.9, "train/negative_quality": 0.2 + iteration / 100,
                }  # fmt: skip
                summary |= {
                    "train/selection_entropy": 1.1, "negatives/count": 80, "negatives/truncated": self.truncated,
                    "negatives/mean_tokens": 20.5, "negatives/right_answer": 0.05, "discriminator/online_loss": -0.6,
                    "discriminator/updates": 25,
                }  # fmt: skip
            rows += [row, summary]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        training = {"steps": 80, "iterations": ITERATIONS, "best_iteration": 6, "best_validation_accuracy": 0.6}
        (folder / "training.json").write_text(json.dumps(training))

    def _predictions(self, folder: Path) -> None:
        rows, metrics = [], {}
        for name, right in self.test_right.items():
            for split, size, hits in (("validation", 10, 5), ("test", 40, right)):
                rows += [Prediction(f"{split}-{i}", split, name, self.text, "1.0", i < hits) for i in range(size)]
                share = hits / size
                metrics[f"eval/{split}_accuracy_{name}"] = share
                metrics[f"eval/{split}_standard_error_{name}"] = math.sqrt(share * (1 - share) / size)
        write_rows(folder / "predictions.parquet", Prediction, rows)
        judged = "discriminator" not in self.without
        metrics |= self.evaluation
        score = 0.75 if judged else None
        told = [Explanation(f"test-{i}", "test", 0.0, 0, self.text, i == 0, score) for i in range(self.explained)]
        told += [Explanation(f"test-{i}", "test", 0.7, 0, "warm", False, score) for i in range(self.explained)]
        write_rows(folder / "explanations.parquet", Explanation, told)
        scores = [Score(f"train-{q}", "teacher_positive", 0.85 + 0.01 * k) for q in range(12, 15) for k in range(3)]
        scores += [Score(f"train-{q}", "teacher_negative", 0.11) for q in range(12, 15)]
        scores += [Score(f"train-{q}", "student_1.5", 0.05 * q - 0.22) for q in range(12, 20)]
        write_rows(folder / "scores.parquet", Score, scores if judged else [])
        (folder / "evaluation.json").write_text(json.dumps(metrics))


def make_config(**changes: Any) -> ExperimentConfig:
    data = {"name": "tiny", "teacher": {"kind": "simulated"}, "student": {"kind": "scratch"}, "train": {"steps": 80}}
    return validated(data | changes)


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def check_tables(text: str) -> None:
    """Every table row has as many unescaped pipes as its header, and no table is torn."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|") and number and lines[number - 1].startswith("|"):
            assert line.count("|") == lines[number - 1].count("|"), line


def check_png(path: Path) -> None:
    """A PNG whose pixels are not all alike."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 500 and height > 200
    position, packed = 8, b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        if data[position + 4 : position + 8] == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += length + 12
    assert len(set(zlib.decompress(packed))) > 50


Report = tuple[str, dict[str, float], Path]


@pytest.fixture(scope="module")
def default_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of the default world, which several tests read."""
    return World(tmp_path_factory.mktemp("default"), make_config()).write(figures=True)


def test_accuracy_lines_and_returned_metrics(default_report: Report) -> None:
    text, metrics, out = default_report
    # sqrt(p (1 - p) / 40) is .0685 for 30 right, .0725 for 28, .0345 for 2
    assert line_with(text, "test accuracy: 75") == (
        "test accuracy: 75.0 % ± 6.8 (standard error, n = 40), best validation checkpoint (iteration 6)"
    )
    assert "test accuracy: 70.0 % ± 7.2 (standard error, n = 40), last checkpoint (iteration 8)" in text.splitlines()
    assert line_with(text, "untrained").startswith("untrained student: 5.0 % ± 3.4 (standard error, n = 40)")
    # 28 of 40 questions gained: paired error 100 * sqrt(.7 * .3 / 39)
    assert line_with(text, "gain").startswith("gain: +70.0 points ± 7.3 (paired standard error)")
    assert metrics["report/test_accuracy"] == 0.75
    assert metrics["report/gain_points"] == pytest.approx(70)
    assert metrics["report/gain_standard_error_points"] == pytest.approx(100 * math.sqrt(0.21 / 39))
    assert metrics["report/warnings"] == 0
    assert json.loads((out / "summary.json").read_text())["metrics"] == metrics


def test_results_and_warnings_are_data_that_the_terminal_shows_too(tmp_path: Path) -> None:
    world = World(tmp_path, make_config(), auroc=0.9)
    text, metrics, out = world.write()
    summary = json.loads(json.dumps(world.summary))  # as it is kept
    best, last, initial, gained = summary["results"]
    assert (best["measure"], best["checkpoint"], best["iteration"], best["value"], best["items"]) == (
        "test accuracy", "best", 6, 0.75, 40
    )  # fmt: skip
    assert best["standard_error"] == metrics["report/test_standard_error"]
    assert (last["value"], last["iteration"], initial["value"], initial["iteration"]) == (0.7, 8, 0.05, 0)
    assert gained["value"] == metrics["report/gain_points"]
    lines = headline_lines(summary)
    assert [line.split(":")[0] for line in lines[:4]] == ["test accuracy", "test accuracy", "untrained student", "gain"]
    assert lines[4].startswith("- **WARNING** discriminator AUROC") and len(lines) == 5
    assert set(lines) <= set(text.splitlines())
    assert json.loads((out / "summary.json").read_text())["results"] == summary["results"]


def test_flow_and_table_a2(tmp_path: Path) -> None:
    world = World(tmp_path, make_config())
    world.summaries = {
        "samples": {"requests": 100, "errors": {"timeout | 30 s": 1}},
        "training_set": {"truncated_inputs": 3},
    }
    text, _, _ = world.write()
    for row in (
        "| questions | train | 20 |", "| samples | asked for | 100 |",
        "| samples | with an error instead of a text | 1 |", "| samples | error: timeout &#124; 30 s | 1 |",
        "| rationales | parsed | 100 |", "| rationales | positive | 92 |", "| rationales | negative | 8 |",
        "| training set | questions with a positive rationale | 19 |", "| training set | questions without one | 1 |",
        "| training set | inputs cut | 3 |", "| errors: timeout &#124; 30 s | 1 |",
        # by gold: (12 * 5 + 4 * 3) / 20, 12 / 20, 4 / 20; by majority: (12 * 5 + 4 * 3 + 4 * 5) / 20, 16 / 20, 0
        "| mean positives of K = 5 | 3.600 | 4.600 |",
        "| share of questions with only positives | 0.600 | 0.800 |",
        "| share of questions with only negatives | 0.200 | 0.000 |",
    ):  # fmt: skip
        assert row in text.splitlines()
    assert "labels cut" not in text
    assert "paper (" not in text and "paper, K" not in text


def test_health_discriminator_and_density_numbers(default_report: Report) -> None:
    text, _, _ = default_report
    for row in (
        "| share of active hinges, after iteration 5 | 40.0 % | 40.0 % .. 40.0 % |",
        "| mean l of positives (nats per token) | 0.250 | 0.250 .. 2.000 |",
        "| mean l of negatives (nats per token) | 2.700 | 2.700 .. 3.400 |",
        "| mean s- in the loss | 0.280 | 0.210 .. 0.280 |",
        "| truncated negatives | 10.0 % | 10.0 % .. 10.0 % |",
        "| AUROC against the teacher's negatives | 0.970 |",
        "| optimizer steps of online updates | 200 |",
        "| teacher, positive | 9 | 0.860 | 100.0 % |",
        "| student, τ = 1.5 | 8 | 0.555 | 12.5 % |",
    ):
        assert row in text.splitlines()
    assert "held out of the discriminator's pretraining; its later online updates may have visited them" in text


def test_warnings_appear_and_disappear(tmp_path: Path) -> None:
    good, _, _ = World(tmp_path / "good", make_config()).write()
    assert "WARNING" not in good
    world = World(tmp_path / "bad", make_config(), hinge=0.05, auroc=0.9, truncated=0.3, unparsed=12)
    bad, metrics, _ = world.write()
    for start in (
        "- **WARNING** share of active hinges never above 5 % after iteration 5 (largest 5.0 %)",
        "- **WARNING** discriminator AUROC on real negatives 0.900, below 0.95",
        "- **WARNING** 30.0 % of the sampled negatives are truncated",
        "- **WARNING** parse rate 88.0 %",
    ):
        assert line_with(bad, start)
    assert metrics["report/warnings"] == 4
    edge, _, _ = World(tmp_path / "edge", make_config(), hinge=0.06, auroc=0.95, truncated=0.25, unparsed=10).write()
    assert "WARNING" not in edge


def test_what_could_not_be_measured_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, make_config(negatives={"gap": 8}), auroc=None)
    world.test_right = {"best": 30, "last": 28}
    text, metrics, _ = world.write()
    assert "WARNING** discriminator AUROC on real negatives not measured" in text
    assert "WARNING** share of active hinges after iteration 8 not measured" in text
    assert "| share of active hinges, after iteration 8 | not measured | not measured |" in text
    assert "untrained student: not measured, initial weights" in text
    assert "gain: not measured" in text.splitlines()
    assert "report/gain_points" not in metrics and "report/discriminator_auroc_real" not in metrics


def test_missing_stages_say_why(tmp_path: Path) -> None:
    finetune = World(tmp_path / "a", make_config(method="finetune"), without=("samples", "rationales", "discriminator"))
    text, metrics, out = finetune.write(figures=True)
    assert text.count("No teacher was asked: the method `finetune` on gold labels needs none.") == 3
    assert "No discriminator was trained: the method `finetune` uses none." in text
    assert "has no contrastive loss" in text and "loss_health" not in text and "score_densities" not in text
    assert {p.name for p in (out / "figures").iterdir()} == {"learning_curves.png"}
    assert "report/parse_rate" not in metrics
    dss, _, _ = World(tmp_path / "b", make_config(method="dss"), without=("discriminator",)).write()
    assert "No discriminator was trained: the method `dss` uses none." in dss and "Table A-2" in dss
    ablation = make_config(discriminator={"enabled": False})
    without_discriminator, _, _ = World(tmp_path / "c", ablation, without=("discriminator",)).write()
    assert (
        "discriminator.enabled is false (w/o QJ)" in without_discriminator
        and "mean s+ in the loss" not in without_discriminator
    )


def test_no_negatives_no_hinge_warning(tmp_path: Path) -> None:
    text, _, _ = World(tmp_path, make_config(negatives={"source": "none"}), hinge=0.0).write()
    assert "WARNING" not in text and "share of active hinges" not in text and "no negatives in its loss" in text


def test_simulated_teacher_is_marked(tmp_path: Path) -> None:
    text, _, out = World(tmp_path / "a", make_config()).write()
    assert text.splitlines()[0] == "# tiny: qcrd on arithmetic, simulated teacher"
    assert "> **The teacher is simulated: no language model was asked.**" in text
    assert json.loads((out / "summary.json").read_text())["simulated_teacher"] is True
    real, _, _ = World(tmp_path / "b", make_config(teacher={"kind": "openai"})).write()
    assert real.splitlines()[0] == "# tiny: qcrd on arithmetic" and "simulated" not in real


def test_paper_columns(tmp_path: Path) -> None:
    task = {"teacher": {"kind": "openai"}, "task": {"name": "svamp"}, "paper": numbers("svamp")}
    small = make_config(**task, student={"model": "t5-small"})
    text, _, _ = World(tmp_path / "small", small).write()
    assert line_with(text, "| checkpoint").endswith("| paper (T5-small) |")
    assert line_with(text, "| best validation").endswith("| 50.50 % |") and "Table 2's" in text
    assert "| mean positives of K = 5 | 3.600 | 4.600 | 3.87 |" in text
    other, _, _ = World(tmp_path / "other", make_config(**task)).write()
    assert line_with(other, "| checkpoint").endswith("| paper (T5-base) |")
    assert line_with(other, "| best validation").endswith("| 69.00 % |") and "Table 1's" in other
    assert "paper, K = 5, gold" in other and "not the same experiment" not in other
    labels, _, _ = World(tmp_path / "labels", make_config(**task, train={"labels": "teacher", "steps": 80})).write()
    assert "This run trained on other labels, so the two are not the same experiment." in labels
    nothing, _, _ = World(tmp_path / "nothing", make_config(**task | {"paper": ()})).write()
    assert "paper (" not in nothing and "paper, K" not in nothing


def test_paper_tables() -> None:
    assert len(ACCURACIES) == 40 and len(STATISTICS) == 4
    assert ACCURACIES[("anli1", "t5-base", "mi")].percent == 54.20
    assert ACCURACIES[("esnli", "t5-small", "single_task")].percent == 83.67
    assert {key for key, value in ACCURACIES.items() if value.odd} >= {("anli1", "t5-base", "finetune")}
    assert sum(value.odd for value in ACCURACIES.values()) == 6
    printed = numbers("cqa")
    assert make_config(paper=printed).printed("test_accuracy") is None  # of another task
    cqa = {"task": {"name": "cqa"}, "teacher": {"kind": "openai"}, "paper": printed}
    small = make_config(**cqa, method="dss", student={"model": "google-t5/t5-small"})
    found = small.printed("test_accuracy")
    assert found is not None and (found.heading, found.value) == ("paper (T5-small)", 45.21)
    folder = make_config(**cqa, student={"model": "models/t5-small"})  # a folder need not be what it is called
    assert folder.printed("test_accuracy") is None and folder.printed("training_hours") is None
    other = folder.printed("test_accuracy", of_any_student=True)
    assert other is not None and (other.heading, other.value) == ("paper (T5-base)", 63.64)
    odd = {one.method for one in printed if one.measure == "test_accuracy" and "No count of" in one.note}
    assert odd == {"finetune", "single_task", "mi"}


def test_hours_of_the_paper() -> None:
    printed = numbers("svamp")
    for (student, name), hours in TRAINING_HOURS.items():
        method, without = name.removesuffix(" w/o D"), name.endswith("w/o D")
        config = make_config(
            task={"name": "svamp"}, teacher={"kind": "openai"}, paper=printed, method=method,
            student={"model": student}, discriminator={"enabled": not without},
        )  # fmt: skip
        found = config.printed("training_hours")
        assert found is not None and (found.value, found.steps) == (hours, 10_000), name
    single = make_config(task={"name": "svamp"}, paper=printed, method="single_task", student={"model": "t5-base"})
    assert single.printed("training_hours") is None


def test_what_the_paper_printed_is_no_setting() -> None:
    config = make_config(task={"name": "svamp"}, teacher={"kind": "openai"}, paper=numbers("svamp"))
    assert "paper" not in flatten(config)
    assert with_overrides(config, {"seed": 3}).paper == config.paper
    without = config.model_copy(update={"paper": ()})
    assert experiment_identity(config) == experiment_identity(without)
    assert "paper" in REPORT.settings(config) and "paper" not in REPORT.settings(without)


KINDS: dict[str, dict[str, str]] = {"openai": {}, "vllm": {}, "simulated": {}, "imported": {"path": "replies.jsonl"}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_settings_are_shown_for_every_teacher_and_method(kind: str, method: str, tmp_path: Path) -> None:
    labels = "teacher" if method == "distill_label" else "gold"
    config = make_config(teacher={"kind": kind, **KINDS[kind]}, method=method, train={"labels": labels, "steps": 80})
    without = ("discriminator",) if method != "qcrd" else ()
    text, _, _ = World(tmp_path, config, without=without).write()
    table = text.partition("## Settings that matter")[2].partition("\n## ")[0]
    assert f"| `method` | {cell(method)} |" in table.splitlines()
    assert (f"| `teacher.kind` | {kind} |" in table.splitlines()) == (method != "finetune")
    assert ("`loss.label_weight`" in table) == (method in ("dss", "mi", "qcrd"))
    assert ("`negatives.gap`" in table) == ("`discriminator.max_steps`" in table) == (method == "qcrd")


def test_a_report_is_known_by_what_it_shows() -> None:
    config = make_config(student={"kind": "seq2seq", "model": "here/t5"})
    same = {"output": "elsewhere", "student.model": "there/t5", "train.micro_batch_size": 2, "tracking.enabled": False}
    for name, value in same.items():
        assert REPORT.settings(with_overrides(config, {name: value})) == REPORT.settings(config), name
    other = {"name": "x", "seed": 1, "method": "dss", "loss.margin": 2.5, "evaluation.num_examples": 7,
             "negatives.gap": 3, "teacher.kind": "openai", "discriminator.enabled": False}  # fmt: skip
    for name, value in other.items():
        assert REPORT.settings(with_overrides(config, {name: value})) != REPORT.settings(config), name
    without = make_config(discriminator={"enabled": False})
    assert REPORT.settings(without)["shown"]["discriminator.enabled"] is False
    assert "discriminator.max_steps" not in REPORT.settings(without)["shown"]


def test_hostile_text_breaks_nothing(tmp_path: Path) -> None:
    text, _, _ = World(tmp_path, make_config(), text=HOSTILE).write()
    check_tables(text)
    assert "<script" not in text and "<b>" not in text and "\x00" not in text and "```" not in text
    assert not any(line.startswith("# heading") for line in text.splitlines())
    assert "&lt;script&gt;" in text


def test_cell_shows_text_literally() -> None:
    assert cell("a|b\n*c* <i>&`") == r"a&#124;b<br>\*c\* &lt;i&gt;&amp;&#96;"
    assert cell("x" * 700).endswith("xx … (cut)") and cell(" \n ") == "(empty)"
    with pytest.raises(ValueError, match="1 cells, expected 2"):
        table(["a", "b"], [["c"]])


def test_examples_show_teacher_and_student(default_report: Report) -> None:
    text, _, _ = default_report
    assert text.count("### test question") == 5 and text.count("#### train question") == 5
    assert "| student, greedy (cut at the token limit) | I add 2 and 3 | 0.750 |" in text
    assert "| gold label | ( 0 + 1 ) |  |" in text and "| predicted label | I add 2 and 3 | right |" in text
    assert "| teacher, positive | I add 2 and 3 | 0.850 |" in text
    assert "| teacher, negative | I add 2 and 3 (wrong) | 0.110 |" in text
    assert "| teacher, positive | I add 2 and 3 | not measured |" in text  # not among the scored questions


def test_rationales_and_answers(tmp_path: Path) -> None:
    world = World(tmp_path / "a", make_config())
    world.evaluation = {
        "eval/test_explained": 7, "eval/test_rationale_accuracy": 0.4, "eval/test_consistency": 0.6,
        "scored_split": "test",
    }  # fmt: skip
    text, _, _ = world.write()
    assert "| state the gold answer | 40.0 % | 7 |" in text.splitlines()
    assert "| state the answer that the label task predicts | 60.0 % | 7 |" in text.splitlines()
    assert (
        "The questions are test questions; neither the student nor the discriminator was trained on any of them."
        in text
    )
    assert "held out of" not in text.split("### Densities")[1] and "| warm |" not in text
    without = World(tmp_path / "b", make_config(method="finetune"), without=("samples", "rationales", "discriminator"))
    without.explained = 0
    text, _, _ = without.write()
    assert "The method `finetune` teaches no rationales, so its student was not asked for any." in text
    assert text.count("### test question") == 5 and "student, greedy" not in text
    assert text.count("| predicted label | I add 2 and 3 | right |") == 5


def test_samples_of_other_questions_are_counted_apart(tmp_path: Path) -> None:
    world = World(tmp_path, make_config())
    assert "only scored" not in world.write()[0]
    rows = read_rows(tmp_path / "samples" / "x-0123" / "samples.parquet", Sample)
    rows += [replace(row, question_id=f"test-{n}") for n, row in enumerate(rows[-3:])]
    write_rows(tmp_path / "samples" / "x-0123" / "samples.parquet", Sample, rows)
    inputs = {path.name: path / "x-0123" for path in tmp_path.iterdir() if path.name != "report"}
    (tmp_path / "again").mkdir()
    with mock.patch.object(report, "_draw"):
        write_report(world.config, facts_of(world.config), inputs, {}, tmp_path / "again")
    text = (tmp_path / "again" / "report.md").read_text()
    assert "| samples | of them to questions that are only scored, never learnt from | 3 |" in text.splitlines()
    assert "| samples | asked for | 103 |" in text.splitlines()


def test_figures_are_pictures(default_report: Report) -> None:
    text, _, out = default_report
    for name in ("learning_curves", "loss_health", "score_densities"):
        check_png(out / "figures" / f"{name}.png")
        assert f"](figures/{name}.png)" in text


def test_same_inputs_same_report(tmp_path: Path) -> None:
    first, second = (World(tmp_path / name, make_config()).write(figures=True) for name in ("a", "b"))
    assert first[0] == second[0] and first[1] == second[1]
    picture = Path("figures") / "loss_health.png"
    assert (first[2] / picture).read_bytes() == (second[2] / picture).read_bytes()

"""The predictions stage with tiny real students, without Ray: which questions, at which temperatures, scored how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qcrd.config import (
    ExperimentConfig,
    ScratchDiscriminatorConfig,
)
from qcrd.distill.discriminator import build_discriminator, load_discriminator, save_discriminator
from qcrd.evaluate.students import drawn, evaluate_students
from qcrd.records import Example, Explanation, Prediction, Question, Rationale, Score, read_rows, write_rows
from qcrd.tasks import get_task
from tests.distill.helpers import TEXTS
from tests.evaluate.students import LIMITS, write_student

TASK = get_task("arithmetic")
QUESTIONS = [
    Question(f"{split}-{n}", split, f"Tom has {n} pens and buys 3 more.", f"( {n} + 3 )", str(n + 3))
    for split, size in (("train", 6), ("validation", 3), ("test", 8))
    for n in range(size)
]


def config_of(**changes: Any) -> ExperimentConfig:
    data = {
        "name": "x",
        "student": LIMITS,
        "evaluation": {"num_examples": 2, "explained_questions": 3, "explain_temperatures": [0.0, 0.7]},
        "negatives": {"max_new_tokens": 5},
        "resources": {"device": "cpu", "threads": 1},
    }
    return ExperimentConfig.model_validate(data | changes)


def said(question: str, number: int, positive: bool, text: str | None = None) -> Rationale:
    text = f"{question} rationale {number}" if text is None else text
    return Rationale(question, number, text, "1", "1", positive, positive)


RATIONALES = [
    said("train-0", 0, True), said("train-0", 1, False), said("train-1", 0, True), said("train-4", 0, False),
    said("test-2", 0, False), said("test-2", 1, True), said("test-5", 0, True), said("test-5", 1, True, text=""),
    said("test-6", 0, True, text=""), Rationale("test-7", 0, "unparsed", "", None, False, False),
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    found = {name: folder / name for name in ("questions", "rationales", "training_set", "discriminator", "student")}
    for one in found.values():
        one.mkdir()
    write_rows(found["questions"] / "questions.parquet", Question, QUESTIONS)
    write_rows(found["rationales"] / "rationales.parquet", Rationale, RATIONALES)
    sides = {"train-0": (["good"], ["bad"]), "train-2": (["good"], []), "train-3": (["good"], ["bad"])}
    examples = [
        Example(name, "text", [1], [1], [1], [1], [[1]] * len(good), good, [[1]] * len(bad), bad, "1")
        for name, (good, bad) in sides.items()
    ]
    write_rows(found["training_set"] / "examples.parquet", Example, examples)
    (found["discriminator"] / "held_out.json").write_text(json.dumps(["train-0", "train-4"]))
    for seed, name in enumerate(("initial", "best", "last")):
        write_student(found["student"] / name, seed)
    config = ScratchDiscriminatorConfig(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    discriminator = build_discriminator(config, TEXTS, torch.device("cpu"))
    save_discriminator(discriminator, found["student"] / "discriminator")
    return found


class Outcome:
    """What the stage wrote."""

    def __init__(self, config: ExperimentConfig, inputs: dict[str, Path], out: Path) -> None:
        out.mkdir()
        self.metrics = evaluate_students(inputs, out, config, TASK, emit=lambda event: None)
        assert json.loads((out / "evaluation.json").read_text()) == self.metrics
        self.predictions = read_rows(out / "predictions.parquet", Prediction)
        self.explanations = read_rows(out / "explanations.parquet", Explanation)
        self.scores = read_rows(out / "scores.parquet", Score)


@pytest.fixture(scope="module")
def default(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(config_of(), inputs, tmp_path_factory.mktemp("default") / "out")


def test_drawn_test_questions_are_explained_at_each_temperature_and_teacher_examples_greedily(default: Outcome):
    chosen = [q.id for q in drawn([q for q in QUESTIONS if q.split == "test"], 3, 0)]
    places = [(row.question_id, row.temperature) for row in default.explanations]
    expected = [(name, temperature) for temperature in (0.0, 0.7) for name in chosen]
    assert places == [*expected, ("train-0", 0.0), ("train-3", 0.0)]
    assert all(row.score is not None for row in default.explanations)
    texts = {temperature: [row.text for row in default.explanations[:6] if row.temperature == temperature]
             for temperature in (0.0, 0.7)}  # fmt: skip
    assert texts[0.0] != texts[0.7]


def test_metrics_are_those_of_the_greedy_rationales(default: Outcome):
    rows = [row for row in default.explanations if row.split == "test" and row.temperature == 0]
    gold = {q.id: q.answer for q in QUESTIONS}
    best = {p.question_id: p.answer for p in default.predictions if p.checkpoint == "best"}
    right = sum(TASK.states_answer(row.text, gold[row.question_id]) for row in rows)
    consistent = sum(
        answer is not None and TASK.states_answer(row.text, answer)
        for row in rows
        for answer in [best[row.question_id]]
    )
    assert default.metrics["eval/test_explained"] == 3
    assert default.metrics["eval/test_rationale_accuracy"] == right / 3
    assert default.metrics["eval/test_consistency"] == consistent / 3


def test_held_out_training_questions_are_scored_by_default(default: Outcome, inputs: dict[str, Path]):
    assert default.metrics["scored_split"] == "train"
    discriminator = load_discriminator(inputs["student"] / "discriminator", torch.device("cpu"))
    texts = {q.id: q.text for q in QUESTIONS}
    teacher = [(row, source) for row in default.scores if not (source := row.source).startswith("student")]
    assert [(row.question_id, source) for row, source in teacher] == [
        ("train-0", "teacher_positive"), ("train-0", "teacher_negative"), ("train-4", "teacher_negative"),
    ]  # fmt: skip
    pairs = [("train-0", 0), ("train-0", 1), ("train-4", 0)]
    expected = discriminator.score([(texts[name], f"{name} rationale {number}") for name, number in pairs])
    assert [row.score for row, _ in teacher] == pytest.approx(expected, abs=1e-6)
    student = [(row.question_id, row.source) for row in default.scores if row.source.startswith("student")]
    assert student == [(name, f"student_{t}") for t in ("1.5", "2") for name in ("train-0", "train-4")]


def test_test_questions_are_scored_where_the_teacher_was_asked_them(inputs: dict[str, Path], tmp_path: Path):
    found = Outcome(config_of(teacher={"splits": ["test", "train"]}), inputs, tmp_path / "out")
    assert found.metrics["scored_split"] == "test"
    assert [(row.question_id, row.source) for row in found.scores] == [
        ("test-2", "teacher_negative"), ("test-2", "teacher_positive"), ("test-5", "teacher_positive"),
        ("test-2", "student_1.5"), ("test-5", "student_1.5"), ("test-2", "student_2"), ("test-5", "student_2"),
    ]  # fmt: skip


def test_a_test_limit_keeps_the_first_questions(inputs: dict[str, Path], tmp_path: Path):
    evaluation = {"test_limit": 4, "explained_questions": 50, "num_examples": 0}
    found = Outcome(config_of(evaluation=evaluation), inputs, tmp_path / "out")
    kept = [f"test-{n}" for n in range(4)]
    asked = [p.question_id for p in found.predictions if p.checkpoint == "last"]
    assert asked == ["validation-0", "validation-1", "validation-2", *kept]
    assert sorted(row.question_id for row in found.explanations) == kept
    right = sum(p.right for p in found.predictions if p.checkpoint == "best" and p.split == "test")
    assert found.metrics["eval/test_accuracy_best"] == right / 4 and found.metrics["eval/test_explained"] == 4


@pytest.mark.parametrize("method", ["finetune", "distill_label", "single_task"])
def test_students_that_never_learnt_to_explain_are_not_asked_to(method: str, inputs: dict[str, Path], tmp_path: Path):
    student = tmp_path / "student"
    student.mkdir()
    for name in ("initial", "best", "last"):
        (student / name).symlink_to(inputs["student"] / name)
    labels = {"labels": "teacher" if method == "distill_label" else "gold"}
    found = Outcome(config_of(method=method, train=labels), {**inputs, "student": student}, tmp_path / "out")
    assert found.explanations == [] and found.scores == [] and len(found.predictions) == 3 * 11
    assert not [name for name in found.metrics if "explained" in name or "consistency" in name or "scored" in name]

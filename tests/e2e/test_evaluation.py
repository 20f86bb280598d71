"""A whole run whose teacher is asked test questions too; `qcrd predict` on its student, in a process without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qcrd.records import Explanation, Prediction, Question, Score, read_rows
from tests.e2e.whole_runs import only, run

pytestmark = pytest.mark.e2e
PREDICT = "import sys, qcrd.cli\ntry: qcrd.cli.main()\nfinally: assert 'ray' not in sys.modules"


def test_rationales_scores_and_labels_of_test_questions(tmp_path: Path):
    output = tmp_path / "runs"
    text = run(
        output, 'teacher.splits=["train","test"]', "train.steps=20", "train.iteration_steps=10", "negatives.gap=1",
        "evaluation.test_limit=9", "evaluation.explained_questions=6", "evaluation.explain_temperatures=[0,0.7]",
    )  # fmt: skip
    assert "samples 180" in text  # 3 x (48 + 12)
    folder, report = only(output / "predictions"), only(output / "report") / "report.md"
    metrics = json.loads((folder / "evaluation.json").read_text())
    assert metrics["eval/test_explained"] == 6 and metrics["scored_split"] == "test"
    explanations = read_rows(folder / "explanations.parquet", Explanation)
    test = [row for row in explanations if row.split == "test"]
    assert [row.temperature for row in test] == [0.0] * 6 + [0.7] * 6
    assert {row.question_id.split("-")[1] for row in read_rows(folder / "scores.parquet", Score)} == {"test"}
    shown = report.read_text()
    assert shown.count("### test question") == 5 and "| state the gold answer |" in shown
    assert "The questions are test questions; neither the student nor the judge was trained on any of them." in shown
    assert "| rationales | samples used (the first 3 of each question) | 144 |" in shown

    questions = {q.id: q for q in read_rows(only(output / "questions") / "questions.parquet", Question)}
    asked = [questions[row.question_id] for row in test[:6]]
    lines = "".join(json.dumps({"id": q.id, "text": q.text}) + "\n" for q in asked)
    command = [sys.executable, "-c", PREDICT, "predict", str(output), "-", "--explain"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in found] == [q.id for q in asked] and "6 questions in" in done.stderr
    best = {
        p.question_id: p.text
        for p in read_rows(folder / "predictions.parquet", Prediction)
        if p.checkpoint == "best" and p.split == "test"
    }
    assert len(best) == 9 and [row["label"] for row in found] == [best[q.id] for q in asked]
    assert [row["rationale"] for row in found] == [row.text for row in test[:6]]

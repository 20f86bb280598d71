"""`qcrd predict`: which folder, which lines, and the answers beside those of the evaluation itself."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from qcrd.cli import main
from qcrd.config import ConfigError, Seq2SeqStudentConfig
from qcrd.distill.labels import Asking
from qcrd.evaluate import inference as answer
from qcrd.evaluate.inference import AskedQuestion, answer_file, label_in, read_questions
from qcrd.evaluate.predictions import Sampling, explain, predict_labels
from qcrd.models.student import load_student
from qcrd.pipeline.finished_student import student_folder
from qcrd.records import Question
from qcrd.tasks import get_task
from tests.distill.helpers import QUESTIONS
from tests.evaluate.students import LIMITS, write_artifact, write_student

TEXTS = [f"{text} {number}" for number, text in enumerate(QUESTIONS * 2)]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with one finished student."""
    folder = tmp_path_factory.mktemp("runs")
    write_artifact(folder, "x-0123")
    return folder


def as_evaluated(folder: Path) -> tuple[list[str], list[str]]:
    """Labels and greedy rationales as the predictions stage writes them."""
    student, tokenizer = load_student(folder, "float32", torch.device("cpu"))
    asking = Asking(Seq2SeqStudentConfig(**LIMITS), 64, None)
    questions = [Question(str(n), "test", text, "1", "1") for n, text in enumerate(TEXTS)]
    labels = predict_labels(asking, student, tokenizer, get_task("arithmetic"), questions, "best")
    told = explain(asking, student, tokenizer, None, questions, Sampling(0.0, 50, LIMITS["max_target_tokens"], 0))
    return [row.text for row in labels], [row.text for row in told]


def test_the_answers_are_those_of_the_evaluation(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answer, "BATCH", 4)  # two batches
    rows = [{"question": text} if n % 2 else {"id": f"q{n}", "text": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    answer_file(student_folder(str(output)), str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", explain=True)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    labels, rationales = as_evaluated(output / "student" / "x-0123" / "best")
    assert [row["label"] for row in found] == labels and [row["rationale"] for row in found] == rationales
    assert any(labels) and labels != rationales
    assert [row["question"] for row in found] == TEXTS and [row["id"] for row in found] == ["q0", 3, "q2", 7, "q4", 11]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_the_command_reads_stdin_and_writes_json_alone_to_stdout(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps({"question": TEXTS[0]}).encode())))
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(output / "student" / "x-0123"), "-"])
    shown = capsys.readouterr()
    assert ended.value.code == 0 and [json.loads(line) for line in shown.out.splitlines()] == [
        {"id": 1, "question": TEXTS[0], "label": as_evaluated(output / "student" / "x-0123" / "best")[0][0]}
    ]
    assert "1 questions in " in shown.err


def test_bad_input_leaves_no_output_and_is_one_line(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "in.jsonl").write_text('{"question": "a"}\n{"question": 1}\n')
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(output), str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == ""
    assert shown.err.splitlines()[-1] == (
        f"error: FILE: line 2 of '{tmp_path}/in.jsonl' has no text as its 'question' (or 'text'), but 1"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 3 of x is not JSON: "), (b"\xff\xfe{}", "line 3 of x is not JSON: "),
        (b'"text"', "line 3 of x is not an object like .*, but str"), (b'{"id": 1}', "'question' .*, but None"),
        (b'{"text": " "}', "line 3 of x has no text"), (b'{"text": "a", "id": 1.5}', "line 3 of x has the id 1.5; "),
        (b'{"text": "a", "id": true}', "has the id True; "),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(line: bytes, message: str):
    found = read_questions([b'{"text": "a", "question": "b", "id": "n"}\n', b"\n", line], "x")
    assert next(found) == AskedQuestion("n", "b")
    with pytest.raises(ConfigError, match=f"^FILE: {message}" if message.startswith("line") else message):
        next(found)


def test_the_student_is_found_or_the_choice_is_listed(output: Path, tmp_path: Path):
    best = output / "student" / "x-0123" / "best"
    assert {student_folder(str(folder)) for folder in (output, best.parent, best)} == {best}
    with pytest.raises(ConfigError, match=r"^RUN: '.*' has no finished student; give a run's output folder"):
        student_folder(str(tmp_path))
    for name in ("b", "a"):
        write_artifact(tmp_path, name)
    with pytest.raises(ConfigError) as caught:
        student_folder(str(tmp_path))
    assert (
        str(caught.value) == f"RUN: '{tmp_path}' has 2 students; give one of {tmp_path}/student/a, {tmp_path}/student/b"
    )


def test_a_label_behind_an_answer_phrase():
    single = {"answer_phrase": "So the answer is"}
    assert label_in({}, " so the answer is 3 ") == "so the answer is 3"
    assert label_in(single, "So the answer is 2? No. so the answer is ( 1 + 2 ) ") == "( 1 + 2 )"
    assert label_in(single, "3") == ""


def test_what_is_missing_is_said(output: Path, tmp_path: Path):
    (tmp_path / "in").write_text("")
    with pytest.raises(ConfigError, match=r"^FILE: '/no/such' does not exist"):
        answer_file(student_folder(str(output)), "/no/such", None, False)
    with pytest.raises(ConfigError, match=r"^--output: '/no/such' is no folder"):
        answer_file(student_folder(str(output)), str(tmp_path / "in"), Path("/no/such/out"), False)
    with pytest.raises(ConfigError, match=r"^--explain: .* the method 'finetune' teaches no rationales"):
        answer_file(write_artifact(tmp_path, "x", method="finetune") / "best", str(tmp_path / "in"), None, True)
    write_student(tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"^RUN: '.*torn' cannot be loaded: "):
        answer_file(tmp_path / "torn", str(tmp_path / "in"), None, False)

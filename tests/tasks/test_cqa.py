"""CQA in DSS's cut, its questions as text, and the reading of answers by letter."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from qcrd.config import (
    BenchmarkTaskConfig,
)
from qcrd.records import Question
from qcrd.tasks import cqa
from qcrd.tasks.base import ParsedSample
from qcrd.tasks.parsers import get_parser

BRIDGE = Question(
    "q",
    "train",
    "Where does a bum live?\nAnswer Choices:\n(a) bus depot\n(b) beach\n(c) ice  cream \n(d) bridge\n(e) bridge",
    "bridge",
    "bridge",
)


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_splits_are_those_of_dss(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    folder = shared_data / "cqa"
    train, test = rows(folder / "cqa_train.json.gz"), rows(folder / "cqa_test.json.gz")
    cut = json.loads((folder / "dss_split_indices_seed0.json").read_text())
    assert cqa.split_rows() == {"train": cut["train"], "validation": cut["valid"]}
    expected = {
        "train": [train[row]["id"] for row in cut["train"]],
        "validation": [train[row]["id"] for row in cut["valid"]],
        "test": [row["id"] for row in test],
    }
    questions = cqa.load(BenchmarkTaskConfig(name="cqa"))
    for split, ids in expected.items():
        assert [question.id for question in questions if question.split == split] == ids
        assert len(ids) == cqa.sizes(BenchmarkTaskConfig(name="cqa"))[split]
    by_id = {question.id: question for question in questions}
    assert len(by_id) == 10_962
    for row in (*train, *test):
        question = by_id[row["id"]]
        assert question.label == row["answer"] and cqa.is_right(row["answer"], question)
        assert list(cqa.choices_of(question).values()) == row["choices"]
        assert question.text.startswith(row["question"] + "\nAnswer Choices:\n(a) ")


def test_source_is_the_digest_of_the_rows(shared_data: Path) -> None:
    expected = {"cqa_train.json": cqa.SHA256["train"], "cqa_test.json": cqa.SHA256["test"]}
    assert (
        cqa.source(BenchmarkTaskConfig(name="cqa", path=str(shared_data / "cqa")))
        == expected
        == cqa.source(BenchmarkTaskConfig(name="cqa", path="download"))
    )


@pytest.mark.parametrize(
    ("text", "rationale", "label"),
    [
        ("Under it. So the answer is (d) bridge.\n\nQ: Who? So the answer is (a) x.", "Under it.", "bridge"),
        ("Under it.\nThe answer is: (E)", "Under it.", "bridge"),
        ("So the answer is (a) x. No. So the answer is **(b) beach**.", "So the answer is (a) x. No.", "beach"),
        ("Two fit. So the answer is either (b) beach or (d) bridge.", "Two fit.", "beach"),
        ("Warm. So the answer is Ice cream.", "Warm.", "ice  cream "),
    ],
)
def test_parse(text: str, rationale: str, label: str) -> None:
    assert cqa.parse(text, BRIDGE) == ParsedSample(rationale, label, " ".join(label.split()))


@pytest.mark.parametrize("text", ["", "(a)", "So the answer is one of these.", "So the answer is (f) x.", "Q: x"])
def test_no_answer(text: str) -> None:
    assert cqa.parse(text, BRIDGE) is None


@pytest.mark.parametrize(
    ("text", "rationale", "label"),
    [
        ("1. The correct answer is **(B) beach**. It is dry.\n\n", "It is dry.", "beach"),
        ("The answer is (D) bridge, see (B). Dry. Free.", "Dry. Free.", "bridge"),
        ("50 feet tall.\n\n3. It is **B) beach**.\nDry.", "Dry.", "beach"),
        ("2. Q? It is (B) beach", "", "beach"),
    ],
)
def test_first_answer(text: str, rationale: str, label: str) -> None:
    assert get_parser("first_answer", cqa)(text, BRIDGE) == ParsedSample(rationale, label, label)


@pytest.mark.parametrize(
    "text", ["", ".", "1. It is (A) x.\n2. It is (B) beach. Dry.", "It is (B) beach. " + "dry " * 190, "(F) x. Dry."]
)
def test_no_first_answer(text: str) -> None:
    assert get_parser("first_answer", cqa)(text, BRIDGE) is None


def test_answers() -> None:
    assert cqa.answer_of(" Ice  cream ") == "ice cream" and cqa.answer_of(" ") is None
    assert cqa.is_right("bridge ", BRIDGE) and not cqa.is_right("Bridge", BRIDGE)
    assert cqa.states_answer("He sleeps under a Bridge.", "bridge") and cqa.states_answer("an ice\ncream", "ice cream")
    assert not cqa.states_answer("He likes bridges.", "bridge")
    prompt = cqa.format_prompt("Q: a\nA: b.\n\n", BRIDGE.text)
    assert prompt == f"Q: a\nA: b.\n\nQ: {BRIDGE.text}\nA:"

"""ANLI1 and e-SNLI: their files, whole and in part, and the reading of classes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from qcrd.config import (
    BenchmarkTaskConfig,
    ConfigError,
)
from qcrd.records import Question
from qcrd.tasks import anli1, esnli, nli
from qcrd.tasks.base import ParsedSample
from qcrd.tasks.parsers import get_parser

NOBODY = Question("q", "train", "A man runs.</s>Nobody runs.", "contradiction", "contradiction")


@pytest.fixture
def data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    return shared_data


def test_esnli_with_the_first_rows_as_training_split(data: Path) -> None:
    config = BenchmarkTaskConfig(name="esnli")
    questions = esnli.load(config)
    assert Counter(question.split for question in questions) == esnli.sizes(config)
    assert esnli.sizes(config) == {"train": 10_000, "validation": 9842, "test": 9824}
    assert len({question.id for question in questions}) == len(questions)
    packed = (data / "esnli" / "esnli_train_first10000.csv.gz").read_bytes()
    for row, question in zip(csv.DictReader(io.StringIO(gzip.decompress(packed).decode())), questions, strict=False):
        assert question == Question(f"esnli-train-{row['']}", "train", row["input"], row["label"], row["label"])
    test = gzip.decompress((data / "esnli" / "esnli_test.json.gz").read_bytes()).decode().splitlines()
    last = json.loads(test[-1])
    text = f"{last['premise']}</s>{last['hypothesis']}"
    label = ("entailment", "neutral", "contradiction")[last["label"]]
    assert questions[-1] == Question("esnli-test-9823", "test", text, label, label)


def test_anli1_without_gold_labels(data: Path) -> None:
    config = BenchmarkTaskConfig(name="anli1")
    assert anli1.sizes(config) == {"train": 9950, "validation": 1000, "test": 1000}
    assert not anli1.has_gold_labels(config) and esnli.has_gold_labels(config)
    questions = anli1.load(config)
    assert Counter(question.split for question in questions) == anli1.sizes(config)
    assert {question.label + question.answer for question in questions if question.split == "train"} == {""}
    assert questions[3].id == "anli1-train-4"  # row 3 of the whole split is not among those recovered
    held_out = Counter((question.split, question.label) for question in questions[9950:])
    assert set(held_out.values()) == {333, 334} and len(held_out) == 6
    assert questions[9950].id == "bf628cf5-6948-4595-a6d0-daf99beb47b9" and questions[9950].label == "contradiction"


def test_sources(data: Path) -> None:
    assert esnli.source(BenchmarkTaskConfig(name="esnli")) == {
        "esnli_train_first10000.csv": esnli.SHA256["first_10000"],
        "esnli_valid.json": esnli.SHA256["validation"],
        "esnli_test.json": esnli.SHA256["test"],
    }
    assert (
        anli1.source(BenchmarkTaskConfig(name="esnli"))["anli1_train_recovered_nogold.jsonl"]
        == anli1.SHA256["train_without_gold"]
    )
    online = BenchmarkTaskConfig(name="esnli", path="download")
    assert esnli.sizes(online)["train"] == 549_367 and anli1.sizes(online)["train"] == 16_946
    assert anli1.has_gold_labels(online)
    assert anli1.source(online) == {
        "anli1_train.json": "facebook/anli@8e4813d81f46d313dac7892e1c28076917cfcdf9",
        "anli1_valid.json": anli1.SHA256["validation"],
        "anli1_test.json": anli1.SHA256["test"],
    }


def test_the_whole_training_file_comes_first_and_must_be_whole(data: Path, tmp_path: Path) -> None:
    for name in ("anli1_valid.json.gz", "anli1_test.json.gz", "anli1_train_recovered_nogold.jsonl.gz"):
        shutil.copy(data / "anli1" / name, tmp_path)
    shutil.copy(data / "anli1" / "anli1_valid.json.gz", tmp_path / "anli1_train.json.gz")
    config = BenchmarkTaskConfig(name="esnli", path=str(tmp_path))
    assert anli1.sizes(config)["train"] == 16_946 and anli1.has_gold_labels(config)
    with pytest.raises(ConfigError, match=r"^task\.path: .*anli1_train\.json\.gz' has 1000 rows of train; it should"):
        anli1.load(config)


@pytest.mark.parametrize("label", [-1, 3, None, "maybe", 1.0])
def test_a_label_that_is_none(label: object) -> None:
    with pytest.raises(ValueError, match=r"^its label is .*, not one of 0, 1, 2, entailment, neutral, contradiction$"):
        nli.class_of({"label": label})


@pytest.mark.parametrize(
    ("text", "rationale", "label"),
    [
        ("He runs. So the answer is contradiction.\n\nPremise: x", "He runs.", "contradiction"),
        ("He runs.\nAnswer: neutral\n\nPremise: x\nAnswer: entailment", "He runs.", "neutral"),
        ("The answer is: **Entailment**", "", "entailment"),
        ("Answer: He runs. So the answer is neutral.", "Answer: He runs.", "neutral"),
    ],
)
def test_parse(text: str, rationale: str, label: str) -> None:
    assert nli.parse(text, NOBODY) == ParsedSample(rationale, label, label)


@pytest.mark.parametrize("text", ["", "neutral", "x\nAnswer:", "x\nAnswer: entail", "So the answer is not neutral."])
def test_no_answer(text: str) -> None:
    assert nli.parse(text, NOBODY) is None


def test_first_answer() -> None:
    parse = get_parser("first_answer", esnli)
    text = "1. The answer is **Neutral**. This means that it is no contradiction. He may run."
    rationale = "This means that it is no contradiction. He may run."
    assert parse(text, NOBODY) == ParsedSample(rationale, "neutral", "neutral")
    assert parse("3. The correct answer is **invalid**.", NOBODY) is None


def test_answers() -> None:
    assert nli.answer_of(" neutral\n") == "neutral" and nli.answer_of("Neutral") is nli.answer_of("x") is None
    assert nli.is_right("contradiction ", NOBODY) and not nli.is_right("neutral", NOBODY)
    assert nli.states_answer("The premise entails it.", "entailment")
    assert nli.states_answer("So it is Neutral", "neutral") and nli.states_answer("They contradict.", "contradiction")
    assert not nli.states_answer("It doesn't contradict it and is not entailed.", "contradiction")
    assert not nli.states_answer("It neither entails nor contradicts it.", "entailment")


def test_the_prompt_has_a_line_for_each_part() -> None:
    prompt = nli.format_prompt("Premise: a\nAnswer: b.\n\n", "A man\nruns. </s> Nobody  runs.")
    assert prompt == "Premise: a\nAnswer: b.\n\nPremise: A man runs.\nHypothesis: Nobody runs.\nAnswer:"
    assert nli.STOP == ("\nPremise:",)

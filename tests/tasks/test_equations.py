"""The evaluator reads arithmetic and nothing else; the parser reads real and hostile completions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcrd.records import Question
from qcrd.tasks.base import ParsedSample
from qcrd.tasks.equations import answer_of, canonical_number, evaluate, is_right, last_number, parse

QUESTION = Question("q", "train", "How many?", "( 1.0 + 1.0 )", "2")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 76.0 - 25.0 )", 51.0),
        ("( ( 8.0 + 3.0 ) * 2.0 )", 22.0),
        ("8 - 3 - 2", 3.0),
        ("24 / 4 / 2", 3.0),
        ("2 + 3 * 4", 14.0),
        ("(2 + 3) * -4", -20.0),
        ("--5", 5.0),
        ("1,234 + 1", 1235.0),
        ("1,234,567.5", 1234567.5),
        (".5 + 1.25", 1.75),
        ("6 x 7", 42.0),
        ("6×7", 42.0),
        ("0x10", 0.0),  # a product, not a hexadecimal number
        ("42 ÷ 6", 7.0),
        ("9 − 4", 5.0),
    ],
)
def test_evaluates(text: str, value: float) -> None:
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "( 8 + 3",
        "8 + 3 )",
        "8 +",
        "8 3",
        "1.2.3",
        "1,2345",
        "175, 5",
        "1_000",
        "+5",
        "2 ** 3",
        "9**9**9",
        "2 ^ 3",
        "2 // 3",
        "1e3",
        "1e999",
        "inf",
        "nan",
        "5 / 0",
        "5 / (3 - 3)",
        "x",
        "7x = 14",
        "some - 8",
        "$ 5",
        "5%",
        "__import__('os')",
        "__import__('os').system('true')",
        "lambda: 1",
        "٣ + ٤",
        "３+４",
        "²",
        "½",
        "8\x00+3",
        "(" * 100 + "1" + ")" * 100,
        "(" * 100_000,
        "-" * 199 + "1",
        "9" * 201,
        "9" * 100 + " * " + "9" * 97,
        "999999999999999 * 999999999999999",
        "1+" * 1_000_000 + "1",
        "a" * 1_000_000,
        "1," * 99,
    ],
)
def test_refuses_everything_else_at_once(text: str) -> None:
    assert evaluate(text) is None


def test_the_limits_themselves_are_allowed() -> None:
    assert evaluate("1" + " " * 198 + "2") is None
    assert evaluate("1" + "+1" * 99) == 100.0
    assert evaluate("(" * 32 + "1" + ")" * 32) == 1.0
    assert evaluate("(" * 33 + "1" + ")" * 33) is None
    assert evaluate("1" + "0" * 15) == 1e15
    assert evaluate("1" + "0" * 16) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (51.0, "51"),
        (127 / 3, "42.333333"),
        (-0.0, "0"),
        (-1e-9, "0"),
        (0.5, "0.5"),
        (-2.0, "-2"),
        (1e15, "1" + "0" * 15),
    ],
)
def test_one_spelling_for_one_number(value: float, text: str) -> None:
    assert canonical_number(value) == text


def test_right_means_equal_within_a_millionth() -> None:
    question = Question(id="q", split="test", text="", label="( 127.0 / 3.0 )", answer="42.333333")
    assert is_right("127 / 3", question)
    assert is_right("42.3333335", question)
    assert not is_right("42.33334", question)
    assert not is_right("127 / x", question)
    assert answer_of("( 127.0 / 3.0 )") == question.answer
    assert answer_of("no number") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" There are 84 / 2. The answer is (84 / 2).\n\nQ: There are 120", ("There are 84 / 2.", "(84 / 2)", "42")),
        ("Six. The answer is 6. Wait. The answer is 7.", ("Six. The answer is 6. Wait.", "7", "7")),
        ("Half of 5. So the answer is 2.5.", ("Half of 5.", "2.5", "2.5")),
        ("It is 3.\nTherefore, the answer is: ( 1 + 2 )\nDone", ("It is 3.", "( 1 + 2 )", "3")),
        ("Also, the answer is 3", ("Also,", "3", "3")),
        ("The answer is ( 15.0 * 19.0 ).\n\nQ", ("", "( 15.0 * 19.0 )", "285")),
        ("The answer is 1,200.", ("", "1,200", "1200")),
    ],
)
def test_reads_a_completion(text: str, expected: tuple[str, str, str]) -> None:
    assert parse(text, QUESTION) == ParsedSample(*expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is 5.",
        "The answer is",
        "The answer is .",
        "The answer is (2 * x).",
        "The answer is ((28 - 13) and (28 - 15)).",
        "The answer is ( 8 + 3 ) = 11.",
        "I do not know.\n\nQ: What is 2 + 2?\nA: The answer is 4.",
        "The answer is __import__('os').system('true').",
        "The answer is " + "(" * 1_000_000,
        "the answer is " * 100_000,
        "so " * 300_000,
        "The answer is ٣.",
    ],
)
def test_reads_no_answer_where_there_is_none(text: str) -> None:
    assert parse(text, QUESTION) is None


def test_the_last_number_of_a_text() -> None:
    assert last_number("from 3 to 1,250.75.") == "1,250.75"
    assert last_number("He has 1,2345 or so") == "2345"
    assert last_number("none") is None


def test_reads_the_real_completions_of_palm(shared_data: Path) -> None:
    """789 of the 800 hold the answer phrase; 22 of those have no arithmetic after it ("(some - 8)", "(2 * x)")."""
    folder = shared_data / "svamp"
    rows = [json.loads(line) for line in (folder / "svamp_train.json").read_text().splitlines()]
    texts = [text for part in (0, 1) for text in json.loads((folder / f"llm_palm/train_CoT_{part}.json").read_text())]
    assert len(texts) == len(rows) == 800
    assert sum("The answer is" in text.split("Q:")[0] for text in texts) == 789
    parsed = [parse(text, QUESTION) for text in texts]
    assert sum(sample is not None for sample in parsed) == 767
    right = sum(
        sample is not None and sample.answer == answer_of(row["label"])
        for sample, row in zip(parsed, rows, strict=True)
    )
    # 74.25 % of all, 77.4 % of the parsed. The data's README says 73.5 % and not by which rule; no rule tried gives it.
    assert right == 594
    for sample in parsed:
        assert sample is None or ("answer is" not in sample.rationale and "Q:" not in sample.rationale)

"""CommonsenseQA as CoS-E v1.11 has it: five choices a question, the label is the text of the right one.

CoS-E's 9,741 training rows are cut into 8,766 to train and 975 to validate as Distilling Step-by-Step (DSS) does; its
1,221 validation rows are the test split. Both files, and both splits of the hub, are held to row counts and to SHA-256
digests of true copies. Knows nothing about teachers or training. Method §2, §4 and §9.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qcrd.config import BenchmarkTaskConfig
from qcrd.records import Question
from qcrd.tasks.base import ParsedSample, Parser
from qcrd.tasks.parsers import first_answer
from qcrd.tasks.reading import normalised, split_completion
from qcrd.tasks.sources import Benchmark, Hub, Record, Row, RowFile, check_source, read_part, source_of, text_of

NAME: str = "cqa"
ANSWER_PHRASE: str = "So the answer is"
SIMULATED: bool = False
STOP: tuple[str, ...] = ("\nQ:",)
PROMPT = Path(__file__).parent / "prompts" / "cqa.txt"

LETTERS = "abcde"
_CHOICES = "Answer Choices:"
_CHOICE_LINE = re.compile(rf"^\(([{LETTERS}])\) (.*)$", re.MULTILINE)
_LETTER = re.compile(rf"\(([{LETTERS}])\)", re.IGNORECASE)
# Bing also writes "B) restaurant".
_CAPITAL = re.compile(rf"\(?\b([{LETTERS.upper()}])\)")


def _record(row: Row) -> Record:
    """[id, question, choices, answer] of a row of CoS-E."""
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise ValueError(f"its choices are {choices!r}, not a list of {len(LETTERS)}")
    answer = text_of(row, "answer")
    if answer not in choices:
        raise ValueError(f"its answer {answer!r} is not among its choices")
    return [text_of(row, "id"), text_of(row, "question"), [str(choice) for choice in choices], answer]


SHA256 = {
    "train": "3791963ea7f365341c44d1a216901bc47d848648c295c95888a0731eb40be666",
    "test": "fe2aec87cfe2175c383a3a912b54a5654bcb30b019a394321f167e3927088bc3",
}
"""Of the records of true copies, in the files' order (`sources.rows_digest`)."""

# No public text that names a commit of this hub data set was found, so its newest state is taken; the digests hold it.
_HUB = ("Salesforce/cos_e", "v1.11")
BENCHMARK = Benchmark(
    NAME,
    files={
        "train": (RowFile("cqa_train.json", 9741, SHA256["train"]),),
        "test": (RowFile("cqa_test.json", 1221, SHA256["test"]),),
    },
    downloads={"train": Hub(*_HUB, "train", "main"), "test": Hub(*_HUB, "validation", "main")},
    record=_record,
)


def sizes(config: BenchmarkTaskConfig) -> dict[str, int]:
    """The published sizes."""
    return {"train": 8766, "validation": 975, "test": 1221}


def has_gold_labels(config: BenchmarkTaskConfig) -> bool:
    """Always."""
    return True


def check(config: BenchmarkTaskConfig) -> None:
    """Raise `ConfigError` where a file is missing."""
    check_source(BENCHMARK, config)


def source(config: BenchmarkTaskConfig) -> dict[str, str]:
    """Digests of the rows."""
    return source_of(BENCHMARK, config)


def split_rows() -> dict[str, list[int]]:
    """Row numbers into the training file for train and validation, in DSS's order: what
    `datasets.Dataset.train_test_split(test_size=0.1, seed=0)` does with 9,741 rows."""
    cut = [int(row) for row in np.random.default_rng(0).permutation(9741)]
    return {"train": cut[975:], "validation": cut[:975]}


def load(config: BenchmarkTaskConfig) -> list[Question]:
    """The 10,962 questions: train, validation, test."""
    rows = read_part(BENCHMARK, config, "train")
    cut = [_question(rows[row], split) for split, numbers in split_rows().items() for row in numbers]
    return [*cut, *(_question(row, "test") for row in read_part(BENCHMARK, config, "test"))]


def _question(record: Record, split: str) -> Question:
    question_id, asked, choices, answer = record
    lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    text = "\n".join([asked, _CHOICES, *lines])
    return Question(question_id, split, text, label=answer, answer=normalised(answer))


def choices_of(question: Question) -> dict[str, str]:
    """The choices by letter, read from the question's text; two letters may have the same text."""
    listed = question.text.rsplit(f"\n{_CHOICES}\n", 1)[-1]
    return dict(_CHOICE_LINE.findall(listed))


def format_prompt(few_shot: str, question: str) -> str:
    """The few-shot examples, then this question."""
    return f"{few_shot.rstrip()}\n\nQ: {question}\nA:"


def answer_of(label: str) -> str | None:
    """The canonical form of a choice's text; None where there is no text."""
    return normalised(label) or None


def is_right(label: str, question: Question) -> bool:
    """Whether a label is the right choice's text, but for white space, of which tokenizers keep single spaces."""
    return label.split() == question.label.split()


def states_answer(text: str, answer: str) -> bool:
    """Whether a rationale has the choice's words in a row."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", normalised(text)) is not None


def parse(text: str, question: Question) -> ParsedSample | None:
    """Read a completion `<reasoning> So the answer is (a) revolving door.`; None where it names no choice.

    The first letter after the last answer phrase counts, also where a second one follows ("either (a) … or (b) …");
    without a letter, the text must be a choice's.
    """
    parts = split_completion(text, STOP[0])
    if parts is None:
        return None
    choices = choices_of(question)
    line = parts[1].strip().split("\n", 1)[0]
    letter = _LETTER.search(line)
    if letter is not None:
        label = choices.get(letter[1].lower())
    else:
        said = normalised(line.strip(" .*\"'"))
        label = next((choice for choice in choices.values() if normalised(choice) == said), None)
    if label is None:
        return None
    return ParsedSample(rationale=parts[0], label=label, answer=normalised(label))


def _first_letter(text: str, question: Question) -> tuple[re.Match[str], str, str] | None:
    match = _CAPITAL.search(text)
    label = None if match is None else choices_of(question).get(match[1].lower())
    return None if match is None or label is None else (match, label, normalised(label))


PARSERS: Mapping[str, Parser] = {"first_answer": first_answer(_first_letter)}

"""ANLI, round 1: premises of a few sentences, hypotheses that people wrote to mislead a model.

16,946 training, 1,000 validation and 1,000 test questions. Validation and test are held to SHA-256 digests of true
copies. No true copy of the training split was at hand, so it is held to its number of rows alone and, on the hub, to a
commit. Where the folder lacks it, 9,950 of its questions without gold labels serve (`train.labels=teacher` alone).
Knows nothing about teachers or training. Method §4 and §8.
"""

from __future__ import annotations

from pathlib import Path

from qcrd.config import BenchmarkTaskConfig
from qcrd.records import Question
from qcrd.tasks.nli import (
    ANSWER_PHRASE,
    PARSERS,
    SIMULATED,
    STOP,
    answer_of,
    class_of,
    format_prompt,
    is_right,
    pair_of,
    parse,
    question_of,
    states_answer,
)
from qcrd.tasks.sources import (
    Benchmark,
    Hub,
    Record,
    Row,
    RowFile,
    check_source,
    file_of,
    read_part,
    source_of,
    text_of,
)

__all__ = [
    "ANSWER_PHRASE",
    "NAME",
    "PARSERS",
    "PROMPT",
    "SIMULATED",
    "STOP",
    "answer_of",
    "check",
    "format_prompt",
    "has_gold_labels",
    "is_right",
    "load",
    "parse",
    "sizes",
    "source",
    "states_answer",
]

NAME: str = "anli1"
PROMPT = Path(__file__).parent / "prompts" / "anli1.txt"


def _record(row: Row) -> Record:
    """[id, premise, hypothesis, class] of a row; rows without gold labels have their row number as `idx`, no uid."""
    if "idx" in row and "uid" not in row:
        return [f"anli1-train-{row['idx']}", *pair_of(row), ""]
    return [text_of(row, "uid"), *pair_of(row), class_of(row)]


SHA256 = {
    "train_without_gold": "1f085df7ebec53a92241afc112d3a02968fae748d04ddd22ffbe03eb3b323599",
    "validation": "f92f757a9c7a86884ab47a4a5100a7375f7a68143af5a802494597bc078f1bd6",
    "test": "79c0f6d2bcf7732acfd7babb93956f0b0d5b594624f24ec06c216aa24363fc83",
}
"""Of the records of true copies, in the files' order (`sources.rows_digest`)."""

# The commit of facebook/anli that many public repositories name (it is the one that holds Parquet files).
_HUB = ("facebook/anli", None)
_REVISION = "8e4813d81f46d313dac7892e1c28076917cfcdf9"
BENCHMARK = Benchmark(
    NAME,
    files={
        "train": (
            RowFile("anli1_train.json", 16946),
            RowFile("anli1_train_recovered_nogold.jsonl", 9950, SHA256["train_without_gold"], has_gold_labels=False),
        ),
        "validation": (RowFile("anli1_valid.json", 1000, SHA256["validation"]),),
        "test": (RowFile("anli1_test.json", 1000, SHA256["test"]),),
    },
    downloads={
        "train": Hub(*_HUB, "train_r1", _REVISION),
        "validation": Hub(*_HUB, "dev_r1", _REVISION),
        "test": Hub(*_HUB, "test_r1", _REVISION),
    },
    record=_record,
)


def sizes(config: BenchmarkTaskConfig) -> dict[str, int]:
    """The published sizes; of the training split that of the file that is used."""
    return {split: file_of(BENCHMARK, config, split).rows for split in BENCHMARK.files}


def has_gold_labels(config: BenchmarkTaskConfig) -> bool:
    """Not where the recovered questions serve as training split."""
    return file_of(BENCHMARK, config, "train").has_gold_labels


def check(config: BenchmarkTaskConfig) -> None:
    """Raise `ConfigError` where a file is missing."""
    check_source(BENCHMARK, config)


def source(config: BenchmarkTaskConfig) -> dict[str, str]:
    """Digests of the rows; of the whole training split, its file's digest or the hub's commit."""
    return source_of(BENCHMARK, config)


def load(config: BenchmarkTaskConfig) -> list[Question]:
    """The questions: train, validation, test."""
    return [
        question_of(question_id, split, premise, hypothesis, label)
        for split in BENCHMARK.files
        for question_id, premise, hypothesis, label in read_part(BENCHMARK, config, split)
    ]

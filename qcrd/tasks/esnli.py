"""e-SNLI: does a caption entail a sentence, contradict it, or neither? The human explanations are not used.

549,367 training, 9,842 validation and 9,824 test questions. Validation and test are held to SHA-256 digests of true
copies. No true copy of the training split was at hand, so it is held to its number of rows alone and, where it is
downloaded, to the checksums of the authors' files. Where the folder lacks it, its first 10,000 rows serve, of which
there was a true copy. Knows nothing about teachers or training. Method §4 and §8.
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
from qcrd.tasks.sources import Benchmark, Record, Row, RowFile, Urls, check_source, file_of, read_part, source_of

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

NAME: str = "esnli"
PROMPT = Path(__file__).parent / "prompts" / "esnli.txt"


def _record(row: Row) -> Record:
    """[premise, hypothesis, class] of a row."""
    return [*pair_of(row), class_of(row)]


def _authors(**checksums: str) -> Urls:
    """Files of the authors' repository, by name without ending, with their SHA-256."""
    folder = "https://raw.githubusercontent.com/OanaMariaCamburu/e-SNLI/master/dataset/"
    columns = {"Sentence1": "premise", "Sentence2": "hypothesis", "gold_label": "label"}
    return Urls({f"{folder}{name}.csv": sha256 for name, sha256 in checksums.items()}, columns)


SHA256 = {
    "first_10000": "e254cb4a3846d7625f11dbea267704f37c83f6a2dc06998933cc4ed5a26b42ed",
    "validation": "fdc29f056a9fe34d3b395368aeb1701a09a58aef251d20970f4bd7508c211311",
    "test": "3899fe1bca965223e2d7f06f4eb3ad809b34f89f85b603d83152249a46e985a5",
}
"""Of the records of true copies, in the files' order (`sources.rows_digest`)."""

# The files' checksums are from datasets/esnli/dataset_infos.json (0.0.2) of the repository huggingface/datasets.
BENCHMARK = Benchmark(
    NAME,
    files={
        "train": (
            RowFile("esnli_train.json", 549_367),
            RowFile("esnli_train_first10000.csv", 10_000, SHA256["first_10000"]),
        ),
        "validation": (RowFile("esnli_valid.json", 9842, SHA256["validation"]),),
        "test": (RowFile("esnli_test.json", 9824, SHA256["test"]),),
    },
    downloads={
        "train": _authors(
            esnli_train_1="7311c7bc16ad9f6a9adcd116a62ef991e1803dc0d71e253ce66b975c2aba8ee5",
            esnli_train_2="c8827fa2ba1ef5891f077d6fafbfc2fdb6cab1271968b74257e08d3b2b3cbacc",
        ),
        "validation": _authors(esnli_dev="d7a656d196eea18fd827d6f5486b00f5d4cf469dbf13a252cc211495a186bcb4"),
        "test": _authors(esnli_test="9269aa8075dbfed0fa8a5012eb2ac9c18a92be139671f05df897f69092592927"),
    },
    record=_record,
)


def sizes(config: BenchmarkTaskConfig) -> dict[str, int]:
    """The published sizes; of the training split that of the file that is used."""
    return {split: file_of(BENCHMARK, config, split).rows for split in BENCHMARK.files}


def has_gold_labels(config: BenchmarkTaskConfig) -> bool:
    """Always."""
    return True


def check(config: BenchmarkTaskConfig) -> None:
    """Raise `ConfigError` where a file is missing."""
    check_source(BENCHMARK, config)


def source(config: BenchmarkTaskConfig) -> dict[str, str]:
    """Digests of the rows; of the whole training split, those of its files."""
    return source_of(BENCHMARK, config)


def load(config: BenchmarkTaskConfig) -> list[Question]:
    """The questions: train, validation, test; a question's id is its split and row."""
    return [
        question_of(f"{NAME}-{split}-{row}", split, *record)
        for split in BENCHMARK.files
        for row, record in enumerate(read_part(BENCHMARK, config, split))
    ]

"""The rows that pass between stages, and their one way to and from Parquet.

Knows nothing about where files lie (storage/) or what the rows mean to a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

T = TypeVar("T")

SEPARATOR = "</s>"
"""Stands between the two texts of a question that has two; a student's tokenizer reads it as its own EOS."""


@dataclass(frozen=True)
class Question:
    """One question of a task. `label` is the target text; `answer` its canonical form, on which votes are taken.

    `facts` is JSON about how a generated question was made (for the simulated teacher); empty for real questions.
    """

    id: str
    split: str
    text: str
    label: str
    answer: str
    facts: str = ""


@dataclass(frozen=True)
class Sample:
    """One raw completion of the teacher, or the reason why there is none (`error` not empty), with its HTTP status."""

    question_id: str
    index: int
    key: str
    text: str
    reasoning: str
    finish_reason: str
    error: str
    status: int | None
    attempts: int
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Rationale:
    """One parsed sample. `answer` is None where nothing could be parsed; such a sample never votes."""

    question_id: str
    sample_index: int
    text: str
    label: str
    answer: str | None
    positive: bool
    right: bool


@dataclass(frozen=True)
class Vote:
    """Self-consistency of one question. `agreement` = share of parsed samples with the majority answer."""

    question_id: str
    majority: str | None
    majority_label: str | None
    agreement: float
    tie: bool
    num_samples: int
    num_parsed: int


@dataclass(frozen=True)
class Example:
    """One tokenised training question: token ids with EOS, and the texts that the discriminator reads.

    `rationale_ids` is the first sample's rationale (DSS), whatever its answer; empty where there is none.
    """

    question_id: str
    text: str
    predict_ids: list[int]
    explain_ids: list[int]
    label_ids: list[int]
    rationale_ids: list[int]
    positives: list[list[int]]
    positive_texts: list[str]
    negatives: list[list[int]]
    negative_texts: list[str]
    answer: str


@dataclass(frozen=True)
class Prediction:
    """One greedy label prediction. `checkpoint` is initial, best or last."""

    question_id: str
    split: str
    checkpoint: str
    text: str
    answer: str | None
    right: bool


@dataclass(frozen=True)
class Explanation:
    """One rationale that the student wrote, with the discriminator's score where there is one."""

    question_id: str
    split: str
    temperature: float
    sample_index: int
    text: str
    truncated: bool
    score: float | None


@dataclass(frozen=True)
class Score:
    """The discriminator's score of one rationale. `source`: teacher_positive, teacher_negative, student_<τ>."""

    question_id: str
    source: str
    score: float


_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str | None: pa.string(),
    int | None: pa.int64(),
    float | None: pa.float64(),
    list[int]: pa.list_(pa.int32()),
    list[str]: pa.list_(pa.string()),
    list[list[int]]: pa.list_(pa.list_(pa.int32())),
}


def schema_of(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type."""
    return pa.schema([(name, _ARROW[kind]) for name, kind in get_type_hints(row_type).items()])


ROWS_PER_GROUP = 10_000


class RowWriter:
    """Writes rows to one Parquet file as they come; memory holds at most `ROWS_PER_GROUP` of them."""

    def __init__(self, path: Path, row_type: type) -> None:
        self._schema = schema_of(row_type)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Any) -> None:
        self._rows.append(vars(row))
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()


def write_rows(path: Path, row_type: type, rows: Iterable[Any]) -> None:
    """Write rows as one Parquet file."""
    with RowWriter(path, row_type) as writer:
        for row in rows:
            writer.write(row)


def iter_rows(path: Path, row_type: type[T]) -> Iterator[T]:
    """Read rows a few thousand at a time. Raises `ValueError` where the file's columns are not the row type's."""
    expected = [field.name for field in fields(row_type)]  # pyright: ignore[reportArgumentType]
    with pq.ParquetFile(path) as file:
        if file.schema_arrow.names != expected:
            raise ValueError(f"{path}: columns {file.schema_arrow.names}, expected {expected}")
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
            for row in batch.to_pylist():
                yield row_type(**row)


def read_rows(path: Path, row_type: type[T]) -> list[T]:
    """Read all rows. Raises `ValueError` where the file's columns are not the row type's."""
    return list(iter_rows(path, row_type))

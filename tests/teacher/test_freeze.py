"""The samples artifact: rows in order, and sums that were worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from qcrd import records
from qcrd.config import ExperimentConfig
from qcrd.records import Question, RowWriter, Sample, Score, iter_rows, read_rows, write_rows
from qcrd.tasks import get_task
from qcrd.teacher.backends.base import Failure, Reply, Result
from qcrd.teacher.freeze import freeze, spent_before
from qcrd.teacher.prices import Price
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import Wanted, wanted_samples
from qcrd.teacher.store import SampleStore, StoreIndex
from qcrd.teacher.store_writer import StoreWriter

PRICE = Price(0.01, 0.02, 0.5, "2026-01-01", "a test")
QUESTIONS = [
    Question("z", "train", "1 + 1?", "", ""), Question("t", "test", "no", "", ""),
    Question("a", "train", "2 + 2?", "", ""), Question("twin", "train", "1 + 1?", "", ""),
]  # fmt: skip
CONFIG = ExperimentConfig.model_validate({"name": "x", "teacher": {"num_samples": 3}, "rationales": {"num_samples": 1}})
PROMPTS = task_prompts(get_task("svamp"), None)
WANTED = wanted_samples(CONFIG.teacher, PROMPTS, QUESTIONS)
RECORDS: dict[tuple[int, int], Result] = {
    (0, 0): Reply("z0", "why", "stop", 10, 3, 2),
    (0, 1): Reply("z1", "", "length", 10, 4, 1, True),
    (0, 2): Failure("status 400: no", 400, 1),
    (1, 0): Reply("a0", "", "stop", None, None),
    (1, 1): Failure("timeout: no answer within 5 s", None, 6),
    # (1, 2) is missing; question 2 shares the text of question 0
}


def index_of(folder: Path, of: Wanted, found: dict[tuple[int, int], Result]) -> StoreIndex:
    with StoreWriter(folder, 60) as writer:
        writer.write([(of.keys_of(*place, 1)[0], record) for place, record in reversed(found.items())])
    return SampleStore(folder).index()


@pytest.fixture
def index(tmp_path: Path) -> StoreIndex:
    return index_of(tmp_path / "store", WANTED, RECORDS)


def test_rows_are_in_order_of_question_and_index(index: StoreIndex, tmp_path: Path):
    freeze(WANTED, index, tmp_path / "samples.parquet", None)
    rows = read_rows(tmp_path / "samples.parquet", Sample)
    keys = [key.hex() for row in range(3) for key in WANTED.keys_of(row, 0, 3)]
    failed = ("", "", "", "status 400: no", 400, 1, None, None)
    z = [("z0", "why", "stop", "", None, 2, 10, 3), ("z1", "", "length", "", None, 1, 10, 4), failed]
    a = [
        ("a0", "", "stop", "", None, 1, None, None), ("", "", "", "timeout: no answer within 5 s", None, 6, None, None),
        ("", "", "", "not asked", None, 0, None, None),
    ]  # fmt: skip
    places = [(name, at) for name in ("z", "a", "twin") for at in range(3)]
    assert rows == [Sample(*place, key, *values) for place, key, values in zip(places, keys, [*z, *a, *z], strict=True)]
    assert keys[:3] == keys[6:]


def test_sums(index: StoreIndex, tmp_path: Path):
    expected: dict[str, Any] = {
        "samples": 9, "errors": 4, "error not asked": 1, "error status 400": 2, "error timeout": 1, "uncounted": 1,
        "prompt_tokens": 20, "completion_tokens": 7,
    }  # fmt: skip
    assert freeze(WANTED, index, tmp_path / "a", None) == expected
    usd = 10 * 0.01 + 3 * 0.02 + 0.5 * (10 * 0.01 + 4 * 0.02)  # the twins are paid once, the batch costs half
    with_price = freeze(WANTED, index, tmp_path / "b", PRICE)
    assert with_price.pop("usd") == pytest.approx(usd) and with_price == expected
    assert spent_before(WANTED, index, PRICE) == pytest.approx(usd)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_artifact_does_not_depend_on_who_wrote_what_when(index: StoreIndex, tmp_path: Path):
    freeze(WANTED, index, tmp_path / "a", None)
    other = tmp_path / "other"
    for place, record in RECORDS.items():  # a part each, in another order, with failures beside the replies
        index_of(other, WANTED, {place: record})
        if isinstance(record, Reply):
            index_of(other, WANTED, {place: Failure("an earlier try", 500, 3)})
    freeze(WANTED, SampleStore(other).index(), tmp_path / "b", None)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_counts_that_are_none_are_not_counted(tmp_path: Path):
    """As stores have them from a time when what an endpoint said was kept unseen."""
    odd: dict[tuple[int, int], Result] = {
        (0, 0): Reply("z0", "", "stop", 2**63, -5), (0, 1): Failure("content filter: no", -(2**70), 1, -(10**9), 4),
    }  # fmt: skip
    index = index_of(tmp_path / "store", WANTED, odd)
    found = freeze(WANTED, index, tmp_path / "a", PRICE)
    assert (found["uncounted"], found["prompt_tokens"], found["completion_tokens"]) == (1, 0, 4)
    assert found["usd"] == spent_before(WANTED, index, PRICE) == pytest.approx(4 * 0.02)
    rows = read_rows(tmp_path / "a", Sample)
    assert (rows[0].text, rows[0].prompt_tokens, rows[0].completion_tokens) == ("z0", None, None)
    assert (rows[1].error, rows[1].status) == ("content filter: no", None)


def test_a_store_that_lacks_everything(tmp_path: Path):
    found = freeze(WANTED, SampleStore(tmp_path / "none").index(), tmp_path / "a", PRICE)
    assert found == {"samples": 9, "errors": 9, "error not asked": 9, "usd": 0.0}
    assert {row.error for row in read_rows(tmp_path / "a", Sample)} == {"not asked"}


# -- rows that come one by one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 35])
def test_rows_are_written_and_read_in_groups(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "ROWS_PER_GROUP", 10)
    rows = [Score(f"q{n}", "source", n / 7) for n in range(count)]
    path = tmp_path / "rows.parquet"
    with RowWriter(path, Score) as writer:
        for row in rows:
            writer.write(row)
            assert len(writer._rows) < 10
    assert pq.ParquetFile(path).num_row_groups == -(-count // 10)
    assert read_rows(path, Score) == rows
    reader = iter_rows(path, Score)
    assert [next(reader) for _ in range(min(count, 3))] == rows[:3]
    write_rows(tmp_path / "again.parquet", Score, iter(rows))
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_a_file_of_other_rows_is_refused(tmp_path: Path):
    write_rows(tmp_path / "rows.parquet", Score, [Score("q", "s", 0.5)])
    with pytest.raises(ValueError, match=r"rows\.parquet: columns \['question_id', 'source', 'score'\], expected"):
        read_rows(tmp_path / "rows.parquet", Sample)


def test_rows_after_an_error_are_not_written(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), RowWriter(tmp_path / "rows.parquet", Score) as writer:
        writer.write(Score("q", "s", 0.5))
        raise ZeroDivisionError
    assert read_rows(tmp_path / "rows.parquet", Score) == []

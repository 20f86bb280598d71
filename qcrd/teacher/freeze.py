"""The samples artifact: what the store holds for a run's samples, frozen in (question, index) order, and its sums.

Reads record by record, so that memory does not grow with their number. Knows nothing about Ray or how replies are got.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from qcrd.records import RowWriter, Sample
from qcrd.teacher.backends.base import Reply, Result
from qcrd.teacher.prices import Price, spent_usd
from qcrd.teacher.requests import Wanted
from qcrd.teacher.store import StoreIndex

NOT_ASKED = "not asked"
MANY = 2000


def freeze(wanted: Wanted, index: StoreIndex, path: Path, price: Price | None) -> dict[str, Any]:
    """Write all samples to a Parquet file. Returns counts, tokens, dollars and errors by kind.

    Tokens are summed over the records that have counts; `uncounted` says how many replies have none. `usd` is absent
    where the price is unknown.
    """
    sums: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    usd = 0.0
    distinct = wanted.distinct()  # two questions with one text are paid once
    with RowWriter(path, Sample) as writer:
        records = index.records(wanted.keys.reshape(-1))
        for row, question in enumerate(wanted.questions):
            for column in range(wanted.keys.shape[1]):
                key = wanted.keys_of(row, column, 1)[0]
                record = next(records)
                writer.write(_sample(question.id, column, key, record))
                if not isinstance(record, Reply):
                    errors[NOT_ASKED if record is None else record.reason.split(":")[0]] += 1
                if record is None or not distinct[row, column]:
                    continue
                prompt, completion = record.prompt_tokens, record.completion_tokens
                sums["uncounted"] += isinstance(record, Reply) and (prompt is None or completion is None)
                sums["prompt_tokens"] += prompt or 0
                sums["completion_tokens"] += completion or 0
                if price is not None:
                    usd += spent_usd(price, prompt or 0, completion or 0, record.batch)
    return {
        "samples": wanted.total,
        "errors": errors.total(),
        **{f"error {kind}": count for kind, count in sorted(errors.items())},
        **dict(sums),
        **({"usd": usd} if price is not None else {}),
    }


def spent_before(wanted: Wanted, index: StoreIndex, price: Price) -> float:
    """Dollars that the stored records of a run's samples cost, whichever run paid for them."""
    total = 0.0
    for record in index.records(wanted.keys[wanted.distinct()]):
        if record is not None:
            total += spent_usd(price, record.prompt_tokens or 0, record.completion_tokens or 0, record.batch)
    return total


def known_completion(wanted: Wanted, index: StoreIndex) -> tuple[int, int] | None:
    """Completion tokens and number of stored replies of a run's samples, of at most `MANY` that have counts."""
    tokens = replies = 0
    for record in index.records(wanted.keys[index.answered(wanted.keys)][:MANY]):
        if isinstance(record, Reply) and record.completion_tokens is not None:
            tokens += record.completion_tokens
            replies += 1
    return (tokens, replies) if replies else None


def _sample(question_id: str, index: int, key: bytes, record: Result | None) -> Sample:
    """A row of the samples artifact."""
    if isinstance(record, Reply):
        return Sample(
            question_id, index, key.hex(), record.text, record.reasoning, record.finish_reason, "", None,
            record.attempts, record.prompt_tokens, record.completion_tokens,
        )  # fmt: skip
    if record is None:
        return Sample(question_id, index, key.hex(), "", "", "", NOT_ASKED, None, 0, None, None)
    return Sample(question_id, index, key.hex(), "", "", "", record.reason, record.status, record.attempts, None, None)

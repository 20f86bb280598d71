"""Numbers about predictions and rationales. Knows nothing about models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcrd.records import Explanation, Prediction, Question
from qcrd.tasks.base import Task


def accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """Share of right items and its standard error, sqrt(p (1 - p) / n). Raises `ValueError` for no items."""
    if not right:
        raise ValueError("accuracy of no items")
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / len(right))


def explanation_metrics(
    task: Task, questions: Sequence[Question], predictions: Sequence[Prediction], explanations: Sequence[Explanation]
) -> dict[str, float]:
    """How the greedy rationales to test questions go with the answers; empty where there is none.

    `eval/test_rationale_accuracy`: share that states the gold answer. `eval/test_consistency`: share that states the
    answer that the label task predicts at the best checkpoint; a prediction that is no answer goes with no rationale.
    `eval/test_explained`: of how many.
    """
    gold = {q.id: q.answer for q in questions}
    predicted = {p.question_id: p.answer for p in predictions if p.checkpoint == "best"}
    rows = [row for row in explanations if row.split == "test" and row.temperature == 0]
    if not rows:
        return {}
    right = [task.states_answer(row.text, gold[row.question_id]) for row in rows]
    consistent = []
    for row in rows:
        answer = predicted[row.question_id]
        consistent.append(answer is not None and task.states_answer(row.text, answer))
    return {
        "eval/test_rationale_accuracy": sum(right) / len(rows),
        "eval/test_consistency": sum(consistent) / len(rows),
        "eval/test_explained": len(rows),
    }

"""The labels that a student gives to questions, greedily, during and after training, and the share of right ones.

Knows nothing about training or folders of artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from qcrd.config import StudentSettings
from qcrd.distill.data import TrainingData
from qcrd.models.generation import generate
from qcrd.models.student import Student
from qcrd.models.tokenizer import encode_inputs
from qcrd.rationales.single_task import label_of, max_answer_tokens
from qcrd.records import Question
from qcrd.runtime.workers import Workers
from qcrd.tasks.base import Task


@dataclass(frozen=True)
class Asking:
    """How a student is asked: with which prefixes and limits, how many questions at once, and what stands before the
    label in what it writes (None: nothing)."""

    settings: StudentSettings
    batch_size: int
    answer_phrase: str | None


def greedy_labels(
    asking: Asking,
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    workers: Workers | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """One label a question, in batches sorted by length."""
    texts = [asking.settings.prefixes.predict + question.text for question in questions]
    made = generate(
        student, encode_inputs(tokenizer, texts, asking.settings.max_input_tokens),
        max_new_tokens=max_answer_tokens(asking.settings, asking.answer_phrase), batch_size=asking.batch_size,
        on_progress=on_progress, workers=workers,
    )  # fmt: skip
    answers = tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)
    return [label_of(asking.answer_phrase, answer) for answer in answers]


def accuracy_of(
    asking: Asking, student: Student, data: TrainingData, task: Task, workers: Workers | None = None
) -> float:
    """Share of right greedy labels on the validation questions of `data`."""
    if not data.validation:
        raise ValueError("the task has no validation questions, so no checkpoint can be chosen")
    labels = greedy_labels(asking, student, data.tokenizer, data.validation, workers=workers)
    right = [task.is_right(label, question) for label, question in zip(labels, data.validation, strict=True)]
    return sum(right) / len(right)

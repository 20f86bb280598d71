"""Asking a trained student: labels (greedy), rationales, and the discriminator's scores of rationales.

Knows nothing about training, Ray or folders of artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from qcrd.distill.discriminator import Discriminator
from qcrd.distill.labels import Asking, greedy_labels
from qcrd.models.generation import generate
from qcrd.models.student import Student
from qcrd.models.tokenizer import encode_inputs
from qcrd.records import Explanation, Prediction, Question
from qcrd.seeding import generator
from qcrd.tasks.base import Task


@dataclass(frozen=True)
class Sampling:
    """How rationales are written. `temperature` 0 is greedy; `seed`: the run's."""

    temperature: float
    top_k: int
    max_new_tokens: int
    seed: int


def predict_labels(
    asking: Asking,
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    questions: Sequence[Question],
    checkpoint: str,
    on_progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Greedy labels of some questions, in batches sorted by length."""
    labels = greedy_labels(asking, student, tokenizer, questions, on_progress=on_progress)
    return [
        Prediction(q.id, q.split, checkpoint, label, task.answer_of(label), task.is_right(label, q))
        for q, label in zip(questions, labels, strict=True)
    ]


def explain(
    asking: Asking,
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    discriminator: Discriminator | None,
    questions: Sequence[Question],
    sampling: Sampling,
) -> list[Explanation]:
    """One rationale for each question, scored by the discriminator where there is one."""
    if not questions:
        return []
    settings, temperature = asking.settings, sampling.temperature
    texts = [settings.prefixes.explain + question.text for question in questions]
    made = generate(
        student, encode_inputs(tokenizer, texts, settings.max_input_tokens),
        max_new_tokens=sampling.max_new_tokens, batch_size=asking.batch_size,
        temperature=temperature, top_k=sampling.top_k,
        stream=lambda row: generator(sampling.seed, "explain", f"{temperature:g}", questions[row].id),
    )  # fmt: skip
    rationales = [text.strip() for text in tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)]
    scores: Sequence[float | None] = [None] * len(questions)
    if discriminator is not None:
        scores = discriminator.score([(q.text, text) for q, text in zip(questions, rationales, strict=True)])
    return [
        Explanation(q.id, q.split, temperature, 0, text, one.truncated, score)
        for q, text, one, score in zip(questions, rationales, made, scores, strict=True)
    ]

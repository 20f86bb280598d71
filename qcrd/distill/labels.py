"""The labels that a student gives to questions, greedily, for whoever scores it during or after training.

Knows nothing about which answer is right, training, or folders of artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from qcrd.config import ExperimentConfig
from qcrd.models.generation import generate
from qcrd.models.student import Student, encode_inputs
from qcrd.rationales.single_task import label_of, max_answer_tokens
from qcrd.records import Question
from qcrd.runtime.workers import Workers


def greedy_labels(
    config: ExperimentConfig,
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    workers: Workers | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """One label a question, in batches sorted by length."""
    texts = [config.student.prefixes.predict + question.text for question in questions]
    made = generate(
        student, encode_inputs(tokenizer, texts, config.student.max_input_tokens),
        max_new_tokens=max_answer_tokens(config), batch_size=config.evaluation.batch_size,
        on_progress=on_progress, workers=workers,
    )  # fmt: skip
    answers = tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)
    return [label_of(config, answer) for answer in answers]

"""The evaluation stage: one Ray task that loads the trained students and writes predictions, rationales and scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from qcrd.config import EvaluationConfig, ExperimentConfig
from qcrd.distill.discriminator import Discriminator, load_discriminator
from qcrd.distill.labels import Asking
from qcrd.distill.methods import get_method
from qcrd.evaluate.metrics import accuracy, explanation_metrics
from qcrd.evaluate.predictions import Sampling, explain, predict_labels
from qcrd.models.student import Student, load_student
from qcrd.records import (
    Example,
    Explanation,
    Prediction,
    Question,
    Rationale,
    Score,
    iter_rows,
    read_rows,
    write_rows,
)
from qcrd.runtime.devices import set_up_torch
from qcrd.runtime.events import Event
from qcrd.runtime.remote import run_remotely
from qcrd.seeding import generator
from qcrd.storage.output import Storage
from qcrd.tasks.base import Task

CHECKPOINTS = ("initial", "best", "last")
DENSITY_TEMPERATURES = (1.5, 2.0)
DENSITY_QUESTIONS = 200
"""At most this many questions in the plot of score densities (the paper's Figure 6)."""


Explain = Callable[[Sequence[Question], float, int], list[Explanation]]
"""The student's rationales to questions, at a temperature and with at most so many tokens."""


def evaluate_students(
    inputs: Mapping[str, Path], out: Path, config: ExperimentConfig, task: Task, *, emit: Callable[[Event], None]
) -> dict[str, Any]:
    """Label predictions of the initial, best and last student; rationales and scores of the best. Returns the metrics,
    and as `scored_split` whose rationales were scored."""
    device, method = set_up_torch(config.resources), get_method(config.method)
    asking = Asking(config.student, config.evaluation.batch_size, method.answer_phrase)
    questions = read_rows(inputs["questions"] / "questions.parquet", Question)
    test = [q for q in questions if q.split == "test"][: config.evaluation.test_limit]
    validation = [q for q in questions if q.split == "validation"][: config.evaluation.validation_limit]
    asked = validation + test
    predictions: list[Prediction] = []
    explanations: list[Explanation] = []
    scores: list[Score] = []
    metrics: dict[str, Any] = {}
    discriminator = None
    if (inputs["student"] / "discriminator").is_dir():
        discriminator = load_discriminator(inputs["student"] / "discriminator", device)
    total = len(asked) * len(CHECKPOINTS)
    for name in CHECKPOINTS:
        student, tokenizer = load_student(inputs["student"] / name, config.student.dtype, device)
        before = len(predictions)

        def on_progress(done: int, before: int = before, name: str = name) -> None:
            emit({"kind": "progress", "done": before + done, "total": total, "info": name})

        predictions += predict_labels(asking, student, tokenizer, task, asked, name, on_progress)
        if name == "best":

            def told(
                asked: Sequence[Question], temperature: float, max_new_tokens: int, student: Student = student,
                tokenizer: PreTrainedTokenizerBase = tokenizer,
            ) -> list[Explanation]:  # fmt: skip
                sampling = Sampling(temperature, config.negatives.top_k, max_new_tokens, config.seed)
                return explain(asking, student, tokenizer, discriminator, asked, sampling)

            if method.explains:
                chosen = drawn(test, config.evaluation.explained_questions, config.task.seed)
                examples = _teacher_examples(inputs, questions, config.evaluation.num_examples)
                limit = config.student.max_target_tokens
                explanations = _explanations(config.evaluation, told, chosen, examples, limit)
            if discriminator is not None:
                split = "test" if "test" in config.teacher.splits else "train"
                limit = config.negatives.max_new_tokens
                metrics["scored_split"], scores = split, _scores(split, told, limit, discriminator, inputs, questions)
    write_rows(out / "predictions.parquet", Prediction, predictions)
    write_rows(out / "explanations.parquet", Explanation, explanations)
    write_rows(out / "scores.parquet", Score, scores)
    metrics = _accuracies(predictions) | explanation_metrics(task, test, predictions, explanations) | metrics
    (out / "evaluation.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def drawn(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """The first `count` of one permutation, which the seed alone decides: a smaller count is part of a larger one."""
    order = generator(seed, "explained_questions").permutation(len(questions))
    return [questions[row] for row in order[:count].tolist()]


def _explanations(
    evaluation: EvaluationConfig, told: Explain, chosen: Sequence[Question], examples: Sequence[Question], limit: int
) -> list[Explanation]:
    """Rationales of at most `limit` tokens to the drawn test questions at each temperature, and greedy ones to the
    teacher's examples."""
    rows = [row for t in dict.fromkeys(evaluation.explain_temperatures) for row in told(chosen, t, limit)]
    return rows + told(examples, 0.0, limit)


def _teacher_examples(inputs: Mapping[str, Path], questions: Sequence[Question], count: int) -> list[Question]:
    """The first training questions with a positive and a negative of the teacher, to stand beside the student's."""
    examples = read_rows(inputs["training_set"] / "examples.parquet", Example)
    both = [e.question_id for e in examples if e.positive_texts and e.negative_texts]
    return [q for q in questions if q.id in both[:count]]


def _scores(
    split: str, told: Explain, limit: int, discriminator: Discriminator, inputs: Mapping[str, Path],
    questions: Sequence[Question],
) -> list[Score]:  # fmt: skip
    """The discriminator's scores of the teacher's rationales and of the student's samples, of at most `limit` tokens,
    to the same questions of a split: test where the teacher was asked test questions (nothing was trained on those),
    else train, of which those count that the discriminator's pretraining held out."""
    if split == "test":
        ids = {q.id for q in questions if q.split == "test"}
    else:
        ids = set(json.loads((inputs["discriminator"] / "held_out.json").read_text()))
    rows = iter_rows(inputs["rationales"] / "rationales.parquet", Rationale)
    rationales = [row for row in rows if row.question_id in ids and row.answer is not None and row.text]
    explained = {row.question_id for row in rationales}
    scored = [q for q in questions if q.id in explained][:DENSITY_QUESTIONS]
    texts = {q.id: q.text for q in scored}
    rationales = [row for row in rationales if row.question_id in texts]
    values = discriminator.score([(texts[row.question_id], row.text) for row in rationales]) if rationales else []
    scores = [
        Score(row.question_id, "teacher_positive" if row.positive else "teacher_negative", value)
        for row, value in zip(rationales, values, strict=True)
    ]
    for temperature in DENSITY_TEMPERATURES:
        samples = told(scored, temperature, limit)
        scores += [Score(r.question_id, f"student_{temperature:g}", r.score) for r in samples if r.score is not None]
    return scores


def _accuracies(predictions: list[Prediction]) -> dict[str, float]:
    """Accuracy and standard error of each checkpoint on each split."""
    metrics: dict[str, float] = {}
    for checkpoint in CHECKPOINTS:
        for split in ("validation", "test"):
            right = [p.right for p in predictions if p.checkpoint == checkpoint and p.split == split]
            share, error = accuracy(right)
            metrics[f"eval/{split}_accuracy_{checkpoint}"] = share
            metrics[f"eval/{split}_standard_error_{checkpoint}"] = error
    return metrics


def evaluate(
    config: ExperimentConfig, task: Task, storage: Storage, inputs: Mapping[str, Path], out: Path,
    on_event: Callable[[Event], None],
) -> dict[str, Any]:  # fmt: skip
    """Run the stage on Ray. Returns the metrics."""
    return run_remotely(config.resources, storage, evaluate_students, inputs, out, config, task, on_event=on_event)

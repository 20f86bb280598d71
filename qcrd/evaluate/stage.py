"""The evaluation stage: one Ray task that loads the trained students and writes predictions, rationales and scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.distill.discriminator import Discriminator, load_discriminator
from qcrd.distill.loop import Event
from qcrd.distill.student import load_student
from qcrd.distill.train import run_remotely, set_up_torch
from qcrd.evaluate.metrics import accuracy
from qcrd.evaluate.predict import explain, predict_labels
from qcrd.records import Example, Explanation, Prediction, Question, Score, read_rows, write_rows
from qcrd.tasks import get_task

CHECKPOINTS = ("initial", "best", "last")
DENSITY_TEMPERATURES = (1.5, 2.0)
DENSITY_QUESTIONS = 200
"""At most this many questions in the plot of score densities (the paper's Figure 6)."""


def evaluate_students(
    config: ExperimentConfig, inputs: Mapping[str, Path], out: Path, *, emit: Callable[[Event], None]
) -> dict[str, float]:
    """Label predictions of the initial, best and last student; example rationales; scores. Returns the accuracies."""
    device = set_up_torch(config)
    task = get_task(config.task.name)
    questions = read_rows(inputs["questions"] / "questions.parquet", Question)
    asked = [q for q in questions if q.split in ("validation", "test")]
    examples = [q for q in questions if q.split == "test"][: config.evaluation.num_examples]
    examples += _teacher_examples(inputs, questions, config.evaluation.num_examples)
    predictions: list[Prediction] = []
    explanations: list[Explanation] = []
    scores: list[Score] = []
    judge = None
    if (inputs["student"] / "discriminator").is_dir():
        judge = load_discriminator(inputs["student"] / "discriminator", device)
    total = len(asked) * len(CHECKPOINTS)
    for name in CHECKPOINTS:
        student, tokenizer = load_student(inputs["student"] / name, config.student.dtype, device)
        before = len(predictions)

        def on_progress(done: int, before: int = before, name: str = name) -> None:
            emit({"kind": "progress", "done": before + done, "total": total, "info": name})

        predictions += predict_labels(config, student, tokenizer, task, asked, name, on_progress)
        if name == "best":
            explanations = explain(config, student, tokenizer, judge, examples, 0.0, config.student.max_target_tokens)
            if judge is not None:
                scored = _held_out(inputs, questions)
                scores = _teacher_scores(judge, inputs, scored)
                for temperature in DENSITY_TEMPERATURES:
                    rows = explain(
                        config, student, tokenizer, judge, scored, temperature, config.negatives.max_new_tokens
                    )
                    source = f"student_{temperature:g}"
                    scores += [Score(r.question_id, source, r.score) for r in rows if r.score is not None]
    write_rows(out / "predictions.parquet", Prediction, predictions)
    write_rows(out / "explanations.parquet", Explanation, explanations)
    write_rows(out / "scores.parquet", Score, scores)
    metrics = _accuracies(predictions)
    (out / "evaluation.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _teacher_examples(inputs: Mapping[str, Path], questions: list[Question], count: int) -> list[Question]:
    """Training questions with a positive and a negative of the teacher, to stand beside the student's rationale."""
    examples = read_rows(inputs["training_set"] / "examples.parquet", Example)
    both = [e.question_id for e in examples if e.positive_texts and e.negative_texts][:count]
    return [q for q in questions if q.id in both]


def _held_out(inputs: Mapping[str, Path], questions: list[Question]) -> list[Question]:
    """Training questions that the judge's pretraining held out: their teacher samples it did not see there."""
    chosen = set(json.loads((inputs["judge"] / "held_out.json").read_text()))
    return [q for q in questions if q.id in chosen][:DENSITY_QUESTIONS]


def _teacher_scores(judge: Discriminator, inputs: Mapping[str, Path], scored: list[Question]) -> list[Score]:
    wanted = {q.id for q in scored}
    examples = [e for e in read_rows(inputs["training_set"] / "examples.parquet", Example) if e.question_id in wanted]
    rows = [(e, text, "teacher_positive") for e in examples for text in e.positive_texts]
    rows += [(e, text, "teacher_negative") for e in examples for text in e.negative_texts]
    values = judge.score([(e.text, text) for e, text, _ in rows]) if rows else []
    return [Score(e.question_id, source, value) for (e, _, source), value in zip(rows, values, strict=True)]


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
    config: ExperimentConfig, inputs: Mapping[str, Path], out: Path, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """Run the stage on Ray. Returns the accuracies."""
    return run_remotely(config, evaluate_students, dict(inputs), out, on_event=on_event)

"""Training the discriminator: before the student, and online with it (method.md section 6; appendix A.3).

In pretraining negatives are few, so corrupted rationales fill each question's negatives up to its positives. AUROC is
measured on a held-out tenth of the questions, for real and for augmented negatives apart: the augmented are easy.
Knows nothing about Ray or folders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcrd.config import DiscriminatorConfig
from qcrd.distill.discriminator import Discriminator, QuestionRationales, discriminator_optimizer, optimizer_step
from qcrd.models.optimizer import FlatAdamW
from qcrd.rationales.augmentation import (
    Tagger,
    augmented_negatives,
    content_vocabulary,
    rule_tagger,
    stanza_tagger,
)
from qcrd.runtime.workers import Workers
from qcrd.seeding import generator, stable_seed

AUROC_WARNING = 0.95


@dataclass(frozen=True)
class HeldOut:
    """Scores of the held-out questions' rationales."""

    positive: list[float]
    real_negative: list[float]
    augmented_negative: list[float]

    def metrics(self) -> dict[str, float]:
        """AUROC against each kind of negative (absent where there is none), mean s+, mean s-."""
        from sklearn.metrics import roc_auc_score  # seconds of import, which other processes need not wait for

        values = {"discriminator/mean_positive": _mean(self.positive)}
        values["discriminator/mean_negative"] = _mean(self.real_negative + self.augmented_negative)
        for name, negative in (("real", self.real_negative), ("augmented", self.augmented_negative)):
            if self.positive and negative:
                truth = [1] * len(self.positive) + [0] * len(negative)
                values[f"discriminator/auroc_{name}"] = float(roc_auc_score(truth, self.positive + negative))
                values[f"discriminator/mean_{name}_negative"] = _mean(negative)
        return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def split_held_out(question_ids: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the questions to train on and of those held out (at least one), by `discriminator.seed`."""
    order = generator(seed, "judge_holdout").permutation(len(question_ids))
    size = max(1, round(share * len(order)))
    return sorted(order[size:].tolist()), sorted(order[:size].tolist())


def _tagger(config: DiscriminatorConfig) -> Tagger:
    return stanza_tagger() if config.augmentation == "stanza" else rule_tagger


def augment(config: DiscriminatorConfig, questions: Sequence[QuestionRationales]) -> list[list[str]]:
    """Corrupted negatives of each question, drawn from a stream of the question's own."""
    tagger = _tagger(config)
    vocabulary = content_vocabulary(sorted({t for q in questions for t in q.positives})[:2000], tagger)
    return [
        augmented_negatives(
            q.positives, q.negatives, vocabulary, generator(config.seed, "augment", q.question_id), tagger
        )
        for q in questions
    ]


def score_held_out(
    discriminator: Discriminator, questions: Sequence[QuestionRationales], augmented: Sequence[Sequence[str]]
) -> HeldOut:
    """Score the rationales of held-out questions."""
    pairs = [
        [(q.text, t) for q in questions for t in q.positives],
        [(q.text, t) for q in questions for t in q.negatives],
        [(q.text, t) for q, texts in zip(questions, augmented, strict=True) for t in texts],
    ]
    return HeldOut(*(discriminator.score(side) if side else [] for side in pairs))


def pretrain(
    discriminator: Discriminator,
    config: DiscriminatorConfig,
    questions: Sequence[QuestionRationales],
    emit: Callable[[dict[str, Any]], None],
) -> tuple[list[dict[str, float]], list[str]]:
    """Train the discriminator for at most `max_steps` steps; stop once held-out scores reach `target_score`.

    Returns the metric rows, whose last one is the discriminator's at the end, and the ids of the held-out questions.
    Raises `ValueError` where fewer than two questions have a positive rationale.
    """
    questions = [q for q in questions if q.positives]
    if len(questions) < 2:
        raise ValueError(
            "the discriminator needs at least two questions with a positive rationale; check the parse rate"
        )
    train, held_out = split_held_out([q.question_id for q in questions], config.holdout, config.seed)
    augmented = augment(config, questions)
    filled = [
        QuestionRationales(q.question_id, q.text, q.positives, q.negatives + extra)
        for q, extra in zip(questions, augmented, strict=True)
    ]
    optimizer = discriminator_optimizer(discriminator, config)
    rows: list[dict[str, float]] = []
    order: list[int] = []
    for step in range(1, config.max_steps + 1):
        if len(order) < config.batch_questions:
            stream = generator(config.seed, "judge_order", step)
            order += [train[i] for i in stream.permutation(len(train))]
        batch, order = order[: config.batch_questions], order[config.batch_questions :]
        seed = stable_seed(config.seed, "judge_step", step)
        loss = float(optimizer_step(discriminator, optimizer, [filled[i] for i in batch], 1.0, seed))
        if step % 10 == 0:
            emit({"kind": "progress", "done": step, "total": config.max_steps, "info": f"L_D {loss:.3f}"})
        if step % config.eval_every == 0 or step == config.max_steps:
            scores = score_held_out(discriminator, [questions[i] for i in held_out], [augmented[i] for i in held_out])
            rows.append({"step": step, "discriminator/loss": loss, **scores.metrics()})
            emit({"kind": "metrics", "rows": rows[-1:]})
            if _separated(rows[-1], config.target_score):
                break
    return rows, [questions[i].question_id for i in held_out]


def _separated(metrics: dict[str, float], target: float) -> bool:
    negatives = [
        v
        for k, v in metrics.items()
        if k in ("discriminator/mean_real_negative", "discriminator/mean_augmented_negative")
    ]
    return metrics["discriminator/mean_positive"] >= target and bool(negatives) and max(negatives) <= 1 - target


def update_online(
    discriminator: Discriminator,
    optimizer: FlatAdamW,
    config: DiscriminatorConfig,
    questions: Sequence[QuestionRationales],
    weight: float,
    names: tuple[str | int, ...],
    workers: Workers,
) -> float | None:
    """`update_steps` steps on the questions that have both sides, in orders seeded by `names`. Returns the mean L_D;
    None where there is nothing to learn from."""
    questions = [q for q in questions if q.positives and q.negatives]
    if not questions or config.update_steps == 0:
        return None
    order: list[int] = []
    losses = []
    for update in range(config.update_steps):
        if len(order) < config.batch_questions:
            order += generator(*names, "judge_update", update).permutation(len(questions)).tolist()
        batch, order = order[: config.batch_questions], order[config.batch_questions :]
        seed = stable_seed(*names, "judge_update_step", update)
        losses.append(optimizer_step(discriminator, optimizer, [questions[i] for i in batch], weight, seed, workers))
    mean = torch.stack(losses).mean()
    workers.sum_(mean)
    return float(mean)

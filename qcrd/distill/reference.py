"""Every method's loss as method.md writes it: transformers' own forward on padded batches, gradient through everything.

Takes from qcrd only the batch's rows and the model: no weights, no selection before the gradient pass, no totals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from qcrd.config import LossConfig
from qcrd.distill.batch import QuestionBatch
from qcrd.models.student import Student

Rows = Sequence[Sequence[int]]


def padded(rows: Rows, value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(list(row)) for row in rows], True, value)


def forward(student: Student, questions: Rows, targets: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (R, T, V) of a padded batch and its labels (R, T), -100 on padding, where the decoder reads the pad id."""
    labels = padded(targets, -100)
    start = torch.full((len(targets), 1), student.start_id)
    read = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, student.pad_id)], dim=1)
    inputs, mask = padded(questions, student.pad_id), padded([[1] * len(row) for row in questions], 0)
    return student.model(input_ids=inputs, attention_mask=mask, decoder_input_ids=read).logits, labels


def token_mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def peaks(logits: torch.Tensor, labels: torch.Tensor, variant: str) -> torch.Tensor:
    """Largest probability of each token of the vocabulary over the decoder's positions, (R, V)."""
    probabilities = logits.softmax(dim=-1)
    if variant == "masked":
        probabilities = probabilities.masked_fill((labels == -100)[:, :, None], 0.0)
    return probabilities.max(dim=1).values


def disagreement(p_rationale: torch.Tensor, p_label: torch.Tensor, variant: str) -> torch.Tensor:
    if variant == "official":
        return cross_entropy(p_rationale, p_label)
    return -(p_label * p_rationale.log()).sum(dim=1).mean()


def _two_tasks(student: Student, batch: QuestionBatch, config: LossConfig, method: str) -> torch.Tensor:
    labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
    explained = [n for n, ids in enumerate(batch.rationale_ids) if ids]
    label = forward(student, [batch.predict_ids[n] for n in labelled], [batch.label_ids[n] for n in labelled])
    rationale = forward(student, [batch.explain_ids[n] for n in explained], [batch.rationale_ids[n] for n in explained])
    dss = config.label_weight * token_mean(*label) + config.rationale_weight * token_mean(*rationale)
    if method == "dss":
        return dss
    both = sorted({*labelled} & {*explained})
    p_label = peaks(*label, config.mi_variant)[[labelled.index(n) for n in both]]
    p_rationale = peaks(*rationale, config.mi_variant)[[explained.index(n) for n in both]]
    return dss + config.mi_weight * disagreement(p_rationale, p_label.detach(), config.mi_variant)


def _sequence_losses(student: Student, questions: Rows, sides: Sequence[Rows]) -> list[list[torch.Tensor]]:
    """l(r) of each candidate of each question."""
    flat = [(n, target) for n, side in enumerate(sides) for target in side]
    if not flat:
        return [[] for _ in sides]
    logits, labels = forward(student, [questions[n] for n, _ in flat], [target for _, target in flat])
    nll = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(dim=1)
    values = iter(nll / (labels != -100).sum(dim=1))
    return [[next(values) for _ in side] for side in sides]


def _question_term(
    pos: list[torch.Tensor], neg: list[torch.Tensor], s_pos: Sequence[float], s_neg: Sequence[float],
    draws: tuple[float, float], config: LossConfig,
) -> torch.Tensor:  # fmt: skip
    """l_pos - beta * l_neg of one question."""
    zero = torch.zeros((), dtype=torch.float64)
    if not pos:
        return zero
    hinge = [torch.minimum(value - config.margin, zero) for value in neg]
    if config.scheme == "mean":
        l_pos, l_neg = sum(pos) / len(pos), sum(hinge, zero) / max(len(hinge), 1)
    elif config.scheme == "weighted_mean":
        l_pos = sum(s * v for s, v in zip(s_pos, pos, strict=True)) / len(pos)
        l_neg = sum(((1 - s) * v for s, v in zip(s_neg, hinge, strict=True)), zero) / max(len(hinge), 1)
    else:
        if config.scheme == "sampling":
            i, j = int(draws[0] * len(pos)), int(draws[1] * len(hinge))
        else:
            easy, hard = (min, max) if config.scheme == "minmax" else (max, min)
            i = pos.index(easy(pos))
            j = hinge.index(hard(hinge)) if hinge else 0
        l_pos, l_neg = s_pos[i] * pos[i], (1 - s_neg[j]) * hinge[j] if hinge else zero
    return l_pos - config.beta * l_neg


def _qcrd(student: Student, batch: QuestionBatch, config: LossConfig) -> torch.Tensor:
    labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
    label = forward(student, [batch.predict_ids[n] for n in labelled], [batch.label_ids[n] for n in labelled])
    pos = _sequence_losses(student, batch.explain_ids, batch.positives)
    neg = _sequence_losses(student, batch.explain_ids, batch.negatives)
    sides = zip(pos, neg, batch.quality_positives, batch.quality_negatives, batch.draws, strict=True)
    terms = [_question_term(*side, config) for side in sides]
    return config.label_weight * token_mean(*label) + config.rationale_weight * sum(terms) / len(terms)


def reference_loss(student: Student, batch: QuestionBatch, method: str, config: LossConfig) -> torch.Tensor:
    """The loss of a whole batch by method.md sections 5 and 9."""
    if method == "qcrd":
        return _qcrd(student, batch, config)
    if method in ("dss", "mi"):
        return _two_tasks(student, batch, config, method)
    rows = [n for n, ids in enumerate(batch.label_ids) if ids]
    return token_mean(*forward(student, [batch.predict_ids[n] for n in rows], [batch.label_ids[n] for n in rows]))

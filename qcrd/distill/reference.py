"""The method as it reads in the paper, section 3.3, and every rival's loss: the five-minute version of this folder.

transformers' own forward on padded batches, gradient through everything, one question after the other. Takes from qcrd
only the batch's rows and the model: no weights a sequence, no selection before the gradient pass, no totals. Too slow
to train with; the tests hold every method's step and all of its gradients against it. L_D (eq. 2), which has an
optimizer of its own, is in losses.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from qcrd.config import LossConfig
from qcrd.distill.batch import QuestionBatch
from qcrd.models.student import Student

Rows = Sequence[Sequence[int]]


def padded(rows: Rows, value: int) -> torch.Tensor:
    """Right-padded (R, longest)."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(list(row)) for row in rows], True, value)


def forward(student: Student, questions: Rows, targets: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (R, T, V) of a padded batch and its labels (R, T), -100 on padding, where the decoder reads the pad id."""
    labels = padded(targets, -100)
    start = torch.full((len(targets), 1), student.start_id)
    read = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, student.pad_id)], dim=1)
    inputs, mask = padded(questions, student.pad_id), padded([[1] * len(row) for row in questions], 0)
    return student.model(input_ids=inputs, attention_mask=mask, decoder_input_ids=read).logits, labels


def token_mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """L_pred, and DSS's rationale loss: the mean over all target tokens of the batch."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def peaks(logits: torch.Tensor, labels: torch.Tensor, variant: str) -> torch.Tensor:
    """Largest probability of each token of the vocabulary over the decoder's positions, (R, V)."""
    probabilities = logits.softmax(dim=-1)
    if variant == "masked":
        probabilities = probabilities.masked_fill((labels == -100)[:, :, None], 0.0)
    return probabilities.max(dim=1).values


def disagreement(p_rationale: torch.Tensor, p_label: torch.Tensor, variant: str) -> torch.Tensor:
    """The mutual-information term: cross entropy of the rationale's peaks to the label's (Chen et al. 2024)."""
    if variant == "official":
        return cross_entropy(p_rationale, p_label)
    return -(p_label * p_rationale.log()).sum(dim=1).mean()


def _two_tasks(student: Student, batch: QuestionBatch, config: LossConfig, with_mi: bool) -> torch.Tensor:
    """DSS: a1 * L_pred + a2 * the token mean of the first samples' rationales; `with_mi` adds the MI term."""
    labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
    explained = [n for n, ids in enumerate(batch.rationale_ids) if ids]
    label = forward(student, [batch.predict_ids[n] for n in labelled], [batch.label_ids[n] for n in labelled])
    rationale = forward(student, [batch.explain_ids[n] for n in explained], [batch.rationale_ids[n] for n in explained])
    dss = config.label_weight * token_mean(*label) + config.rationale_weight * token_mean(*rationale)
    if not with_mi:
        return dss
    both = sorted({*labelled} & {*explained})
    p_label = peaks(*label, config.mi_variant)[[labelled.index(n) for n in both]]
    p_rationale = peaks(*rationale, config.mi_variant)[[explained.index(n) for n in both]]
    return dss + config.mi_weight * disagreement(p_rationale, p_label.detach(), config.mi_variant)


def _sequence_losses(student: Student, questions: Rows, sides: Sequence[Rows]) -> list[list[torch.Tensor]]:
    """l(f(x), r) of each candidate of each question: its mean negative log-likelihood a token, in nats."""
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
    """One term of eq. 3, l_pos - beta * l_neg.

    l_pos = s+ * min l(r+) (eqs. 4 and 6) and l_neg = (1 - s-) * max min(l(r-) - margin, 0) (eqs. 5 and 7, with the
    margin), where s is the discriminator's score of the chosen one (eq. 1). Other schemes than `minmax` are the paper's
    Table 5. A question without a positive adds nothing; min and max take the first of equals.
    """
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
    """Eq. 8 without L_D: a1 * L_pred + a2 * L_cl, where L_cl is the mean of all questions' terms (eq. 3)."""
    labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
    label = forward(student, [batch.predict_ids[n] for n in labelled], [batch.label_ids[n] for n in labelled])
    pos = _sequence_losses(student, batch.explain_ids, batch.positives)
    neg = _sequence_losses(student, batch.explain_ids, batch.negatives)
    sides = zip(pos, neg, batch.quality_positives, batch.quality_negatives, batch.draws, strict=True)
    terms = [_question_term(*side, config) for side in sides]
    return config.label_weight * token_mean(*label) + config.rationale_weight * sum(terms) / len(terms)


def _label_alone(student: Student, batch: QuestionBatch, config: LossConfig) -> torch.Tensor:
    """L_pred. Which target stands in `label_ids` is the method's."""
    rows = [n for n, ids in enumerate(batch.label_ids) if ids]
    return token_mean(*forward(student, [batch.predict_ids[n] for n in rows], [batch.label_ids[n] for n in rows]))


LOSSES = {
    "finetune": _label_alone,
    "single_task": _label_alone,
    "distill_label": _label_alone,
    "dss": partial(_two_tasks, with_mi=False),
    "mi": partial(_two_tasks, with_mi=True),
    "qcrd": _qcrd,
}


def reference_loss(student: Student, batch: QuestionBatch, method: str, config: LossConfig) -> torch.Tensor:
    """The loss of a whole batch by method.md sections 5 and 9."""
    return LOSSES[method](student, batch, config)

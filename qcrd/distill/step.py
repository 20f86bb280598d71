"""One optimisation step's loss: the paper's idea in one file (method.md section 5).

A question is encoded once for all of its rationales. Every candidate is scored on that encoding without gradient and
with the decoder's dropout off; the score decides which positive is taken and which hinges are active. Only those
candidates go through the decoder with gradient: the others' gradient is exactly zero. Knows nothing about optimizers,
snapshots, files or Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from qcrd.config import LossConfig
from qcrd.distill.generation import length_sorted_batches
from qcrd.distill.losses import CandidateWeights, candidate_weights, contrastive_loss, sequence_nll, token_mean_nll
from qcrd.distill.student import Student

Ids = Sequence[int]


@dataclass(frozen=True)
class QuestionBatch:
    """The questions of one step: token ids a question, and for QCRD its candidates with their quality scores.

    `positives[n][m]` are targets with score `quality_positives[n][m]` (s+, 1 without a judge); likewise negatives
    (s-, 0 without a judge). `draws` are two uniforms a question for the scheme `sampling`.
    """

    predict_ids: Sequence[Ids]
    explain_ids: Sequence[Ids]
    label_ids: Sequence[Ids]
    rationale_ids: Sequence[Ids]
    positives: Sequence[Sequence[Ids]] = field(default_factory=list)
    negatives: Sequence[Sequence[Ids]] = field(default_factory=list)
    quality_positives: Sequence[Sequence[float]] = field(default_factory=list)
    quality_negatives: Sequence[Sequence[float]] = field(default_factory=list)
    draws: Sequence[tuple[float, float]] = field(default_factory=list)


Metrics = dict[str, torch.Tensor]


def label_loss(student: Student, batch: QuestionBatch) -> torch.Tensor:
    """L_pred: token mean over the labels of the batch. A question without a label counts nothing."""
    rows = [n for n, ids in enumerate(batch.label_ids) if ids]
    return _token_mean(student, [batch.predict_ids[n] for n in rows], [batch.label_ids[n] for n in rows])


def first_rationale_loss(student: Student, batch: QuestionBatch) -> torch.Tensor:
    """DSS's rationale loss: token mean over the first sample's rationales of the batch."""
    rows = [n for n, ids in enumerate(batch.rationale_ids) if ids]
    return _token_mean(student, [batch.explain_ids[n] for n in rows], [batch.rationale_ids[n] for n in rows])


def _token_mean(student: Student, inputs: Sequence[Ids], targets: Sequence[Ids]) -> torch.Tensor:
    if not inputs:
        return torch.zeros((), device=student.device)
    ids, mask = student.inputs(inputs)
    logits = student.decode(student.encode(ids, mask), mask, student.targets(targets))
    return token_mean_nll(logits, student.targets(targets), sum(len(row) for row in targets))


def finetune_step(student: Student, batch: QuestionBatch) -> tuple[torch.Tensor, Metrics]:
    """L_pred alone."""
    loss = label_loss(student, batch)
    return loss, {"label_loss": loss.detach()}


def dss_step(student: Student, batch: QuestionBatch, loss_config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """Distilling step by step: a1 * L_pred + a2 * CE of the first sample's rationale."""
    label, rationale = label_loss(student, batch), first_rationale_loss(student, batch)
    total = loss_config.label_weight * label + loss_config.rationale_weight * rationale
    return total, {"label_loss": label.detach(), "rationale_loss": rationale.detach()}


@dataclass(frozen=True)
class Candidates:
    """All candidates of a batch as flat rows, with the places that they take in (question, slot)."""

    targets: list[Ids]
    question: torch.Tensor
    slot: torch.Tensor
    is_positive: torch.Tensor
    mask_pos_NM: torch.Tensor
    mask_neg_NK: torch.Tensor

    @classmethod
    def of(cls, batch: QuestionBatch, device: torch.device) -> Candidates:
        rows = [
            (target, n, slot, side == 0)
            for side, lists in enumerate((batch.positives, batch.negatives))
            for n, targets in enumerate(lists)
            for slot, target in enumerate(targets)
        ]
        masks = []
        for lists in (batch.positives, batch.negatives):
            counts = torch.tensor([len(targets) for targets in lists], device=device)
            width = max((len(targets) for targets in lists), default=0)
            masks.append(torch.arange(width, device=device)[None, :] < counts[:, None])
        return cls(
            [row[0] for row in rows],
            torch.tensor([row[1] for row in rows], dtype=torch.int64, device=device),
            torch.tensor([row[2] for row in rows], dtype=torch.int64, device=device),
            torch.tensor([row[3] for row in rows], dtype=torch.bool, device=device),
            masks[0],
            masks[1],
        )

    def as_matrices(self, nll_R: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the given rows as (N, M) and (N, K), 0 elsewhere; keeps the gradient."""
        matrices = []
        for mask, side in ((self.mask_pos_NM, self.is_positive[rows]), (self.mask_neg_NK, ~self.is_positive[rows])):
            place = (self.question[rows][side], self.slot[rows][side])
            matrices.append(nll_R.new_zeros(mask.shape).index_put(place, nll_R[side]))
        return matrices[0], matrices[1]


def candidate_nll(
    student: Student, states_NSH: torch.Tensor, mask_NS: torch.Tensor, candidates: Candidates, rows: torch.Tensor,
    batch_size: int,
) -> torch.Tensor:
    """l(r) of the given rows, (rows,), on their questions' encoder states, in batches of like lengths."""
    chosen = rows.tolist()
    parts, places = [], []
    for batch in length_sorted_batches([len(candidates.targets[row]) for row in chosen], batch_size):
        question = candidates.question[rows[batch]]
        targets = student.targets([candidates.targets[chosen[i]] for i in batch])
        logits = student.decode(states_NSH[question], mask_NS[question], targets)
        parts.append(sequence_nll(logits, targets))
        places.extend(batch)
    if not parts:
        return states_NSH.new_zeros(0)
    nll = torch.cat(parts)
    return torch.zeros_like(nll).index_put((torch.tensor(places, device=nll.device),), nll)


def _matrix(rows: Sequence[Sequence[float]], mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    flat = torch.tensor([value for row in rows for value in row], dtype=dtype, device=mask.device)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_scatter(mask, flat)


def choose_candidates(
    batch: QuestionBatch, candidates: Candidates, nll_R: torch.Tensor, loss_config: LossConfig
) -> tuple[CandidateWeights, Metrics]:
    """Weights of all candidates from their scored losses, and the health metrics of the choice."""
    everyone = torch.arange(len(candidates.targets), device=nll_R.device)
    nll_pos, nll_neg = candidates.as_matrices(nll_R, everyone)
    quality_pos = _matrix(batch.quality_positives, candidates.mask_pos_NM, nll_R.dtype)
    quality_neg = _matrix(batch.quality_negatives, candidates.mask_neg_NK, nll_R.dtype)
    draws = torch.tensor(list(batch.draws) or [(0.0, 0.0)] * len(batch.explain_ids), dtype=torch.float64)
    draws = draws.to(nll_R.device)
    weights = candidate_weights(
        nll_pos, candidates.mask_pos_NM, nll_neg, candidates.mask_neg_NK, quality_pos, quality_neg,
        loss_config.scheme, loss_config.margin, draws[:, 0], draws[:, 1],
    )  # fmt: skip
    both_N = candidates.mask_pos_NM.any(dim=1) & candidates.mask_neg_NK.any(dim=1)
    metrics = {
        "hinge_active": ((weights.neg_NK > 0).any(dim=1) & both_N).sum() / both_N.sum().clamp(min=1),
        "positive_nll": nll_pos.sum() / candidates.mask_pos_NM.sum().clamp(min=1),
        "negative_nll": nll_neg.sum() / candidates.mask_neg_NK.sum().clamp(min=1),
        "positive_quality": quality_pos.sum() / candidates.mask_pos_NM.sum().clamp(min=1),
        "negative_quality": quality_neg.sum() / candidates.mask_neg_NK.sum().clamp(min=1),
        "selected_positive": weights.selected_pos_N,
    }
    return weights, metrics


def qcrd_step(
    student: Student, batch: QuestionBatch, loss_config: LossConfig, scoring_batch_size: int = 16
) -> tuple[torch.Tensor, Metrics]:
    """a1 * L_pred + a2 * L_cl of the questions of one step. L_D has an optimizer of its own (discriminator.py)."""
    label = label_loss(student, batch)
    ids, mask = student.inputs(batch.explain_ids)
    states = student.encode(ids, mask)
    candidates = Candidates.of(batch, student.device)
    everyone = torch.arange(len(candidates.targets), device=student.device)
    with torch.no_grad(), student.decoder_dropout_off():
        scored = candidate_nll(student, states.detach(), mask, candidates, everyone, scoring_batch_size)
    weights, metrics = choose_candidates(batch, candidates, scored, loss_config)
    weight_of_row = torch.zeros_like(scored)
    for side, matrix in ((candidates.is_positive, weights.pos_NM), (~candidates.is_positive, weights.neg_NK)):
        weight_of_row[side] = matrix[candidates.question[side], candidates.slot[side]]
    chosen = weight_of_row.nonzero()[:, 0]
    nll_chosen = candidate_nll(student, states, mask, candidates, chosen, len(chosen) or 1)
    nll_pos, nll_neg = candidates.as_matrices(nll_chosen, chosen)
    contrastive = contrastive_loss(
        nll_pos, nll_neg, weights, loss_config.beta, loss_config.margin, len(batch.explain_ids)
    )
    total = loss_config.label_weight * label + loss_config.rationale_weight * contrastive
    return total, {"label_loss": label.detach(), "contrastive_loss": contrastive.detach(), **metrics}

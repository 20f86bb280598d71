"""QCRD's step: the paper's idea in one file (method.md section 5; eqs. 2-7 are in losses.py).

A question is encoded once for its label and all of its rationales. Every candidate is scored on that encoding without
gradient and with the decoder's dropout off; the score decides which positive is taken and which hinges are active.
Only those candidates and the labels then go through the decoder, in one pass with gradient: the others' gradient is
exactly zero. The loss is linear in each sequence's l(r), so what a pass needs is one weight a sequence. reference.py
says the same without any of this. Knows nothing about optimizers, snapshots, files or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from qcrd.config import LossConfig
from qcrd.distill.batch import SELECTED, Metrics, QuestionBatch, token_weights
from qcrd.distill.losses import CandidateWeights, candidate_weights, contrastive_coefficients, contrastive_loss
from qcrd.models.batching import Ids, on_device, pad
from qcrd.models.student import Student


class Candidates:
    """All candidates of a batch as flat rows, with the places that they take in (question, slot)."""

    def __init__(self, batch: QuestionBatch, device: torch.device) -> None:
        rows = [
            (target, n, slot, side == 0)
            for side, lists in enumerate((batch.positives, batch.negatives))
            for n, targets in enumerate(lists)
            for slot, target in enumerate(targets)
        ]
        self.device = device
        self.targets: list[Ids] = [row[0] for row in rows]
        self.question, self.slot = [row[1] for row in rows], [row[2] for row in rows]
        self.is_positive = [row[3] for row in rows]
        self.mask_pos_NM, self.mask_neg_NK = (
            pad([[True] * len(targets) for targets in lists], False, device, torch.bool)
            for lists in (batch.positives, batch.negatives)
        )

    def _places(self, rows: Sequence[int], positive: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the rows on one side: where they stand in `rows`, their questions and their slots."""
        side = [(i, row) for i, row in enumerate(rows) if self.is_positive[row] == positive]
        values = ([i for i, _ in side], [self.question[row] for _, row in side], [self.slot[row] for _, row in side])
        index, question, slot = (on_device(some, self.device) for some in values)
        return index, question, slot

    def as_matrices(self, nll_R: torch.Tensor, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the given rows as (N, M) and (N, K), 0 elsewhere."""
        matrices = []
        for mask, positive in ((self.mask_pos_NM, True), (self.mask_neg_NK, False)):
            index, question, slot = self._places(rows, positive)
            matrices.append(nll_R.new_zeros(mask.shape).index_put((question, slot), nll_R[index]))
        return matrices[0], matrices[1]

    def as_rows(self, pos_NM: torch.Tensor, neg_NK: torch.Tensor) -> torch.Tensor:
        """The entries of two matrices as one value a row."""
        values_R = pos_NM.new_zeros(len(self.targets))
        for matrix, positive in ((pos_NM, True), (neg_NK, False)):
            index, question, slot = self._places(range(len(self.targets)), positive)
            values_R = values_R.index_copy(0, index, matrix[question, slot])
        return values_R


def choose_candidates(
    batch: QuestionBatch, candidates: Candidates, nll_R: torch.Tensor, loss_config: LossConfig
) -> tuple[CandidateWeights, Metrics]:
    """Weights of all candidates from their scored losses, and the health metrics of the choice.

    A mean over nothing (the negatives' loss in a batch without negatives) is NaN.
    """
    nll_pos, nll_neg = candidates.as_matrices(nll_R, range(len(candidates.targets)))
    quality_pos = pad(batch.quality_positives, 0.0, nll_R.device, nll_R.dtype)
    quality_neg = pad(batch.quality_negatives, 0.0, nll_R.device, nll_R.dtype)
    draws = pad(batch.draws or [(0.0, 0.0)] * len(batch.explain_ids), 0.0, nll_R.device, torch.float64)
    weights = candidate_weights(
        nll_pos, candidates.mask_pos_NM, nll_neg, candidates.mask_neg_NK, quality_pos, quality_neg,
        loss_config.scheme, loss_config.margin, draws[:, 0], draws[:, 1],
    )  # fmt: skip
    both_N = candidates.mask_pos_NM.any(dim=1) & candidates.mask_neg_NK.any(dim=1)
    totals = batch.totals
    slots = torch.arange(totals.most_positives, device=nll_R.device)
    metrics = {
        "hinge_active": ((weights.neg_NK > 0).any(dim=1) & both_N).sum().double() / (totals.with_both or math.nan),
        "positive_nll": nll_pos.sum() / (totals.positives or math.nan),
        "negative_nll": nll_neg.sum() / (totals.negatives or math.nan),
        "positive_quality": quality_pos.sum() / (totals.positives or math.nan),
        "negative_quality": quality_neg.sum() / (totals.negatives or math.nan),
        SELECTED: (weights.selected_pos_N[:, None] == slots).sum(dim=0),
    }
    return weights, metrics


def qcrd_step(student: Student, batch: QuestionBatch, loss_config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """a1 * L_pred + a2 * L_cl of the questions of one step. L_D has an optimizer of its own (discriminator.py)."""
    labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
    labels = [batch.label_ids[n] for n in labelled]
    encoded = student.encode([batch.predict_ids[n] for n in labelled] + list(batch.explain_ids))
    candidates = Candidates(batch, student.device)
    place = [len(labelled) + n for n in candidates.question]
    scored = student.sequence_nll(encoded, place, candidates.targets)
    weights, metrics = choose_candidates(batch, candidates, scored, loss_config)

    coefficient_R = candidates.as_rows(*contrastive_coefficients(weights, loss_config.beta, batch.totals.questions))
    rows = coefficient_R.nonzero()[:, 0].tolist()  # the one place of a step that waits for the device
    weights_label = token_weights(student, labels, batch.totals.label_tokens)
    weights_chosen = loss_config.rationale_weight * coefficient_R[on_device(rows, student.device)]
    loss, nll = student.weighted_nll(
        encoded,
        [*range(len(labelled)), *(place[row] for row in rows)],
        labels + [candidates.targets[row] for row in rows],
        torch.cat([loss_config.label_weight * weights_label, weights_chosen]),
    )
    label = (weights_label * nll[: len(labels)]).sum()
    nll_pos, nll_neg = candidates.as_matrices(nll[len(labels) :], rows)
    contrastive = contrastive_loss(
        nll_pos, nll_neg, weights, loss_config.beta, loss_config.margin, batch.totals.questions
    )
    value = loss_config.label_weight * label + loss_config.rationale_weight * contrastive
    return loss + (value - loss.detach()), {"label_loss": label, "contrastive_loss": contrastive, **metrics}

"""One optimisation step's loss, by method: the paper's idea in one file (method.md sections 5 and 9).

For QCRD a question is encoded once for its label and all of its rationales. Every candidate is scored on that encoding
without gradient and with the decoder's dropout off; the score decides which positive is taken and which hinges are
active. Only those candidates and the labels then go through the decoder, in one pass with gradient: the others'
gradient is exactly zero. The loss is linear in each sequence's l(r), so what a pass needs is one weight a sequence.
Knows nothing about optimizers, snapshots, files or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from qcrd.config import LossConfig
from qcrd.distill.losses import (
    CandidateWeights,
    candidate_weights,
    contrastive_coefficients,
    contrastive_loss,
    mutual_information_loss,
    token_mean_weights,
)
from qcrd.models.batching import Ids, on_device, pad
from qcrd.models.student import Student
from qcrd.records import Example

Metrics = dict[str, torch.Tensor]
SELECTED = "selected_positive"
"""Metric that counts how often each positive was selected, (most positives,); all others are single numbers."""


@dataclass(frozen=True)
class BatchTotals:
    """Counts over the global batch, by which every mean is taken, however the batch is split."""

    questions: int
    label_tokens: int
    rationale_tokens: int
    positives: int
    negatives: int
    with_both: int
    """Questions that have a positive and a negative."""
    most_positives: int
    with_both_targets: int
    """Questions that have a label and a first rationale."""
    longest_label: int
    longest_rationale: int


@dataclass(frozen=True)
class QuestionBatch:
    """The questions of one step: token ids a question, and for QCRD its candidates with their quality scores.

    `positives[n][m]` are targets with score `quality_positives[n][m]` (s+, 1 without a discriminator); likewise negatives
    (s-, 0 without a discriminator). `draws` are two uniforms a question for the scheme `sampling`. A part of a batch has the
    totals of the whole.
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
    totals_of_whole: BatchTotals | None = None

    @classmethod
    def of(
        cls, examples: Sequence[Example], negatives: Sequence[Sequence[Ids]],
        qualities: Sequence[tuple[Sequence[float], Sequence[float]]], draws: Sequence[tuple[float, float]] = (),
    ) -> QuestionBatch:  # fmt: skip
        """Examples with their negatives' targets, and (s+ of each positive, s- of each negative) a question."""
        return cls(
            predict_ids=[e.predict_ids for e in examples],
            explain_ids=[e.explain_ids for e in examples],
            label_ids=[e.label_ids for e in examples],
            rationale_ids=[e.rationale_ids for e in examples],
            positives=[e.positives for e in examples],
            negatives=negatives,
            quality_positives=[own[0] for own in qualities],
            quality_negatives=[own[1] for own in qualities],
            draws=draws,
        )

    @property
    def totals(self) -> BatchTotals:
        if self.totals_of_whole is not None:
            return self.totals_of_whole
        return BatchTotals(
            questions=len(self.predict_ids),
            label_tokens=sum(map(len, self.label_ids)),
            rationale_tokens=sum(map(len, self.rationale_ids)),
            positives=sum(map(len, self.positives)),
            negatives=sum(map(len, self.negatives)),
            with_both=sum(bool(p and n) for p, n in zip(self.positives, self.negatives, strict=True)),
            most_positives=max(map(len, self.positives), default=0),
            with_both_targets=sum(bool(a and b) for a, b in zip(self.label_ids, self.rationale_ids, strict=True)),
            longest_label=max(map(len, self.label_ids), default=0),
            longest_rationale=max(map(len, self.rationale_ids), default=0),
        )

    def part(self, start: int, stop: int) -> QuestionBatch:
        """Questions `start:stop` of this batch."""
        rows = {name: value[start:stop] for name, value in vars(self).items() if name != "totals_of_whole"}
        return replace(self, **rows, totals_of_whole=self.totals)


def _weighted_sum(
    student: Student, inputs: Sequence[Ids], targets: Sequence[Ids], weights_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not targets:
        return student.weighted_nll(None, [], [], weights_R)
    return student.weighted_nll(student.encode(inputs), range(len(inputs)), targets, weights_R)


def _token_weights(student: Student, targets: Sequence[Ids], num_tokens: int) -> torch.Tensor:
    lengths = on_device([len(row) for row in targets], student.device, student.model.dtype)
    return token_mean_weights(lengths, num_tokens)


def finetune_step(student: Student, batch: QuestionBatch) -> tuple[torch.Tensor, Metrics]:
    """L_pred alone: token mean over the label targets. A question without a label counts nothing."""
    rows = [n for n, ids in enumerate(batch.label_ids) if ids]
    targets = [batch.label_ids[n] for n in rows]
    weights = _token_weights(student, targets, batch.totals.label_tokens)
    loss, _ = _weighted_sum(student, [batch.predict_ids[n] for n in rows], targets, weights)
    return loss, {"label_loss": loss.detach()}


class TwoTasks:
    """A batch's labels and first rationales as one list of targets, those that there are."""

    def __init__(self, student: Student, batch: QuestionBatch) -> None:
        self.labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
        self.explained = [n for n, ids in enumerate(batch.rationale_ids) if ids]
        self.inputs = [batch.predict_ids[n] for n in self.labelled] + [batch.explain_ids[n] for n in self.explained]
        labels = [batch.label_ids[n] for n in self.labelled]
        rationales = [batch.rationale_ids[n] for n in self.explained]
        self.targets = labels + rationales
        self._weights_label = _token_weights(student, labels, batch.totals.label_tokens)
        self._weights_rationale = _token_weights(student, rationales, batch.totals.rationale_tokens)

    def weights(self, loss_config: LossConfig) -> torch.Tensor:
        """What multiplies each target's l(r) in DSS's loss, (R,)."""
        return torch.cat(
            [loss_config.label_weight * self._weights_label, loss_config.rationale_weight * self._weights_rationale]
        )

    def metrics(self, nll_R: torch.Tensor) -> Metrics:
        """Both token means."""
        label, rationale = nll_R.split([len(self.labelled), len(self.explained)])
        return {
            "label_loss": (self._weights_label * label).sum(),
            "rationale_loss": (self._weights_rationale * rationale).sum(),
        }


def dss_step(student: Student, batch: QuestionBatch, loss_config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """Distilling step by step: a1 * L_pred + a2 * CE of the first sample's rationale, token means both."""
    tasks = TwoTasks(student, batch)
    loss, nll = _weighted_sum(student, tasks.inputs, tasks.targets, tasks.weights(loss_config))
    return loss, tasks.metrics(nll)


def mi_step(student: Student, batch: QuestionBatch, loss_config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """DSS plus mi_weight * cross entropy between what rationale and label say at any position (Chen et al. 2024).

    The variant `official` pads labels to the batch's longest and rationales to theirs, as the reference code does, and
    takes the maximum over the padding too. Unlike the other methods, this one keeps the logits of all target tokens:
    8 questions x (256 + 64) tokens x 32k in fp32 are 330 MB, and about three of that (logits, their log-softmax, its
    gradient) exist at once.
    """
    tasks = TwoTasks(student, batch)
    if not tasks.targets:
        loss, metrics = dss_step(student, batch, loss_config)
        return loss, metrics | {"mi_loss": torch.zeros_like(loss.detach())}
    read = tasks.targets
    if loss_config.mi_variant == "official":
        totals, num_labels = batch.totals, len(tasks.labelled)
        widths = [totals.longest_label] * num_labels + [totals.longest_rationale] * len(tasks.explained)
        read = [[*ids, *[student.pad_id] * (width - len(ids))] for ids, width in zip(read, widths, strict=True)]
    logits = student.target_logits(student.encode(tasks.inputs), range(len(tasks.inputs)), read)
    log_p = [row_TV.log_softmax(dim=1) for row_TV in logits]
    nll = torch.stack([_mean_nll(row_TV, ids) for row_TV, ids in zip(log_p, tasks.targets, strict=True)])
    mi = _mutual_information(tasks, log_p, loss_config.mi_variant, batch.totals.with_both_targets)
    loss = (tasks.weights(loss_config) * nll).sum() + loss_config.mi_weight * mi
    return loss, tasks.metrics(nll.detach()) | {"mi_loss": mi.detach()}


def _mean_nll(log_p_TV: torch.Tensor, target: Ids) -> torch.Tensor:
    """l(r) of a target, whose padding comes after it."""
    ids_T1 = on_device(target, log_p_TV.device)[:, None]
    return -log_p_TV[: len(target)].gather(1, ids_T1).mean()


def _mutual_information(
    tasks: TwoTasks, log_p: Sequence[torch.Tensor], variant: str, num_questions: int
) -> torch.Tensor:
    """This batch's part of the mean over the questions that have both targets."""
    row_of_label = {n: row for row, n in enumerate(tasks.labelled)}
    pairs = [(row, row_of_label[n]) for row, n in enumerate(tasks.explained, len(tasks.labelled)) if n in row_of_label]
    if not pairs:
        return log_p[0].new_zeros(())
    rationale_NV, label_NV = (
        torch.stack([log_p[row].max(dim=0).values for row in rows]) for rows in zip(*pairs, strict=True)
    )
    return mutual_information_loss(rationale_NV, label_NV, variant, num_questions)


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
    weights_label = _token_weights(student, labels, batch.totals.label_tokens)
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


def step_loss(
    student: Student, batch: QuestionBatch, method: str, loss_config: LossConfig
) -> tuple[torch.Tensor, Metrics]:
    """A batch's loss with gradient, and its metrics, by method.

    Of a part of a batch both are its contributions: summed over the parts they are those of the whole.
    """
    if method == "dss":
        return dss_step(student, batch, loss_config)
    if method == "mi":
        return mi_step(student, batch, loss_config)
    if method == "qcrd":
        return qcrd_step(student, batch, loss_config)
    return finetune_step(student, batch)  # finetune, distill_label, single_task: they differ in the target

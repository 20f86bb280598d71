"""The questions of one optimisation step as token ids, with the counts by which every mean is taken.

Of a part of a batch a method's loss and metrics are its contributions: summed over the parts they are those of the
whole. Knows nothing about any one method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from qcrd.distill.losses import token_mean_weights
from qcrd.models.batching import Ids, on_device
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

    `positives[n][m]` are targets with score `quality_positives[n][m]` (s+, 1 without a discriminator); likewise
    negatives (s-, 0 without a discriminator). `draws` are two uniforms a question for the scheme `sampling`. A part of
    a batch has the totals of the whole.
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


def weighted_sum(
    student: Student, inputs: Sequence[Ids], targets: Sequence[Ids], weights_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weights * l(r) with gradient, l(r) without) of targets that each have an input of their own."""
    if not targets:
        return student.weighted_nll(None, [], [], weights_R)
    return student.weighted_nll(student.encode(inputs), range(len(inputs)), targets, weights_R)


def token_weights(student: Student, targets: Sequence[Ids], num_tokens: int) -> torch.Tensor:
    """What multiplies each target's l(r) in the token mean over the global batch, (R,)."""
    lengths = on_device([len(row) for row in targets], student.device, student.model.dtype)
    return token_mean_weights(lengths, num_tokens)

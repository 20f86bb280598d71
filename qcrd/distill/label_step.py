"""The step of the methods that train on one target a question: they differ in the target (method.md section 9)."""

from __future__ import annotations

import torch

from qcrd.config import LossConfig
from qcrd.distill.batch import Metrics, QuestionBatch, token_weights, weighted_sum
from qcrd.models.student import Student


def finetune_step(student: Student, batch: QuestionBatch, loss_config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """L_pred alone: token mean over the label targets. A question without a label counts nothing."""
    rows = [n for n, ids in enumerate(batch.label_ids) if ids]
    targets = [batch.label_ids[n] for n in rows]
    weights = token_weights(student, targets, batch.totals.label_tokens)
    loss, _ = weighted_sum(student, [batch.predict_ids[n] for n in rows], targets, weights)
    return loss, {"label_loss": loss.detach()}

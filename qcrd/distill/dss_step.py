"""The step of distilling step by step: label and rationale as two tasks (Hsieh et al. 2023; method.md section 9)."""

from __future__ import annotations

import torch

from qcrd.config import LossConfig
from qcrd.distill.batch import Metrics, QuestionBatch, token_weights, weighted_sum
from qcrd.models.student import Student


class TwoTasks:
    """A batch's labels and first rationales as one list of targets, those that there are."""

    def __init__(self, student: Student, batch: QuestionBatch) -> None:
        self.labelled = [n for n, ids in enumerate(batch.label_ids) if ids]
        self.explained = [n for n, ids in enumerate(batch.rationale_ids) if ids]
        self.inputs = [batch.predict_ids[n] for n in self.labelled] + [batch.explain_ids[n] for n in self.explained]
        labels = [batch.label_ids[n] for n in self.labelled]
        rationales = [batch.rationale_ids[n] for n in self.explained]
        self.targets = labels + rationales
        self._weights_label = token_weights(student, labels, batch.totals.label_tokens)
        self._weights_rationale = token_weights(student, rationales, batch.totals.rationale_tokens)

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
    loss, nll = weighted_sum(student, tasks.inputs, tasks.targets, tasks.weights(loss_config))
    return loss, tasks.metrics(nll)

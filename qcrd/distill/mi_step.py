"""The step of DSS with mutual information between rationale and label (Chen et al. 2024; method.md section 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcrd.config import LossConfig
from qcrd.distill.batch import Metrics, QuestionBatch
from qcrd.distill.dss_step import TwoTasks, dss_step
from qcrd.distill.losses import mutual_information_loss
from qcrd.models.batching import Ids, on_device
from qcrd.models.student import Student


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

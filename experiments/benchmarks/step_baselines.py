"""What our training step is measured against: reference DSS, and QCRD as its formulas read.

Both run transformers' own model on padded batches, as Seq2SeqTrainer does with the official code of Distilling
Step-by-Step (google-research/distilling-step-by-step, `TaskPrefixTrainer`): DataCollatorForSeq2Seq pads to the longest
of the batch, each of the two tasks is one full forward pass with `labels`, gradients are clipped at norm 1, the
optimizer is the Trainer's default, and it looks at each loss for NaN. Naive QCRD sends every rationale through the
whole model with gradient, an encoder pass of its own included, keeps all logits, and takes min and max on the values.
Knows nothing about our packing, selection or fused losses: tests hold both to equal losses and gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from qcrd.config import LossConfig
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.discriminator import Discriminator
from qcrd.models.cross_entropy import IGNORED

Ids = Sequence[int]


class ReferenceModel:
    """transformers' model with the Trainer's collator and optimizer. Weights stay put at a learning rate near 0."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str, learning_rate: float = 1e-9
    ) -> None:
        self.model, self.dtype = model, dtype
        self.collate = DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED)
        # transformers 5.23 takes `adamw_torch_fused` by default
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)

    def inputs(self, questions: Sequence[Ids], targets: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Padded input_ids, attention_mask, labels and decoder_input_ids on the model's device."""
        rows: list[dict[str, Any]] = [
            {"input_ids": list(question), "attention_mask": [1] * len(question), "labels": list(target)}
            for question, target in zip(questions, targets, strict=True)
        ]
        return {name: tensor.to(self.model.device) for name, tensor in self.collate(rows).items()}

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """bf16 as the Trainer's `bf16=True`: autocast."""
        if self.dtype == "bfloat16":
            return torch.autocast(self.model.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def step(self, losses: Iterable[torch.Tensor]) -> None:
        """Backward of each loss as it comes, clip, AdamW, as the Trainer does it."""
        for loss in losses:
            loss.backward()
            if bool(torch.isnan(loss.detach())):  # logging_nan_inf_filter reads every loss
                raise FloatingPointError("the reference's loss is NaN")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()

    @torch.no_grad()
    def sample(self, questions: Sequence[Ids], max_new_tokens: int) -> torch.Tensor:
        """One sample a question by transformers' generate (key-value cache), T = 1.5, top-k 50."""
        inputs = self.inputs(questions, questions)
        self.model.eval()
        with self.precision():
            made = self.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=True,
                temperature=1.5, top_k=50, max_new_tokens=max_new_tokens,
            )  # fmt: skip
        self.model.train()
        return made


def reference_dss_loss(reference: ReferenceModel, batch: QuestionBatch, config: LossConfig) -> torch.Tensor:
    """a1 * token mean over labels + a2 * token mean over first rationales, two full passes."""
    with reference.precision():
        predict = reference.model(**reference.inputs(batch.predict_ids, batch.label_ids)).loss
        rows = [n for n, ids in enumerate(batch.rationale_ids) if ids]
        explain = reference.model(
            **reference.inputs([batch.explain_ids[n] for n in rows], [batch.rationale_ids[n] for n in rows])
        ).loss
    return config.label_weight * predict + config.rationale_weight * explain


def _side_nll(reference: ReferenceModel, questions: Sequence[Ids], side: Sequence[Sequence[Ids]]) -> torch.Tensor:
    """l(r) of one side's rationales with gradient, (N, M), +inf where a question has fewer than the others."""
    places = [(n, slot) for n, targets in enumerate(side) for slot in range(len(targets))]
    width = max((len(targets) for targets in side), default=0)
    parameter = next(reference.model.parameters())
    nll_NM = torch.full((len(side), max(width, 1)), float("inf"), device=parameter.device)
    nll_NM = nll_NM.to(torch.promote_types(parameter.dtype, torch.float32))
    if not places:
        return nll_NM
    inputs = reference.inputs([questions[n] for n, _ in places], [side[n][slot] for n, slot in places])
    labels_RT = inputs.pop("labels")
    with reference.precision():
        logits_RTV = reference.model(**inputs).logits
    if logits_RTV.dtype == torch.bfloat16:
        logits_RTV = logits_RTV.float()
    token_R = cross_entropy(logits_RTV.flatten(0, 1), labels_RT.flatten(), ignore_index=IGNORED, reduction="none")
    nll_R = token_R.view(labels_RT.shape).sum(dim=1) / (labels_RT != IGNORED).sum(dim=1)
    index_2R = torch.tensor(places, device=nll_R.device).T
    return nll_NM.index_put((index_2R[0], index_2R[1]), nll_R)


def _padded(rows: Sequence[Sequence[float]], like_NM: torch.Tensor) -> torch.Tensor:
    """Quality scores as (N, M), 0 where there is none."""
    width = like_NM.shape[1]
    return like_NM.new_tensor([[*row, *([0.0] * (width - len(row)))] for row in rows])


def naive_qcrd_loss(reference: ReferenceModel, batch: QuestionBatch, config: LossConfig) -> torch.Tensor:
    """a1 * L_pred + a2 * L_cl for the scheme `minmax`, as section 5 of the method prints it."""
    with reference.precision():
        label = reference.model(**reference.inputs(batch.predict_ids, batch.label_ids)).loss
    pos_NM = _side_nll(reference, batch.explain_ids, batch.positives)
    neg_NK = _side_nll(reference, batch.explain_ids, batch.negatives)
    l_pos_N, best_N = pos_NM.min(dim=1)
    hinge_NK = torch.where(neg_NK.isinf(), float("-inf"), (neg_NK - config.margin).clamp(max=0))
    l_neg_N, worst_N = hinge_NK.max(dim=1)
    quality_pos_N = _padded(batch.quality_positives, pos_NM).gather(1, best_N[:, None])[:, 0]
    quality_neg_N = _padded(batch.quality_negatives, neg_NK).gather(1, worst_N[:, None])[:, 0]
    has_positive_N, has_negative_N = ~l_pos_N.isinf(), ~l_neg_N.isinf()
    term_N = torch.where(has_positive_N, quality_pos_N * l_pos_N, 0.0)
    term_N = term_N - config.beta * torch.where(has_positive_N & has_negative_N, (1 - quality_neg_N) * l_neg_N, 0.0)
    return config.label_weight * label + config.rationale_weight * term_N.mean()


def naive_qcrd_losses(
    reference: ReferenceModel, batch: QuestionBatch, config: LossConfig, questions_at_once: int
) -> Iterator[torch.Tensor]:
    """The loss in parts of a few questions, each to be back-propagated before the next one: gradient accumulation, for
    a machine that cannot hold all graphs at once. (As in the Trainer, a mean of the parts' means.)"""
    count = len(batch.predict_ids)
    for first in range(0, count, questions_at_once):
        part = batch.part(first, min(count, first + questions_at_once))
        yield naive_qcrd_loss(reference, part, config) * (len(part.predict_ids) / count)


@torch.no_grad()
def padded_scores(discriminator: Discriminator, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Scores of all pairs, (pairs,), in one padded batch through transformers' encoder, dropout off."""
    device = next(discriminator.head.parameters()).device
    rows = {"input_ids": discriminator.tokenize(pairs)}
    inputs = discriminator.tokenizer.pad(rows, return_tensors="pt").to(device)
    discriminator.eval()
    states_BSH = discriminator.encoder(**inputs).last_hidden_state
    discriminator.train()
    pooled_BH = states_BSH.masked_fill(inputs["attention_mask"][:, :, None] == 0, float("-inf")).max(dim=1).values
    return torch.sigmoid(discriminator.head(pooled_BH)[:, 0])

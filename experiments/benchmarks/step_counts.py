"""Multiply-adds of the linear layers of one training step, counted from token numbers: why a variant takes its time.

A forward pass counts 1, forward and backward 3. Left out: attention's own products (at these lengths a few percent),
norms, softmaxes, the optimizer. Computed, never measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcrd.config import ScratchSizes
from qcrd.distill.batch import QuestionBatch

Ids = Sequence[int]
FORWARD, WITH_GRADIENT = 1, 3


@dataclass(frozen=True)
class TokenCosts:
    """Multiply-adds a token: encoder, decoder without cross-attention's keys and values, these (of each input token
    that a decoder reads), output layer."""

    encoder: int
    decoder: int
    cross: int
    output: int

    @classmethod
    def of(cls, sizes: ScratchSizes, vocabulary: int) -> TokenCosts:
        attention = sizes.d_model * sizes.d_kv * sizes.num_heads
        feed_forward = 2 * sizes.d_model * sizes.d_ff
        return cls(
            encoder=sizes.num_layers * (4 * attention + feed_forward),
            decoder=sizes.num_decoder_layers * (6 * attention + feed_forward),
            cross=sizes.num_decoder_layers * 2 * attention,
            output=sizes.d_model * vocabulary,
        )


def _tokens(rows: Sequence[Ids], padded: bool) -> int:
    lengths = [len(row) for row in rows]
    return len(lengths) * max(lengths, default=0) if padded else sum(lengths)


def whole_pass(costs: TokenCosts, questions: Sequence[Ids], targets: Sequence[Ids], padded: bool) -> int:
    """Encoder and decoder of (question, target) pairs, one encoder pass a pair, forward."""
    inputs, outputs = _tokens(questions, padded), _tokens(targets, padded)
    return inputs * (costs.encoder + costs.cross) + outputs * (costs.decoder + costs.output)


def dss_step(costs: TokenCosts, batch: QuestionBatch, padded: bool) -> float:
    """Label and first rationale with gradient."""
    return WITH_GRADIENT * (
        whole_pass(costs, batch.predict_ids, batch.label_ids, padded)
        + whole_pass(costs, batch.explain_ids, batch.rationale_ids, padded)
    )


def qcrd_step(costs: TokenCosts, batch: QuestionBatch, active_share: float, padded: bool) -> float:
    """Ours: label with gradient; the encoder of `explain` once; every candidate scored; one positive a question (it
    counts as the mean of the question's) and the active share of the negatives with gradient. Ours has no padding;
    `padded` counts what the same order of work would take with it."""
    inputs = _tokens(batch.explain_ids, padded)
    positives = _tokens([target for targets in batch.positives for target in targets], padded)
    negatives = _tokens([target for targets in batch.negatives for target in targets], padded)
    chosen = positives * len(batch.positives) / sum(len(targets) for targets in batch.positives)
    scored, trained = positives + negatives, chosen + active_share * negatives
    return (
        WITH_GRADIENT * whole_pass(costs, batch.predict_ids, batch.label_ids, padded)
        + inputs * (WITH_GRADIENT * costs.encoder + (FORWARD + WITH_GRADIENT) * costs.cross)
        + (FORWARD * scored + WITH_GRADIENT * trained) * (costs.decoder + costs.output)
    )


def naive_step(costs: TokenCosts, batch: QuestionBatch, padded: bool) -> float:
    """Label and every rationale through the whole model with gradient. Generation and discriminator are not in it."""
    total = whole_pass(costs, batch.predict_ids, batch.label_ids, padded)
    for lists in (batch.positives, batch.negatives):
        questions = [batch.explain_ids[n] for n, targets in enumerate(lists) for _ in targets]
        total += whole_pass(costs, questions, [target for targets in lists for target in targets], padded)
    return WITH_GRADIENT * total


def generation(costs: TokenCosts, questions: Sequence[Ids], targets: Sequence[Ids], padded: bool) -> float:
    """One sample a question with a key-value cache."""
    return FORWARD * whole_pass(costs, questions, targets, padded)


def judging(costs: TokenCosts, pairs: Sequence[Ids], padded: bool) -> float:
    """Scores of (question, rationale) pairs by an encoder of the same sizes."""
    return FORWARD * _tokens(pairs, padded) * costs.encoder

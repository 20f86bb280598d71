"""The benchmark's baselines compute what our step computes: equal losses and gradients without dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from experiments.benchmarks import step_counts as counts
from experiments.benchmarks.step_baselines import ReferenceModel, naive_qcrd_loss, padded_scores, reference_dss_loss
from qcrd.config import (
    LossConfig,
    ScratchDiscriminatorConfig,
    ScratchSizes,
)
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.discriminator import build_discriminator
from qcrd.distill.methods import METHODS
from tests.distill.helpers import NEGATIVES, QUESTIONS, question_batch, tiny_student, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    # transformers' T5 takes softmax and norms in fp32 even here, so single elements near 0 differ
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        assert float((gradient - right[name]).norm()) <= 1e-4 * float(right[name].norm()) + 1e-12, name


@pytest.mark.parametrize(("margin", "active"), [(0.5, 0.0), (4.88, 0.5), (100.0, 1.0)])
def test_naive_qcrd_equals_our_step_in_loss_and_every_gradient(margin: float, active: float):
    student, batch, config = tiny_student(), question_batch(), LossConfig(margin=margin)
    reference = ReferenceModel(student.model, TOKENIZER, "float64")
    naive = naive_qcrd_loss(reference, batch, config)
    ours, metrics = METHODS["qcrd"].step(student, batch, config)
    assert float(metrics["hinge_active"]) == active
    assert float(naive.detach()) == pytest.approx(float(ours.detach()), rel=1e-6)
    assert_equal(gradients(student.model, ours), gradients(student.model, naive))


def test_naive_qcrd_without_negatives_equals_our_step():
    student = tiny_student()
    batch = replace(question_batch(), negatives=[[], [], []], quality_negatives=[[], [], []])
    naive = naive_qcrd_loss(ReferenceModel(student.model, TOKENIZER, "float64"), batch, LossConfig())
    ours, _ = METHODS["qcrd"].step(student, batch, LossConfig())
    assert float(naive.detach()) == pytest.approx(float(ours.detach()), rel=1e-6)


def test_reference_dss_equals_our_step_in_loss_and_every_gradient():
    student, batch, config = tiny_student(), question_batch(), LossConfig(label_weight=0.3, rationale_weight=0.7)
    reference = reference_dss_loss(ReferenceModel(student.model, TOKENIZER, "float64"), batch, config)
    ours, _ = METHODS["dss"].step(student, batch, config)
    assert float(reference.detach()) == pytest.approx(float(ours.detach()), rel=1e-6)
    assert_equal(gradients(student.model, ours), gradients(student.model, reference))


def test_counted_operations_are_those_of_the_linear_layers():
    sizes = ScratchSizes(d_model=2, d_kv=3, d_ff=5, num_layers=1, num_decoder_layers=2, num_heads=1)
    costs = counts.TokenCosts.of(sizes, vocabulary=7)
    attention, feed_forward = 2 * 3, 2 * 2 * 5
    assert costs == counts.TokenCosts(4 * attention + feed_forward, 2 * (6 * attention + feed_forward), 24, 14)
    questions, targets = [[1] * 3, [1] * 5], [[1] * 2, [1] * 4]
    per_input, per_output = costs.encoder + costs.cross, costs.decoder + costs.output
    assert counts.whole_pass(costs, questions, targets, padded=False) == 8 * per_input + 6 * per_output
    assert counts.whole_pass(costs, questions, targets, padded=True) == 10 * per_input + 8 * per_output
    batch = QuestionBatch(
        questions, questions, targets, targets, positives=[[[1] * 2, [1] * 6], [[1] * 4, [1] * 4]],
        negatives=[[[1] * 3], [[1] * 3]],
    )  # fmt: skip
    label = 3 * (8 * per_input + 6 * per_output)
    assert counts.dss_step(costs, batch, padded=False) == 2 * label
    # scored: 16 + 6 tokens; with gradient: a mean positive each (8) and half of the negatives (3)
    explained = 8 * (3 * costs.encoder + 4 * costs.cross) + (22 + 3 * 11) * per_output
    assert counts.qcrd_step(costs, batch, active_share=0.5, padded=False) == label + explained


def test_padded_scores_are_the_discriminators():
    config = ScratchDiscriminatorConfig(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2)
    discriminator = build_discriminator(config, [*QUESTIONS, "8 + 3 = 11 apples."], torch.device("cpu"))
    pairs = [(question, text) for question, own in zip(QUESTIONS, NEGATIVES, strict=True) for text in own]
    assert padded_scores(discriminator, pairs).tolist() == pytest.approx(discriminator.score(pairs), rel=1e-5)

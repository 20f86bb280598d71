"""Every loss term against values computed by hand."""

import math

import pytest
import torch

from qcrd.distill.losses import (
    candidate_weights,
    contrastive_coefficients,
    contrastive_loss,
    discriminator_loss,
    mutual_information_loss,
    token_mean_weights,
)
from qcrd.models.cross_entropy import IGNORED, sequence_nll

LOG2, LOG4 = math.log(2), math.log(4)


def logits_with_nll(values: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over two tokens whose target (token 1) has exactly these negative log-likelihoods; NaN: padding."""
    nll = torch.tensor(values, dtype=torch.float64)
    p = torch.exp(-torch.nan_to_num(nll, nan=1.0))
    logits = torch.stack([torch.log1p(-p), torch.log(p)], dim=-1)
    targets = torch.where(nll.isnan(), IGNORED, 1)
    return logits, targets


def test_sequence_nll_is_a_mean_per_sequence_without_padding():
    logits, targets = logits_with_nll([[LOG2, LOG4, math.nan], [1.0, 2.0, 6.0]])
    assert sequence_nll(logits, targets).tolist() == pytest.approx([(LOG2 + LOG4) / 2, 3.0])


def test_token_mean_weights_divide_by_the_tokens_of_the_global_batch():
    mean_nll, lengths = torch.tensor([1.5, 4.0]), torch.tensor([2.0, 3.0])  # sums 3 and 12
    assert float((token_mean_weights(lengths, 5) * mean_nll).sum()) == pytest.approx(15 / 5)
    assert float((token_mean_weights(lengths, 10) * mean_nll).sum()) == pytest.approx(15 / 10)  # half of a batch


def test_contrastive_coefficients_are_the_gradient_of_the_contrastive_loss():
    stream = torch.Generator().manual_seed(0)
    nll_pos, nll_neg = (torch.rand(3, 2, dtype=torch.float64, generator=stream).requires_grad_() for _ in range(2))
    everyone, half = torch.ones(3, 2, dtype=torch.bool), torch.full((3, 2), 0.5, dtype=torch.float64)
    weights = candidate_weights(
        nll_pos.detach(), everyone, nll_neg.detach(), everyone, half, half, "weighted_mean", 0.6,
        half[:, 0], half[:, 0],
    )  # fmt: skip
    gradients = torch.autograd.grad(contrastive_loss(nll_pos, nll_neg, weights, 0.2, 0.6, 5), (nll_pos, nll_neg))
    for ours, theirs in zip(contrastive_coefficients(weights, 0.2, 5), gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-14) and bool((ours != 0).any())


def test_half_precision_logits_are_reduced_in_fp32():
    logits = torch.tensor([[[0.0, 5.0]] * 300], dtype=torch.bfloat16)
    exact = math.log(1 + math.exp(-5.0))
    assert float(sequence_nll(logits, torch.ones(1, 300, dtype=torch.long))) == pytest.approx(exact, rel=1e-6)


POS = torch.tensor([[2.0, 0.5, 9.9], [1.5, 1.0, 4.0]], dtype=torch.float64)
MASK_POS = torch.tensor([[True, True, False], [True, True, True]])
NEG = torch.tensor([[1.0, 2.5], [5.0, 2.0]], dtype=torch.float64)
MASK_NEG = torch.tensor([[True, True], [True, True]])
S_POS = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.6, 0.5]], dtype=torch.float64)
S_NEG = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
DRAWS_POS = torch.tensor([0.0, 0.99], dtype=torch.float64)
DRAWS_NEG = torch.tensor([0.6, 0.4], dtype=torch.float64)


def value_of(scheme: str) -> float:
    weights = candidate_weights(POS, MASK_POS, NEG, MASK_NEG, S_POS, S_NEG, scheme, 3.0, DRAWS_POS, DRAWS_NEG)
    return float(contrastive_loss(POS, NEG, weights, beta=0.2, margin=3.0, num_questions=2))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        # question 1: min l+ = 0.5 (s 0.8); n = (-2, -0.5), max -0.5 (s- 0.2). 2: min 1.0 (s 0.6); n = (0, -1): 0
        ("minmax", ((0.8 * 0.5 - 0.2 * 0.8 * -0.5) + (0.6 * 1.0 - 0.0)) / 2),
        # max l+ = 2.0 (0.9), min n = -2 (0.1); max 4.0 (0.5), min n = -1 (0.4)
        ("maxmin", ((0.9 * 2.0 - 0.2 * 0.9 * -2.0) + (0.5 * 4.0 - 0.2 * 0.6 * -1.0)) / 2),
        # draws pick the first positive and second negative; the third positive and first negative (inactive)
        ("sampling", ((0.9 * 2.0 - 0.2 * 0.8 * -0.5) + (0.5 * 4.0 - 0.0)) / 2),
        ("mean", ((1.25 - 0.2 * -1.25) + (6.5 / 3 - 0.2 * -0.5)) / 2),
        (
            "weighted_mean",
            (
                ((0.9 * 2.0 + 0.8 * 0.5) / 2 - 0.2 * (0.9 * -2.0 + 0.8 * -0.5) / 2)
                + ((0.7 * 1.5 + 0.6 * 1.0 + 0.5 * 4.0) / 3 - 0.2 * (0.6 * -1.0) / 2)
            )
            / 2,
        ),
    ],
)
def test_schemes_by_hand(scheme: str, expected: float):
    assert value_of(scheme) == pytest.approx(expected, abs=1e-12)


def one_negative(nll: float, beta: float = 0.2, s_neg: float = 0.25) -> tuple[float, float]:
    """Loss and its derivative by the negative's l, for one question with a positive of l = 1 and s+ = 1."""
    pos, neg = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[nll]], dtype=torch.float64, requires_grad=True)
    yes, zero = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    quality = torch.full((1, 1), s_neg, dtype=torch.float64)
    weights = candidate_weights(pos, yes, neg, yes, torch.ones_like(pos), quality, "minmax", 3.0, zero, zero)
    loss = contrastive_loss(pos, neg, weights, beta, 3.0, 1)
    loss.backward()
    assert neg.grad is not None
    return float(loss.detach()), float(neg.grad)


def test_negative_term_pushes_the_loss_up_to_the_margin_and_no_further():
    loss, slope = one_negative(1.0)
    assert loss == pytest.approx(1 + 0.2 * 0.75 * 2.0)  # + beta (1 - s-) relu(margin - l)
    assert slope == pytest.approx(-0.2 * 0.75)  # descent raises the negative's l
    assert one_negative(3.0) == (1.0, 0.0)
    assert one_negative(7.0) == (1.0, 0.0)
    bound = 1 + 0.2 * 3.0
    assert one_negative(0.0, s_neg=0.0)[0] == pytest.approx(bound)


def test_scores_are_weights_and_not_gradient_paths():
    s_pos, s_neg = S_POS.clone().requires_grad_(), S_NEG.clone().requires_grad_()
    pos = POS.clone().requires_grad_()
    weights = candidate_weights(pos, MASK_POS, NEG, MASK_NEG, s_pos, s_neg, "minmax", 3.0, DRAWS_POS, DRAWS_NEG)
    contrastive_loss(pos, NEG, weights, 0.2, 3.0, 2).backward()
    assert s_pos.grad is None and s_neg.grad is None
    assert pos.grad is not None
    assert pos.grad.tolist() == [[0, pytest.approx(0.4), 0], [0, pytest.approx(0.3), 0]]


def test_empty_sides_and_questions_without_a_positive():
    none = torch.zeros_like(MASK_POS)
    weights = candidate_weights(POS, none, NEG, MASK_NEG, S_POS, S_NEG, "minmax", 3.0, DRAWS_POS, DRAWS_NEG)
    assert float(contrastive_loss(POS, NEG, weights, 0.2, 3.0, 2)) == 0.0  # no positive: the negative goes too
    assert weights.selected_pos_N.tolist() == [-1, -1]
    no_negative = torch.zeros_like(MASK_NEG)
    weights = candidate_weights(POS, MASK_POS, NEG, no_negative, S_POS, S_NEG, "maxmin", 3.0, DRAWS_POS, DRAWS_NEG)
    assert float(contrastive_loss(POS, NEG, weights, 0.2, 3.0, 2)) == pytest.approx((0.9 * 2.0 + 0.5 * 4.0) / 2)
    empty = torch.zeros(2, 0, dtype=torch.float64)
    nobody = torch.zeros(2, 0, dtype=torch.bool)
    for scheme in ("minmax", "maxmin", "sampling", "mean", "weighted_mean"):
        weights = candidate_weights(empty, nobody, empty, nobody, empty, empty, scheme, 3.0, DRAWS_POS, DRAWS_NEG)
        assert float(contrastive_loss(empty, empty, weights, 0.2, 3.0, 2)) == 0.0


def test_ties_go_to_the_lowest_index():
    same = torch.ones(1, 3, dtype=torch.float64)
    yes, draw = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    for scheme in ("minmax", "maxmin"):
        weights = candidate_weights(same, yes, same, yes, same, same * 0, scheme, 3.0, draw, draw)
        assert weights.selected_pos_N.tolist() == [0] and weights.selected_neg_N.tolist() == [0]


def test_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="'best'; allowed: minmax"):
        value_of("best")


def test_discriminator_loss_by_hand():
    pos, neg = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.0, 0.0]]), torch.tensor([[0.1, 0.0], [0.2, 0.3]])
    mask_pos = torch.tensor([[True, True, False], [True, False, False]])
    mask_neg = torch.tensor([[True, False], [True, True]])
    first = -math.log((math.exp(0.9) + math.exp(0.8)) / math.exp(0.1))
    second = -math.log(math.exp(0.7) / (math.exp(0.2) + math.exp(0.3)))
    assert float(discriminator_loss(pos, mask_pos, neg, mask_neg)) == pytest.approx((first + second) / 2, rel=1e-6)
    only_first = mask_neg & torch.tensor([[True], [False]])
    assert float(discriminator_loss(pos, mask_pos, neg, only_first)) == pytest.approx(first, rel=1e-6)
    assert float(discriminator_loss(pos, mask_pos, neg, mask_neg & False)) == 0.0


def test_mutual_information_by_hand():
    p_rationale = torch.tensor([[0.6, 0.7], [0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    p_label = torch.tensor([[0.9, 0.4], [0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    masked = -(0.9 * math.log(0.6) + 0.4 * math.log(0.7) + 0.5 * math.log(0.2) + 0.5 * math.log(0.9))
    again = [math.log(math.exp(0.6) + math.exp(0.7)), math.log(math.exp(0.2) + math.exp(0.9))]
    official = -(0.9 * (0.6 - again[0]) + 0.4 * (0.7 - again[0]) + 0.5 * (0.2 - again[1]) + 0.5 * (0.9 - again[1]))
    for variant, expected in (("masked", masked), ("official", official)):
        loss = mutual_information_loss(p_rationale.log(), p_label.log(), variant, 4)
        assert float(loss.detach()) == pytest.approx(expected / 4, rel=1e-12)  # two of four questions are elsewhere
    loss.backward()
    assert p_label.grad is None and p_rationale.grad is not None
    with pytest.raises(ValueError, match="'both'; allowed: official, masked"):
        mutual_information_loss(p_rationale.log(), p_label.log(), "both", 2)

"""The losses of QCRD and its rivals as pure functions: tensors in, values out (method.md sections 5 and 9; eqs. 2-7).

Shape suffixes: R targets, V vocabulary, N questions of the global batch, M positive and K negative
rationales a question (padded; `mask` is False on padding). Losses are in nats. Nothing here moves tensors between
devices, logs, or reads settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def token_mean_weights(lengths_R: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """What multiplies each l(r) in L_pred and DSS's rationale loss, (R,): their sum is the token mean.

    `num_tokens` counts the targets of the global batch, so that it does not matter how many workers share it.
    """
    return lengths_R / max(num_tokens, 1)


@dataclass(frozen=True)
class CandidateWeights:
    """What multiplies each candidate's loss in L_cl. Zero: no gradient, so the candidate needs no gradient pass.

    `selected_pos_N` / `selected_neg_N` are the chosen candidates' indices (-1: none, or a scheme that takes all).
    """

    pos_NM: torch.Tensor
    neg_NK: torch.Tensor
    selected_pos_N: torch.Tensor
    selected_neg_N: torch.Tensor


def _first_index_of_minimum(values_NC: torch.Tensor, mask_NC: torch.Tensor) -> torch.Tensor:
    """Index of the smallest unmasked value of each row, ties to the lowest index; -1 for a row without any."""
    if values_NC.shape[1] == 0:
        return torch.full((values_NC.shape[0],), -1, device=values_NC.device)
    values_NC = values_NC.masked_fill(~mask_NC, float("inf"))
    is_minimum = (values_NC == values_NC.min(dim=1, keepdim=True).values) & mask_NC
    index_N = is_minimum.int().argmax(dim=1)  # the first True
    return torch.where(mask_NC.any(dim=1), index_N, -1)


def _index_drawn(draws_N: torch.Tensor, mask_NC: torch.Tensor) -> torch.Tensor:
    """The candidate that a uniform draw in [0, 1) picks among the unmasked ones; -1 for a row without any."""
    if mask_NC.shape[1] == 0:
        return torch.full((mask_NC.shape[0],), -1, device=mask_NC.device)
    count_N = mask_NC.sum(dim=1)
    nth_N = (draws_N * count_N).long().clamp(max=(count_N - 1).clamp(min=0)) + 1
    index_N = ((mask_NC.cumsum(dim=1) == nth_N[:, None]) & mask_NC).int().argmax(dim=1)
    return torch.where(count_N > 0, index_N, -1)


def _one_hot(index_N: torch.Tensor, size: int) -> torch.Tensor:
    """Boolean (N, size); a row of index -1 is all False."""
    return torch.arange(size, device=index_N.device)[None, :] == index_N[:, None]


@torch.no_grad()
def candidate_weights(
    nll_pos_NM: torch.Tensor,
    mask_pos_NM: torch.Tensor,
    nll_neg_NK: torch.Tensor,
    mask_neg_NK: torch.Tensor,
    quality_pos_NM: torch.Tensor,
    quality_neg_NK: torch.Tensor,
    scheme: str,
    margin: float,
    draws_pos_N: torch.Tensor,
    draws_neg_N: torch.Tensor,
) -> CandidateWeights:
    """Which candidates a many-to-one scheme takes, and with which weights, from their scored losses.

    With n_j = min(l(r-_j) - margin, 0): `minmax` s+ min l+, (1-s-) max n; `maxmin` s+ max l+, (1-s-) min n; `sampling`
    one draw a side; `mean` mean l+, mean n; `weighted_mean` mean(s+ l+), mean((1-s-) n). A negative whose n_j is 0 has
    weight 0. A question without a positive drops its negatives too. Selection is data, not a gradient path.
    """
    dtype = nll_pos_NM.dtype
    active_NK = (nll_neg_NK < margin) & mask_neg_NK
    hinge_NK = (nll_neg_NK - margin).clamp(max=0)
    num_pos, num_neg = nll_pos_NM.shape[1], nll_neg_NK.shape[1]
    nobody_N = torch.full((nll_pos_NM.shape[0],), -1, device=nll_pos_NM.device)
    if scheme in ("mean", "weighted_mean"):
        weights_pos = mask_pos_NM.to(dtype) / mask_pos_NM.sum(dim=1, keepdim=True).clamp(min=1)
        weights_neg = active_NK.to(dtype) / mask_neg_NK.sum(dim=1, keepdim=True).clamp(min=1)
        if scheme == "weighted_mean":
            weights_pos, weights_neg = weights_pos * quality_pos_NM, weights_neg * (1 - quality_neg_NK)
        selected_pos_N = selected_neg_N = nobody_N
    else:
        if scheme == "minmax":
            selected_pos_N = _first_index_of_minimum(nll_pos_NM, mask_pos_NM)
            selected_neg_N = _first_index_of_minimum(-hinge_NK, mask_neg_NK)
        elif scheme == "maxmin":
            selected_pos_N = _first_index_of_minimum(-nll_pos_NM, mask_pos_NM)
            selected_neg_N = _first_index_of_minimum(hinge_NK, mask_neg_NK)
        elif scheme == "sampling":
            selected_pos_N = _index_drawn(draws_pos_N, mask_pos_NM)
            selected_neg_N = _index_drawn(draws_neg_N, mask_neg_NK)
        else:
            raise ValueError(f"scheme: {scheme!r}; allowed: minmax, maxmin, sampling, mean, weighted_mean")
        weights_pos = _one_hot(selected_pos_N, num_pos) * quality_pos_NM
        weights_neg = _one_hot(selected_neg_N, num_neg) * active_NK * (1 - quality_neg_NK)
    has_positive_N1 = mask_pos_NM.any(dim=1, keepdim=True)
    return CandidateWeights(
        weights_pos.to(dtype), (weights_neg * has_positive_N1).to(dtype), selected_pos_N, selected_neg_N
    )


def contrastive_loss(
    nll_pos_NM: torch.Tensor,
    nll_neg_NK: torch.Tensor,
    weights: CandidateWeights,
    beta: float,
    margin: float,
    num_questions: int,
) -> torch.Tensor:
    """L_cl = mean over questions of [ l_pos - beta * l_neg ], given the weights that the scheme chose.

    For a chosen negative min(l - margin, 0) = l - margin <= 0, so its term + beta * (1-s-) * (margin - l) falls as the
    negative's loss rises, and is gone at the margin. `num_questions` counts the global batch, those without rationales
    included.
    """
    l_pos = (weights.pos_NM * nll_pos_NM).sum()
    l_neg = (weights.neg_NK * (nll_neg_NK - margin)).sum()
    return (l_pos - beta * l_neg) / num_questions


def contrastive_coefficients(
    weights: CandidateWeights, beta: float, num_questions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What multiplies each l(r+) and l(r-) in `contrastive_loss`, (N, M) and (N, K): its gradient, which is linear."""
    return weights.pos_NM / num_questions, -beta * weights.neg_NK / num_questions


def mutual_information_loss(
    log_peaks_rationale_NV: torch.Tensor, log_peaks_label_NV: torch.Tensor, variant: str, num_questions: int
) -> torch.Tensor:
    """Cross entropy of what a question's rationale says relative to what its label says (Chen et al. 2024), the mean.

    Peaks: the largest probability that each token of the vocabulary gets at any decoder position, p_R and p_L; they sum
    to more than one. p_L is detached. `official`, as the reference code: -sum_v p_L log softmax(p_R), that is softmaxed
    once more; `masked`: -sum_v p_L log p_R. `num_questions` counts those of the global batch that have both.
    """
    peaks_label_NV = log_peaks_label_NV.detach().exp()
    if variant == "official":
        log_peaks_rationale_NV = log_peaks_rationale_NV.exp().log_softmax(dim=1)
    elif variant != "masked":
        raise ValueError(f"variant: {variant!r}; allowed: official, masked")
    return -(peaks_label_NV * log_peaks_rationale_NV).sum() / max(num_questions, 1)


def discriminator_loss(
    scores_pos_NM: torch.Tensor,
    mask_pos_NM: torch.Tensor,
    scores_neg_NK: torch.Tensor,
    mask_neg_NK: torch.Tensor,
    num_questions: int | None = None,
) -> torch.Tensor:
    """L_D = mean over questions of -log( sum_j exp(s+_j) / sum_j exp(s-_j) ), eq. 2, for sigmoid scores.

    A question with an empty side is left out of the mean; 0 where all are. `num_questions` counts the questions with
    both sides in the global batch, where these are a part of it.
    """
    both_N = mask_pos_NM.any(dim=1) & mask_neg_NK.any(dim=1)
    if not bool(both_N.any()):
        return (scores_pos_NM.sum() + scores_neg_NK.sum()) * 0
    pos_N = scores_pos_NM[both_N].masked_fill(~mask_pos_NM[both_N], float("-inf")).logsumexp(dim=1)
    neg_N = scores_neg_NK[both_N].masked_fill(~mask_neg_NK[both_N], float("-inf")).logsumexp(dim=1)
    return (neg_N - pos_N).sum() / (num_questions or int(both_N.sum()))

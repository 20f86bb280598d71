"""Negative log-likelihood of target tokens, in nats: straight from hidden states, or from logits that are there.

From hidden states logits exist for a chunk of tokens at a time and are never kept. The weights of a sum of token values
are known before the gradient pass, so the gradients of hidden states and output weights are taken chunk
by chunk while the logits are there. With a vocabulary of 32k the logits of a batch's rationales in fp32 would be over a
gigabyte. Knows nothing about models, losses or rationales.

P packed tokens, C tokens of a chunk, H width, V vocabulary, B sequences, T target tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

IGNORED = -100
"""Target id of padding, which never counts."""
CHUNK_TOKENS = {"cpu": 256, "cuda": 2048}
"""Tokens whose logits exist at once: (chunk, vocabulary) in fp32 is 33 MB for T5 on a CPU."""


def _matmul_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunk_logits(hidden_CH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    logits_CV = linear(hidden_CH, weight_VH)
    return logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()


@torch.no_grad()
def nll_of_tokens(hidden_PH: torch.Tensor, weight_VH: torch.Tensor, targets_P: torch.Tensor) -> torch.Tensor:
    """-log softmax(hidden @ weight^T)[target], (P,), in nats and at least fp32, without gradient."""
    dtype = _matmul_dtype(hidden_PH)
    weight_VH, hidden_PH = weight_VH.to(dtype), hidden_PH.to(dtype)
    size = CHUNK_TOKENS.get(hidden_PH.device.type, 2048)
    parts = []
    with torch.autocast(hidden_PH.device.type, enabled=False):
        for hidden_CH, targets_C in zip(hidden_PH.split(size), targets_P.split(size), strict=True):
            logits_CV = _chunk_logits(hidden_CH, weight_VH)
            parts.append(logits_CV.logsumexp(dim=1) - logits_CV.gather(1, targets_C[:, None])[:, 0])
    return torch.cat(parts) if parts else hidden_PH.new_zeros(0, dtype=torch.promote_types(dtype, torch.float32))


class _WeightedNLL(torch.autograd.Function):
    """Sum of weights * nll and, without gradient, each token's nll; gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PH: torch.Tensor, weight_VH: torch.Tensor, targets_P: torch.Tensor, weights_P: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = _matmul_dtype(hidden_PH)
        hidden, weight = hidden_PH.to(dtype), weight_VH.to(dtype)
        size = CHUNK_TOKENS.get(hidden.device.type, 2048)
        grad_hidden = torch.empty_like(hidden_PH)
        grad_weight = torch.zeros_like(weight_VH)
        parts = []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), size):
                chunk = slice(start, start + size)
                probabilities_CV = _chunk_logits(hidden[chunk], weight)
                targets_C1 = targets_P[chunk, None]
                normalizer_C = probabilities_CV.logsumexp(dim=1)
                parts.append(normalizer_C - probabilities_CV.gather(1, targets_C1)[:, 0])
                probabilities_CV.sub_(normalizer_C[:, None]).exp_()
                probabilities_CV.scatter_add_(1, targets_C1, -torch.ones_like(normalizer_C)[:, None])
                grad_logits_CV = probabilities_CV.mul_(weights_P[chunk, None]).to(dtype)
                torch.mm(grad_logits_CV, weight, out=grad_hidden[chunk]) if dtype == hidden_PH.dtype else (
                    grad_hidden[chunk].copy_(grad_logits_CV @ weight)
                )
                if dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad_logits_CV.t(), hidden[chunk])
                else:
                    grad_weight += grad_logits_CV.t() @ hidden[chunk]
        nll_P = torch.cat(parts) if parts else weights_P.new_zeros(0)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nll_P)
        return (weights_P * nll_P).sum(), nll_P

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


def weighted_nll(
    hidden_PH: torch.Tensor, weight_VH: torch.Tensor, targets_P: torch.Tensor, weights_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weights * nll with gradient to hidden states and output weights, each token's nll without)."""
    return _WeightedNLL.apply(hidden_PH, weight_VH, targets_P, weights_P)  # pyright: ignore[reportReturnType]


def token_nll(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target token, (B, T), 0 on padding; computed in at least fp32."""
    if logits_BTV.dtype in (torch.float16, torch.bfloat16):
        logits_BTV = logits_BTV.float()
    flat = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets_BT.shape)


def sequence_nll(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """l(r): mean negative log-likelihood per target token of each sequence, (B,). EOS counts, padding does not."""
    lengths_B = (targets_BT != IGNORED).sum(dim=1)
    return token_nll(logits_BTV, targets_BT).sum(dim=1) / lengths_B.clamp(min=1)

"""Chunked cross entropy with its own gradients against torch's."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from qcrd.models import cross_entropy as module
from qcrd.models.cross_entropy import nll_of_tokens, weighted_nll


@pytest.mark.parametrize("chunk", [3, 64])
def test_equals_torch_in_value_and_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(module, "CHUNK_TOKENS", {"cpu": chunk})
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 6).double().requires_grad_(), torch.randn(7, 6).double().requires_grad_()
    targets, weights = torch.randint(7, (10,)), torch.rand(10).double() - 0.3  # a negative's weight is below 0
    loss, nll = weighted_nll(hidden, weight, targets, weights)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight))
    expected = cross_entropy(hidden @ weight.t(), targets, reduction="none")
    assert torch.allclose(nll, expected, rtol=1e-13) and not nll.requires_grad
    assert torch.allclose(nll_of_tokens(hidden, weight, targets), expected, rtol=1e-13)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(3 * (weights * expected).sum(), (hidden, weight)), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-12)


def test_under_bf16_autocast_losses_are_fp32_and_gradients_have_the_weights_dtype():
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16).requires_grad_(), torch.randn(50, 16).requires_grad_()
    targets = torch.randint(50, (300,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, nll = weighted_nll(hidden, weight, targets, torch.full((300,), 1 / 300))
    loss.backward()
    expected = cross_entropy(hidden.detach() @ weight.detach().t(), targets)
    assert nll.dtype == torch.float32 and float(loss) == pytest.approx(float(expected), rel=0.01)
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32

"""AdamW over one flat tensor: its state can be filled in place, as workers that take another's do."""

from __future__ import annotations

import torch

from qcrd.models.optimizer import FlatAdamW


def optimizer() -> FlatAdamW:
    torch.manual_seed(0)
    return FlatAdamW(torch.nn.Linear(3, 2), 0.1, 0.0, 1.0)


def test_the_state_of_a_fresh_optimizer_can_be_overwritten_in_place():
    trained, fresh = optimizer(), optimizer()
    for one in range(3):
        trained.gradient.copy_(torch.arange(8.0) - one)
        trained.step()
    state = fresh.state()
    for name, tensor in trained.state().items():
        state[name].copy_(tensor)
    fresh.load_state(state)
    fresh.weights.data.copy_(trained.weights.data)
    for one in (trained, fresh):
        one.gradient.copy_(torch.arange(8.0))
        one.step()
    assert torch.equal(fresh.weights, trained.weights)

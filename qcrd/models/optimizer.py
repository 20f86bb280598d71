"""AdamW over one flat tensor that holds all of a module's weights (the module's own become views of it).

One fused kernel a step, one norm to clip by, one tensor to sum over workers and three to checkpoint. Knows nothing
about losses, schedules or files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class FlatAdamW:
    """AdamW (betas 0.9 and 0.999, eps 1e-8) whose gradient is clipped to `max_grad_norm` as a whole."""

    def __init__(self, module: nn.Module, learning_rate: float, weight_decay: float, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm
        parameters = [p for p in module.parameters() if p.requires_grad]
        first, size = parameters[0], sum(p.numel() for p in parameters)
        self.weights = nn.Parameter(torch.empty(size, dtype=first.dtype, device=first.device))
        self.gradient = torch.zeros_like(self.weights)
        self.weights.grad = self.gradient
        start = 0
        with torch.no_grad():
            for parameter in parameters:
                view = slice(start, start + parameter.numel())
                self.weights[view] = parameter.flatten()
                parameter.data = self.weights.data[view].view_as(parameter)
                parameter.grad = self.gradient[view].view_as(parameter)
                start += parameter.numel()
        self._adamw = torch.optim.AdamW(
            [self.weights], lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True
        )

    def zero_grad(self) -> None:
        """Set the gradient to zero; the parameters' own gradients are views of it and stay so."""
        self.gradient.zero_()

    def step(self, learning_rate: float | None = None) -> torch.Tensor:
        """Clip and update. Returns the norm before clipping, without waiting for the device."""
        if learning_rate is not None:
            self._adamw.param_groups[0]["lr"] = learning_rate
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self._adamw.step()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """The moments, flat, and the number of steps; zeros before the first step."""
        kept = self._adamw.state[self.weights]
        moments = {
            name: kept[name] if name in kept else torch.zeros_like(self.weights.data)  # each in memory of its own
            for name in ("exp_avg", "exp_avg_sq")
        }
        step = torch.as_tensor(kept.get("step", 0.0), dtype=torch.float32, device=self.weights.device)
        return {**moments, "step": step}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` gave. Raises `ValueError` for moments of another size."""
        if state["exp_avg"].shape != self.weights.shape:
            raise ValueError(f"optimizer state of {len(state['exp_avg'])} weights, the module has {len(self.weights)}")
        self._adamw.state[self.weights] = {
            name: value.to(self.weights.device, copy=True) for name, value in state.items()
        }

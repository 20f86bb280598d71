"""A module's weights as named tensors: taking, setting and copying them, and whether a file of them is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's weights, each stored once, on the CPU: tied names are left out."""
    weights, seen = {}, set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            weights[name] = tensor.detach().cpu().contiguous()
    return weights


def set_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load what `weights_of` gave. Raises `ValueError` for names that the module does not have or that are missing."""
    state = module.state_dict()
    unknown = sorted(set(weights) - set(state))
    given = {state[name].data_ptr() for name in weights if name in state}
    missing = sorted(name for name, tensor in state.items() if tensor.data_ptr() not in given)
    if unknown or missing:
        raise ValueError(f"weights do not fit the model: unknown {unknown[:3]}, missing {missing[:3]}")
    module.load_state_dict(weights, strict=False)


def copies_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each in CPU memory of its own: the caller goes on changing them, and views of one tensor can't be written."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there and as long as its header says."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False

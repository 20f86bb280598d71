"""How torch computes on a GPU."""

from __future__ import annotations

import os

import torch


def set_up_cuda(deterministic: bool) -> None:
    """Set up this process before it computes on a GPU.

    `deterministic`: sums are taken in a fixed order, so that a run which goes on ends in the same bits as one that
    never stopped; an operation that has no such order raises `RuntimeError`. cuDNN's attention is off: it makes a plan
    for each new shape, and every batch has another one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.enable_cudnn_sdp(False)


def device_for_inference() -> torch.device:
    """The GPU where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    set_up_cuda(deterministic=False)
    return torch.device("cuda")

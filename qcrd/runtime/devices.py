"""How torch computes: threads, and on a GPU. Knows nothing about Ray."""

from __future__ import annotations

import os

import torch

from qcrd.config import ResourcesConfig


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


def uses_cuda(resources: ResourcesConfig) -> bool:
    """Whether this process computes on a GPU."""
    return resources.device != "cpu" and torch.cuda.is_available()


def set_up_torch(resources: ResourcesConfig, workers: int = 1) -> torch.device:
    """Threads and device of a worker. Ray sets one thread a CPU that was asked for; a model stage uses all cores."""
    torch.set_num_threads(resources.threads or max(1, len(os.sched_getaffinity(0)) // workers))
    if not uses_cuda(resources):
        return torch.device("cpu")
    set_up_cuda(resources.deterministic)
    if resources.gpu_per_worker < 1:  # Ray's shares are only counts
        torch.cuda.set_per_process_memory_fraction(resources.gpu_per_worker)
    return torch.device("cuda")

"""Rows of token ids as padded tensors on a device, and how many rows are cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Ids = Sequence[int]


def moved(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on a device, without waiting for what the device is doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def on_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Plain values as a tensor, without waiting for what the device is doing."""
    return moved(torch.tensor(values, dtype=dtype), device)


def pad(
    rows: Sequence[Sequence[Any]], value: Any, device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Right-padded (rows, longest)."""
    width = max((len(row) for row in rows), default=0)
    data = [[*row, *([value] * (width - len(row)))] for row in rows]
    return on_device(data, device, dtype).view(len(rows), width)


def padded_inputs(rows: Sequence[Ids], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids and mask (1 on tokens), (rows, longest) each."""
    ids = pad(rows, pad_id, device)
    lengths = on_device([len(row) for row in rows], device)
    return ids, (torch.arange(ids.shape[1], device=device)[None, :] < lengths[:, None]).long()


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices cut into batches of like lengths, longest first; equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def token_batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices, longest first, in batches of at most `most` tokens in all (or of one row)."""
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or tokens + lengths[index] > most:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += lengths[index]
    return batches

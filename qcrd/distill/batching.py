"""Rows of token ids as padded tensors, and how many rows are cut into batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Ids = Sequence[int]


def pad(rows: Sequence[Ids], value: int, device: torch.device) -> torch.Tensor:
    """Right-padded (rows, longest) int64."""
    width = max((len(row) for row in rows), default=0)
    data = [[*row, *([value] * (width - len(row)))] for row in rows]
    return torch.tensor(data, dtype=torch.int64, device=device).view(len(rows), width)


def padded_inputs(rows: Sequence[Ids], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids and mask (1 on tokens), (rows, longest) each."""
    ids = pad(rows, pad_id, device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
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

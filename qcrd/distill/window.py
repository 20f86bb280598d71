"""The metrics of some steps, which stay on the device until they are read together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from qcrd.distill.batch import SELECTED, Metrics
from qcrd.runtime.workers import Workers


def rows_of_window(
    window: Sequence[Metrics], most_positives: int, device: torch.device, workers: Workers
) -> list[dict[str, Any]]:
    """The metrics of some steps, summed over workers: the one place where the host waits for the device."""
    for metrics in window:
        if SELECTED in metrics:
            metrics[SELECTED] = pad(metrics[SELECTED], (0, most_positives - len(metrics[SELECTED])))
    flat = torch.stack([torch.cat([m[k].to(device).double().reshape(-1) for k in window[0]]) for m in window])
    workers.sum_(flat)
    sizes = [value.numel() for value in window[0].values()]
    rows = []
    for values in flat.tolist():
        row: dict[str, Any] = {}
        for name, size in zip(window[0], sizes, strict=True):
            row[name] = values[:size] if name == SELECTED else values[0]
            values = values[size:]
        rows.append(row)
    return rows


def entropy(counts: Counter[int]) -> float:
    """Entropy of a frequency table, in nats."""
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values() if count)

"""Numbers about predictions. Knows nothing about models."""

from __future__ import annotations

import math
from collections.abc import Sequence


def accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """Share of right items and its standard error, sqrt(p (1 - p) / n). Raises `ValueError` for no items."""
    if not right:
        raise ValueError("accuracy of no items")
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / len(right))

"""Rows of different lengths as one row of tokens without padding, and as padded groups where they must be.

Knows nothing about models.

P tokens, B rows, L longest row, D values a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from qcrd.models.batching import Ids, moved, on_device

Rearrange = Callable[[torch.Tensor], torch.Tensor]
GROUP_RATIO = {"cpu": 0.7, "cuda": 0.0}
"""Rows share a padded attention while each has at least this share of the longest one's tokens. On a GPU all do, so
that fewer operations are started (counted; not timed there)."""


class Padding:
    """Where the tokens of rows stand in (rows, longest), and back; row r's are those from `starts[r]` on."""

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        self.shape = (len(lengths), max(lengths, default=0))
        column = torch.arange(self.shape[1])
        is_token_BL = column < torch.tensor(lengths)[:, None]
        token_BL = torch.where(is_token_BL, torch.tensor(starts)[:, None] + column, 0)
        place_P = torch.empty(sum(lengths), dtype=torch.int64)
        place_P[token_BL[is_token_BL]] = is_token_BL.flatten().nonzero()[:, 0]
        self.place_P, self.token_BL = moved(place_P, device), moved(token_BL.flatten(), device)
        self.is_padding_BL1 = moved(~is_token_BL.flatten()[:, None], device)

    def pad(self, packed_PD: torch.Tensor) -> torch.Tensor:
        """(P, D) -> (rows, longest, D), zeros on padding."""
        return _Rearranged.apply(packed_PD, self._padded, self._packed)  # pyright: ignore[reportReturnType]

    def pack(self, padded_BLD: torch.Tensor) -> torch.Tensor:
        """(rows, longest, D) -> (P, D)."""
        return _Rearranged.apply(padded_BLD, self._packed, self._padded)  # pyright: ignore[reportReturnType]

    def _padded(self, packed_PD: torch.Tensor) -> torch.Tensor:
        rows = packed_PD.index_select(0, self.token_BL).masked_fill_(self.is_padding_BL1, 0)
        return rows.view(*self.shape, packed_PD.shape[1])

    def _packed(self, padded_BLD: torch.Tensor) -> torch.Tensor:
        return padded_BLD.flatten(0, 1).index_select(0, self.place_P)


class _Rearranged(torch.autograd.Function):
    """Padding's gradient is packing, and the other way round; autograd would sum over rows that are all different."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: Rearrange, back: Rearrange) -> torch.Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.back(gradient), None, None


@dataclass(frozen=True)
class Group:
    """Rows of like lengths; their packed tokens are `start:stop` of all."""

    rows: list[int]
    start: int
    stop: int
    padding: Padding

    @property
    def longest(self) -> int:
        return self.padding.shape[1]

    def pad(self, packed_PD: torch.Tensor) -> torch.Tensor:
        """(P, D) of all groups -> (rows, longest, D) of this one, zeros on padding."""
        own = packed_PD if self.stop - self.start == len(packed_PD) else packed_PD[self.start : self.stop]
        return self.padding.pad(own)


class Layout:
    """How sequences lie one after the other: longest first, in groups of like lengths."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.device = list(lengths), device
        self.order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        self.longest = max(lengths, default=0)
        self.groups: list[Group] = []
        ratio = GROUP_RATIO.get(device.type, 0.0)
        rows: list[int] = []
        for row in [*self.order, -1]:
            if rows and (row < 0 or lengths[row] < ratio * lengths[rows[0]]):
                self.groups.append(self._group(rows))
                rows = []
            rows.append(row)

    def _group(self, rows: list[int]) -> Group:
        own, start = [self.lengths[row] for row in rows], self.groups[-1].stop if self.groups else 0
        starts = list(accumulate(own, initial=0))
        return Group(rows, start, start + starts.pop(), Padding(starts, own, self.device))

    @cached_property
    def _all(self) -> Padding:
        """All rows in their own order."""
        starts = dict(zip(self.order, accumulate((self.lengths[row] for row in self.order), initial=0), strict=False))
        return Padding([starts[row] for row in range(len(self.lengths))], self.lengths, self.device)

    def padded(self, packed_PD: torch.Tensor) -> torch.Tensor:
        """(P, D) -> (B, longest, D) in the rows' own order, zeros on padding."""
        return self._all.pad(packed_PD)

    def flatten(self, rows: Sequence[Ids]) -> list[int]:
        """The tokens of all rows in packed order."""
        return [token for row in self.order for token in rows[row]]

    def per_token(self, values_B: torch.Tensor) -> torch.Tensor:
        """Each row's value once for each of its tokens, (P,)."""
        order = on_device(self.order, values_B.device)
        counts = on_device([self.lengths[row] for row in self.order], values_B.device)
        total = self.groups[-1].stop if self.groups else 0
        return values_B[order].repeat_interleave(counts, output_size=total)

    def row_sums(self, values_P: torch.Tensor) -> torch.Tensor:
        """Sum of each row's token values, (B,)."""
        return self.padded(values_P[:, None]).sum(dim=(1, 2))

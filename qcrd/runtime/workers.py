"""The data-parallel workers of one training, as the loop sees them: plain torch.distributed, or one worker alone.

What is shared out is cut before it is dealt, so neither the number of workers nor their order reaches a result. Knows
nothing about Ray, models or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Workers:
    """This worker among its peers. Without a process group it is the only one, and every call is a no-op."""

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.world_size = dist.get_world_size() if grouped else 1
        self._plain: Any = None
        if grouped and dist.get_backend() != "gloo":
            self._plain = dist.new_group(backend="gloo")  # plain values take no way through a GPU

    def sum_(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by its sum over all workers; every worker gets the same bits."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def share(self, items: Sequence[T]) -> list[T]:
        """This worker's part of a list that all workers have."""
        return list(items[self.rank :: self.world_size])

    def gather(self, share: Sequence[T]) -> list[T]:
        """All workers' parts in the order of the list that `share` cut."""
        if self.world_size == 1:
            return list(share)
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, list(share), group=self._plain)
        total = sum(len(part) for part in parts)
        return [parts[index % self.world_size][index // self.world_size] for index in range(total)]

    def broadcast(self, value: T) -> T:
        """The first worker's plain value."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._plain)
        return box[0]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first worker, as a plain value.

        A `ValueError` or `OSError` there is raised on every worker, so that none waits for one that gave up.
        """
        if self.world_size == 1:
            return make()
        outcome: Any = None, None
        if self.rank == 0:
            try:
                outcome = make(), None
            except (ValueError, OSError) as error:
                kind = OSError if isinstance(error, OSError) else ValueError
                outcome = None, kind(str(error))
        value, problem = self.broadcast(outcome)
        if problem is not None:
            raise problem
        return value

    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with the first worker's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

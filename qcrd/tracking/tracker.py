"""What the record of a run needs of a tracker, which shows the run elsewhere; and the one that shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

RESERVED = {"stage", "step", "time"}
"""What every metric row has besides its metrics."""
MetricRow = dict[str, Any]
"""{"stage", "step", "time", metric: float}."""
Item = dict[str, Any]
"""Anything else that a run's record holds: {"kind", …}; see `record.RunRecord`."""
Warn = Callable[[str], None]


@dataclass(frozen=True)
class RunId:
    """What a run is known by. The same `key` continues the same run in a tracker; `parent` is the key of the run that
    this one is a part of."""

    key: str
    name: str
    parent: str | None = None


class Tracker(Protocol):
    """The copy of one run in a tracker. `sync` is called from one thread alone; every method may raise."""

    name: str
    """Of the tracker, for a person."""
    progress: float
    """When it last got further, by `time.monotonic`."""

    def begin(self) -> bool:
        """Get ready to be called from a thread. False where there is nothing to copy to."""
        ...

    def sync(self, rows: Sequence[MetricRow], items: Sequence[Item]) -> None:
        """Send what the tracker lacks of these: all items of the record, and the metric rows since the last sync that
        came to an end, or all where they were replaced or there was none in this process."""
        ...


class NoTracker:
    """The local record is all there is."""

    name, progress = "no tracker", 0.0

    def begin(self) -> bool:
        return False

    def sync(self, rows: Sequence[MetricRow], items: Sequence[Item]) -> None:
        """Nothing to do."""

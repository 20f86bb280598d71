"""What is known of a sweep, as plain data: configurations with their curves of validation accuracy and their cost.

Filled from a sweep's local record (sweeps/record.py) or from MLflow's runs (compare.py). The test set takes no part but
for the winner, which is evaluated on it once. Knows nothing about Ray, MLflow or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["finished", "stopped", "failed", "unfinished"]
"""`stopped`: ended early by a scheduler. `unfinished`: a later start goes on with it."""


@dataclass(frozen=True)
class Configuration:
    """One configuration of a sweep, trained once for each seed."""

    key: str
    """Its name in the sweep: the same values have the same key."""
    values: dict[str, Any]
    """Swept field (dotted) → value."""
    status: Status
    curves: dict[int, tuple[float, ...]]
    """Seed → validation accuracy after iteration 1, 2, …, in [0, 1]."""
    seconds: float
    """Of training, over all seeds, measured."""
    steps: int
    """Optimizer steps taken, over all seeds."""
    reason: str = ""
    """Why it failed."""
    test_accuracy: dict[int, float] = field(default_factory=dict)
    """Seed → accuracy on the test set; of the winner alone."""

    @property
    def iterations(self) -> int:
        """How many iterations all its seeds have finished."""
        return min((len(curve) for curve in self.curves.values()), default=0)

    def best(self, iterations: int | None = None) -> dict[int, float]:
        """Seed → best validation accuracy of the first `iterations` (default: of those that all seeds finished)."""
        count = self.iterations if iterations is None else iterations
        return {seed: max(curve[:count]) for seed, curve in self.curves.items() if curve[:count]}

    @property
    def score(self) -> float:
        """Mean over the seeds of the best validation accuracy; NaN before the first iteration's end."""
        best = list(self.best().values())
        return sum(best) / len(best) if best else float("nan")


@dataclass(frozen=True)
class SweepResults:
    """A sweep, finished or not, or several runs that are compared as one."""

    name: str
    title: str
    fields: tuple[str, ...]
    """Swept fields in the order of the recipe."""
    seeds: tuple[int, ...]
    configurations: list[Configuration]
    simulated: bool
    """Whether the teacher is simulated, which title and figures then say."""
    task: str
    method: str
    about: dict[str, str] = field(default_factory=dict)
    """Command, commit, date, machine."""

    @property
    def finished(self) -> list[Configuration]:
        """Those that were trained to their end, best first; equal scores by cost."""
        done = [one for one in self.configurations if one.status == "finished"]
        return sorted(done, key=lambda one: (-one.score, one.seconds, one.key))

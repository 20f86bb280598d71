"""Made-up sweeps whose numbers can be reckoned by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcrd.report.sweep.data import Configuration, Status, SweepResults


def one(
    key: str, values: Mapping[str, Any], curves: Mapping[int, Sequence[float]], status: Status = "finished",
    seconds: float = 60.0, **more: Any,
) -> Configuration:  # fmt: skip
    steps = 10 * sum(map(len, curves.values()))
    kept = {seed: tuple(curve) for seed, curve in curves.items()}
    return Configuration(key, dict(values), status, kept, seconds, steps, **more)


def sweep(configurations: list[Configuration], **more: Any) -> SweepResults:
    fields = tuple(dict.fromkeys(name for each in configurations for name in each.values))
    told: dict[str, Any] = {"fields": fields, "seeds": (0, 1, 2), "simulated": False, "task": "svamp", "method": "qcrd"}
    return SweepResults("s", "A sweep", configurations=configurations, **told | more)

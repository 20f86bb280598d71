"""What Ray Tune asks while a sweep goes on: which configuration is next, whether one goes on, when to end.

All of it is driven by the sweep's record: a restart tells it what the record knows, so Tune's own state is never read.
Knows nothing about students or MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from qcrd.config.sweep import Sweep
from qcrd.sweeps.record import Trial
from qcrd.sweeps.search_space import Proposer, Values
from qcrd.sweeps.seeds import MEMORY_HINT


class Watcher(Protocol):
    """Who keeps the record and tells people."""

    def on_result(self, key: str, result: dict[str, Any]) -> None: ...
    def on_end(self, key: str, iterations: int) -> None: ...
    def on_failure(self, key: str, reason: str, again: bool) -> None: ...


class _Here:
    """Lives in the driver alone: in Tune's saved state, which nobody reads, an empty object stands for it."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()


class Proposals(_Here, Searcher):
    """Hands unfinished configurations to Tune, then new ones."""

    def __init__(
        self, going_on: list[Trial], proposer: Proposer, begin: Callable[[Values], dict[str, Any] | None]
    ) -> None:
        """`begin` gives what a trial is told, and None once the budget is spent."""
        super().__init__(metric="score", mode="max")
        self._going_on, self._proposer, self._begin = going_on, proposer, begin

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        values = self._going_on.pop(0).values if self._going_on else self._proposer.propose()
        told = None if values is None else self._begin(values)
        return Searcher.FINISHED if told is None else told  # pyright: ignore[reportReturnType] - a marker of Tune's

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The proposer is told by `Watch`, which knows the record."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is what a restart reads."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, too."""


@dataclass(frozen=True)
class _Named:
    """What a scheduler knows a trial by: its configuration's key, which a restart does not change."""

    trial_id: str


class Resumable(_Here, FIFOScheduler):
    """A scheduler of Tune's that is told a restarted sweep's past first. It decides then as it did, or would have."""

    def __init__(self, inner: TrialScheduler, past: list[dict[str, Any]]) -> None:
        super().__init__()
        self._inner = inner
        self.stopped: set[str] = set()
        for line in past:
            if line["kind"] == "proposed":
                inner.on_trial_add(None, _Named(line["key"]))  # pyright: ignore[reportArgumentType]
            elif line["kind"] == "result" and line["key"] not in self.stopped:
                decision = inner.on_trial_result(None, _Named(line["key"]), line)  # pyright: ignore[reportArgumentType]
                if decision == TrialScheduler.STOP:
                    self.stopped.add(line["key"])
        self._known = {line["key"] for line in past}
        self._told: dict[str, int] = {line["key"]: line["iteration"] for line in past if line["kind"] == "result"}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if trial.config["key"] not in self._known:
            self._inner.on_trial_add(tune_controller, _Named(trial.config["key"]))  # pyright: ignore[reportArgumentType]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        key, iteration = trial.config["key"], result.get("iteration", 0)
        if iteration <= self._told.get(key, 0):  # a trial that is tried again, or that had nothing left to train
            return TrialScheduler.CONTINUE
        self._told[key] = iteration
        return self._inner.on_trial_result(tune_controller, _Named(key), result)  # pyright: ignore[reportArgumentType]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last result was told before."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Its results stay: others are compared with them."""

    def debug_string(self) -> str:
        return self._inner.debug_string()


def scheduler_of(sweep: Sweep, iterations: int, past: list[dict[str, Any]]) -> Resumable:
    common: dict[str, Any] = {"time_attr": "iteration", "metric": "score", "mode": "max"}
    grace = min(sweep.grace_iterations, iterations)
    if sweep.scheduler == "asha":
        inner = ASHAScheduler(
            **common, max_t=iterations, grace_period=grace, reduction_factor=sweep.reduction_factor,
        )  # fmt: skip
    elif sweep.scheduler == "median":
        inner = MedianStoppingRule(**common, grace_period=grace, min_time_slice=math.inf)  # pyright: ignore[reportArgumentType]
    else:
        inner = FIFOScheduler()
    return Resumable(inner, past)


class Watch(_Here, tune.Callback):
    """Keeps the record as trials go on, and tells people."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "iteration" in result:
            self._watcher.on_result(trial.config["key"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._watcher.on_end(trial.config["key"], trial.config["iterations"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._watcher.on_failure(trial.config["key"], _reason(trial), again=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._watcher.on_failure(trial.config["key"], _reason(trial), again=False)


def _reason(trial: Any) -> str:
    """Why a trial failed last, in one line, from the text file that Tune keeps for people."""
    path = Path(trial.error_file) if trial.error_file else None
    text = path.read_text(errors="replace") if path is not None and path.is_file() else ""
    last = text.rpartition("Failure #")[2]
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    reason = lines[-1] if lines else "no reason known"
    return f"{MEMORY_HINT} ({reason})" if "OutOfMemory" in last else reason


class Spent(_Here, tune.Stopper):
    """Ends all trials once the budget is spent."""

    def __init__(self, is_spent: Callable[[], bool]) -> None:
        self._is_spent = is_spent

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._is_spent()

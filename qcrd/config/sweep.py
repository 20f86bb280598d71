"""A sweep as data: a base experiment, the fields to vary, how configurations are proposed, judged and stopped.

Configurations are compared by accuracy on the *validation* questions, as the mean over all seeds; the test set takes no
part but for the winner, once. Knows nothing about how proposals are drawn (sweeps/search_space.py) or trained
(sweeps/run.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qcrd.config.base import Positive, Settings
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.settings import with_overrides

NUM_SAMPLES, MOST_SAMPLES = "rationales.num_samples", "teacher.num_samples"


class Sweep(Settings):
    """One sweep. `space`: dotted field of the config → a Ray Tune search space such as `tune.choice([1, 5])`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str
    base: ExperimentConfig
    space: dict[str, Any] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="each configuration is trained for all")
    searcher: Literal["grid", "random", "optuna"] = Field(
        default="grid", description="grid: every combination; random: distinct draws; optuna: TPE"
    )
    num_configurations: Positive | None = Field(default=None, description="how many; grid needs none")
    search_seed: int = 0
    objectives: Literal["accuracy", "accuracy_and_cost"] = Field(
        default="accuracy", description="what optuna looks for; cost: measured seconds of training"
    )
    scheduler: Literal["none", "asha", "median"] = Field(
        default="none", description="who ends configurations early, at the end of an iteration"
    )
    grace_iterations: Positive = Field(default=1, description="iterations that every configuration gets")
    reduction_factor: float = Field(default=4, gt=1, description="asha: one of so many goes on at each rung")
    max_failures: int = Field(default=1, ge=0, description="how often a failed configuration is tried again")
    budget_hours: float | None = Field(
        default=None, gt=0, description="GPU hours of training (worker hours without GPUs); then no more is begun"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} is not allowed; each once")
        if self.searcher != "grid" and self.num_configurations is None:
            raise ValueError(f"num_configurations: None is not allowed; searcher = {self.searcher} needs a number")
        if self.objectives != "accuracy" and self.searcher != "optuna":
            raise ValueError(f"objectives: {self.objectives!r} is not allowed; only searcher = optuna weighs cost")
        for field in ("seed", "output", "name"):
            if field in self.space:
                raise ValueError(f"space: {field!r} is not allowed; seeds are the sweep's own, the rest no setting")
        return self

    def config(self, values: Mapping[str, Any], seed: int, most_samples: int) -> ExperimentConfig:
        """One configuration and seed. The teacher is asked for `most_samples`, of which a configuration uses its m, so
        that all share them. Raises `ConfigError`."""
        shared = {MOST_SAMPLES: max(most_samples, self.base.teacher.num_samples)}
        return with_overrides(self.base, {**shared, **values, "seed": seed})

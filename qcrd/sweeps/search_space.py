"""Ray Tune's search spaces as lists of configurations, as Optuna's distributions, and as plain data.

Knows nothing about how a configuration is trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Quantized

from qcrd.config import ConfigError
from qcrd.config.sweep import NUM_SAMPLES, Sweep
from qcrd.seeding import generator, stable_seed
from qcrd.storage.fingerprints import digest_of

Values = dict[str, Any]
MOST_VALUES = 1000  # of an integer range that counts as a list of values
DRAWS = 100  # attempts at a configuration that was not drawn before


def key_of(values: Mapping[str, Any]) -> str:
    """The name of a configuration within its sweep."""
    return digest_of(dict(values))[:8]


def finite_values(field: str, space: Any) -> list[Any] | None:
    """All values of a field; None where there is no end of them. Raises `ConfigError` for what is no search space."""
    if isinstance(space, dict) and set(space) == {"grid_search"}:
        return list(space["grid_search"])
    if isinstance(space, Categorical):
        return list(space.categories)
    if isinstance(space, Integer) and not isinstance(space.get_sampler(), Quantized):
        values = range(space.lower, space.upper)  # Tune's upper end is exclusive
        return list(values) if len(values) <= MOST_VALUES else None
    if isinstance(space, Float | Integer):
        return None
    raise ConfigError(
        f"space: {field} = {space!r} is not allowed; give tune.choice, grid_search, uniform, loguniform, randint, …"
    )


def description(sweep: Sweep) -> dict[str, Any]:
    """The space as plain data, which names a sweep."""
    return {field: _described(field, space) for field, space in sweep.space.items()}


def _described(field: str, space: Any) -> Any:
    values = finite_values(field, space)
    if values is not None:
        return {"values": values}
    sampler = space.get_sampler()
    step = sampler.q if isinstance(sampler, Quantized) else None
    inner = sampler.sampler if isinstance(sampler, Quantized) else sampler
    return {"from": space.lower, "to": space.upper, "step": step, "drawn": type(inner).__name__.strip("_")}


def most_samples(sweep: Sweep) -> int:
    """The largest m of the space, which is how often the teacher is asked."""
    if NUM_SAMPLES not in sweep.space:
        return sweep.base.rationales.num_samples
    values = finite_values(NUM_SAMPLES, sweep.space[NUM_SAMPLES])
    if values is None:
        raise ConfigError(f"space: {NUM_SAMPLES} must have a list of values, e.g. tune.choice([1, 5, 10])")
    return max(values)


def rounded(value: Any) -> Any:
    """Plain data, floats to four digits: nobody needs more, and everybody reads them."""
    value = value.item() if isinstance(value, np.generic) else value
    return float(f"{value:.4g}") if isinstance(value, float) else value


def grid(sweep: Sweep, fields: Sequence[str] | None = None) -> list[Values]:
    """Every combination of the values of `fields` (default: all). Raises `ConfigError` where one has no list."""
    names = list(sweep.space) if fields is None else list(fields)
    lists = {name: finite_values(name, sweep.space[name]) for name in names}
    if endless := [name for name, values in lists.items() if values is None]:
        raise ConfigError(
            f"space: {endless[0]} is not allowed here without a list of values; give tune.choice or tune.grid_search"
        )
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*(lists[name] or [] for name in names))]


def listed(sweep: Sweep) -> list[Values] | None:
    """All configurations, where they are known beforehand: not with Optuna, which draws by what came out so far.

    Under a scheduler a grid comes in a random order, since each configuration is compared with those before it: values
    that rise from one to the next would let all of them pass.
    """
    if sweep.searcher == "grid":
        all_ = grid(sweep)
        if sweep.scheduler != "none":
            all_ = [all_[i] for i in generator(sweep.search_seed, "grid_order").permutation(len(all_))]
        return all_[: sweep.num_configurations]
    if sweep.searcher == "random":
        return _drawn(sweep)
    for field, space in sweep.space.items():
        finite_values(field, space)  # raises
    return None


def _drawn(sweep: Sweep) -> list[Values]:
    """Distinct random configurations; fewer than wanted where the space has no more."""
    assert sweep.num_configurations is not None
    random = np.random.RandomState(stable_seed(sweep.search_seed, "random_search") % 2**32)
    found: dict[str, Values] = {}
    for _ in range(DRAWS * sweep.num_configurations):
        values: Values = {}
        for field, space in sweep.space.items():
            choices = finite_values(field, space)
            if choices is not None:
                values[field] = choices[random.randint(len(choices))]
            else:
                assert isinstance(space, Domain)
                values[field] = rounded(space.sample(random_state=random))
        found.setdefault(key_of(values), values)
        if len(found) == sweep.num_configurations:
            break
    return list(found.values())


class Proposer(Protocol):
    """Proposes the configurations of a sweep one by one."""

    def propose(self) -> Values | None:
        """The next configuration; None where there is none."""
        ...

    def tell(self, values: Values, score: float | None, seconds: float) -> None:
        """How a configuration ended; a score of None: it failed."""
        ...


class ListProposer:
    """Configurations that are known beforehand, but for those that are known already."""

    def __init__(self, configurations: Sequence[Values], known: set[str]) -> None:
        self._left = [values for values in configurations if key_of(values) not in known]

    def propose(self) -> Values | None:
        return self._left.pop(0) if self._left else None

    def tell(self, values: Values, score: float | None, seconds: float) -> None:
        """A list does not depend on what came out."""


class OptunaProposer:
    """Optuna's TPE; with `accuracy_and_cost` it looks for both. Each proposal's draw is seeded by its number, so a
    sweep that goes on draws as one that never stopped, where the same configurations have ended."""

    def __init__(self, sweep: Sweep, known: Sequence[Values]) -> None:
        """`known`: configurations that were proposed before, whatever became of them."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._count = sweep, len(known)
        self._seen = {key_of(values) for values in known}
        both = sweep.objectives == "accuracy_and_cost"
        self._study = optuna.create_study(directions=["maximize", "minimize"] if both else ["maximize"])
        self._both = both
        self._distributions: dict[str, BaseDistribution] = {}
        for field, space in sweep.space.items():
            values = finite_values(field, space)
            self._distributions[field] = (
                OptunaSearch.convert_search_space({field: space})[field]
                if values is None
                else CategoricalDistribution(values)
            )

    def propose(self) -> Values | None:
        if self._count >= (self._sweep.num_configurations or 0):
            return None
        values: Values = {}
        for attempt in range(DRAWS):
            seed = stable_seed(self._sweep.search_seed, "optuna", self._count, attempt) % 2**31
            self._study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = self._study.ask(self._distributions)
            values = {field: rounded(trial.params[field]) for field in self._sweep.space}
            self._study.tell(trial, state=TrialState.FAIL)  # what came out is told as a trial of its own
            if key_of(values) not in self._seen:
                self._count += 1
                self._seen.add(key_of(values))
                return values
        return None  # the space has no more

    def tell(self, values: Values, score: float | None, seconds: float) -> None:
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        outcome = None if score is None else [score, seconds][: 2 if self._both else 1]
        self._study.add_trial(
            optuna.create_trial(
                params=values, distributions=self._distributions, state=state, values=outcome
            )
        )  # fmt: skip

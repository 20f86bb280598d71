"""What a sweep's scores say: intervals over seeds, the cheapest of the best, and which fields matter.

The score of a configuration is the mean over its seeds of the best validation accuracy. Only finished configurations
are ranked. Fields are judged at equal training: at the last iteration that every configuration reached which did not
fail, so that one that was stopped early is compared with what the others had been by then. Knows nothing about files,
text or figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcrd.report.statistics import LEVEL, Range, mean_interval, standard_error
from qcrd.report.sweep.data import Configuration, SweepResults
from qcrd.seeding import generator, stable_seed

RESAMPLES = 2000
"""Of a bootstrap."""
MOST_VALUES = 6
"""A numeric field of more values than this is shown in thirds."""
FEWEST = 4
"""Configurations that importance needs."""
LOG_DECADES = 1.5
"""Positive numbers that span more than this are taken by their logarithm."""


@dataclass(frozen=True)
class Difference:
    """A configuration minus the best one, over the seeds that both have. One seed: no interval."""

    mean: float
    interval: Range | None
    seeds: int


@dataclass(frozen=True)
class Choice:
    """The finished configurations within one standard error of the best, cheapest first."""

    best: Configuration
    standard_error: float | None
    """Of the best one's score; None with one seed, where only ties are listed."""
    candidates: list[Configuration]

    @property
    def cheapest(self) -> Configuration:
        return self.candidates[0]


@dataclass(frozen=True)
class Importance:
    """Field → share of what the fields explain one by one, most important first; empty where `reason` says why."""

    shares: dict[str, float]
    configurations: int
    reason: str = ""


@dataclass(frozen=True)
class Level:
    """The configurations with one value of a field, or with values of one third."""

    label: str
    mean: float
    interval: Range | None
    """None for a single configuration."""
    configurations: int


@dataclass(frozen=True)
class Effect:
    """A field's levels: mean of the scores, whatever the other fields are."""

    field: str
    levels: list[Level]
    in_thirds: bool


# -- seeds ----------------------------------------------------------------------------------------------------------


def score_interval(one: Configuration) -> Range | None:
    """95 % t interval of a configuration's score, cut to [0, 1]; None with one seed."""
    found = mean_interval(list(one.best().values()))
    return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def difference(one: Configuration, best: Configuration) -> Difference | None:
    """Paired over the seeds that both have; None where they share none."""
    first, second = one.best(), best.best()
    steps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    return Difference(float(np.mean(steps)), mean_interval(steps), len(steps)) if steps else None


def seconds_per_seed(one: Configuration) -> float:
    """What one training of the configuration cost."""
    return one.seconds / max(1, len(one.curves))


def best_choice(results: SweepResults) -> Choice | None:
    """The one-standard-error rule (Breiman et al. 1984): all that is no worse than the best by more than its standard
    error may be as good, and the cheapest of these is the one to take. None where nothing is finished."""
    ranked = [one for one in results.finished if not math.isnan(one.score)]
    if not ranked:
        return None
    best = ranked[0]
    error = standard_error(list(best.best().values()))
    limit = best.score - (error or 0.0) - 1e-12  # sums of the same numbers in another order
    close = [one for one in ranked if one.score >= limit]
    return Choice(best, error, sorted(close, key=lambda one: (seconds_per_seed(one), -one.score, one.key)))


# -- fields ---------------------------------------------------------------------------------------------------------


def started(results: SweepResults) -> list[Configuration]:
    """Those that did not fail and have finished an iteration."""
    return [one for one in results.configurations if one.status != "failed" and one.iterations]


def common_iteration(results: SweepResults) -> int:
    """The last iteration that all of them reached; 0 where there are none."""
    return min((one.iterations for one in started(results)), default=0)


def equal_scores(results: SweepResults) -> dict[str, float]:
    """Key → score after the common iteration, of those that reached it."""
    count = common_iteration(results)
    return {one.key: float(np.mean(list(one.best(count).values()))) for one in started(results)}


def value_label(value: Any) -> str:
    """A field's value as text; equal values have equal labels."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def numbers_of(results: SweepResults, field: str) -> list[float] | None:
    """The values that a field takes, rising; None where not all are numbers."""
    values: list[Any] = [one.values.get(field) for one in results.configurations]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    return sorted({float(value) for value in values})


def labels_of(results: SweepResults, field: str) -> list[str]:
    """The labels of a field's values: numbers rise, the rest is in the order of the configurations."""
    numbers = numbers_of(results, field)
    values: list[Any] = [one.values.get(field) for one in results.configurations]
    if numbers is not None:
        values.sort(key=float)
    return list(dict.fromkeys(map(value_label, values)))


def is_logarithmic(numbers: Sequence[float]) -> bool:
    """Whether rising numbers are better shown by their logarithm, as learning rates are."""
    return bool(numbers) and numbers[0] > 0 and math.log10(numbers[-1] / numbers[0]) > LOG_DECADES


def importance(results: SweepResults) -> Importance:
    """Functional ANOVA over a random forest (Hutter, Hoos & Leyton-Brown 2014) of the scores at equal training.

    The shares of single fields, which sum to 1; what two fields do together only is in none of them.
    """
    scores = equal_scores(results)
    varied = [name for name in results.fields if len(labels_of(results, name)) > 1]
    if not varied:
        return Importance({}, len(scores), "no field has two values")
    if len(scores) < FEWEST:
        return Importance({}, len(scores), f"{len(scores)} configurations have a score; at least {FEWEST} are needed")
    if max(scores.values()) - min(scores.values()) < 1e-12:
        return Importance({}, len(scores), "all scores are equal")
    return Importance(_explained(results, varied, scores), len(scores))


def _explained(results: SweepResults, varied: Sequence[str], scores: dict[str, float]) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds: dict[str, BaseDistribution] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name in varied:
        numbers = numbers_of(results, name)
        if numbers is None:
            columns[name] = {one.key: value_label(one.values.get(name)) for one in results.configurations}
            kinds[name] = CategoricalDistribution(labels_of(results, name))
            continue
        scale = math.log10 if is_logarithmic(numbers) else float
        columns[name] = {one.key: scale(one.values[name]) for one in results.configurations}
        kinds[name] = FloatDistribution(scale(numbers[0]), scale(numbers[-1]))
    study = optuna.create_study(direction="maximize")
    for key, score in scores.items():
        params = {name: column[key] for name, column in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=kinds, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=stable_seed("sweep importance") % 2**32)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def effects(results: SweepResults) -> list[Effect]:
    """The effect of each field with two or more values, at equal training, in the order of the recipe."""
    scores = equal_scores(results)
    found = []
    for name in results.fields:
        thirds = _thirds(results, name)
        groups: dict[str, list[float]] = {label: [] for label in thirds.values()}
        for one in results.configurations:
            if one.key in scores:
                groups[thirds[value_label(one.values.get(name))]].append(scores[one.key])
        levels = [_level(name, label, group) for label, group in groups.items() if group]
        if len(levels) > 1:
            found.append(Effect(name, levels, len(groups) < len(thirds)))
    return found


def _thirds(results: SweepResults, name: str) -> dict[str, str]:
    """Label of a value → label of its level: of the value itself, or of the third in which it lies."""
    labels, numbers = labels_of(results, name), numbers_of(results, name)
    if numbers is None or len(labels) <= MOST_VALUES:
        return {label: label for label in labels}
    values: list[Any] = sorted((one.values[name] for one in results.configurations), key=float)
    places = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)
    parts = [[one for one, place in zip(values, places, strict=True) if place == third] for third in range(3)]
    for digits in (2, 4, 17):  # as many as tell the thirds apart
        names = [f"{part[0]:.{digits}g} to {part[-1]:.{digits}g}" for part in parts if part]
        if len(set(names)) == len(names):
            break
    return {value_label(one): label for part, label in zip(filter(None, parts), names, strict=True) for one in part}


def _level(name: str, label: str, scores: Sequence[float]) -> Level:
    """Mean, and percentile interval of a bootstrap over the configurations."""
    values = np.array(scores)
    if len(values) < 2:
        return Level(label, float(values.mean()), None, 1)
    drawn = generator("sweep effect", name, label).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return Level(label, float(values.mean()), (float(low), float(high)), len(values))

"""Intervals and paired tests for accuracies measured with several seeds on one set of items.

`right` is an array (seeds, items) of 0 and 1. The paper trained once per cell; what a user wants to know is about other
seeds *and* other questions, so both are taken as random and crossed:

    right_si = mean + seed_s + item_i + noise_si,    Var(mean) = Vs/S + Vi/I + Vn/(S·I)

The variances come from the usual mean squares (two-way analysis of variance; Searle, Casella & McCulloch, *Variance
Components*, ch. 4; Clark 1973 for why items must be random, too). Knows nothing about grids, tables or figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, nct, norm, t

LEVEL = 0.05
POWER = 0.80
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """Two rows on the same seeds and items. Differences are shares, first minus second; the test is two-sided.

    `detectable`: the smallest true difference that this test finds with 80 % probability if the variances are as
    measured; None where the rows differ on too few items for any difference to be found.
    """

    name: str
    seeds: int
    items: int
    difference: float
    low: float
    high: float
    p: float
    detectable: float | None


def variance_of_mean(values: Matrix) -> tuple[float, float]:
    """Estimated variance of the mean of (seeds, items), both random, and its degrees of freedom.

    With `A` = variance of the seeds' means / S and `B` = variance of the items' means / I, each of which contains the
    noise's part `E` = Vn/(S·I) once, A + B - E is unbiased. B - E (many items) is cut off at 0 and A (few seeds) at E,
    which it must exceed. Satterthwaite's degrees of freedom, (sum)² / (part_A²/(S-1) + part_B²/(I-1)).

    Needs at least 2 seeds and 2 items.
    """
    seeds, items = values.shape
    by_seed, by_item = values.mean(axis=1), values.mean(axis=0)
    noise = values - by_seed[:, None] - by_item[None, :] + values.mean()
    part_noise = float((noise**2).sum()) / ((seeds - 1) * (items - 1)) / (seeds * items)
    part_seeds = max(float(by_seed.var(ddof=1)) / seeds, part_noise)
    part_items = max(float(by_item.var(ddof=1)) / items - part_noise, 0.0)
    variance = part_seeds + part_items
    if variance == 0:
        return 0.0, math.inf
    return variance, variance**2 / (part_seeds**2 / (seeds - 1) + part_items**2 / (items - 1))


def mean_interval(right: Matrix) -> tuple[float, float]:
    """95 % interval of an accuracy. One seed: Wilson's, over items only. Several: over seeds and items.

    The latter is Wilson's, too, with the number of independent items that would give the variance measured, p(1-p)/V,
    and Student's quantile (Korn & Graubard 1998; Dean & Pagano 2015): unlike mean ± t·error it stays within [0, 1] and
    does not shrink to nothing where all answers are right.
    """
    seeds, items = right.shape
    share = float(right.mean())
    size, quantile = float(items), float(norm.ppf(1 - LEVEL / 2))
    if seeds > 1 and items > 1 and 0 < share < 1:
        variance, freedom = variance_of_mean(right)
        size, quantile = share * (1 - share) / variance, float(t.ppf(1 - LEVEL / 2, freedom))
    spread = quantile**2 / size
    centre = (share + spread / 2) / (1 + spread)
    half = quantile * math.sqrt(share * (1 - share) / size + spread / (4 * size)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare(first: Matrix, second: Matrix) -> PairedTest:
    """Paired test of two rows of the same shape (seeds, items): seed s and item i are the same in both.

    One seed: the exact McNemar test, which speaks of these two students and says nothing about other seeds. Several: a
    t test of the mean of `first - second`, whose variance covers seeds and items (`variance_of_mean`). Pairing by seed
    takes out what two rows share at one seed (order, initialisation). A bootstrap over 3 seeds would understate their
    variance by a third; Student's t does not.
    """
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"compare: shapes {first.shape} and {second.shape} are not allowed; one shape, not empty")
    seeds, items = first.shape
    steps = first - second
    if seeds == 1 or items == 1 or np.all(steps == steps.flat[0]):
        return _mcnemar(steps[0], seeds)
    difference = float(steps.mean())
    variance, freedom = variance_of_mean(steps)
    error = math.sqrt(variance)
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(t.sf(abs(difference) / error, freedom))
    name = "t, seeds and items"
    return PairedTest(
        name, seeds, items, difference, difference - half, difference + half, p, _detectable(error, freedom)
    )


def _detectable(error: float, freedom: float) -> float:
    """The difference at which the noncentral t distribution is beyond the two-sided critical value 80 % of the time."""
    critical = float(t.ppf(1 - LEVEL / 2, freedom))

    def lacking(shift: float) -> float:
        return float(nct.sf(critical, freedom, shift) + nct.cdf(-critical, freedom, shift)) - POWER

    return error * float(brentq(lacking, 0.0, 2 * critical + 5))  # pyright: ignore[reportArgumentType]


def _mcnemar(steps: Matrix, seeds: int) -> PairedTest:
    """Exact McNemar test; interval of Agresti & Min 2005 (half an item added to each of the four counts)."""
    items = len(steps)
    won, lost = int((steps > 0).sum()), int((steps < 0).sum())
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    shrunk = (won - lost) / (items + 2)
    error = math.sqrt(max(won + lost + 1 - (won - lost) ** 2 / (items + 2), 0.0)) / (items + 2)
    half = float(norm.ppf(1 - LEVEL / 2)) * error
    return PairedTest(
        "exact McNemar", seeds, items, (won - lost) / items, max(-1.0, shrunk - half), min(1.0, shrunk + half), p,
        _detectable_mcnemar(won + lost, items),
    )  # fmt: skip


def _detectable_mcnemar(differing: int, items: int) -> float | None:
    """As `_detectable`, given on how many items the two differ. None: too few for any to be significant."""
    counts = np.arange(differing // 2 + 1)
    significant = counts[2 * binom.cdf(counts, differing, 0.5) <= LEVEL]
    if not len(significant):
        return None
    lost = int(significant[-1])

    def lacking(share: float) -> float:
        return float(binom.cdf(lost, differing, 1 - share) + binom.cdf(lost, differing, share)) - POWER

    share = float(brentq(lacking, 0.5, 1.0))  # pyright: ignore[reportArgumentType]
    return (2 * share - 1) * differing / items


def holm(values: Sequence[float]) -> list[float]:
    """p values after Holm (1979), in the order given: the i-th smallest of m times (m - i), never falling, at most 1."""
    adjusted, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda one: values[one])):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = largest
    return adjusted


def sign_test(first: int, second: int) -> float:
    """Two-sided p of `first` against `second` wins, ties left out; 1 where there is none of either."""
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0

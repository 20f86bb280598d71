"""Intervals and paired tests: of numbers over seeds, and of accuracies measured with several seeds on one set of items.

`right` is an array (seeds, items) of 0 and 1. The paper trained once per cell; what a user wants to know is about other
seeds *and* other questions, so both are taken as random and crossed:

    right_si = mean + seed_s + item_i + noise_si,    Var(mean) = Vs/S + Vi/I + Vn/(S·I)

The variances come from the usual mean squares (two-way analysis of variance; Searle, Casella & McCulloch, *Variance
Components*, ch. 4; Clark 1973 for why items must be random, too). Holm, Wilson and McNemar are
statsmodels'. Knows nothing about grids, tables or figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, chi2, norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.05
POWER = 0.80
MCNEMAR = "exact McNemar"
TWO_WAY = "t, seeds and items crossed"
Matrix = NDArray[np.float64]
Range = tuple[float, float]


def standard_error(values: Sequence[float]) -> float | None:
    """Of a mean over seeds or questions; None for fewer than two, which tell nothing about others."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mean_interval(values: Sequence[float]) -> Range | None:
    """95 % t interval of a mean over seeds; None for fewer than two."""
    error = standard_error(values)
    if error is None:
        return None
    mean, half = float(np.mean(values)), float(t.isf(LEVEL / 2, len(values) - 1)) * error
    return mean - half, mean + half


@dataclass(frozen=True)
class PairedTest:
    """Two rows on the same seeds and items. Differences are shares, first minus second; the test is two-sided.

    `detectable`: the smallest true difference that this test finds with 80 % probability if the variances are as
    measured; None where it finds none.
    """

    name: str
    seeds: int
    items: int
    difference: float
    low: float
    high: float
    p: float
    detectable: float | None


@dataclass(frozen=True)
class Spread:
    """The estimated variance of a mean over (seeds, items), and the part of it that comes from the seeds' means."""

    variance: float
    of_seeds: float
    seeds: int
    items: int

    def quantile(self, upper: float) -> float:
        """How many standard errors a mean exceeds with probability `upper` (Cochran & Cox 1950).

        The quantiles of Student's t for the two parts, S - 1 and I - 1 degrees of freedom, weighted by their variances.
        """
        of_seeds, of_items = t.isf(upper, self.seeds - 1), t.isf(upper, self.items - 1)
        return float(of_items + self.of_seeds / self.variance * (of_seeds - of_items))

    def p_value(self, mean: float) -> float:
        """Two-sided p of a mean against 0: where the quantile reaches it. 0 where it is below 1e-100."""
        errors = abs(mean) / math.sqrt(self.variance)
        if self.quantile(1e-100) <= errors:
            return 0.0
        exponent = _root(lambda power: self.quantile(10**power) - errors, -100.0, math.log10(0.5) + 1e-9)
        return min(1.0, 2 * 10**exponent)

    def detectable(self) -> float | None:
        """The true mean that is found with 80 % probability if the variances are as measured; None: not even 1.

        Averaged over what the seeds' part may be estimated at, which varies much for few seeds.
        """
        of_seeds, of_items = t.isf(LEVEL / 2, self.seeds - 1), t.isf(LEVEL / 2, self.items - 1)
        estimated = self.of_seeds * chi2.ppf(np.arange(0.5, 200) / 200, self.seeds - 1) / (self.seeds - 1)
        variance = self.variance - self.of_seeds + estimated
        limits = (of_items + estimated / variance * (of_seeds - of_items)) * np.sqrt(variance)
        error = math.sqrt(self.variance)

        def lacking(mean: float) -> float:
            return float((norm.sf((limits - mean) / error) + norm.cdf((-limits - mean) / error)).mean()) - POWER

        return _root(lacking, 0.0, 1.0) if lacking(1.0) >= 0 else None


def spread_of(values: Matrix) -> Spread:
    """How far the mean of (seeds, items), at least 2 x 2, may be from that over all seeds and items.

    With `A` = variance of the seeds' means / S and `B` = variance of the items' means / I, each of which contains the
    noise's part `E` = Vn/(S·I) once, A + (B - E) is unbiased. Two cuts keep it from falling below what is certain:
    B - E at 0, and A at E (the variance is then B, that of the items alone).

    Why not the usual degrees of freedom, Satterthwaite's: with 3 seeds A has only 2 of them and is often far too small
    by chance; the result then seems to rest on the items' many. Simulated tests at 5 % so rejected a true null in up to
    8 % of the cases, with Cochran's weighted quantile in up to 5 %. Its price: only 1 to 2 % where seeds do not matter.
    """
    seeds, items = values.shape
    by_seed, by_item = values.mean(axis=1), values.mean(axis=0)
    noise = values - by_seed[:, None] - by_item[None, :] + values.mean()
    of_noise = float((noise**2).sum()) / ((seeds - 1) * (items - 1)) / (seeds * items)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_items = max(float(by_item.var(ddof=1)) / items - of_noise, 0.0)
    return Spread(max(of_seeds, of_noise) + of_items, of_seeds, seeds, items)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high))  # pyright: ignore[reportArgumentType]


def accuracy_interval(right: Matrix) -> Range:
    """95 % interval of an accuracy. One seed: Wilson's, over items only. Several: over seeds and items.

    The latter is Wilson's, too, with the number of independent items that would give the variance measured, p(1-p)/V
    (Korn & Graubard 1998; Dean & Pagano 2015), and the quantile of `Spread`: unlike mean ± error it stays within [0, 1]
    and does not shrink to nothing where all answers are right.
    """
    seeds, items = right.shape
    share = float(right.mean())
    size, level = float(items), LEVEL
    if seeds > 1 and items > 1 and 0 < share < 1:
        found = spread_of(right)
        size, level = share * (1 - share) / found.variance, 2 * float(norm.sf(found.quantile(LEVEL / 2)))
    low, high = np.array(proportion_confint(share * size, size, level, method="wilson"), dtype=float)
    return float(low), float(high)


def compare(first: Matrix, second: Matrix) -> PairedTest:
    """Paired test of two rows of the same shape (seeds, items): seed s and item i are the same in both.

    One seed: the exact McNemar test, which speaks of these two students and says nothing about other seeds. Several:
    the mean of `first - second` against its variance over seeds and items (`spread_of`). Pairing by seed takes out what
    two rows share at one seed (order, initialisation). A bootstrap over 3 seeds would understate their variance by a
    third.
    """
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"compare: shapes {first.shape} and {second.shape} are not allowed; one shape, not empty")
    seeds, items = first.shape
    steps = first - second
    if seeds == 1 or items == 1 or np.all(steps == steps.flat[0]):
        return _paired_once(steps[0], seeds)
    mean, spread = float(steps.mean()), spread_of(steps)
    half = spread.quantile(LEVEL / 2) * math.sqrt(spread.variance)
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return PairedTest(TWO_WAY, seeds, items, mean, low, high, spread.p_value(mean), spread.detectable())


def _paired_once(steps: Matrix, seeds: int) -> PairedTest:
    """Exact McNemar test; interval of Agresti & Min 2005 (half an item added to each of the four counts)."""
    items = len(steps)
    won, lost = int((steps > 0).sum()), int((steps < 0).sum())
    shrunk = (won - lost) / (items + 2)
    error = math.sqrt(max(won + lost + 1 - (won - lost) ** 2 / (items + 2), 0.0)) / (items + 2)
    half = float(norm.isf(LEVEL / 2)) * error
    return PairedTest(
        MCNEMAR, seeds, items, (won - lost) / items, max(-1.0, shrunk - half), min(1.0, shrunk + half),
        sign_test(won, lost), _detectable_mcnemar(won + lost, items),
    )  # fmt: skip


def _detectable_mcnemar(differing: int, items: int) -> float | None:
    """As `Spread.detectable`, given on how many items the two differ. None: too few for any to be significant."""
    counts = np.arange(differing // 2 + 1)
    significant = counts[2 * binom.cdf(counts, differing, 0.5) <= LEVEL]
    if not len(significant):
        return None
    lost = int(significant[-1])

    def lacking(share: float) -> float:
        return float(binom.cdf(lost, differing, 1 - share) + binom.cdf(lost, differing, share)) - POWER

    return (2 * _root(lacking, 0.5, 1.0) - 1) * differing / items


def holm(values: Sequence[float]) -> list[float]:
    """p values after Holm (1979), in the order given."""
    return np.array(multipletests(values, method="holm")[1], dtype=float).tolist()


def sign_test(first: int, second: int) -> float:
    """Two-sided p of `first` against `second` wins, ties left out: the exact McNemar test; 1 where there is no win."""
    found: Any = mcnemar([[0, first], [second, 0]], exact=True)
    return float(found.pvalue)

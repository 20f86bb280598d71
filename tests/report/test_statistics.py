"""Intervals, paired tests, power and Holm: by hand, against scipy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, t, ttest_1samp, ttest_rel

from qcrd.report.statistics import (
    Matrix,
    Spread,
    accuracy_interval,
    compare,
    holm,
    mean_interval,
    sign_test,
    spread_of,
    standard_error,
)

T2 = 4.302653  # Student's t, 2 degrees of freedom, 97.5 %


def matrix(rows: list[list[int]]) -> Matrix:
    return np.array(rows, dtype=float)


def rows_of(won: int, lost: int, same: int) -> tuple[Matrix, Matrix]:
    return matrix([[1] * won + [0] * lost + [1] * same]), matrix([[0] * won + [1] * lost + [1] * same])


def simulate(rng: np.random.Generator, seeds: int, items: int, seed_spread: float) -> tuple[Matrix, Matrix]:
    """Two rows of equal true accuracy: questions of unlike difficulty, effects of row x question, seed and noise."""
    difficulty = 0.4 + 1.5 * rng.standard_normal((1, items))
    first, second = (
        difficulty
        + rng.standard_normal((1, items)) * 0.2
        + rng.standard_normal((seeds, 1)) * seed_spread
        + rng.standard_normal((seeds, items)) * 0.5
        for _ in range(2)
    )
    return (first > 0).astype(float), (second > 0).astype(float)


def test_spread_by_hand() -> None:
    # seeds' means 3/4, 1/4: variance 1/8, over 2 seeds 1/16. items' means 1, 1/2, 1/2, 0: 1/6, over 4 items 1/24.
    # residuals: -1/4 +1/4 +1/4 -1/4 in the first seed, the negative in the second: 8/16 / 3 / 8 = 1/48
    found = spread_of(matrix([[1, 1, 1, 0], [1, 0, 0, 0]]))
    assert found.of_seeds == pytest.approx(1 / 16)
    assert found.variance == pytest.approx(1 / 16 + 1 / 24 - 1 / 48)
    # equal seeds' means: nothing of the seeds, and the variance is the items' alone, 2 x (1/2)² + 0 over 2, over 3
    same = spread_of(matrix([[1, 1, 0], [1, 1, 0]]))
    assert same.of_seeds == 0 and same.variance == pytest.approx((1 / 9 + 1 / 9 + 4 / 9) / 2 / 3)
    # noise only: A = 0 < E = 1/4 / 1 / 4 * 4, items' means equal: what is left is E
    noise = spread_of(matrix([[1, 0], [0, 1]]))
    assert noise.of_seeds == 0 and noise.variance == pytest.approx(1 / 4)


def test_quantile_is_cochrans() -> None:
    spread = Spread(variance=4.0, of_seeds=1.0, seeds=3, items=200)
    assert spread.quantile(0.025) == pytest.approx(0.25 * 4.302653 + 0.75 * 1.971957, abs=1e-6)
    assert spread.p_value(2 * spread.quantile(0.025)) == pytest.approx(0.05)
    assert spread.p_value(0.0) == pytest.approx(1.0)
    assert Spread(1e-8, 0.0, 3, 2000).p_value(1.0) == 0.0


def test_interval_over_seeds() -> None:
    error = 0.1 / math.sqrt(3)
    assert standard_error([0.5, 0.6, 0.7]) == pytest.approx(error)
    low, high = mean_interval([0.5, 0.6, 0.7]) or (0, 0)
    assert (low, high) == pytest.approx((0.6 - T2 * error, 0.6 + T2 * error), abs=1e-6)
    assert mean_interval([0.5]) is None and standard_error([0.5]) is None


def test_one_seed_interval_is_wilsons() -> None:
    for right, items in ((130, 200), (0, 30), (30, 30)):
        low, high = accuracy_interval(matrix([[1] * right + [0] * (items - right)]))
        expected = binomtest(right, items).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_several_seeds_interval() -> None:
    rng = np.random.default_rng(0)
    row = (rng.random(200) < 0.65).astype(float)
    # seeds that agree everywhere tell no more than one seed, but for Student's t in place of the normal quantile
    low, high = accuracy_interval(np.stack([row] * 3))
    one = accuracy_interval(row[None])
    assert (low, high) == pytest.approx(one, abs=0.002) and low < one[0] and high > one[1]
    # seeds that differ by 20 points make it wide: seeds' part alone has error .2 / sqrt(3)
    apart = np.stack([(rng.random(2000) < share).astype(float) for share in (0.45, 0.65, 0.85)])
    low, high = accuracy_interval(apart)
    assert low < 0.35 and high > 0.85
    assert accuracy_interval(np.ones((3, 50))) == accuracy_interval(np.ones((1, 50)))


def test_one_seed_is_exact_mcnemar() -> None:
    found = compare(*rows_of(10, 2, 38))
    assert found.name == "exact McNemar" and (found.seeds, found.items) == (1, 50)
    assert found.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found.difference == pytest.approx(8 / 50)
    error = math.sqrt(13 - 64 / 52) / 52  # Agresti & Min: 10.5 and 2.5 of 52
    assert (found.low, found.high) == pytest.approx((8 / 52 - 1.959964 * error, 8 / 52 + 1.959964 * error))
    # found is a result of at most 2 of 12 (p = .039; 3 of 12 has p = .146): the share of wins that gives this in 80 %
    assert found.detectable is not None
    share = (found.detectable * 50 / 12 + 1) / 2
    assert binom.cdf(2, 12, 1 - share) + binom.cdf(2, 12, share) == pytest.approx(0.8)
    assert compare(*rows_of(5, 0, 45)).detectable is None  # 2 / 2**5 > .05
    nothing = compare(*rows_of(0, 0, 50))
    assert (nothing.p, nothing.difference, nothing.detectable) == (1.0, 0.0, None) and nothing.low < 0 < nothing.high


def test_several_seeds_against_plain_t_tests() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.random(60) < 0.7).astype(float), (rng.random(60) < 0.5).astype(float)
    # all seeds alike: a t test over the items
    found = compare(np.stack([first] * 3), np.stack([second] * 3))
    expected = ttest_1samp(first - second, 0)
    assert found.p == pytest.approx(expected.pvalue) and found.seeds == 3
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    # all items alike but for the seed: a paired t test over the seeds
    first, second = np.repeat([[1.0], [1.0], [0.0], [1.0]], 60, axis=1), np.repeat([[0.0], [1.0], [0.0], [0.0]], 60, 1)
    found = compare(first, second)
    assert found.p == pytest.approx(ttest_rel(first.mean(1), second.mean(1)).pvalue)
    swapped = compare(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low)) and swapped.p == found.p


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(1, 3\)"):
        compare(np.ones((1, 2)), np.ones((1, 3)))


def test_all_seeds_and_items_equally_different() -> None:
    found = compare(np.ones((3, 20)), np.zeros((3, 20)))
    assert found.p == pytest.approx(2 / 2**20) and found.difference == 1 and found.seeds == 3


def test_power_holds_when_simulated() -> None:
    """Means and variances drawn as the model says: the difference called detectable is found in 80 % of the draws."""
    spread = Spread(variance=3.0e-4, of_seeds=2.0e-4, seeds=3, items=2000)
    shift = spread.detectable()
    assert shift is not None
    rng = np.random.default_rng(2)
    means = shift + math.sqrt(spread.variance) * rng.standard_normal(200_000)
    of_seeds = spread.of_seeds * rng.chisquare(2, 200_000) / 2
    variance = 1.0e-4 + of_seeds
    limits = (of_seeds * t.isf(0.025, 2) + 1.0e-4 * t.isf(0.025, 1999)) / np.sqrt(variance)
    assert float((np.abs(means) > limits).mean()) == pytest.approx(0.8, abs=0.005)
    # many seeds: the textbook's (1.96 + 0.84) standard errors
    many = Spread(variance=1e-4, of_seeds=5e-5, seeds=10_000, items=10_000).detectable()
    assert many == pytest.approx(0.01 * (1.959964 + 0.841621), rel=2e-3)
    assert Spread(variance=0.25, of_seeds=0.2, seeds=2, items=5).detectable() is None


@pytest.mark.parametrize(("items", "seed_spread", "repeats"), [(200, 0.2, 1000), (2000, 0.05, 400)])
def test_level_with_three_seeds(items: int, seed_spread: float, repeats: int) -> None:
    """Where seeds differ, at most about 5 % of true nulls are rejected (standard error .7 and 1.1 points here)."""
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(repeats):
        first, second = simulate(rng, 3, items, seed_spread)
        steps = first - second
        spread = spread_of(steps)
        rejected += abs(float(steps.mean())) > spread.quantile(0.025) * math.sqrt(spread.variance)
    assert rejected / repeats <= 0.065


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_sign_test() -> None:
    assert sign_test(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)
    assert sign_test(0, 0) == 1.0

"""A sweep's statistics against values reckoned by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from qcrd.report.sweep.statistics import (
    best_choice,
    common_iteration,
    difference,
    effects,
    equal_scores,
    importance,
    is_logarithmic,
    score_interval,
)
from tests.report.sweeps import one, sweep

T2 = 4.302653  # Student's t, 2 degrees of freedom, 97.5 %


def test_interval_of_a_score() -> None:
    assert score_interval(one("a", {}, {0: [0.9], 1: [1.0]})) == (pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-5), 1.0)


def test_score_is_the_best_iteration_that_all_seeds_finished() -> None:
    a = one("a", {}, {0: [0.5, 0.4, 0.9], 1: [0.2, 0.3]})
    assert a.iterations == 2
    assert a.score == pytest.approx((0.5 + 0.3) / 2)


def test_difference_is_paired_over_shared_seeds() -> None:
    best = one("best", {}, {0: [0.7], 1: [0.8], 2: [0.9]})
    found = difference(one("a", {}, {0: [0.6], 1: [0.7], 2: [0.7], 7: [0.1]}), best)
    assert found is not None and found.seeds == 3 and found.interval is not None
    assert found.mean == pytest.approx(-0.4 / 3)
    error = math.sqrt(((1 / 30) ** 2 * 2 + (2 / 30) ** 2) / 2) / math.sqrt(3)
    assert found.interval[0] == pytest.approx(-0.4 / 3 - T2 * error, abs=1e-6)
    shared = difference(one("a", {}, {2: [0.5]}), best)
    assert shared is not None and shared.interval is None and shared.mean == pytest.approx(-0.4)
    assert difference(one("a", {}, {9: [0.5]}), best) is None


def test_one_standard_error_rule_takes_the_cheapest() -> None:
    """The best has 0.6 with standard error 0.1/√3 = 0.0577, so the limit is 0.5423."""
    best = one("best", {}, {0: [0.5], 1: [0.6], 2: [0.7]}, seconds=300)
    close = one("close", {}, {0: [0.55], 1: [0.55], 2: [0.55]}, seconds=90)
    closer = one("closer", {}, {0: [0.59], 1: [0.59], 2: [0.59]}, seconds=120)
    far = one("far", {}, {0: [0.54], 1: [0.54], 2: [0.54]}, seconds=3)
    stopped = one("stopped", {}, {0: [0.9], 1: [0.9], 2: [0.9]}, "stopped", seconds=3)
    choice = best_choice(sweep([far, stopped, closer, best, close]))
    assert choice is not None
    assert choice.best is best and choice.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert [each.key for each in choice.candidates] == ["close", "closer", "best"]


def test_cost_is_that_of_one_seed() -> None:
    three = one("three", {}, {0: [0.6], 1: [0.6], 2: [0.6]}, seconds=90)
    single = one("single", {}, {0: [0.6]}, seconds=40)
    choice = best_choice(sweep([single, three]))
    assert choice is not None and choice.cheapest is three


def test_one_seed_has_no_standard_error_and_only_ties_count() -> None:
    first, tie, near = one("a", {}, {0: [0.6]}), one("b", {}, {0: [0.6]}, seconds=5), one("c", {}, {0: [0.599]})
    choice = best_choice(sweep([first, tie, near]))
    assert choice is not None and choice.standard_error is None
    assert [each.key for each in choice.candidates] == ["b", "a"]
    assert best_choice(sweep([one("a", {}, {0: [0.6]}, "stopped")])) is None


def test_effects_at_equal_training() -> None:
    """The stopped one ended after iteration 2, so what the others learned later does not count."""
    curves = [[0.1, 0.2, 0.9], [0.3, 0.4, 0.8], [0.5, 0.4, 0.7], [0.6, 0.8]]
    states = ["finished", "finished", "finished", "stopped"]
    gaps, sources = [1, 1, 3, 3], ["x", "y", "x", "y"]
    made = [
        one(f"c{i}", {"gap": gaps[i], "source": sources[i]}, {0: curves[i]}, states[i])  # type: ignore[arg-type]
        for i in range(4)
    ]
    failed = one("failed", {"gap": 1, "source": "x"}, {0: [0.0]}, "failed")
    waiting = one("waiting", {"gap": 1, "source": "x"}, {}, "unfinished")
    results = sweep([*made, failed, waiting])
    assert common_iteration(results) == 2
    assert equal_scores(results) == pytest.approx({"c0": 0.2, "c1": 0.4, "c2": 0.5, "c3": 0.8})
    gap, source = effects(results)
    assert [(level.label, level.configurations) for level in gap.levels] == [("1", 2), ("3", 2)]
    assert [level.mean for level in gap.levels] == pytest.approx([0.3, 0.65])
    assert [level.mean for level in source.levels] == pytest.approx([0.35, 0.6])
    assert gap.levels[0].interval == pytest.approx((0.2, 0.4))  # a quarter of the resamples has the same one twice
    assert effects(results) == [gap, source]


def test_a_value_with_one_configuration_has_no_interval_and_a_constant_field_no_effect() -> None:
    made = [one("a", {"gap": 1, "fixed": 2}, {0: [0.2]}), one("b", {"gap": 3, "fixed": 2}, {0: [0.4]})]
    (effect,) = effects(sweep(made))
    assert effect.field == "gap" and [level.interval for level in effect.levels] == [None, None]


def test_many_numbers_are_shown_in_thirds() -> None:
    made = [one(f"c{i}", {"steps": 10_001 * (i + 1)}, {0: [i / 10]}) for i in range(9)]
    (effect,) = effects(sweep(made))
    assert effect.in_thirds
    assert [level.configurations for level in effect.levels] == [3, 3, 3]
    assert [level.mean for level in effect.levels] == pytest.approx([0.1, 0.4, 0.7])
    assert [level.label for level in effect.levels] == ["1e+04 to 3e+04", "4e+04 to 6e+04", "7e+04 to 9e+04"]
    close = [one(f"c{i}", {"x": 1 + i / 1000}, {0: [i / 10]}) for i in range(9)]
    assert effects(sweep(close))[0].levels[0].label == "1 to 1.002"


def test_importance_finds_the_field_that_matters() -> None:
    rates, sources, gaps = [1e-5, 1e-4, 1e-3, 1e-2], ["snapshot", "fixed", None], [1, 3]
    score = {1e-5: 0.2, 1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.3}
    made = [
        one(
            f"c{i}", {"gap": gap, "rate": rate, "source": source, "constant": 1}, {0: [score[rate] + 0.01 * (gap == 3)]}
        )
        for i, (rate, source, gap) in enumerate(itertools.product(rates, sources, gaps))
    ]
    found = importance(sweep(made))
    assert next(iter(found.shares)) == "rate" and found.shares["rate"] > 0.95
    assert set(found.shares) == {"gap", "rate", "source"}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert importance(sweep(made)) == found
    by_source = {"snapshot": 0.7, "fixed": 0.3, None: 0.5}
    other = [one(each.key, each.values, {0: [by_source[each.values["source"]]]}) for each in made]
    assert next(iter(importance(sweep(other)).shares)) == "source"


def test_importance_says_why_there_is_none() -> None:
    pair = [one("a", {"gap": 1}, {0: [0.2]}), one("b", {"gap": 3}, {0: [0.4]})]
    assert importance(sweep(pair)).reason == "2 configurations have a score; at least 4 are needed"
    same = [one(f"c{i}", {"gap": 1}, {0: [i / 10]}) for i in range(5)]
    assert importance(sweep(same)).reason == "no field has two values"
    equal = [one(f"c{i}", {"gap": i}, {0: [0.5]}) for i in range(5)]
    assert importance(sweep(equal)).reason == "all scores are equal"


def test_logarithm_for_more_than_one_and_a_half_decades_of_positive_numbers() -> None:
    assert is_logarithmic([1e-5, 1e-3]) and not is_logarithmic([1e-4, 1e-3])
    assert not is_logarithmic([0.0, 1.0, 1000.0]) and not is_logarithmic([])

"""A sweep's plots as PNG and SVG, for the Markdown report: learning curves of the best, effects of the fields.

Knows nothing about folders or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from qcrd.report.figures import finish, panel_axes, plain
from qcrd.report.sweep.data import Configuration, SweepResults
from qcrd.report.sweep.sections import SCORE, curve_label, subject_of
from qcrd.report.sweep.statistics import common_iteration, effects, equal_scores

BEST = 5
"""Configurations whose learning curves are drawn."""


@dataclass(frozen=True)
class Curve:
    """Validation accuracy after iteration 1, 2, … over the seeds."""

    mean: list[float]
    low: list[float]
    high: list[float]


def mean_curve(one: Configuration) -> Curve:
    """Mean, lowest and highest over the seeds, as far as all seeds have come."""
    values = np.array([curve[: one.iterations] for curve in one.curves.values()])
    return Curve(*(list(map(float, row)) for row in (values.mean(axis=0), values.min(axis=0), values.max(axis=0))))


def leading(results: SweepResults) -> list[Configuration]:
    """The best finished configurations; while there are none, those that lead at equal training."""
    if results.finished:
        return [one for one in results.finished if one.iterations][:BEST]
    scores = equal_scores(results)
    begun = [one for one in results.configurations if one.key in scores]
    return sorted(begun, key=lambda one: (-scores[one.key], one.key))[:BEST]


def draw_curves(path: Path, results: SweepResults) -> bool:
    """Learning curves of the best. False, and no file, where no iteration is finished."""
    best = leading(results)
    if not best:
        return False
    figure, axes = plt.subplots(figsize=(9, 5.2))
    for index, one in enumerate(best):
        curve = mean_curve(one)
        count = np.arange(1, len(curve.mean) + 1)
        axes.plot(
            count,
            100 * np.array(curve.mean),
            marker="o",
            markersize=3,
            color=f"C{index}",
            label=plain(curve_label(one, results)),
        )
        low, high = 100 * np.array(curve.low), 100 * np.array(curve.high)
        axes.fill_between(count, low, high, color=f"C{index}", alpha=0.12)
    axes.set_xlabel("iteration")
    axes.set_ylabel(f"{SCORE}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    finish(figure, f"Learning curves of the best: {subject_of(results)}", path)
    return True


def draw_effects(path: Path, results: SweepResults) -> bool:
    """Effect of each field, a panel a field. False, and no file, where no field has scores at two values."""
    found = effects(results)
    if not found:
        return False
    figure, drawn = panel_axes(len(found), 3.2, across=3)
    for axes, effect in zip(drawn, found, strict=True):
        if axes is not drawn[0]:
            axes.sharey(drawn[0])
        means = np.array([level.mean for level in effect.levels])
        ends = np.array([level.interval or (level.mean, level.mean) for level in effect.levels])
        errors = 100 * np.maximum(0.0, np.stack([means - ends[:, 0], ends[:, 1] - means]))
        axes.errorbar(range(len(means)), 100 * means, yerr=errors, fmt="o:", linewidth=1, capsize=3)
        axes.set_xticks(
            range(len(means)), [plain(level.label.replace(" to ", " to\n")) for level in effect.levels], fontsize=8
        )
        axes.set_xlim(-0.5, len(means) - 0.5)
        axes.set_title(plain(effect.field + (" (thirds)" if effect.in_thirds else "")), fontsize=10)
        axes.set_ylabel(f"{SCORE}, %")
        axes.grid(alpha=0.3)
    finish(figure, f"Effects after iteration {common_iteration(results)}: {subject_of(results)}", path)
    return True

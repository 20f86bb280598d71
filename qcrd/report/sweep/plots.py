"""A sweep's plots for the browser (plotly): parallel coordinates, importance, effects, learning curves, cost.

Each function returns a figure, or None where there is nothing to draw. Knows nothing about files or pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qcrd.report.sweep.data import Configuration, SweepResults
from qcrd.report.sweep.figures import leading, mean_curve
from qcrd.report.sweep.sections import SCORE, curve_label, short_names, subject_of
from qcrd.report.sweep.statistics import (
    best_choice,
    common_iteration,
    effects,
    equal_scores,
    importance,
    is_logarithmic,
    labels_of,
    numbers_of,
    score_interval,
    seconds_per_seed,
    value_label,
)

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd")
ACROSS = 3
"""Effects side by side."""
LEVEL_LABELS = 6
"""Axes of parallel coordinates whose names fit side by side."""
_LEGEND = {"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0}


def _styled(figure: go.Figure, title: str, results: SweepResults, height: int) -> go.Figure:
    """One look, and a title that names the subject."""
    text = f"{escape(title)}<br><sup>{escape(subject_of(results))}</sup>"
    return figure.update_layout(
        template="plotly_white", title={"text": text, "x": 0.02}, height=height, font={"size": 13},
        margin={"l": 70, "r": 30, "t": 90, "b": 60}, hoverlabel={"align": "left"},
    )  # fmt: skip


def parallel_coordinates(results: SweepResults) -> go.Figure | None:
    """A line a configuration through its values to its score at equal training."""
    scores = equal_scores(results)
    shown = [one for one in results.configurations if one.key in scores]
    if not shown or not results.fields:
        return None
    names = short_names(results.fields)
    axes = [_axis(results, shown, name, escape(names[name])) for name in results.fields]
    values = [100 * scores[one.key] for one in shown]
    axes.append({"label": f"{SCORE}, %", "values": values, "tickformat": ".3~g"})
    line = {"color": values, "colorscale": "Viridis", "showscale": False}
    angle = -20 if len(axes) > LEVEL_LABELS else 0
    drawn = go.Parcoords(dimensions=axes, line=line, labelangle=angle, labelfont={"size": 13}, tickfont={"size": 12})
    title = f"Parallel coordinates: {SCORE} after iteration {common_iteration(results)}"
    figure = _styled(go.Figure(drawn), title, results, 480)
    return figure.update_layout(margin={"l": 110, "r": 110, "t": 190 if angle else 130, "b": 40})


def _axis(results: SweepResults, shown: Sequence[Configuration], name: str, label: str) -> dict[str, Any]:
    """Numbers by size, or by logarithm; anything else as a category."""
    numbers, labels = numbers_of(results, name), labels_of(results, name)
    if numbers is None:
        places = [labels.index(value_label(one.values.get(name))) for one in shown]
        ticks = {"tickvals": list(range(len(labels))), "ticktext": [escape(text) for text in labels]}
        return {"label": label, "values": places, "range": [-0.3, len(labels) - 0.7], **ticks}
    scale = math.log10 if is_logarithmic(numbers) else float
    ticks = {}
    if len(numbers) <= 8:
        ticks = {"tickvals": [scale(one) for one in numbers], "ticktext": [value_label(one) for one in numbers]}
    elif scale is math.log10:
        powers = list(range(math.ceil(scale(numbers[0])), math.floor(scale(numbers[-1])) + 1))
        ticks = {"tickvals": powers, "ticktext": [f"1e{power}" for power in powers]}
    return {"label": label, "values": [scale(one.values[name]) for one in shown], **ticks}


def importance_bars(results: SweepResults) -> go.Figure | None:
    """A bar a field, the most important on top."""
    found = importance(results)
    if not found.shares:
        return None
    names, shares = list(found.shares)[::-1], [100 * share for share in found.shares.values()][::-1]
    bars = go.Bar(
        x=shares, y=[escape(name) for name in names], orientation="h", marker={"color": COLOURS[0]},
        text=[f"{share:.0f} %" for share in shares], textposition="auto", hoverinfo="skip",
    )  # fmt: skip
    figure = _styled(go.Figure(bars), "Importance of the fields", results, 190 + 34 * len(names))
    figure.update_xaxes(title="share of what single fields explain, %", range=[0, 105])
    return figure.update_yaxes(automargin=True)


def effect_panels(results: SweepResults) -> go.Figure | None:
    """A panel a field: mean score at each value, with its interval."""
    found = effects(results)
    if not found:
        return None
    across = min(ACROSS, len(found))
    lines = math.ceil(len(found) / across)
    titles = [escape(effect.field) + (" (thirds)" if effect.in_thirds else "") for effect in found]
    gap = 0.3 / lines if lines > 1 else 0.0
    figure = make_subplots(
        lines, across, subplot_titles=titles, vertical_spacing=gap,
        shared_yaxes="all",  # pyright: ignore[reportArgumentType] - plotly's documentation allows it
    )  # fmt: skip
    for index, effect in enumerate(found):
        means = [100 * level.mean for level in effect.levels]
        ends = [level.interval or (level.mean, level.mean) for level in effect.levels]
        error = {
            "array": [max(0.0, 100 * high - mean) for (_, high), mean in zip(ends, means, strict=True)],
            "arrayminus": [max(0.0, mean - 100 * low) for (low, _), mean in zip(ends, means, strict=True)],
        }
        points = go.Scatter(
            x=[escape(level.label) for level in effect.levels], y=means, error_y=error, mode="markers+lines",
            line={"color": COLOURS[0], "dash": "dot", "width": 1}, marker={"size": 9}, showlegend=False,
            text=[f"{level.configurations} configurations" for level in effect.levels],
            hovertemplate="%{x}: %{y:.1f} %<br>%{text}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(points, row=index // across + 1, col=index % across + 1)
    figure.update_xaxes(type="category")
    figure.update_yaxes(title=f"{SCORE}, %", col=1)
    title = f"Effect of each field after iteration {common_iteration(results)}, 95 % intervals"
    return _styled(figure, title, results, 150 + 300 * lines)


def best_curves(results: SweepResults) -> go.Figure | None:
    """Validation accuracy by iteration of the best configurations: mean over the seeds, band from lowest to highest."""
    best = leading(results)
    if not best:
        return None
    figure = go.Figure()
    for colour, one in zip(COLOURS, best, strict=False):
        curve = mean_curve(one)
        count = list(range(1, len(curve.mean) + 1))
        band = {"fill": "toself", "fillcolor": colour, "opacity": 0.12, "line": {"width": 0}, "hoverinfo": "skip"}
        if len(one.curves) > 1:
            figure.add_scatter(
                x=count + count[::-1], y=_percent(curve.high) + _percent(curve.low)[::-1], legendgroup=one.key,
                mode="lines", showlegend=False, **band,
            )  # fmt: skip
        figure.add_scatter(
            x=count, y=_percent(curve.mean), name=_named(one, results), legendgroup=one.key, mode="lines+markers",
            line={"color": colour}, hovertemplate="iteration %{x}: %{y:.1f} %",
        )  # fmt: skip
    figure.update_xaxes(title="iteration", dtick=1 if max(len(mean_curve(one).mean) for one in best) < 20 else None)
    figure.update_yaxes(title=f"{SCORE}, %")
    styled = _styled(figure, f"Learning curves of the best {len(best)}, mean and range over seeds", results, 520)
    return styled.update_layout(legend={**_LEGEND, "orientation": "v"}, margin={"b": 60 + 22 * len(best)})


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _named(one: Configuration, results: SweepResults) -> str:
    return escape(curve_label(one, results))


def score_and_cost(results: SweepResults) -> go.Figure | None:
    """Score against the time of one seed's training. Those that were stopped early are hollow: less training, so less
    score, and no part of the ranking."""
    scored = [one for one in results.configurations if one.iterations and one.status != "failed"]
    if not scored:
        return None
    figure, choice = go.Figure(), best_choice(results)
    taken = choice.cheapest.key if choice else ""
    finished = [one for one in scored if one.status == "finished"]
    groups = [
        ("finished", [one for one in finished if one.key != taken], {"size": 10, "color": COLOURS[0]}),
        ("stopped early", [one for one in scored if one.status == "stopped"], _hollow("grey")),
        ("unfinished", [one for one in scored if one.status == "unfinished"], _hollow(COLOURS[1])),
        (_taken_name(choice is not None and choice.standard_error is not None),
         [one for one in finished if one.key == taken], {"size": 17, "color": COLOURS[3], "symbol": "star"}),
    ]  # fmt: skip
    for name, group, marker in groups:
        if group:
            figure.add_trace(_points(name, group, marker, results))
    times = sorted(seconds_per_seed(one) for one in scored)
    figure.update_xaxes(title="seconds of training, mean of one seed", type="log" if is_logarithmic(times) else None)
    figure.update_yaxes(title=f"{SCORE}, %")
    return _styled(figure, "Score against cost", results, 480).update_layout(legend=_LEGEND)


def _taken_name(by_rule: bool) -> str:
    return "within one standard error of the best, cheapest" if by_rule else "best"


def _hollow(colour: str) -> dict[str, Any]:
    return {"size": 9, "color": colour, "symbol": "circle-open"}


def _points(name: str, group: Sequence[Configuration], marker: dict[str, Any], results: SweepResults) -> go.Scatter:
    intervals = [score_interval(one) or (one.score, one.score) for one in group]
    error = None
    if all(one.status == "finished" for one in group):
        error = {
            "array": [100 * (high - one.score) for one, (_, high) in zip(group, intervals, strict=True)],
            "arrayminus": [100 * (one.score - low) for one, (low, _) in zip(group, intervals, strict=True)],
            "thickness": 1,
            "color": "rgba(120, 120, 120, 0.5)",
        }
    return go.Scatter(
        x=[seconds_per_seed(one) for one in group], y=[100 * one.score for one in group], error_y=error,
        mode="markers", name=name, marker=marker, text=[_named(one, results) for one in group],
        hovertemplate="%{text}<br>%{y:.1f} %, %{x:.1f} s<extra></extra>",
    )  # fmt: skip

"""What all reports' figures have in common: matplotlib without a screen, panels, smoothed lines, PNG and SVG.

A PNG file where the path names one, PNG and SVG where it has no suffix. Knows numbers and labels, nothing about
experiments, folders or Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qcrd.storage.atomic import whole_or_absent

DPI = 130
SMOOTHED_FROM = 100
"""Lines of more points than this are drawn pale, with a running mean over a twentieth of them."""
ACROSS = 4
"""Panels side by side."""


def plain(text: str) -> str:
    """Text as matplotlib shows it literally: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Panel:
    """One plot over optimizer steps. `lines`: label → (step, value); `level`: a labelled horizontal line."""

    title: str
    unit: str
    lines: Mapping[str, Sequence[tuple[int, float]]]
    level: tuple[float, str] | None = None
    is_share: bool = False
    mark: int | None = None
    """A step to mark, such as that of the chosen checkpoint."""


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, and close it. Without a suffix: PNG and SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path if path.suffix else path.with_suffix(".png")) as written:
        figure.savefig(written, dpi=DPI)
    if not path.suffix:
        salted = matplotlib.rc_context({"svg.hashsalt": "qcrd"})  # with the date left out: equal plots give equal files
        with salted, whole_or_absent(path.with_suffix(".svg")) as written:
            figure.savefig(written, metadata={"Date": None})
    plt.close(figure)
    return path


def _draw_line(axes: Axes, label: str, points: Sequence[tuple[int, float]], colour: str) -> None:
    steps, values = np.array(points, dtype=float).T
    if len(points) <= SMOOTHED_FROM:
        axes.plot(steps, values, label=label, color=colour, marker="o", markersize=3, linewidth=1.3)
        return
    width = math.ceil(len(points) / 20)
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    centre = (width - 1) // 2
    axes.plot(
        steps[centre : centre + len(mean)], mean, label=f"{label} (mean of {width} points)", color=colour, linewidth=1.5
    )


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    if not any(panel.lines.values()):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="grey")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for index, (label, points) in enumerate(panel.lines.items()):
        if points:
            _draw_line(axes, label, points, f"C{index}")
    if panel.level is not None:
        axes.axhline(panel.level[0], color="grey", linestyle="--", linewidth=1, label=panel.level[1])
    if panel.mark is not None:
        axes.axvline(panel.mark, color="grey", linestyle=":", linewidth=1.2, label=f"best, step {panel.mark}")
    if panel.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(fontsize=8)


def draw_panels(path: Path, title: str, panels: Sequence[Panel], columns: int) -> Path:
    """Panels side by side under one title."""
    lines = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.2 * lines + 0.5), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=12, wrap=True)
    figure.tight_layout()
    return save(figure, path)


def panel_axes(count: int, height: float, across: int = ACROSS) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of this height (inches), `across` side by side."""
    columns = min(count, across)
    lines = math.ceil(count / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.2 * columns + 1, height * lines + 0.6), squeeze=False)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat)[:count]


def finish(figure: Figure, title: str, path: Path) -> None:
    """Put the title above the panels, and write PNG and SVG."""
    figure.suptitle(plain(title), fontsize=12, wrap=True)
    figure.tight_layout()
    save(figure, path)

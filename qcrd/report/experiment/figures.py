"""The report's plots: a PNG file where the path names one, PNG and SVG where it has no suffix.

Knows rows of numbers, nothing about folders, stages or Markdown.
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
from scipy.stats import gaussian_kde

from qcrd.report.experiment.data import Row, series
from qcrd.storage.atomic import whole_or_absent

DPI = 130
SMOOTHED_FROM = 100
"""Lines of more points than this are drawn pale, with a running mean over a twentieth of them."""
HELD_OUT = "training questions held out of the discriminator's pretraining"
KERNEL_WIDTH = 0.02
"""Smallest kernel width of a score density: a discriminator that is sure of itself would else give a needle."""


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


def learning_curves(path: Path, subject: str, rows: Sequence[Row], best_step: int | None) -> Path:
    """Label loss, rationale or contrastive loss where there is one, validation accuracy, over steps."""
    panels = [Panel("label loss", "nats per token", {"label loss": series(rows, "train/label_loss")})]
    for key, name in (("train/contrastive_loss", "contrastive loss"), ("train/rationale_loss", "rationale loss")):
        if points := series(rows, key):
            panels.append(Panel(name, "nats per token", {name: points}))
    accuracy = {"validation accuracy": series(rows, "eval/accuracy")}
    panels.append(Panel("validation accuracy", "share of questions", accuracy, is_share=True, mark=best_step))
    return draw_panels(path, f"Learning curves: {subject}", panels, len(panels))


def loss_health(path: Path, subject: str, rows: Sequence[Row], margin: float) -> Path:
    """What tells whether the contrastive loss does anything: hinges, losses, selection, scores, negatives."""
    nll = {"positives": series(rows, "train/positive_nll"), "negatives": series(rows, "train/negative_nll")}
    quality = {"mean s+": series(rows, "train/positive_quality"), "mean s-": series(rows, "train/negative_quality")}
    shares = {
        "truncated": series(rows, "negatives/truncated"),
        "state the right answer": series(rows, "negatives/right_answer"),
    }
    hinge = {"active": series(rows, "train/hinge_active")}
    entropy = {"entropy": series(rows, "train/selection_entropy")}
    tokens = {"sampled negatives": series(rows, "negatives/mean_tokens")}
    panels = [
        Panel("active hinges", "share of questions", hinge, (0.05, "5 %"), is_share=True),
        Panel("mean l of rationales", "nats per token", nll, (margin, f"margin {margin:g}")),
        Panel("which positive is selected", "entropy, nats", entropy),
        Panel("discriminator's scores in the loss", "score", quality),
        Panel("sampled negatives", "share of negatives", shares, (0.25, "25 %"), is_share=True),
        Panel("length of sampled negatives", "tokens", tokens),
    ]
    return draw_panels(path, f"Loss health: {subject}", panels, 3)


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian kernel density on [0, 1]; mass beyond the ends is folded back."""
    spread = float(values.std(ddof=1))
    kernel = gaussian_kde(values, bw_method=max(len(values) ** -0.2, KERNEL_WIDTH / spread))
    return kernel(grid) + kernel(-grid) + kernel(2 - grid)


def score_densities(path: Path, subject: str, scores: Mapping[str, Sequence[float]], questions: str) -> Path:
    """The discriminator's scores of each source of rationales to some `questions` (the paper's Figure 6).

    A source with few or equal scores is drawn as a histogram, since a kernel density needs a spread.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.4))
    grid = np.linspace(0, 1, 401)
    for index, (name, listed) in enumerate(scores.items()):
        values = np.array(listed, dtype=float)
        label = f"{name} (n = {len(values)})"
        if len(values) >= 5 and values.std() > 1e-6:
            density = _density(values, grid)
            axes.plot(grid, density, label=label, color=f"C{index}")
            axes.fill_between(grid, density, color=f"C{index}", alpha=0.12)
        else:
            axes.hist(
                values, bins=np.linspace(0, 1, 51).tolist(), density=True, alpha=0.5, label=label, color=f"C{index}"
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("discriminator's score of the rationale")
    axes.set_ylabel("density")
    axes.set_title(f"Score densities: {subject}\n{questions}", fontsize=11, wrap=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.tight_layout()
    return save(figure, path)

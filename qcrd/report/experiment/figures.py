"""An experiment's plots: learning curves, loss health, densities of scores.

Knows rows of numbers, nothing about folders, stages or Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import gaussian_kde

from qcrd.report.experiment.data import MetricRow, series
from qcrd.report.figures import Panel, draw_panels, save

HELD_OUT = "training questions held out of the discriminator's pretraining"
KERNEL_WIDTH = 0.02
"""Smallest kernel width of a score density: a discriminator that is sure of itself would else give a needle."""


def learning_curves(path: Path, subject: str, rows: Sequence[MetricRow], best_step: int | None) -> Path:
    """Label loss, rationale or contrastive loss where there is one, validation accuracy, over steps."""
    panels = [Panel("label loss", "nats per token", {"label loss": series(rows, "train/label_loss")})]
    for key, name in (("train/contrastive_loss", "contrastive loss"), ("train/rationale_loss", "rationale loss")):
        if points := series(rows, key):
            panels.append(Panel(name, "nats per token", {name: points}))
    accuracy = {"validation accuracy": series(rows, "eval/accuracy")}
    panels.append(Panel("validation accuracy", "share of questions", accuracy, is_share=True, mark=best_step))
    return draw_panels(path, f"Learning curves: {subject}", panels, len(panels))


def loss_health(path: Path, subject: str, rows: Sequence[MetricRow], margin: float) -> Path:
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

"""The report of a sweep: report.md with figures, report.html with plots to explore, results.csv.

The page holds plotly itself, once, and loads nothing. Everything is written again whenever more is known; each file is
replaced as a whole, and the same results give the same bytes. Knows nothing about Ray, MLflow or a sweep's files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from qcrd.report.html import document, rendered
from qcrd.report.sweep.data import Configuration, SweepResults
from qcrd.report.sweep.figures import draw_curves, draw_effects
from qcrd.report.sweep.plots import best_curves, effect_panels, importance_bars, parallel_coordinates, score_and_cost
from qcrd.report.sweep.sections import (
    effects_section,
    importance_section,
    made_section,
    subject_of,
    summary_section,
    tables_section,
    total_cost,
)
from qcrd.report.sweep.statistics import best_choice, score_interval, value_label
from qcrd.storage.atomic import write_atomically

# plotly draws parallel coordinates with code that it makes from strings; nothing may be loaded or sent.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; form-action 'none'"
)
_STYLE = "<style>td:not(:last-child) { white-space: nowrap; }</style>\n"
_PLOTS: dict[str, Callable[[SweepResults], go.Figure | None]] = {
    "score_and_cost": score_and_cost,
    "parallel_coordinates": parallel_coordinates,
    "importance": importance_bars,
    "effects": effect_panels,
    "learning_curves": best_curves,
}
_FIGURES: dict[str, Callable[[Path, SweepResults], bool]] = {"learning_curves": draw_curves, "effects": draw_effects}


def write_sweep_report(results: SweepResults, folder: Path) -> dict[str, float]:
    """Write the report into `folder`. Returns its headline numbers as flat metrics; accuracies are shares."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = {name for name, draw in _FIGURES.items() if draw(figures / name, results)}
    write_atomically(folder / "report.md", _text(results, lambda name: name in drawn))
    write_atomically(folder / "report.html", page_of(results))
    write_atomically(folder / "results.csv", _csv(results))
    return _metrics(results)


def page_of(results: SweepResults) -> str:
    """The report as one HTML file that needs nothing else."""
    plots = {name: plot for name, draw in _PLOTS.items() if (plot := draw(results)) is not None}

    def image(alt: str, name: str) -> str:
        settings = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
        return to_html(
            plots[name], settings, include_plotlyjs=False, include_mathjax=False, full_html=False, div_id=name,
            default_width="100%",
        )  # fmt: skip

    body = rendered(_text(results, lambda name: name in plots), image)
    return document(subject_of(results), body, _POLICY, _STYLE + f"<script>{get_plotlyjs()}</script>\n")


def _text(results: SweepResults, has: Callable[[str], bool]) -> str:
    """The report as Markdown, with the pictures that there are."""

    def picture(title: str, name: str) -> list[str]:
        return [f"![{title}](figures/{name}.png)", ""] if has(name) else []

    lines = [
        *summary_section(results),
        *picture("Score against cost", "score_and_cost"),
        *tables_section(results),
        *picture("Parallel coordinates", "parallel_coordinates"),
        *importance_section(results),
        *picture("Importance of the fields", "importance"),
        *effects_section(results),
        *picture("Effect of each field", "effects"),
        "## Learning curves of the best",
        "",
        *(picture("Learning curves of the best", "learning_curves") or ["No iteration is finished yet.", ""]),
        *made_section(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _metrics(results: SweepResults) -> dict[str, float]:
    seconds, steps = total_cost(results)
    counts = {
        status: sum(one.status == status for one in results.configurations)
        for status in ("finished", "stopped", "unfinished", "failed")
    }
    numbers = {"configurations": len(results.configurations), **counts, "seconds": seconds, "steps": steps}
    metrics = {f"sweep/{name}": float(value) for name, value in numbers.items()}
    choice = best_choice(results)
    if choice is not None:
        metrics["sweep/best_score"], metrics["sweep/chosen_score"] = (
            float(choice.best.score),
            float(choice.cheapest.score),
        )
        if (interval := score_interval(choice.best)) is not None:
            metrics["sweep/best_low"], metrics["sweep/best_high"] = interval
    return metrics


def _csv(results: SweepResults) -> str:
    """One line a configuration and seed, or a configuration without any. Accuracies lie in [0, 1]."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    scores = ["iterations", "best_validation_accuracy", "last_validation_accuracy", "test_accuracy"]
    cost = ["configuration_seconds", "configuration_steps"]
    writer.writerow(["configuration", "state", *results.fields, "seed", *scores, *cost, "reason"])
    for one in results.configurations:
        fields = [_exact(one.values.get(name)) for name in results.fields]
        for seed in sorted(one.curves) or [None]:
            row = [one.key, one.status, *fields, *_seed_cells(one, seed), one.seconds, one.steps, one.reason]
            writer.writerow(row)
    return file.getvalue()


def _exact(value: object) -> object:
    return value if isinstance(value, float) else value_label(value)


def _seed_cells(one: Configuration, seed: int | None) -> list[object]:
    curve = () if seed is None else one.curves[seed]
    ends: list[object] = [max(curve), curve[-1]] if curve else ["", ""]
    return ["" if seed is None else seed, len(curve), *ends, "" if seed is None else one.test_accuracy.get(seed, "")]

"""One experiment's report: `report.md`, its figures and `summary.json`.

It only reads what the stages before it wrote: a number that is not in their files is "not measured". Knows nothing
about models, Ray or MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.report.experiment.data import ReportData, read_report_data
from qcrd.report.experiment.figures import learning_curves, loss_health, score_densities
from qcrd.report.experiment.flow import examples_section, flow_section, statistics_section
from qcrd.report.experiment.health import (
    discriminator_section,
    health_metrics,
    health_section,
    scored_questions,
    scores_by_source,
    warnings_of,
)
from qcrd.report.experiment.results import best_step, headline, result_lines, result_section, results_of
from qcrd.report.experiment.settings import MethodFacts, shown_settings
from qcrd.report.markdown import cell, table
from qcrd.teacher.backends.table import backend_of

_SOURCES = {
    "questions": ("questions.parquet",),
    "samples": ("samples.parquet",),
    "rationales": ("statistics.json",),
    "training_set": ("examples.parquet",),
    "discriminator": ("pretraining.jsonl",),
    "student": ("metrics.jsonl", "training.json"),
    "predictions": ("predictions.parquet", "explanations.parquet", "scores.parquet", "evaluation.json"),
}


def write_report(
    config: ExperimentConfig, method: MethodFacts, inputs: Mapping[str, Path],
    summaries: Mapping[str, Mapping[str, Any]], out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Write the report of one experiment into the folder `out`. Returns the headline numbers as flat metrics, and
    beside them `results` (see `results_of`) and the texts of the `warnings`; all plain data.

    `inputs`: finished folder of each stage; samples, rationales and discriminator may be absent. `summaries`: what each
    stage said when it ran; any key may be absent.
    """
    data = read_report_data(config, method, inputs, summaries)
    _draw(data, out / "figures")
    warnings = warnings_of(data)
    metrics = {**headline(data), **health_metrics(data), "report/warnings": float(len(warnings))}
    results = results_of(data)
    lines = [
        *_title(data),
        *result_section(data),
        *_warning_section(warnings),
        *flow_section(data),
        *statistics_section(data),
        "## Learning curves",
        "",
        "![Learning curves](figures/learning_curves.png)",
        "",
        *health_section(data),
        *discriminator_section(data),
        *examples_section(data),
        *_settings_section(data),
        *_sources_section(data),
    ]
    (out / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    summary = {
        "name": config.name, "method": config.method, "task": config.task.name, "seed": config.seed,
        "simulated_teacher": backend_of(config.teacher).simulated, "warnings": warnings, "metrics": metrics,
        "results": results,
    }  # fmt: skip
    text = json.dumps(summary, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return {**metrics, "results": results, "warnings": warnings}


def headline_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a person reads first, from what `write_report` returned: the results, then the warnings."""
    return [*result_lines(summary["results"]), *_warning_lines(summary["warnings"])]


def _draw(data: ReportData, folder: Path) -> None:
    learning_curves(folder / "learning_curves.png", data.subject(), data.metric_rows, best_step(data))
    if data.method.contrastive:
        loss_health(folder / "loss_health.png", data.subject(), data.metric_rows, data.config.loss.margin)
    if scores := scores_by_source(data.scores):
        score_densities(folder / "score_densities.png", data.subject(), scores, scored_questions(data))


def _title(data: ReportData) -> list[str]:
    lines = [f"# {data.config.name}: {data.subject()}", ""]
    if backend_of(data.config.teacher).simulated:
        unused = "" if data.samples is not None else " This method did not use it either."
        lines += [f"> **The teacher is simulated: no language model was asked.**{unused}", ""]
    return lines


def _warning_lines(warnings: Sequence[str]) -> list[str]:
    return [f"- **WARNING** {line}" for line in warnings]


def _warning_section(warnings: Sequence[str]) -> list[str]:
    return ["## Warnings", "", *(_warning_lines(warnings) or ["None."]), ""]


def _settings_section(data: ReportData) -> list[str]:
    shown = shown_settings(data.config, data.method)
    rows = [[f"`{name}`", cell(str(value))] for name, value in shown.items()]
    return ["## Settings that matter", "", *table(["setting", "value"], rows)]


def _sources_section(data: ReportData) -> list[str]:
    rows = [
        [stage, f"`{data.inputs[stage].parent.name}/{data.inputs[stage].name}/{name}`"]
        for stage, names in _SOURCES.items()
        if stage in data.inputs
        for name in names
    ]
    note = "Every number above comes from these files, or from the summary in the same folder's artifact.json."
    return ["## Where the numbers come from", "", note, "", *table(["stage", "file"], rows)]

"""The report's sections about training: loss health, the discriminator, and the warnings that follow from them.

Method.md sections 5-8. Knows metric rows, nothing about how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcrd.records import Score
from qcrd.report.experiment.data import MetricRow, ReportData, series
from qcrd.report.experiment.figures import HELD_OUT
from qcrd.report.markdown import NOT_MEASURED, number, percent, table

HINGE_MINIMUM = 0.05
AUROC_MINIMUM = 0.95
TRUNCATED_MAXIMUM = 0.25
PARSE_MINIMUM = 0.90

SOURCES = {"teacher_positive": "teacher, positive", "teacher_negative": "teacher, negative"}


def why_no_discriminator(data: ReportData) -> str:
    """Why there is no discriminator."""
    if not data.method.discriminator:
        return f"No discriminator was trained: the method `{data.config.method}` uses none."
    if not data.config.discriminator.enabled:
        return "No discriminator was trained: discriminator.enabled is false (w/o QJ), so s+ = 1 and s- = 0."
    return "No discriminator was handed to this report, so nothing is said about it."


@dataclass(frozen=True)
class Measure:
    """One line of the health table over some rows."""

    title: str
    key: str
    rows: Sequence[MetricRow]
    is_share: bool = False

    def line(self) -> list[str]:
        values = [value for _, value in series(self.rows, self.key)]
        if not values:
            return [self.title, NOT_MEASURED, NOT_MEASURED]
        low, high, last = (percent(v) if self.is_share else number(v) for v in (min(values), max(values), values[-1]))
        return [self.title, last, f"{low} .. {high}"]


def hinge_rows(data: ReportData) -> tuple[list[MetricRow], str]:
    """The rows over which the hinge share counts, and their name.

    Up to iteration j the negatives come from the initial weights; other sources do not change over the iterations.
    """
    if data.config.negatives.source not in ("snapshot", "snapshot_and_teacher"):
        return data.metric_rows, "all steps"
    gap = data.config.negatives.gap
    return data.rows_after_iteration(gap), f"after iteration {gap}"


def health_section(data: ReportData) -> list[str]:
    """Whether the contrastive loss did anything."""
    lines = ["## Loss health", ""]
    if not data.method.contrastive:
        return [*lines, f"The method `{data.config.method}` has no contrastive loss.", ""]
    rows = data.metric_rows
    hinges, when = hinge_rows(data)
    measures = [Measure("mean l of positives (nats per token)", "train/positive_nll", rows)]
    if data.method.negatives:
        measures.insert(0, Measure(f"share of active hinges, {when}", "train/hinge_active", hinges, True))
        measures.append(Measure("mean l of negatives (nats per token)", "train/negative_nll", rows))
    measures.append(Measure("entropy of the selected positive (nats)", "train/selection_entropy", rows))
    if data.discriminator_rows is not None:
        measures.append(Measure("mean s+ in the loss", "train/positive_quality", rows))
        if data.method.negatives:
            measures.append(Measure("mean s- in the loss", "train/negative_quality", rows))
    if data.method.student_negatives:
        measures += [
            Measure("truncated negatives", "negatives/truncated", rows, True),
            Measure("negatives that state the right answer", "negatives/right_answer", rows, True),
            Measure("mean tokens of a negative", "negatives/mean_tokens", rows),
        ]
    lines += table(["measure", "last value", "min .. max"], [measure.line() for measure in measures])
    if not data.method.negatives:
        lines += ["This run has no negatives in its loss, so nothing is said about hinges.", ""]
    lines += [f"The margin δ is {data.config.loss.margin:g}; a hinge is active where a negative's l is below it.", ""]
    return [*lines, "![Loss health](figures/loss_health.png)", ""]


def scores_by_source(scores: Sequence[Score]) -> dict[str, list[float]]:
    """Scores of each source, under the name to show."""
    named: dict[str, list[float]] = {}
    for score in scores:
        name = SOURCES.get(score.source) or score.source.replace("student_", "student, τ = ")
        named.setdefault(name, []).append(score.score)
    return named


def scored_questions(data: ReportData) -> str:
    """Whose rationales the discriminator scored."""
    return "test questions" if data.evaluation.get("scored_split") == "test" else HELD_OUT


def score_table(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Size, mean and upper share of each source's scores."""
    return table(
        ["source", "n", "mean score", "share above 0.7"],
        [
            [name, str(len(v)), number(sum(v) / len(v)), percent(sum(x > 0.7 for x in v) / len(v))]
            for name, v in scores.items()
        ],
    )


def discriminator_section(data: ReportData) -> list[str]:
    """How well the discriminator separates, how often it was updated, and the densities of its scores."""
    lines = ["## Discriminator", ""]
    if data.discriminator_rows is None:
        return [*lines, why_no_discriminator(data), ""]
    last = data.discriminator_rows[-1] if data.discriminator_rows else {}
    shown = {
        "discriminator/auroc_real": "AUROC against the teacher's negatives",
        "discriminator/auroc_augmented": "AUROC against augmented negatives (easy)",
        "discriminator/mean_positive": "mean s+",
        "discriminator/mean_negative": "mean s-",
        "discriminator/loss": "L_D of the last batch",
    }
    rows = [[title, number(last.get(key))] for key, title in shown.items()]
    rows.append(["pretraining steps", str(last.get("step", NOT_MEASURED))])
    online = series(data.metric_rows, "discriminator/online_loss")
    rows.append(["optimizer steps of online updates", str(data.online_updates())])
    rows.append(["iterations with an online update", str(len(online))])
    rows.append(["mean L_D of the last online update", number(online[-1][1] if online else None)])
    lines += ["AUROC and mean scores: end of pretraining, on the questions held out of it.", ""]
    lines += table(["discriminator", "value"], rows)
    lines += ["### Densities of its scores (Figure 6)", ""]
    scores = scores_by_source(data.scores)
    if not scores:
        return [*lines, f"Scores: {NOT_MEASURED}.", ""]
    seen = "its later online updates may have visited them"
    if data.evaluation.get("scored_split") == "test":
        seen = "neither the student nor the discriminator was trained on any of them"
    return [
        *lines,
        *score_table(scores),
        "![Score densities](figures/score_densities.png)",
        "",
        f"The questions are {scored_questions(data)}; {seen}. The discriminator is the one at the end of training.",
        "",
    ]


def warnings_of(data: ReportData) -> list[str]:
    """What makes this run's numbers doubtful, one line each."""
    found: list[str] = []
    rate = None if data.statistics is None else data.statistics.get("parse_rate")
    if rate is not None and rate < PARSE_MINIMUM:
        found.append(f"parse rate {percent(rate)}, below {percent(PARSE_MINIMUM, 0)}: look at the raw samples")
    if data.discriminator_rows is not None:
        found += _discriminator_warnings(data.discriminator_rows)
    if data.method.negatives:
        found += _hinge_warnings(data)
    share = truncated_share(data.metric_rows)
    if share is not None and share > TRUNCATED_MAXIMUM:
        found.append(
            f"{percent(share)} of the sampled negatives are truncated, above {percent(TRUNCATED_MAXIMUM, 0)}: "
            f"raise negatives.max_new_tokens ({data.config.negatives.max_new_tokens})"
        )
    return found


def _discriminator_warnings(rows: Sequence[Mapping[str, float]]) -> list[str]:
    auroc = rows[-1].get("discriminator/auroc_real") if rows else None
    if auroc is None:
        return ["discriminator AUROC on real negatives not measured: no held-out question has a real negative"]
    if auroc < AUROC_MINIMUM:
        return [
            f"discriminator AUROC on real negatives {number(auroc)}, below {AUROC_MINIMUM}: its scores weigh little"
        ]
    return []


def _hinge_warnings(data: ReportData) -> list[str]:
    rows, when = hinge_rows(data)
    values = [value for _, value in series(rows, "train/hinge_active")]
    if not values:
        return [f"share of active hinges {when} not measured: the run has no step there"]
    if max(values) <= HINGE_MINIMUM:
        return [
            f"share of active hinges never above {percent(HINGE_MINIMUM, 0)} {when} (largest {percent(max(values))}): "
            "the negatives taught the student next to nothing"
        ]
    return []


def truncated_share(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of truncated negatives over the whole run, each iteration weighted by its number of negatives."""
    counted = [row for row in rows if "negatives/truncated" in row and row.get("negatives/count", 1) > 0]
    total = sum(row.get("negatives/count", 1) for row in counted)
    if not counted:
        return None
    return sum(row["negatives/truncated"] * row.get("negatives/count", 1) for row in counted) / total


def health_metrics(data: ReportData) -> dict[str, float]:
    """Measured health numbers as flat metrics."""
    metrics: dict[str, float] = {}
    if data.statistics is not None and "parse_rate" in data.statistics:
        metrics["report/parse_rate"] = data.statistics["parse_rate"]
    for name in ("auroc_real", "auroc_augmented"):
        if data.discriminator_rows and f"discriminator/{name}" in data.discriminator_rows[-1]:
            metrics[f"report/discriminator_{name}"] = data.discriminator_rows[-1][f"discriminator/{name}"]
    if data.method.negatives and (values := series(hinge_rows(data)[0], "train/hinge_active")):
        shares = [share for _, share in values]
        metrics["report/hinge_active_last"] = shares[-1]
        metrics["report/hinge_active_min"], metrics["report/hinge_active_max"] = min(shares), max(shares)
    if data.discriminator_rows:
        metrics["report/online_updates"] = data.online_updates()
    if (share := truncated_share(data.metric_rows)) is not None:
        metrics["report/truncated_negatives"] = share
    return metrics

"""The report's headline: test accuracy of three checkpoints, the gain, the paper's number beside it.

Knows nothing about how a student is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcrd.report.experiment.data import ReportData
from qcrd.report.markdown import NOT_MEASURED, count, table
from qcrd.report.statistics import standard_error

CHECKPOINTS = {"best": "best validation checkpoint", "last": "last checkpoint", "initial": "before training"}


def iteration_of(data: ReportData, checkpoint: str) -> int | None:
    """The iteration after which a checkpoint was taken."""
    if checkpoint == "initial":
        return 0
    return data.training.get("best_iteration" if checkpoint == "best" else "iterations")


def best_step(data: ReportData) -> int | None:
    """The optimizer step of the best validation checkpoint."""
    best = iteration_of(data, "best")
    if best == 0:
        return 0
    return next((row["step"] for row in data.metric_rows if row.get("train/iteration") == best), None)


def measured(data: ReportData, checkpoint: str, split: str) -> tuple[float, float, int] | None:
    """Accuracy, standard error and number of questions."""
    share = data.evaluation.get(f"eval/{split}_accuracy_{checkpoint}")
    error = data.evaluation.get(f"eval/{split}_standard_error_{checkpoint}")
    if share is None or error is None:
        return None
    return share, error, data.num_predictions(checkpoint, split)


def _shown(data: ReportData, checkpoint: str, split: str) -> str:
    found = measured(data, checkpoint, split)
    return NOT_MEASURED if found is None else _with_error(*found)


def _with_error(share: float, error: float, items: int) -> str:
    return f"{100 * share:.1f} % ± {100 * error:.1f} (standard error, n = {items})"


def gain(data: ReportData) -> tuple[float, float | None] | None:
    """Points of test accuracy that the best checkpoint is above the untrained student, and their standard error.

    The error is paired (over the questions that both answered); None for fewer than two.
    """
    best, initial = measured(data, "best", "test"), measured(data, "initial", "test")
    if best is None or initial is None:
        return None
    right = {
        name: {p.question_id: p.right for p in data.predictions if p.checkpoint == name and p.split == "test"}
        for name in ("best", "initial")
    }
    shared = right["best"].keys() & right["initial"].keys()
    steps = [int(right["best"][q]) - int(right["initial"][q]) for q in shared]
    error = standard_error(steps)
    return 100 * (best[0] - initial[0]), None if error is None else 100 * error


def results_of(data: ReportData) -> list[dict[str, Any]]:
    """What is measured first of all, as plain data: test accuracies as shares, the gain in points.

    `value`, `standard_error` and `iteration` are None where they are not measured.
    """
    results: list[dict[str, Any]] = []
    for name in ("best", "last", "initial"):
        share, error, items = measured(data, name, "test") or (None, None, 0)
        results.append({
            "measure": "test accuracy", "checkpoint": name, "iteration": iteration_of(data, name), "value": share,
            "standard_error": error, "items": items,
        })  # fmt: skip
    points, error = gain(data) or (None, None)
    results.append({"measure": "gain", "checkpoint": "best", "value": points, "standard_error": error})
    return results


def result_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results as a person reads them, a sentence each."""
    return [_gain_line(one) if one["measure"] == "gain" else _accuracy_line(one) for one in results]


def _accuracy_line(one: Mapping[str, Any]) -> str:
    shown, iteration = NOT_MEASURED, count(one["iteration"])
    if one["value"] is not None:
        shown = _with_error(one["value"], one["standard_error"], one["items"])
    if one["checkpoint"] == "initial":
        return f"untrained student: {shown}, initial weights (iteration {iteration})"
    return f"test accuracy: {shown}, {CHECKPOINTS[one['checkpoint']]} (iteration {iteration})"


def _gain_line(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return f"gain: {NOT_MEASURED}"
    error = one["standard_error"]
    paired = "" if error is None else f" ± {error:.1f} (paired standard error)"
    return f"gain: {one['value']:+.1f} points{paired}, best validation checkpoint over the untrained student"


def result_section(data: ReportData) -> list[str]:
    """Accuracy lines, and the table beside the paper's number where the paper has the task."""
    lines = ["## Result", "", *(part for line in result_lines(results_of(data)) for part in (line, ""))]
    printed = data.config.printed("test_accuracy", of_any_student=True)
    header = ["checkpoint", "iteration", "test accuracy", "validation accuracy"]
    if printed is not None:
        header.append(printed.heading)
    rows = []
    for name, title in CHECKPOINTS.items():
        row = [title, count(iteration_of(data, name)), _shown(data, name, "test"), _shown(data, name, "validation")]
        if printed is not None:
            row.append(f"{printed.value:.2f} %" if name == "best" else "")
        rows.append(row)
    lines += table(header, rows)
    lines += ["The checkpoint was chosen on the validation questions; the test questions chose nothing.", ""]
    if printed is not None:
        other = " This run trained on other labels, so the two are not the same experiment."
        lines += [printed.note + (other if data.config.train.labels != printed.labels else ""), ""]
    return lines


def headline(data: ReportData) -> dict[str, float]:
    """The measured numbers of this section as flat metrics; accuracies as shares, the gain in points."""
    metrics: dict[str, float] = {}
    for name in CHECKPOINTS:
        suffix = "" if name == "best" else f"_{name}"
        for split in ("test", "validation"):
            if (found := measured(data, name, split)) is not None:
                metrics[f"report/{split}_accuracy{suffix}"] = found[0]
                metrics[f"report/{split}_standard_error{suffix}"] = found[1]
    if (change := gain(data)) is not None:
        metrics["report/gain_points"] = change[0]
        if change[1] is not None:
            metrics["report/gain_standard_error_points"] = change[1]
    return metrics

"""`qcrd compare`: a sweep, some runs or a whole MLflow experiment as one table and one page.

A sweep is read from its own record. Runs are read from MLflow, and from the local records where MLflow is away or does
not know them; those with the same settings but for the seed are one configuration. Knows nothing about Ray.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qcrd.config import ConfigError, TrackingConfig
from qcrd.console import Display
from qcrd.report.sweep.data import Configuration, Status, SweepResults
from qcrd.report.sweep.page import page_of, write_sweep_report
from qcrd.report.sweep.sections import choice_line, counts_line, importance_line, others, ranking, subject_of
from qcrd.report.sweep.statistics import best_choice, importance
from qcrd.storage.atomic import write_atomically
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.output import Storage
from qcrd.tracking.mlflow_runs import ACCURACY, MlflowAway, TrackedRun, experiments, read_runs
from qcrd.tracking.mlflow_server import tracking_uri
from qcrd.tracking.mlflow_tracker import STATE
from qcrd.tracking.provenance import command_line, redacted
from qcrd.tracking.record import ITEMS, read_items, read_metrics

EARLY_STOPPED = "qcrd.early_stopped"
SHOWN = 20
"""Configurations in the terminal's table, and names in an error."""
_IGNORED = ("seed", "name", "output")
_IGNORED_GROUPS = ("resources.", "tracking.", "checkpoint.")
Warn = Callable[[str], None]
logger = logging.getLogger(__name__)


def compare(
    references: Sequence[str], place: str, tracking: TrackingConfig, html: Path | None, display: Display
) -> None:
    """Show the table, which configuration to take, and the fields' importance; write the page.

    `place`: the runs' output, a folder or URL. `html`: the file for the page; default: a whole report in the sweep's
    folder, or in ./comparison. Raises `ConfigError` where nothing is found.
    """
    storage = Storage.of(place).for_reading()
    for folder in ("sweeps", "records"):
        storage.pull(folder)
    output = storage.folder
    results = results_of(references, output, tracking, display.warn)
    show(results, display)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html, page_of(results))
        display.say(f"page: {html}")
        return
    sweep = sweep_folder(references, output)
    folder = Path("comparison") if sweep is None else sweep / "report"
    write_sweep_report(results, folder)
    display.say(f"page: {folder / 'report.html'}")


def show(results: SweepResults, display: Display) -> None:
    """The table, which configuration to take, and the fields' importance."""
    header, rows = ranking(results)
    display.table(subject_of(results), header, rows[:SHOWN])
    if len(rows) > SHOWN:
        display.say(f"{len(rows) - SHOWN} more finished configurations are in the page.")
    header, rows = others(results)
    if rows:
        display.table("Not ranked", header, rows[:SHOWN])
    display.say(counts_line(results))
    choice = best_choice(results)
    display.say(choice_line(results, choice) if choice else "Nothing is finished yet, so nothing is ranked.")
    display.say(importance_line(importance(results)))


def sweep_folder(references: Sequence[str], output: Path) -> Path | None:
    """The folder of a sweep: given as a path, or as its name or key under `<output>/sweeps/`. None for anything else.

    Raises `ConfigError` where several sweeps have that name.
    """
    if len(references) != 1:
        return None
    sweeps, given = output / "sweeps", Path(references[0])
    is_path = os.sep in references[0] or given.resolve().parent.name == "sweeps"  # a bare name may be any folder
    if is_path and given.is_dir():
        return given
    if is_path or not sweeps.is_dir():
        return None
    if (sweeps / given).is_dir():
        return sweeps / given
    found = sorted(one for one in sweeps.iterdir() if re.fullmatch(re.escape(given.name) + "-[0-9a-f]{12}", one.name))
    if len(found) > 1:
        keys = ", ".join(one.name for one in found)
        raise ConfigError(f"REFERENCE: {given.name!r} is the name of several sweeps; give one of {keys}")
    return found[0] if found else None


def results_of(
    references: Sequence[str], output: Path, tracking: TrackingConfig, warn: Warn = logger.warning
) -> SweepResults:
    """What is known of a sweep (its folder, key or name), of runs (ids or names), or of MLflow experiments.

    `warn` is told where the local records stand in for MLflow. Raises `ConfigError` that names what was not found and
    lists what there is.
    """
    folder = sweep_folder(references, output)
    if folder is not None:
        from qcrd.sweeps.record import read_results

        return read_results(folder)
    uri = tracking_uri(tracking, output)
    runs: dict[str, TrackedRun] = {}
    sources: dict[str, None] = {}
    away = ""
    for reference in references:
        found: list[TrackedRun] = []
        if not away:
            try:
                found = read_runs(reference, uri)
            except MlflowAway as error:
                away = str(error)
        if found:
            sources[f"MLflow, {redacted(uri)}"] = None
        else:
            found = local_runs(reference, output)
            if not found:
                raise ConfigError(_not_found(reference, output, uri, away))
            why = f"MLflow cannot be read ({away})" if away else f"MLflow does not know {reference!r}"
            warn(f"{why}; the local records in {output / 'records'} are compared")
            sources[f"local records, {output / 'records'}"] = None
        runs |= {run.id: run for run in found}
    about = {"command": command_line(sys.argv[1:]), "source": "; ".join(sources)}
    return grouped(" ".join(references), list(runs.values()), about)


def _not_found(reference: str, output: Path, uri: str, away: str) -> str:
    """What there is instead, on one line."""
    sweeps = sorted(one.name for one in (output / "sweeps").glob("*") if one.is_dir())
    records = sorted(one.name for one in (output / "records").glob("*") if one.is_dir())
    there = [("sweeps", sweeps), ("local records", records)]
    if not away:
        there.append(("MLflow's experiments", experiments(uri)))
    listed = [f"{what}: {', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)}" for what, names in there if names]
    state = f" (MLflow cannot be read: {away})" if away else ""
    place = "; ".join(listed) or f"nothing in {output}"
    return f"REFERENCE: {reference!r} is no sweep, run or experiment with a training{state}; there is: {place}"


# -- the local records ----------------------------------------------------------------------------------------------


def local_runs(reference: str, output: Path) -> list[TrackedRun]:
    """The trainings of the records that have this name, key, MLflow run id or experiment, or lie below one."""
    root = output / "records"
    wanted: dict[Path, None] = {}
    folders = sorted(path.parent for path in root.rglob(ITEMS))
    for folder in folders:
        state = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {}
        names = {state.get(key) for key in ("run_id", "run_name", "run_key", "experiment")}
        if reference in names | {folder.name, folder.relative_to(root).as_posix()}:
            wanted |= dict.fromkeys(one for one in folders if one.is_relative_to(folder))
    runs = [_local_run(folder, root) for folder in wanted]
    return [run for run in runs if run.is_training]


def _local_run(folder: Path, root: Path) -> TrackedRun:
    items, rows = read_items(folder), read_metrics(folder)
    starts = [item for item in items if item["kind"] == "start"]
    tags = {name: value for item in items if item["kind"] in ("start", "tags") for name, value in item["tags"].items()}
    ends = [item for item in items if item["kind"] in ("start", "end")]  # the newest of both says whether it is over
    accuracy = {int(row["step"]): row[ACCURACY] for row in rows if ACCURACY in row}
    times = [row["time"] for row in rows]
    return TrackedRun(
        id=folder.relative_to(root).as_posix(), name=folder.name,
        params=starts[0]["params"] if starts else {}, tags=tags,
        status=ends[-1].get("status", "RUNNING") if ends else "RUNNING", accuracy=sorted(accuracy.items()),
        metrics={key: value for row in rows for key, value in row.items() if isinstance(value, float)},
        seconds=max(times) - min(times) if times else 0.0,
    )  # fmt: skip


# -- runs as configurations -----------------------------------------------------------------------------------------


def grouped(name: str, runs: Sequence[TrackedRun], about: dict[str, str]) -> SweepResults:
    """Runs with the same settings but for the seed are one configuration; the settings that differ are the fields.

    Of two runs with the same settings and seed, the one that came further counts. Raises `ConfigError` where no run
    has trained.
    """
    groups: dict[str, dict[int, TrackedRun]] = {}
    repeated = 0
    for run in runs:
        if run.status == "FINISHED" and not run.accuracy:
            continue  # it stopped before the student, as a grid's cell of the teacher's accuracy does
        seeds, seed = groups.setdefault(digest_of(_settings(run)), {}), int(run.params.get("seed", 0))
        repeated += seed in seeds
        if seed not in seeds or len(run.accuracy) >= len(seeds[seed].accuracy):
            seeds[seed] = run
    if not groups:
        raise ConfigError(f"REFERENCE: {name!r} has {len(runs)} runs, but none has trained a student")
    firsts = [next(iter(seeds.values())) for seeds in groups.values()]
    keys = list(dict.fromkeys(key for run in firsts for key in _settings(run)))
    fields = tuple(key for key in keys if len({run.params.get(key) for run in firsts}) > 1)
    labels = [re.sub(r"[-_]*seed\d+$", "", run.name) or run.name for run in firsts]
    configurations = [
        _configuration(label if labels.count(label) == 1 else f"{label}-{digest[:6]}", seeds, fields)
        for label, (digest, seeds) in zip(labels, groups.items(), strict=True)
    ]
    if repeated:
        about = {**about, "repeated": f"{repeated} runs with settings and seed of another one are left out"}
    results = SweepResults(
        name=name, title=f"Comparison: {name}" if len(name) <= 60 else f"Comparison of {len(runs)} runs",
        fields=fields, seeds=tuple(sorted({seed for seeds in groups.values() for seed in seeds})),
        configurations=configurations, simulated=any(run.params.get("teacher.kind") == "simulated" for run in firsts),
        task=_all_of("task.name", firsts), method=_all_of("method", firsts), about=about,
    )  # fmt: skip
    _show_test(results, dict(zip([one.key for one in configurations], groups.values(), strict=True)))
    return results


def _settings(run: TrackedRun) -> dict[str, str]:
    """What decides the result, but for the seed."""
    return {k: v for k, v in run.params.items() if k not in _IGNORED and not k.startswith(_IGNORED_GROUPS)}


def _all_of(key: str, runs: Sequence[TrackedRun]) -> str:
    return ", ".join(dict.fromkeys(run.params.get(key, "?") for run in runs))


def _value(text: str | None) -> Any:
    """A parameter's text as number, truth value or list, where it is one."""
    if text is None:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _status(run: TrackedRun) -> Status:
    if run.tags.get(EARLY_STOPPED, "false") != "false":
        return "stopped"
    if run.status in ("FAILED", "KILLED"):
        return "failed"
    return "finished" if run.status == "FINISHED" else "unfinished"


def _configuration(key: str, seeds: dict[int, TrackedRun], fields: Sequence[str]) -> Configuration:
    """The worst of the seeds' states is that of the configuration."""
    states = {seed: _status(run) for seed, run in seeds.items()}
    worst_first: tuple[Status, ...] = ("failed", "unfinished", "stopped", "finished")
    first = next(iter(seeds.values()))
    values = {name: _value(first.params.get(name)) for name in fields}
    return Configuration(
        key=key, values=values,
        status=next(one for one in worst_first if one in states.values()),
        curves={seed: tuple(value for _, value in run.accuracy) for seed, run in sorted(seeds.items())},
        seconds=sum(run.metrics.get("student/seconds", run.seconds) for run in seeds.values()),
        steps=sum(run.accuracy[-1][0] for run in seeds.values() if run.accuracy),
        reason=", ".join(f"seed {seed}: {seeds[seed].status}" for seed, one in states.items() if one == "failed"),
    )  # fmt: skip


def _show_test(results: SweepResults, runs: dict[str, dict[int, TrackedRun]]) -> None:
    """The test accuracy of the best on the validation questions, and of no other: it takes no part in the choice."""
    for best in results.finished[:1]:
        for seed, run in runs[best.key].items():
            if "eval/test_accuracy_best" in run.metrics:
                best.test_accuracy[seed] = run.metrics["eval/test_accuracy_best"]

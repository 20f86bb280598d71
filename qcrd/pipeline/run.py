"""From a config to finished stages: does what is missing, one stage after the other, and records how it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.console import Display
from qcrd.pipeline.check import check, prepare_output, stages_until
from qcrd.pipeline.identity import artifact_of, record_folder, stage_identity
from qcrd.pipeline.recording import start_record
from qcrd.pipeline.stage import Stage, StageRun, Summary, short
from qcrd.pipeline.stages import stages_of
from qcrd.runtime.session import start_ray
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord, read_metrics
from qcrd.tracking.tracker import RunId


@dataclass(frozen=True)
class Options:
    """How a run goes about it; nothing here changes a result.

    `retry_errors`: a finished output with error rows gets a new revision, for which they are asked again: once,
    whatever the number of experiments that share it (`retried`: fingerprint → revision). `accept_missing`: samples that
    the store lacks become error rows; nobody is asked. `until`: the last stage to run; None: all.
    """

    retry_errors: bool = False
    accept_missing: bool = False
    until: str | None = None
    retried: dict[str, int] = field(default_factory=dict)


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class PreparedStage:
    """A stage whose inputs are finished: all that is needed to run it."""

    config: ExperimentConfig
    artifact: Artifact
    identity: dict[str, Any]
    inputs: dict[str, Path]


def open_record(config: ExperimentConfig, display: Display) -> RunRecord:
    """The record of an experiment that is a run of its own."""
    folder = record_folder(config)
    output = Storage.of(config.output).folder
    return open_run_record(folder, RunId(folder.name, config.name), config.tracking, output, display.warn)


@contextlib.contextmanager
def recorded_alone(storage: Storage, *folders: str, display: Display, without: Sequence[str] = ()) -> Iterator[None]:
    """Keep the record in the first of these folders to one process, and mirror all of them (see `Storage.mirror`)."""
    name = folders[0].replace("/", "-")

    def on_wait() -> None:
        display.say(f"{Path(folders[0]).name}: another run is at it; waiting")

    with storage.locked(name, on_wait), storage.mirror(*folders, without=without):
        yield


def run(
    config: ExperimentConfig, display: Display, options: Options = DEFAULT_OPTIONS, record: RunRecord | None = None
) -> dict[str, Artifact]:
    """Run what is missing. Returns the finished artifacts by stage. Raises `ConfigError` before anything is written.

    `record`: where the run is recorded; by default in a record of its own. It is closed at the end.
    """
    check(config, options.until)
    storage = Storage.of(config.output)
    prepare_output(storage)
    with contextlib.ExitStack() as stack:
        if record is None:
            name = storage.name_of(record_folder(config))
            stack.enter_context(recorded_alone(storage, name, display=display))
            record = open_record(config, display)
        start_record(record, config, {})
        status = "FAILED"
        try:
            finished = _run_stages(config, stages_until(config, options.until), display, record, options)
            status = "FINISHED"
            return finished
        finally:
            record.close(status)


def run_inputs_of(
    stage: Stage, config: ExperimentConfig, display: Display, record: RunRecord, options: Options
) -> None:  # fmt: skip
    """Run what is missing of the stages before `stage`."""
    _run_stages(config, stages_until(config, stage.name)[:-1], display, record, replace(options, until=stage.name))


def prepared(stage: Stage, config: ExperimentConfig) -> PreparedStage:
    """A stage of an experiment whose stages before it are finished. Raises `ValueError` where one is not."""
    finished: dict[str, Artifact] = {}
    for before in stages_until(config, stage.name)[:-1]:
        artifact = artifact_of(config, before, finished)
        if artifact is None or not artifact.is_finished():
            raise ValueError(f"{config.name}: stage {before.name} is not finished")
        finished[before.name] = artifact
    artifact = artifact_of(config, stage, finished)
    assert artifact is not None
    inputs = {name: finished[name].fetch() for name in stage.inputs(config)}
    return PreparedStage(config, artifact, stage_identity(config, stage, finished), inputs)


def headline(
    config: ExperimentConfig, finished: Mapping[str, Artifact]
) -> tuple[list[list[str]], list[str]]:  # fmt: skip
    """What a person wants to see at the end, by all finished stages: rows (what was measured, value), and the lines
    that stand last."""
    rows: list[list[str]] = []
    lines: list[str] = []
    for stage in stages_of(config):
        if stage.name in finished:
            summary = finished[stage.name].marker()["summary"]
            rows += stage.headline(summary)
            lines += stage.closing_lines(summary)
    return rows, lines


def _run_stages(
    config: ExperimentConfig, stages: Sequence[Stage], display: Display, record: RunRecord, options: Options
) -> dict[str, Artifact]:
    finished: dict[str, Artifact] = {}
    summaries: dict[str, Summary] = {}
    recorded = {row["stage"] for row in read_metrics(record.folder)}
    there: list[str] = []
    for position, stage in enumerate(stages):
        artifact = artifact_of(config, stage, finished)
        assert artifact is not None
        if options.retry_errors and artifact.is_finished() and stage.errors(artifact.marker()["summary"]):
            revision = options.retried.setdefault(artifact.fingerprint, artifact.revision + 1)
            artifact = replace(artifact, revision=revision)
        skipped = artifact.is_finished()
        if not skipped:
            if stage.costs_money:
                for later in stages[position:]:
                    later.check_inputs_to_come(config)
            start_ray()
            with artifact.locked(lambda: display.say(f"  {stage.name}: another run is at it; waiting")):  # noqa: B023
                skipped = artifact.is_finished()
                if not skipped:
                    display.stages_skipped(there)
                    there = []
                    _run_stage(config, stage, artifact, finished, summaries, display, record, options)
        if skipped:
            there.append(stage.name)
        finished[stage.name] = artifact
        summaries[stage.name] = artifact.marker()["summary"]
        _record_stage(config, stage, artifact, record, recorded, skipped)
    display.stages_skipped(there)
    return finished


def _run_stage(
    config: ExperimentConfig, stage: Stage, artifact: Artifact, finished: Mapping[str, Artifact],
    summaries: Mapping[str, Summary], display: Display, record: RunRecord, options: Options,
) -> None:  # fmt: skip
    inputs = {name: finished[name] for name in stage.inputs(config)}
    identity = stage_identity(config, stage, finished)
    display.stage_started(stage.name)
    started = time.perf_counter()
    summary = stage.run(
        StageRun(
            config, stage.name, {name: one.fetch() for name, one in inputs.items()}, dict(summaries), artifact.begin(),
            artifact.fingerprint, identity, display, record, options.retry_errors, options.accept_missing,
        )
    )  # fmt: skip
    artifact.finish(identity["settings"], identity["inputs"], summary)
    shown = ", ".join(f"{key} {short(value)}" for key, value in summary.items() if not isinstance(value, dict | list))
    display.stage_finished(stage.name, time.perf_counter() - started, shown)
    if errors := stage.errors(summary):
        display.warn(f"{errors} {stage.name} are error rows; --retry-errors asks just those again")


def _record_stage(
    config: ExperimentConfig, stage: Stage, artifact: Artifact, record: RunRecord, recorded: set[str], skipped: bool
) -> None:
    """What the record of this run, which has rows of `recorded`, lacks of a finished stage."""
    if skipped and stage.name not in recorded and (rows := stage.metric_rows(artifact.fetch())) is not None:
        record.restart_stage(stage.name, rows)
    if f"{stage.name}_summary" not in recorded:
        record.log(f"{stage.name}_summary", _numbers(stage.name, artifact.marker()["summary"]))
    stage.track(record, artifact, config)


def _numbers(stage: str, summary: Summary) -> dict[str, float]:
    """A summary's numbers as metrics, with the stage's name before keys that have none."""
    flat: dict[str, float] = {}
    for key, value in summary.items():
        name = key if "/" in key else f"{stage}/{key}"
        if isinstance(value, dict):
            flat |= {f"{name}_{inner}": float(v) for inner, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat

"""What a stage's output and an experiment are known by, and where a stage's output lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.pipeline.stage import Stage
from qcrd.pipeline.stages import STAGES, stages_of
from qcrd.storage.artifacts import Artifact
from qcrd.storage.fingerprints import digest_of, fingerprint
from qcrd.storage.output import Storage


def stage_identity(config: ExperimentConfig, stage: Stage, finished: Mapping[str, Artifact]) -> dict[str, Any]:
    """What a stage's fingerprint stands for; its inputs must be finished, since their content is a part of it."""
    digests = {name: finished[name].digest() for name in stage.inputs(config)}
    return {"version": stage.version, "settings": stage.settings(config), "inputs": digests}


def artifact_of(config: ExperimentConfig, stage: Stage, finished: Mapping[str, Artifact]) -> Artifact | None:
    """Where a stage's output lies; None while an input is not finished."""
    if any(name not in finished for name in stage.inputs(config)):
        return None
    identity = stage_identity(config, stage, finished)
    name = config.task.name if stage.of_task else config.name
    mark = fingerprint(stage.name, identity["version"], identity["settings"], identity["inputs"])
    return Artifact(Storage.of(config.output), stage.name, name, mark).newest()


def experiment_identity(config: ExperimentConfig) -> dict[str, list[Any]]:
    """All that decides an experiment's numbers: version and settings of each of its stages but the last, which only
    shows them. Without paths, hardware, tracking, and how replies are got."""
    return {stage.name: [stage.version, stage.settings(config)] for stage in stages_of(config) if stage != STAGES[-1]}


def record_folder(config: ExperimentConfig) -> Path:
    """Where an experiment's local record lies: one folder for one experiment, wherever it runs."""
    key = digest_of(experiment_identity(config))[:12]
    return Storage.of(config.output).folder / "records" / f"{config.name}-{key}"

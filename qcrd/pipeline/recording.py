"""What the record of a run says of an experiment: its settings, flat parameters and tags."""

from __future__ import annotations

from collections.abc import Mapping

from qcrd.config import ExperimentConfig, flatten
from qcrd.teacher.backends.table import backend_of
from qcrd.tracking.record import RunRecord


def start_record(record: RunRecord, config: ExperimentConfig, tags: Mapping[str, str]) -> None:
    """`RunRecord.start` for a run that is one experiment; `tags` beside those that every experiment has."""
    own = {
        "qcrd.method": config.method,
        "qcrd.task": config.task.name,
        "qcrd.simulated": str(backend_of(config.teacher).simulated).lower(),
    }
    record.start(config.model_dump(mode="json"), flatten(config), {**own, **tags})

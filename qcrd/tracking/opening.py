"""Opens the record of a run, with the tracker that the settings ask for: MLflow, or none."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from qcrd.config import TrackingConfig
from qcrd.tracking.mlflow_tracker import MlflowTracker
from qcrd.tracking.record import RunRecord
from qcrd.tracking.tracker import NoTracker, RunId, Tracker, Warn

logger = logging.getLogger(__name__)


def open_run_record(
    folder: Path, run: RunId, tracking: TrackingConfig, output: Path, warn: Warn = logger.warning,
    outage_told: threading.Event | None = None,
) -> RunRecord:  # fmt: skip
    """The record in `folder`, which may be there. `output`: what the paths in the record begin at. `outage_told`: see
    `RunRecord`."""
    return RunRecord(folder, output, tracker_of(tracking, folder, run, output, warn), warn, outage_told)


def tracker_of(tracking: TrackingConfig, folder: Path, run: RunId, output: Path, warn: Warn) -> Tracker:
    """The tracker of a run whose record lies in `folder`."""
    return MlflowTracker(folder, run, tracking, output.resolve(), warn) if tracking.enabled else NoTracker()

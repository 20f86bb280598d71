"""What a run's record says of its place in MLflow, for tests."""

from __future__ import annotations

import json

from qcrd.tracking.mlflow_tracker import STATE
from qcrd.tracking.record import RunRecord


def id_of(run: RunRecord) -> str:
    """MLflow's id of a run that it has."""
    return json.loads((run.folder / STATE).read_text())["run_id"]

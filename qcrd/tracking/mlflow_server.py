"""How MLflow is reached: where it is, whether it answers, its import, its tables where it is a SQLite file.

Beside this only the other `mlflow_…` files import mlflow, once a run starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from pathlib import Path

from qcrd.config import TrackingConfig
from qcrd.storage.atomic import staged
from qcrd.tracking.provenance import redacted

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # for large uploads; whether a server answers at all is asked with less
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def tracking_uri(tracking: TrackingConfig, output: Path) -> str:
    """The setting, else MLFLOW_TRACKING_URI, else a SQLite file in the output folder."""
    default = f"sqlite:///{output.resolve() / 'mlflow.db'}"
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def server_of(tracking: TrackingConfig, output: Path) -> dict[str, str]:
    """Where MLflow has a run, as its state says it."""
    return {"uri": redacted(tracking_uri(tracking, output)), "experiment": tracking.experiment}


def import_mlflow() -> None:
    """Import mlflow, impatient and quiet. What the user has set in the environment stays."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401

    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # urllib3 would tell of each retry
        logging.getLogger(name).setLevel(logging.ERROR)


def create_database(uri: str) -> None:
    """Make MLflow's tables where the SQLite file is not there. It appears whole: MLflow makes them in dozens of steps,
    and could not go on where a crash had cut it off."""
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path) as new:
        MlflowClient(tracking_uri=f"sqlite:///{new}", registry_uri=f"sqlite:///{new}").search_experiments()


def ask_server(uri: str) -> None:
    """Raise `OSError` within seconds where no server answers; any answer will do, also an error."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    with contextlib.suppress(requests.exceptions.SSLError):
        requests.get(uri.rstrip("/") + "/health", timeout=(3, 5), stream=True).close()

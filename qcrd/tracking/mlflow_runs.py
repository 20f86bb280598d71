"""Runs as MLflow has them, read only. Knows nothing about sweeps, files or reports; imports mlflow once it is asked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcrd.tracking.mlflow_server import ask_server, import_mlflow
from qcrd.tracking.provenance import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ACCURACY = "eval/accuracy"
"""Validation accuracy, one value after each iteration; its step counts optimizer steps."""


class MlflowAway(Exception):
    """MLflow cannot be read; the message says why in one line."""


@dataclass(frozen=True)
class TrackedRun:
    """One experiment with one seed, as a tracker or the local record has it."""

    id: str
    name: str
    params: dict[str, str]
    """Dotted key → value as text."""
    tags: dict[str, str]
    status: str
    """MLflow's: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    accuracy: list[tuple[int, float]]
    """(optimizer step, validation accuracy), an entry an iteration."""
    metrics: dict[str, float]
    """The newest value of each metric."""
    seconds: float
    """From its start to its end, or to the newest value while it has none."""

    @property
    def is_training(self) -> bool:
        """A grid's or a sweep's own run has no method."""
        return "method" in self.params


def read_runs(reference: str, uri: str) -> list[TrackedRun]:
    """The trainings of a run id, an experiment or a run's name; of a parent run, those of its children. In order of
    their start; empty where MLflow has no such. Raises `MlflowAway`."""
    with _client(uri) as client:
        return [_read(client, run) for run in _runs(client, reference) if "method" in run.data.params]


def experiments(uri: str) -> list[str]:
    """The names of all experiments. Raises `MlflowAway`."""
    with _client(uri) as client:
        return [one.name for one in client.search_experiments()]


@contextlib.contextmanager
def _client(uri: str) -> Iterator[MlflowClient]:
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("sqlite:") and not path.exists():  # MLflow would make it
        raise MlflowAway(f"{path} does not exist")
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        ask_server(uri)
    except OSError as error:
        raise MlflowAway(f"no answer from {redacted(uri)}") from error
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (OSError, MlflowException, SQLAlchemyError) as error:
        reason = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:300]
        raise MlflowAway(reason) from error


def _runs(client: MlflowClient, reference: str) -> list[Run]:
    if re.fullmatch(r"[0-9a-f]{32}", reference):
        found = _run(client, reference)
    elif (experiment := client.get_experiment_by_name(reference)) is not None:
        return _search(client, [experiment.experiment_id], "")
    elif "'" in reference:  # a query has no way to write it
        return []
    else:
        everywhere = [one.experiment_id for one in client.search_experiments()]
        found = _search(client, everywhere, f"attributes.run_name = '{reference}'")
    runs: list[Run] = []
    for run in found:
        child = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        is_parent = "method" not in run.data.params
        runs += _search(client, [run.info.experiment_id], child) if is_parent else [run]
    return runs


def _run(client: MlflowClient, run_id: str) -> list[Run]:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    return [run] if run.info.lifecycle_stage == "active" else []


def _search(client: MlflowClient, experiment_ids: Sequence[str], query: str) -> list[Run]:
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            list(experiment_ids), query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def _read(client: MlflowClient, run: Run) -> TrackedRun:
    info, data = run.info, run.data
    history = client.get_metric_history(info.run_id, ACCURACY) if ACCURACY in data.metrics else []
    newest = max((metric.timestamp for metric in history), default=info.start_time)
    by_step = {metric.step: metric.value for metric in sorted(history, key=lambda one: (one.step, one.timestamp))}
    return TrackedRun(
        id=info.run_id, name=info.run_name or info.run_id, params=dict(data.params), tags=dict(data.tags),
        status=info.status, accuracy=list(by_step.items()), metrics=dict(data.metrics),
        seconds=((info.end_time or newest) - info.start_time) / 1000,
    )  # fmt: skip

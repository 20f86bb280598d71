"""A run's copy in MLflow: found or made, and sent what it lacks of the local record.

Imports mlflow once a run starts. What MLflow has is kept in the run's folder (`mlflow.json`), so that nothing is sent
twice. Knows nothing about threads, nor when a sync is due (record.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcrd.config import TrackingConfig
from qcrd.storage.atomic import write_atomically
from qcrd.storage.locks import locked
from qcrd.tracking.mlflow_models import register, send_student
from qcrd.tracking.mlflow_server import ask_server, create_database, import_mlflow, server_of, tracking_uri
from qcrd.tracking.provenance import redacted
from qcrd.tracking.record import ITEMS, read_items, read_metrics
from qcrd.tracking.tracker import RESERVED, Item, MetricRow, RunId, Warn

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "mlflow.json"
RUN_KEY = "qcrd.run_key"
# MLflow's limits
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 5000, 36


class MlflowTracker:
    """The MLflow side of one run: a `Tracker`."""

    name = "MLflow"

    def __init__(self, folder: Path, run: RunId, tracking: TrackingConfig, output: Path, warn: Warn) -> None:
        """`folder`: of the run's record. `output`: what paths in the record begin at."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._output, self._warn, self._parent = folder, output, warn, run.parent
        self._uri, self._experiment = tracking_uri(tracking, output), tracking.experiment
        self._log_model = tracking.log_model
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self.progress = time.monotonic()
        place = {"run_key": run.key, **server_of(tracking, output)}
        saved = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {}
        if {key: saved.get(key) for key in place} != place:  # new, or another server: begin anew there
            saved = {**place, **self._nothing_sent()}
        self.state: dict[str, Any] = {**saved, "run_name": run.name, "parent": run.parent}
        self._again: list[int] = list(self.state["failed"])
        self._save()

    @staticmethod
    def _nothing_sent() -> dict[str, Any]:
        """`sent`, `sending`: stage → metric → step. `items`: how many are done. `failed`: which could not be.
        `has_parent`: whether the run is tagged as a part of its parent."""
        nothing = {"run_id": None, "params": False, "sent": {}, "sending": {}, "items": 0, "failed": []}
        return {**nothing, "has_parent": False}

    def _save(self) -> None:
        write_atomically(self._folder / STATE, json.dumps(self.state, indent=1) + "\n")
        self.progress = time.monotonic()

    def begin(self) -> bool:
        import_mlflow()
        return True

    def sync(self, rows: Sequence[MetricRow], items: Sequence[Item]) -> None:
        """Send what MLflow lacks of these rows and items."""
        try:
            ask_server(self._uri)
            client = self._client or self._connect(items)
            self._link_to_parent(client)
            self._settle(client)
            self._send_params(client, items)
            self._send_metrics(client, rows)
            self._send_items(client, items)
        except Exception:
            self._client = None
            raise

    def _connect(self, items: Sequence[Item]) -> MlflowClient:
        """Find the experiment and the run, or make them."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        local = self._uri.startswith("sqlite:")
        with locked(self._output / ".mlflow.lock") if local else contextlib.nullcontext():
            if local:
                create_database(self._uri)
            client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                place = (self._output / "mlflow-artifacts").as_uri() if local else None
                try:
                    client.create_experiment(self._experiment, artifact_location=place)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                found = client.get_experiment_by_name(self._experiment)
        assert found is not None
        self._experiment_id = found.experiment_id
        self.progress = time.monotonic()
        if not self._run_exists(client):
            fresh = self._nothing_sent() if self.state["run_id"] else {}  # somebody has deleted it
            query = f"tags.`{RUN_KEY}` = '{self.state['run_key']}'"
            runs = client.search_runs([self._experiment_id], query, max_results=1)
            tags = {RUN_KEY: self.state["run_key"], "mlflow.source.name": "qcrd"}
            start = next((item for item in items if item["kind"] == "start"), {})
            run = runs[0] if runs else client.create_run(
                self._experiment_id, _milliseconds(start), tags | start.get("tags", {}), self.state["run_name"]
            )  # fmt: skip
            self.state |= {**fresh, "run_id": run.info.run_id, "params": bool(run.data.params)}
            self._save()
        self._client = client
        return client

    def _run_exists(self, client: MlflowClient) -> bool:
        from mlflow.exceptions import MlflowException

        if self.state["run_id"] is None:
            return False
        try:
            return client.get_run(self.state["run_id"]).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _link_to_parent(self, client: MlflowClient) -> None:
        """Tag the run as a part of its parent, once that is there."""
        if self._parent is None or self.state.get("has_parent"):
            return
        query = f"tags.`{RUN_KEY}` = '{self._parent}'"
        found = client.search_runs([self._experiment_id], query, max_results=1)
        if found:
            client.set_tag(self.state["run_id"], "mlflow.parentRunId", found[0].info.run_id)
            self.state["has_parent"] = True
            self._save()

    def _settle(self, client: MlflowClient) -> None:
        """Ask whether a batch arrived whose sending a crash or a timeout cut off."""
        if not self.state["sending"]:
            return
        for stage, steps in self.state["sending"].items():
            for key, step in steps.items():
                history = client.get_metric_history(self.state["run_id"], _metric_name(key))
                if any(metric.step >= step for metric in history):
                    self.state["sent"].setdefault(stage, {})[key] = step
        self.state["sending"] = {}
        self._save()

    def _send_params(self, client: MlflowClient, items: Sequence[Item]) -> None:
        """Parameters cannot change in MLflow: those of the first start stay."""
        from mlflow.entities import Param

        first = next((item for item in items if item["kind"] == "start"), None)
        if self.state["params"] or first is None:
            return
        params = [Param(key, value[:PARAM_LENGTH]) for key, value in first["params"].items()]
        for begin in range(0, len(params), PARAMS_PER_BATCH):
            client.log_batch(self.state["run_id"], params=params[begin : begin + PARAMS_PER_BATCH])
        self.state["params"] = True
        self._save()

    def _send_metrics(self, client: MlflowClient, rows: Sequence[MetricRow]) -> None:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        steps: dict[str, dict[str, int]] = {}
        for row in rows:
            stage, step, stamp = row["stage"], row["step"], round(row["time"] * 1000)
            for key, value in row.items():
                newest = steps.get(stage, {}).get(key, self.state["sent"].get(stage, {}).get(key))
                if key in RESERVED or (newest is not None and step <= newest):
                    continue
                batch.append(Metric(_metric_name(key), value, stamp, step))
                steps.setdefault(stage, {})[key] = step
                if len(batch) == METRICS_PER_BATCH:
                    self._send_batch(client, batch, steps)
                    batch, steps = [], {}
        if batch:
            self._send_batch(client, batch, steps)

    def _send_batch(self, client: MlflowClient, batch: Sequence[Any], steps: dict[str, dict[str, int]]) -> None:
        """Send one batch; the intention is on disk before, so that a crash in between leaves no doubt."""
        self.state["sending"] = steps
        self._save()
        client.log_batch(self.state["run_id"], metrics=batch)
        for stage, newest in steps.items():
            self.state["sent"].setdefault(stage, {}).update(newest)
        self.state["sending"] = {}
        self._save()

    def _send_items(self, client: MlflowClient, items: Sequence[Item]) -> None:
        """Send new items, and once more those that failed in an earlier process."""
        again, self._again = [index for index in self._again if index < self.state["items"]], []
        for index in [*again, *range(self.state["items"], len(items))]:
            failed = set(self.state["failed"]) - {index}
            try:
                self._send_item(client, items[index])
            except Exception as error:  # noqa: BLE001 - one bad item must not hold up the others
                client.get_run(self.state["run_id"])  # raises where MLflow is away: then all of it waits
                failed.add(index)
                reason = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:300]
                self._warn(f"MLflow does not get {items[index]['kind']} {items[index].get('path', '')} ({reason})")
            self.state |= {"failed": sorted(failed), "items": max(self.state["items"], index + 1)}
            self._save()

    def _send_item(self, client: MlflowClient, item: Item) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag

        run_id = self.state["run_id"]
        if item["kind"] == "start":
            tags = [RunTag(key, str(value)[:TAG_LENGTH]) for key, value in item["tags"].items()]
            client.log_batch(run_id, tags=tags)
            client.update_run(run_id, status="RUNNING", name=self.state["run_name"])
        elif item["kind"] == "artifact":
            path = self._output / item["path"]
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(run_id, str(path), item["folder"] or None)
        elif item["kind"] == "dataset":
            source, profile = json.dumps({"uri": item["source"]}), json.dumps({"num_rows": item["num_rows"]})
            data = Dataset(item["name"], item["digest"][:DIGEST_LENGTH], "local", source, profile=profile)
            client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", item["context"])])])
        elif item["kind"] == "student" and self._log_model:
            send_student(client, self._experiment_id, run_id, item, self._output / item["path"], self._folder)
        elif item["kind"] == "register" and self._log_model:
            register(client, self._experiment_id, item)
        elif item["kind"] == "tags":
            client.log_batch(run_id, tags=[RunTag(key, str(value)[:TAG_LENGTH]) for key, value in item["tags"].items()])
        elif item["kind"] == "end":
            client.set_terminated(run_id, item["status"], _milliseconds(item))


def _milliseconds(item: Mapping[str, Any]) -> int | None:
    """When an item was recorded, which may be long before MLflow gets it."""
    return round(item["time"] * 1000) if "time" in item else None


def _metric_name(key: str) -> str:
    """The name with what MLflow does not allow replaced."""
    return re.sub(r"[^\w\-. /:]", "_", key)[:NAME_LENGTH]


def is_behind(folder: Path, tracking: TrackingConfig, output: Path) -> bool:
    """Whether MLflow lacks something of a run that is over, as far as its folder tells."""
    if not tracking.enabled or not (folder / ITEMS).exists():
        return False
    state = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {}
    server = server_of(tracking, output)
    if {key: state.get(key) for key in server} != server:
        return True
    if state.get("parent") is not None and not state.get("has_parent"):
        return True
    newest: dict[str, dict[str, int]] = {}
    for row in read_metrics(folder):
        for key in row.keys() - RESERVED:
            steps = newest.setdefault(row["stage"], {})
            steps[key] = max(row["step"], steps.get(key, row["step"]))
    unsent = any(state["sent"].get(stage, {}).get(key, -1) < step for stage, steps in newest.items()
                 for key, step in steps.items())  # fmt: skip
    return unsent or bool(state["failed"]) or state["items"] < len(read_items(folder))

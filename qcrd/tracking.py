"""The record of a run: local files are the truth, MLflow is a view of them.

A run's folder holds `config.json`, `metrics.jsonl` (a row a line), `items.jsonl` (everything else MLflow should show)
and `mlflow.json` (how far MLflow has got). One background thread copies what is new to MLflow. Where MLflow cannot be
reached the run goes on after one warning, and the next sync, or the next `qcrd run`, copies the rest. This module knows
nothing about stages, Ray or models. Beside it only `mlflow_runs.py`, which reads, and `mlflow_student.py` import
mlflow; it does so once a run starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import re
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qcrd.artifacts import file_digest, folder_digest, write_atomically
from qcrd.config import ExperimentConfig, TrackingConfig, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS, ITEMS, STATE, CONFIG = "metrics.jsonl", "items.jsonl", "mlflow.json", "config.json"
RUN_KEY, DIGEST = "qcrd.run_key", "qcrd.digest"
SYNC_SECONDS = 5.0  # between two syncs
RETRY_SECONDS = 60.0  # after a sync that failed
PROGRESS_SECONDS = 60.0  # the longest wait for a sync that makes no progress
OUTAGE_SECONDS = 10.0  # the same where the last sync had failed
# MLflow's limits
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 5000, 36
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # for large uploads; whether a server answers at all is asked with less
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
RESERVED = {"stage", "step", "time"}  # what every row has besides its metrics
Row = dict[str, Any]
Warn = Callable[[str], None]
logger = logging.getLogger(__name__)


def redacted(value: Any) -> Any:
    """Plain data without the user:password part of any URL in it."""
    if isinstance(value, str):
        return re.sub(r"://[^/@\s]+@", "://***@", value)
    if isinstance(value, Mapping):
        return {key: redacted(child) for key, child in value.items()}
    return [redacted(child) for child in value] if isinstance(value, list | tuple) else value


def git_state(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder`, and whether tracked files differ from it; "unknown" without one."""
    try:
        commit, status = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": "unknown"}
    return {"commit": commit.stdout.strip(), "dirty": "true" if status.stdout.strip() else "false"}


def read_metrics(folder: Path) -> list[Row]:
    """All metric rows of a run's folder: {"stage", "step", "time", metric: float}. A torn last line is left out."""
    return [{k: v if k in RESERVED else float(v) for k, v in row.items()} for row in _read_lines(folder / METRICS)]


def read_items(folder: Path) -> list[dict[str, Any]]:
    """All else that a run's folder records, oldest first: {"kind": "start", "time", "params", "tags"}, {"kind": "end",
    "time", "status"}, artifacts, data sets and students."""
    return _read_lines(folder / ITEMS)


def tracking_uri(tracking: TrackingConfig, output: Path) -> str:
    """The setting, else MLFLOW_TRACKING_URI, else a SQLite file in the output folder."""
    default = f"sqlite:///{output.resolve() / 'mlflow.db'}"
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; what stands after the last line end was torn by a crash."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)


def _line(row: Mapping[str, Any]) -> str:
    """A row as one line of valid JSON, which has no NaN and no infinity: they are written as text."""
    safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe, ensure_ascii=False, allow_nan=False) + "\n"


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line. Raises `OSError` that names the file."""
    try:
        with path.open("a") as stream:
            stream.write(_line(row))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class RunRecord:
    """One run: its local record, and the thread that copies it to MLflow. Methods may be called from any thread.

    `run_key` is the identity of the experiment: the same key continues the same MLflow run. Within one stage the steps
    of a metric rise; a step that MLflow already has is not sent again. `warn` gets what a person should know.
    """

    def __init__(
        self,
        folder: Path,
        run_key: str,
        run_name: str,
        tracking: TrackingConfig,
        output: Path,
        warn: Warn = logger.warning,
        parent: str | None = None,
        outage_told: threading.Event | None = None,
    ) -> None:
        """`parent`: the key of the run that this one is a part of. `outage_told`: that of another record, so that a
        person is told once for both that MLflow is away."""
        folder.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(folder / METRICS)
        _cut_torn_line(folder / ITEMS)
        self.folder, self._output, self._warn = folder, output.resolve(), warn
        self._rows, self._items = read_metrics(folder), read_items(folder)
        self._view = None
        if tracking.enabled:
            self._view = _View(folder, run_key, run_name, tracking, self._output, warn, parent)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked = self._answered = 0  # tickets of `flush`
        self._stopping = False
        self._failing = False
        self.outage_told = outage_told or threading.Event()
        self._copied: tuple[list[Row], int] = ([], 0)  # list of rows, and how many of them MLflow has

    def start(self, config: ExperimentConfig, tags: Mapping[str, str]) -> None:
        """Write the configuration, note the run as running, and begin to copy to MLflow."""
        own = {
            "qcrd.method": config.method,
            "qcrd.task": config.task.name,
            "qcrd.simulated": str(config.teacher.kind == "simulated").lower(),
        }
        self.start_with(config.model_dump(mode="json"), flatten(config), {**own, **tags})

    def start_with(self, settings: Mapping[str, Any], params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """`start` for a run that is not one experiment."""
        text = json.dumps(redacted(settings), indent=2, ensure_ascii=False)
        write_atomically(self.folder / CONFIG, text + "\n")
        code = git_state(Path(__file__).parent)
        own = {"qcrd.git_commit": code["commit"], "qcrd.git_dirty": code["dirty"]}
        shown = {key: str(redacted(value)) for key, value in params.items()}
        self._add({"kind": "start", "time": time.time(), "tags": {**own, **tags}, "params": shown})
        self.begin_sync()

    def log(self, stage: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Append one row. Metric names are complete, as in `train/label_loss`."""
        if reserved := RESERVED & metrics.keys():
            raise ValueError(f"metric {sorted(reserved)[0]!r} is not allowed; {', '.join(sorted(RESERVED))} name a row")
        row = self._row(stage, {**metrics, "step": step})
        with self._lock:
            self._rows.append(row)
            _append(self.folder / METRICS, row)

    def restart_stage(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put `rows` ({"step", metric: value}, "time" if known) in place of all rows of a stage, when it is resumed."""
        fresh = [self._row(stage, row) for row in rows]
        with self._lock:
            self._rows = [row for row in self._rows if row["stage"] != stage] + fresh
            write_atomically(self.folder / METRICS, "".join(map(_line, self._rows)))

    def add_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or what a folder holds, to the run's artifact folder `folder`; again if it has changed."""
        digest = folder_digest(path) if path.is_dir() else file_digest(path)
        self._add({"kind": "artifact", "path": self._relative(path), "folder": folder, "digest": digest})

    def add_dataset(self, name: str, digest: str, num_rows: int, source: str, context: str) -> None:
        """Name a data set as the run's input, e.g. context "training". No data is copied."""
        profile = {"digest": digest, "num_rows": num_rows, "source": redacted(source), "context": context}
        self._add({"kind": "dataset", "name": name, **profile})

    def add_student(self, folder: Path, name: str = "student") -> None:
        """Log a student (model, tokenizer, `qcrd.json`) as an MLflow model, once for each content."""
        if not (folder / "qcrd.json").is_file():
            raise ValueError(f"{folder}: a student's folder holds qcrd.json, this one does not")
        self._add({"kind": "student", "path": self._relative(folder), "name": name, "digest": folder_digest(folder)})

    def register_student(self, folder: Path, name: str, alias: str) -> None:
        """Register a student that some run has logged (`add_student`) as a version of a model, and give it an alias.

        MLflow must have the student by then. To register once more is to try once more, and makes no second version.
        """
        digest = folder_digest(folder)
        self._add({"kind": "register", "path": self._relative(folder), "name": name, "alias": alias, "digest": digest})

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Tags that are known only later."""
        self._add({"kind": "tags", "tags": dict(tags)})

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run, once MLflow has been reached."""
        return self._view.state["run_id"] if self._view else None

    def begin_sync(self) -> None:
        """Start the thread. The caller imports mlflow: two threads that import at once can get half a module."""
        if self._view is None or self._thread is not None:
            return
        try:
            import_mlflow()
        except Exception as error:  # noqa: BLE001 - a broken tracker must not end a run; the local record goes on
            self._outage(error)
            return
        self._thread = threading.Thread(target=self._run, name="qcrd-mlflow", daemon=True)
        self._thread.start()

    def flush(self) -> bool:
        """Wait until MLflow has all recorded before this call. False where it cannot be reached or stands still."""
        if self._view is None or self._thread is None:
            return False
        with self._lock:
            self._asked += 1
            ticket = self._asked
        limit = OUTAGE_SECONDS if self._failing else PROGRESS_SECONDS
        self._wake.set()
        since = time.monotonic()
        while self._answered < ticket:
            if time.monotonic() - max(since, self._view.progress) > limit:
                self._outage(TimeoutError(f"no progress for {limit:.0f} s"))
                return False
            time.sleep(0.02)
        return not self._failing

    def close(self, status: Literal["FINISHED", "FAILED"], wait: bool = True) -> None:
        """Note how the run ended, and give MLflow a last, bounded chance to catch up; `wait` until then."""
        self._add({"kind": "end", "time": time.time(), "status": status})
        if wait:
            self.flush()
        self.stop()

    def join(self) -> None:
        """Wait, after `stop`, for the last sync, as long as it makes progress."""
        while self._thread is not None and self._view is not None and self._thread.is_alive():
            self._thread.join(0.1)
            if time.monotonic() - self._view.progress > PROGRESS_SECONDS:
                return

    def catch_up(self) -> bool:
        """Copy what MLflow lacks of a run that is over. False where MLflow cannot be reached."""
        self.begin_sync()
        done = self.flush()
        self.stop()
        if done:
            self.join()
        return done

    def stop(self) -> None:
        """End the thread after its present sync, without waiting for it."""
        self._stopping = True
        self._wake.set()

    def _relative(self, path: Path) -> str:
        path = path.resolve()
        return str(path.relative_to(self._output) if path.is_relative_to(self._output) else path)

    def _row(self, stage: str, row: Mapping[str, Any]) -> Row:
        metrics = {key: float(value) for key, value in row.items() if key not in RESERVED}
        return {"stage": stage, "step": int(row["step"]), "time": float(row.get("time", time.time())), **metrics}

    def _add(self, item: dict[str, Any]) -> None:
        """Append an item, unless the newest of its kind and place says the same already."""
        with self._lock:
            if item["kind"] not in ("start", "end", "register"):
                place = [item.get(key) for key in ("kind", "path", "folder", "name", "context")]
                keys = ("kind", "path", "folder", "name", "context")
                same = [old for old in self._items if [old.get(key) for key in keys] == place]
                if same and same[-1] == item:
                    return
            self._items.append(item)
            _append(self.folder / ITEMS, item)

    def _run(self) -> None:
        while True:
            asked, stopping = self._asked, self._stopping
            try:
                self._sync()
                self._failing = False
            except Exception as error:  # noqa: BLE001 - whatever goes wrong with a tracker must not end a run
                self._failing = True
                self._outage(error)
                asked = self._asked  # who has begun to wait meanwhile need not wait for a second failure
            self._answered = asked
            if stopping:
                return
            self._wake.wait(RETRY_SECONDS if self._failing else SYNC_SECONDS)
            self._wake.clear()

    def _sync(self) -> None:
        assert self._view is not None
        with self._lock:
            rows, count, items = self._rows, len(self._rows), list(self._items)
        begin = self._copied[1] if self._copied[0] is rows else 0
        self._view.sync(rows[begin:count], items)
        self._copied = (rows, count)

    def _outage(self, error: Exception) -> None:
        if not self.outage_told.is_set():
            self.outage_told.set()
            reason = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:300]
            self._warn(f"MLflow cannot be written, the record in {self.folder} goes on and is copied later ({reason})")


def backfill(folder: Path, tracking: TrackingConfig, output: Path, warn: Warn = logger.warning) -> bool:
    """Copy to MLflow what it lacks of a run that is over. False where MLflow cannot be reached."""
    state = json.loads((folder / STATE).read_text())
    parent = state.get("parent")
    return RunRecord(folder, state["run_key"], state["run_name"], tracking, output, warn, parent).catch_up()


class _View:
    """The MLflow side of one run: all that calls mlflow. Used by the sync thread alone; every method may raise."""

    def __init__(
        self, folder: Path, run_key: str, run_name: str, tracking: TrackingConfig, output: Path, warn: Warn,
        parent: str | None,
    ) -> None:  # fmt: skip
        self._folder, self._output, self._warn, self._parent = folder, output, warn, parent
        self._uri, self._experiment = tracking_uri(tracking, output), tracking.experiment
        self._log_model = tracking.log_model
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self.progress = time.monotonic()
        place = {"run_key": run_key, **_server(tracking, output)}
        saved = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {}
        if {key: saved.get(key) for key in place} != place:  # new, or another server: begin anew there
            saved = {**place, **self._nothing_sent()}
        self.state: dict[str, Any] = {**saved, "run_name": run_name, "parent": parent}
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

    def sync(self, rows: Sequence[Row], items: Sequence[dict[str, Any]]) -> None:
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

    def _connect(self, items: Sequence[dict[str, Any]]) -> MlflowClient:
        """Find the experiment and the run, or make them."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        local = self._uri.startswith("sqlite:")
        with _locked(self._output / ".mlflow.lock") if local else contextlib.nullcontext():
            if local:
                _create_database(self._uri)
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

    def _send_params(self, client: MlflowClient, items: Sequence[dict[str, Any]]) -> None:
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

    def _send_metrics(self, client: MlflowClient, rows: Sequence[Row]) -> None:
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

    def _send_items(self, client: MlflowClient, items: Sequence[dict[str, Any]]) -> None:
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

    def _send_item(self, client: MlflowClient, item: dict[str, Any]) -> None:
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
            self._send_student(client, item)
        elif item["kind"] == "register" and self._log_model:
            self._register(client, item)
        elif item["kind"] == "tags":
            client.log_batch(run_id, tags=[RunTag(key, str(value)[:TAG_LENGTH]) for key, value in item["tags"].items()])
        elif item["kind"] == "end":
            client.set_terminated(run_id, item["status"], _milliseconds(item))

    def _send_student(self, client: MlflowClient, item: dict[str, Any]) -> None:
        """A logged model that exists for this content is finished, not made twice."""
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

        run_id, digest = self.state["run_id"], item["digest"]
        query = f"source_run_id = '{run_id}' AND tags.`{DIGEST}` = '{digest}'"
        found = client.search_logged_models([self._experiment_id], query, max_results=1)
        if found and found[0].status == "READY":
            return
        tags = {DIGEST: digest}
        model = found[0] if found else client.create_logged_model(self._experiment_id, item["name"], run_id, tags)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        signature = ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "question")]),
            outputs=Schema([ColSpec(DataType.string)]),
            params=ParamSchema([ParamSpec("explain", DataType.boolean, False)]),
        )
        versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "transformers")]
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            target = Path(temporary) / "model"
            mlflow.pyfunc.save_model(
                str(target),
                python_model=str(Path(__file__).with_name("mlflow_student.py")),
                artifacts={"model": str(self._output / item["path"])},
                pip_requirements=versions,
                signature=signature,
                mlflow_model=Model(
                    artifact_path=model.artifact_location,
                    run_id=run_id,
                    model_uuid=model.model_id,
                    model_id=model.model_id,
                ),
            )
            client.log_model_artifacts(model.model_id, str(target))
        client.finalize_logged_model(model.model_id, "READY")


    def _register(self, client: MlflowClient, item: dict[str, Any]) -> None:
        """One version for one content; the alias moves to it."""
        from mlflow.exceptions import MlflowException

        name, digest = item["name"], item["digest"]
        found = client.search_logged_models([self._experiment_id], f"tags.`{DIGEST}` = '{digest}'")
        model = next((model for model in found if model.status == "READY"), None)
        if model is None:
            raise ValueError(f"no model with the content of {item['path']} is logged yet")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{name}'")
        version = next((one for one in versions if one.tags.get(DIGEST) == digest), None)
        if version is None:
            version = client.create_model_version(
                name, model.artifact_location, model.source_run_id, {DIGEST: digest}, model_id=model.model_id
            )
        client.set_registered_model_alias(name, item["alias"], version.version)


def _server(tracking: TrackingConfig, output: Path) -> dict[str, str]:
    """Where MLflow has a run, as its state says it."""
    return {"uri": redacted(tracking_uri(tracking, output)), "experiment": tracking.experiment}


def is_open(folder: Path) -> bool:
    """Whether a run was started and not ended, which is how a kill leaves it."""
    kinds = [item["kind"] for item in read_items(folder) if item["kind"] in ("start", "end")]
    return kinds[-1:] == ["start"]


def is_behind(folder: Path, tracking: TrackingConfig, output: Path) -> bool:
    """Whether MLflow lacks something of a run that is over, as far as its folder tells."""
    if not tracking.enabled or not (folder / ITEMS).exists():
        return False
    state = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {}
    server = _server(tracking, output)
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


def import_mlflow() -> None:
    """Import mlflow, impatient and quiet. What the user has set in the environment stays."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401

    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # urllib3 would tell of each retry
        logging.getLogger(name).setLevel(logging.ERROR)


def _create_database(uri: str) -> None:
    """Make MLflow's tables where the SQLite file is not there. It appears whole: MLflow makes them in dozens of steps,
    and could not go on where a crash had cut it off."""
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{path.name}.*.new*"):
        left_over.unlink()
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    MlflowClient(tracking_uri=f"sqlite:///{new}", registry_uri=f"sqlite:///{new}").search_experiments()
    new.rename(path)


def ask_server(uri: str) -> None:
    """Raise `OSError` within seconds where no server answers; any answer will do, also an error."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    with contextlib.suppress(requests.exceptions.SSLError):
        requests.get(uri.rstrip("/") + "/health", timeout=(3, 5), stream=True).close()


def _milliseconds(item: Mapping[str, Any]) -> int | None:
    """When an item was recorded, which may be long before MLflow gets it."""
    return round(item["time"] * 1000) if "time" in item else None


def _metric_name(key: str) -> str:
    """The name with what MLflow does not allow replaced."""
    return re.sub(r"[^\w\-. /:]", "_", key)[:NAME_LENGTH]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

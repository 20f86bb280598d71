"""The record of a run: local files are the truth, MLflow is a view of them.

A run's folder holds `config.json`, `metrics.jsonl` (a row a line), `items.jsonl` (everything else MLflow should show)
and `mlflow.json` (how far MLflow has got). One background thread copies what is new to MLflow. Where MLflow cannot be
reached the run goes on after one warning, and the next sync, or the next `qcrd run`, copies the rest. This module knows
nothing about stages, Ray or models, and leaves all calls of MLflow to `mlflow_view.py`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qcrd.config import ExperimentConfig, TrackingConfig, flatten
from qcrd.storage.atomic import write_atomically
from qcrd.storage.fingerprints import file_digest, folder_digest
from qcrd.storage.json_lines import append_line, cut_torn_line, json_line, read_json_lines
from qcrd.tracking.mlflow_view import RESERVED, STATE, MlflowView, Row, Warn, import_mlflow, redacted, server_of

METRICS, ITEMS, CONFIG = "metrics.jsonl", "items.jsonl", "config.json"
SYNC_SECONDS = 5.0  # between two syncs
RETRY_SECONDS = 60.0  # after a sync that failed
PROGRESS_SECONDS = 60.0  # the longest wait for a sync that makes no progress
OUTAGE_SECONDS = 10.0  # the same where the last sync had failed
logger = logging.getLogger(__name__)


COMMIT, DIRTY = "QCRD_GIT_COMMIT", "QCRD_GIT_DIRTY"
"""Variables that say of which commit the code of a submitted job is, which travels without its repository."""


def git_state(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder`, and whether tracked files differ from it; "unknown" without one."""
    try:
        commit, status = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get(COMMIT, "unknown"), "dirty": os.environ.get(DIRTY, "unknown")}
    return {"commit": commit.stdout.strip(), "dirty": "true" if status.stdout.strip() else "false"}


def command_line(words: Sequence[str]) -> str:
    """The command that a process was started with, as a report may show it. `words`: what follows `qcrd`."""
    return redacted(" ".join(["qcrd", *words]))


def read_metrics(folder: Path) -> list[Row]:
    """All metric rows of a run's folder: {"stage", "step", "time", metric: float}. A torn last line is left out."""
    return [{k: v if k in RESERVED else float(v) for k, v in row.items()} for row in _read_lines(folder / METRICS)]


def read_items(folder: Path) -> list[dict[str, Any]]:
    """All else that a run's folder records, oldest first: {"kind": "start", "time", "params", "tags"}, {"kind": "end",
    "time", "status"}, artifacts, data sets and students."""
    return _read_lines(folder / ITEMS)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.exists() else []


def _line(row: Mapping[str, Any]) -> str:
    """A row as one line of valid JSON, which has no NaN and no infinity: they are written as text."""
    return json_line({k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})


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
        cut_torn_line(folder / METRICS)
        cut_torn_line(folder / ITEMS)
        self.folder, self._output, self._warn = folder, output.resolve(), warn
        self._rows, self._items = read_metrics(folder), read_items(folder)
        self._view = None
        if tracking.enabled:
            self._view = MlflowView(folder, run_key, run_name, tracking, self._output, warn, parent)
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
            append_line(self.folder / METRICS, _line(row))
            self._rows.append(row)

    def restart_stage(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put `rows` ({"step", metric: value}, "time" if known) in place of all rows of a stage, when it is resumed."""
        fresh = [self._row(stage, row) for row in rows]
        with self._lock:
            rows = [row for row in self._rows if row["stage"] != stage] + fresh
            write_atomically(self.folder / METRICS, "".join(map(_line, rows)))
            self._rows = rows

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

    @property
    def is_copying(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait, after `stop`, for the last sync, as long as it makes progress."""
        while self._thread is not None and self._view is not None and self.is_copying:
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
            append_line(self.folder / ITEMS, _line(item))  # first: MLflow's place in the list is one in the file
            self._items.append(item)

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


def is_open(folder: Path) -> bool:
    """Whether a run was started and not ended, which is how a kill leaves it."""
    kinds = [item["kind"] for item in read_items(folder) if item["kind"] in ("start", "end")]
    return kinds[-1:] == ["start"]


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

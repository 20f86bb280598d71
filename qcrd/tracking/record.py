"""The record of a run: local files are the truth, a tracker shows a copy of them.

A run's folder holds `config.json`, `metrics.jsonl` (a row a line) and `items.jsonl` (everything else that a tracker
should show). One background thread hands what is new to the tracker. Where that cannot be reached the run goes on after
one warning, and the next sync, or the next `qcrd run`, copies the rest. This module knows nothing about stages, Ray or
models, nor about MLflow, which is one tracker (tracker.py).
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qcrd.storage.atomic import write_atomically
from qcrd.storage.fingerprints import file_digest, folder_digest
from qcrd.storage.json_lines import append_line, cut_torn_line, json_line, read_json_lines
from qcrd.tracking.provenance import git_state, redacted
from qcrd.tracking.tracker import RESERVED, Item, MetricRow, Tracker, Warn

METRICS, ITEMS, CONFIG = "metrics.jsonl", "items.jsonl", "config.json"
SYNC_SECONDS = 5.0  # between two syncs
RETRY_SECONDS = 60.0  # after a sync that failed
PROGRESS_SECONDS = 60.0  # the longest wait for a sync that makes no progress
OUTAGE_SECONDS = 10.0  # the same where the last sync had failed
logger = logging.getLogger(__name__)


def read_metrics(folder: Path) -> list[MetricRow]:
    """All metric rows of a run's folder: {"stage", "step", "time", metric: float}. A torn last line is left out."""
    return [{k: v if k in RESERVED else float(v) for k, v in row.items()} for row in _read_lines(folder / METRICS)]


def read_items(folder: Path) -> list[Item]:
    """All else that a run's folder records, oldest first: {"kind": "start", "time", "params", "tags"}, {"kind": "end",
    "time", "status"}, artifacts, data sets and students."""
    return _read_lines(folder / ITEMS)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.exists() else []


def _line(row: Mapping[str, Any]) -> str:
    """A row as one line of valid JSON, which has no NaN and no infinity: they are written as text."""
    return json_line({k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})


class RunRecord:
    """One run: its local record, and the thread that copies it to a tracker. Methods may be called from any thread.

    Within one stage the steps of a metric rise; a step that the tracker already has is not sent again.
    """

    def __init__(
        self, folder: Path, output: Path, tracker: Tracker, warn: Warn = logger.warning,
        outage_told: threading.Event | None = None,
    ) -> None:  # fmt: skip
        """Opens the record in `folder`, which may be there. `output`: what recorded paths begin at, so that they mean
        the same on other nodes. `warn` gets what a person should know. `outage_told`: that of another record, so that a
        person is told once for both that the tracker is away."""
        folder.mkdir(parents=True, exist_ok=True)
        cut_torn_line(folder / METRICS)
        cut_torn_line(folder / ITEMS)
        self.folder, self._output, self._tracker, self._warn = folder, output.resolve(), tracker, warn
        self._rows, self._items = read_metrics(folder), read_items(folder)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked = self._answered = 0  # tickets of `flush`
        self._stopping = False
        self._failing = False
        self.outage_told = outage_told or threading.Event()
        self._copied: tuple[list[MetricRow], int] = ([], 0)  # list of rows, and how many of them the tracker has

    def start(self, settings: Mapping[str, Any], params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Write the run's settings, note it as running, and begin to copy. `params`: dotted key → value, which a
        tracker can compare runs by."""
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
        """Log a student (model, tokenizer, `qcrd.json`) as a model, once for each content."""
        if not (folder / "qcrd.json").is_file():
            raise ValueError(f"{folder}: a student's folder holds qcrd.json, this one does not")
        self._add({"kind": "student", "path": self._relative(folder), "name": name, "digest": folder_digest(folder)})

    def register_student(self, folder: Path, name: str, alias: str) -> None:
        """Register a student that some run has logged (`add_student`) as a version of a model, and give it an alias.

        The tracker must have the student by then. To register once more is to try once more, and makes
        no second version.
        """
        digest = folder_digest(folder)
        self._add({"kind": "register", "path": self._relative(folder), "name": name, "alias": alias, "digest": digest})

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Tags that are known only later."""
        self._add({"kind": "tags", "tags": dict(tags)})

    def begin_sync(self) -> None:
        """Start the thread. The tracker gets ready here: two threads that import at once can get half a module."""
        if self._thread is not None:
            return
        try:
            if not self._tracker.begin():
                return
        except Exception as error:  # noqa: BLE001 - a broken tracker must not end a run; the local record goes on
            self._outage(error)
            return
        self._thread = threading.Thread(target=self._run, name="qcrd-tracker", daemon=True)
        self._thread.start()

    def flush(self) -> bool:
        """Wait until the tracker has all recorded before this call. False where there is none, or it stands still."""
        if self._thread is None:
            return False
        with self._lock:
            self._asked += 1
            ticket = self._asked
        limit = OUTAGE_SECONDS if self._failing else PROGRESS_SECONDS
        self._wake.set()
        since = time.monotonic()
        while self._answered < ticket:
            if time.monotonic() - max(since, self._tracker.progress) > limit:
                self._outage(TimeoutError(f"no progress for {limit:.0f} s"))
                return False
            time.sleep(0.02)
        return not self._failing

    def close(self, status: Literal["FINISHED", "FAILED"], wait: bool = True) -> None:
        """Note how the run ended, and give the tracker a last, bounded chance to catch up; `wait` until then."""
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
        while self._thread is not None and self.is_copying:
            self._thread.join(0.1)
            if time.monotonic() - self._tracker.progress > PROGRESS_SECONDS:
                return

    def catch_up(self) -> bool:
        """Copy what the tracker lacks of a run that is over. False where it cannot be reached."""
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

    def _row(self, stage: str, row: Mapping[str, Any]) -> MetricRow:
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
            append_line(self.folder / ITEMS, _line(item))  # first: a tracker's place in the list is one in the file
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
        with self._lock:
            rows, count, items = self._rows, len(self._rows), list(self._items)
        begin = self._copied[1] if self._copied[0] is rows else 0
        self._tracker.sync(rows[begin:count], items)
        self._copied = (rows, count)

    def _outage(self, error: Exception) -> None:
        if not self.outage_told.is_set():
            self.outage_told.set()
            reason = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:300]
            later = f"the record in {self.folder} goes on and is copied later"
            self._warn(f"{self._tracker.name} cannot be written, {later} ({reason})")


def is_open(folder: Path) -> bool:
    """Whether a run was started and not ended, which is how a kill leaves it."""
    kinds = [item["kind"] for item in read_items(folder) if item["kind"] in ("start", "end")]
    return kinds[-1:] == ["start"]

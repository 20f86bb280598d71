"""The state of a training run between two iterations, as files that are whole or absent at any moment.

    snapshots/snapshot-00003.safetensors          the student after iteration 3, written once; 0 is the initial student
    checkpoints/iteration-00003/checkpoint.json   where training stands, of which training, and the files it needs
                                rows.jsonl        metric rows so far
                                <group>.safetensors   optimizer, and of QCRD the discriminator and its optimizer

A checkpoint's student is the snapshot of its iteration. Schedules, alpha_3, cursors and random streams are functions
of the settings and the iteration (qcrd.seeding), so the iteration holds them. No pickle: safetensors and JSON.
Knows nothing about models, optimizers or Ray, and of the method only which snapshots later iterations sample from.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qcrd.models.weights import copies_of, is_whole
from qcrd.storage.atomic import discard, remove_left_overs, sync, whole_or_absent
from qcrd.storage.fingerprints import canonical_json, digest_of
from qcrd.storage.json_lines import read_json_lines
from qcrd.storage.output import FILES, Storage

VERSION = 1
KINDS = ("snapshots", "checkpoints")

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where training stands after an iteration. `best_iteration` is the first with the best validation accuracy.

    `seconds`: of the iterations so far, without what a kill has thrown away.
    """

    iteration: int = 0
    best_accuracy: float = -1.0
    best_iteration: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """All state but the student's weights. `tensors` by group: "optimizer", "discriminator", ..."""

    progress: Progress
    rows: list[dict[str, Any]]
    tensors: dict[str, dict[str, torch.Tensor]]


def snapshot_name(training: str, iteration: int) -> str:
    """Of the student after an iteration, in the folder of its training."""
    return f"{training}/snapshots/snapshot-{iteration:05d}.safetensors"


def clear(storage: Storage, training: str) -> None:
    """Delete a training's snapshots and checkpoints, on this node and in a bucket, once nobody will go on from them."""
    remove_left_overs(storage.folder / training)  # of a start that was killed in here
    for kind in KINDS:
        storage.unpublish(f"{training}/{kind}")
        if (folder := storage.folder / training / kind).exists():
            discard(folder)


class CheckpointStore:
    """Snapshots and checkpoints of one training, in one folder of an output that one process writes to.

    Where the output is a URL, what is whole is published, and a start on another node goes on from there. `identity` is
    what decides the result (settings and digests of inputs), `keep` the number of checkpoints kept
    beside the best one, `gap` how many iterations lie between a snapshot and the iteration that samples from it.
    """

    def __init__(self, storage: Storage, name: str, identity: Mapping[str, Any], keep: int, gap: int) -> None:
        """`name`: of the folder, inside the output."""
        self.storage, self.name, self.keep, self.gap = storage, name, keep, gap
        self.folder = storage.folder / name
        self.identity: dict[str, Any] = json.loads(canonical_json(dict(identity)))
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._saving: int | None = None
        self._snapshot_written = threading.Event()
        for kind in KINDS:
            (self.folder / kind).mkdir(parents=True, exist_ok=True)

    def snapshot_path(self, iteration: int) -> Path:
        return self.storage.folder / snapshot_name(self.name, iteration)

    def _checkpoint_path(self, iteration: int) -> Path:
        return self.storage.folder / self._checkpoint_name(iteration)

    def _checkpoint_name(self, iteration: int) -> str:
        return f"{self.name}/checkpoints/iteration-{iteration:05d}"

    # -- reading ------------------------------------------------------------------------------------------------

    def newest(self) -> int | None:
        """Iteration of the newest checkpoint with all its files; a damaged one is skipped with a warning."""
        self._fetch_newer()
        for iteration in reversed(self._iterations()):
            damage = self._damage(iteration)
            if damage is None:
                return iteration
            logger.warning("%s skipped: %s", self._checkpoint_path(iteration), damage)
        return None

    def read(self, iteration: int) -> Checkpoint:
        """A checkpoint's content. Raises `ValueError` for one of another format, or of other settings or inputs."""
        folder, record = self._checkpoint_path(iteration), self._record(iteration)
        if record.get("version") != VERSION:
            raise ValueError(f"{folder}: checkpoint of format {record.get('version')}, this code reads {VERSION}")
        if record["identity_digest"] != digest_of(self.identity):
            raise ValueError(f"{folder}: checkpoint of another training: {self._difference(record)}")
        rows = read_json_lines(folder / "rows.jsonl")
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return Checkpoint(Progress(**record["progress"]), rows, tensors)

    def snapshot(self, iteration: int) -> dict[str, torch.Tensor]:
        """The student's weights after an iteration. Raises `FileNotFoundError` where they are gone."""
        if iteration == self._saving:
            self._snapshot_written.wait()
            if not self.snapshot_path(iteration).is_file():
                self.wait()  # raises what kept it from being written
        return load_file(self.snapshot_path(iteration))

    def _fetch_newer(self) -> None:
        """Take the newest published checkpoint, with its snapshots, where this node has none as new."""
        published = self.storage.published(f"{self.name}/checkpoints")
        there = {int(match[1]) for one in published if (match := re.search(rf"/iteration-(\d+)/{FILES}$", one))}
        here = [iteration for iteration in self._iterations() if self._damage(iteration) is None]
        if there and max(there) > max(here, default=-1):
            iteration = max(there)
            self.storage.fetch(self._checkpoint_name(iteration), replace=True)
            for snapshot in self._record(iteration)["snapshots"]:
                self.storage.fetch(snapshot_name(self.name, int(snapshot)), replace=True)

    def _iterations(self) -> list[int]:
        """Of all checkpoint folders, ascending."""
        names = (path.name for path in (self.folder / "checkpoints").iterdir())
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"iteration-(\d+)", name)))

    def _record(self, iteration: int) -> dict[str, Any]:
        return json.loads((self._checkpoint_path(iteration) / "checkpoint.json").read_text())

    def _damage(self, iteration: int) -> str | None:
        """What a checkpoint lacks; None where it is whole, or of a format that `read` has to refuse."""
        try:
            record = self._record(iteration)
            if record.get("version") != VERSION:
                return None
            sizes = {self.snapshot_path(int(t)): size for t, size in record["snapshots"].items()}
            sizes |= {self._checkpoint_path(iteration) / name: size for name, size in record["files"].items()}
            for path, size in sizes.items():
                if (found := path.stat().st_size) != size:
                    return f"{path} has {found} bytes, not {size}"
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def _difference(self, record: dict[str, Any]) -> str:
        """The first five dotted keys in which a recorded identity differs from this one."""
        there, here = _leaves(record["identity"]), _leaves(self.identity)
        keys = [key for key in sorted(here | there) if there.get(key) != here.get(key)]
        if not keys:
            return f"identity_digest {record['identity_digest']} there, {digest_of(self.identity)} here"
        texts = [f"{key} {there.get(key, 'absent')} there, {here.get(key, 'absent')} here" for key in keys[:5]]
        return "; ".join(texts) + (f"; and {len(keys) - 5} more" if len(keys) > 5 else "")

    # -- writing ------------------------------------------------------------------------------------------------

    def save_initial(self, student: Mapping[str, torch.Tensor]) -> None:
        """Write snapshot 0 unless it is there."""
        self.wait()
        if not is_whole(self.snapshot_path(0)):
            self._write_snapshot(0, copies_of(student))

    def forget_after(self, iteration: int) -> None:
        """Delete later snapshots, which a killed run left without a checkpoint: they are about to be made again."""
        for path in (self.folder / "snapshots").glob("snapshot-*.safetensors"):
            if path > self.snapshot_path(iteration):
                path.unlink()
        for name in self.storage.published(f"{self.name}/snapshots"):
            if name > snapshot_name(self.name, iteration):
                self.storage.unpublish(name)

    def save(self, iteration: int, student: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
        """Copy everything to CPU memory and return; a thread makes it durable, then deletes what is not needed now.

        Waits for the save before, and raises `OSError` where that one failed (a full disk). A whole checkpoint of the
        iteration has the same content, by determinism, and stays; a snapshot that has no checkpoint yet is replaced.
        """
        self.wait()
        weights = copies_of(student)
        tensors = {group: copies_of(some) for group, some in checkpoint.tensors.items()}
        held = Checkpoint(replace(checkpoint.progress), [dict(row) for row in checkpoint.rows], tensors)
        self._snapshot_written.clear()
        self._saving = iteration
        self._thread = threading.Thread(
            target=self._write, args=(iteration, weights, held), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the last save is durable. Raises `OSError` where it failed."""
        if self._thread is not None:
            self._thread.join()
        iteration, error = self._saving, self._error
        self._thread = self._error = self._saving = None
        if error is not None and iteration is not None:
            raise OSError(f"{self._checkpoint_path(iteration)}: save failed: {error}") from error

    def _write(self, iteration: int, student: dict[str, torch.Tensor], checkpoint: Checkpoint) -> None:
        """One save, in the background thread."""
        try:
            if self._damage(iteration) is not None:  # what a killed run left may differ in its last bits on a GPU
                self._write_snapshot(iteration, student)
            self._snapshot_written.set()
            self._write_checkpoint(iteration, checkpoint)
            self._publish(iteration, checkpoint.progress)
            self._prune(checkpoint.progress)
        except Exception as error:  # noqa: BLE001 - raised again by `wait`
            self._error = error
        finally:
            self._snapshot_written.set()

    def _write_snapshot(self, iteration: int, student: dict[str, torch.Tensor]) -> None:
        with whole_or_absent(self.snapshot_path(iteration)) as temporary:
            save_file(student, temporary)
        self.storage.publish(snapshot_name(self.name, iteration))

    def _write_checkpoint(self, iteration: int, checkpoint: Checkpoint) -> None:
        path = self._checkpoint_path(iteration)
        if path.exists():
            if self._damage(iteration) is None:
                return
            discard(path)
        with whole_or_absent(path) as temporary:
            temporary.mkdir()
            (temporary / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in checkpoint.rows))
            for group, tensors in checkpoint.tensors.items():
                save_file(tensors, temporary / f"{group}.safetensors")
            record = {
                "version": VERSION,
                "progress": asdict(checkpoint.progress),
                "snapshots": {t: self.snapshot_path(t).stat().st_size for t in self._needed(checkpoint.progress)},
                "files": {file.name: file.stat().st_size for file in sorted(temporary.iterdir())},
                "identity_digest": digest_of(self.identity),
                "identity": self.identity,
            }
            (temporary / "checkpoint.json").write_text(json.dumps(record, indent=2) + "\n")

    def _publish(self, iteration: int, progress: Progress) -> None:
        """What a start on another node needs: snapshots first, whichever a kill kept from being published."""
        if not self.storage.is_remote:
            return
        published = set(self.storage.published(f"{self.name}/snapshots"))
        for snapshot in self._needed(progress):
            if (name := snapshot_name(self.name, snapshot)) not in published:
                self.storage.publish(name)
        self.storage.publish(self._checkpoint_name(iteration))

    def _needed(self, progress: Progress) -> list[int]:
        """Snapshots that training needs to go on: iteration s samples from max(0, s - gap)."""
        last = progress.iteration
        ring = range(max(0, last + 1 - self.gap), last + 1)
        return sorted({0, progress.best_iteration, last, *ring})

    def _prune(self, progress: Progress) -> None:
        """Delete checkpoints but the newest few and the best, snapshots that these don't need, and remains of kills."""
        whole = [iteration for iteration in self._iterations() if self._damage(iteration) is None]
        kept = {*whole[-self.keep :], *({progress.iteration, progress.best_iteration} & set(whole))}
        for iteration in set(self._iterations()) - kept:
            discard(self._checkpoint_path(iteration))
            self.storage.unpublish(self._checkpoint_name(iteration))
        sync(self.folder / "checkpoints")  # a checkpoint must not come back, after a crash, without snapshots
        needed = {self.snapshot_path(int(t)) for iteration in kept for t in self._record(iteration)["snapshots"]}
        for path in set((self.folder / "snapshots").glob("snapshot-*.safetensors")) - needed:
            path.unlink()
            self.storage.unpublish(f"{self.name}/snapshots/{path.name}")
        for kind in KINDS:
            remove_left_overs(self.folder / kind)


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """JSON text of each plain value below a dotted key."""
    if not isinstance(value, dict) or not value:
        return {prefix: canonical_json(value)}
    dot = "." if prefix else ""
    return {key: text for name, item in value.items() for key, text in _leaves(item, f"{prefix}{dot}{name}").items()}

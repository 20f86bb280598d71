"""The sample store: every raw reply of a teacher, kept for good, so that no reply is ever paid for twice.

A folder of `part-*.jsonl` files. Each writer appends to a file of its own, one checked line for each reply, before
anybody parses the text. Readers take the union; lines that are torn or damaged are skipped and counted. The folder
only grows. This module knows nothing about Ray, about teachers, or about what a reply means.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qcrd.artifacts import canonical_json, digest_of, sync_folder
from qcrd.teacher.base import Reply

logger = logging.getLogger(__name__)

FSYNC_SECONDS = 3.0


@dataclass(frozen=True)
class Failure:
    """A request that failed for good in some earlier call. It is asked again in the next one."""

    reason: str
    attempts: int


Record = Reply | Failure


def sample_key(
    task: str, question_text: str, prompt_digest: str, model_settings: Mapping[str, Any], index: int
) -> str:
    """SHA-256 of everything that decides a reply; the same request has the same key in every run and sweep.

    The id of the question is not part of it: two questions with one text are one request.
    """
    identity = {
        "task": task,
        "question": question_text,
        "prompt": prompt_digest,
        "model": dict(model_settings),
        "index": index,
    }
    return digest_of(identity)


class SampleStore:
    """The readable side of a store folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_skipped = 0
        """Unreadable lines that the last `load` met."""

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.jsonl"))

    def load(self, keys: Collection[str]) -> dict[str, Record]:
        """What the store holds for these keys. A reply beats a failure; of two alike the smaller digest wins, so the
        result depends on the lines that are there and not on who wrote them when."""
        wanted = frozenset(keys)
        found: dict[str, tuple[tuple[bool, str], Record]] = {}
        self.num_skipped = 0
        for path in self.parts():
            skipped = 0
            with path.open("rb") as stream:
                for line in stream:
                    entry = _parsed(line)
                    if entry is None:
                        skipped += 1
                        continue
                    key, digest, record = entry
                    rank = (isinstance(record, Failure), digest)
                    if key in wanted and (key not in found or rank < found[key][0]):
                        found[key] = (rank, record)
            if skipped:
                logger.warning("%s: skipped %d unreadable lines (torn by a crash, or damaged)", path, skipped)
            self.num_skipped += skipped
        return {key: record for key, (_, record) in found.items()}

    def replies(self, keys: Collection[str]) -> set[str]:
        """Those of `keys` that were answered. Failures do not count: they are asked again."""
        return {key for key, record in self.load(keys).items() if isinstance(record, Reply)}

    def sync(self) -> None:
        """Make the lines that writers of this machine wrote durable, also where a writer was killed."""
        for path in self.parts():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


class StoreWriter:
    """Appends to a part file of its own. Each line is with the operating system when `write` returns, so it outlives
    the process; it is on the disk within `FSYNC_SECONDS` of the next write, or on `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        host = "".join(char if char.isalnum() else "_" for char in socket.gethostname())
        self.path = folder / f"part-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._stream = self.path.open("xb")
        self._synced_at = time.monotonic()
        sync_folder(folder)

    def write(self, key: str, record: Record) -> None:
        """Keep one record. Raises `OSError` where it cannot be kept (a full disk)."""
        name = "error" if isinstance(record, Failure) else "reply"
        values = {field: _encodable(value) for field, value in asdict(record).items()}
        content = {"key": key, name: values}
        line = canonical_json({**content, "sha256": digest_of(content)})
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        if time.monotonic() - self._synced_at >= FSYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        if not self._stream.closed:
            self._sync()
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced_at = time.monotonic()


def _encodable(value: Any) -> Any:
    """Half of a surrogate pair (a reply cut inside an emoji) has no UTF-8; it becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _parsed(line: bytes) -> tuple[str, str, Record] | None:
    """Key, digest and record of one line; None where it is not whole."""
    try:
        content = json.loads(line)
        digest = content.pop("sha256")
        if digest != digest_of(content):
            return None
        if "reply" in content:
            return content["key"], digest, Reply(**content["reply"])
        return content["key"], digest, Failure(**content["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

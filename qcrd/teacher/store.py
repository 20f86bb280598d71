"""The sample store: every raw reply of a teacher, kept for good, so that no reply is ever paid for twice.

A local folder, or any URL that fsspec can reach (s3://, gs://, memory://), of `part-*.jsonl` files. Each writer has
parts of its own, so two jobs on one store never touch each other's; readers take the union. A line is

    {"key":"<64 hex digits>","reply"|"error":{…},"sha256":"<of all before it>"}

so a line can be checked and sorted without being parsed. A part with a line that is torn or damaged is set aside (its
whole lines are kept) and what it lacks is asked again. The folder only grows. This module knows nothing about Ray,
about teachers, or about what a reply means.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from qcrd.storage.atomic import is_being_written, move, sync
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.output import Storage
from qcrd.teacher.backends.base import Result
from qcrd.teacher.store_format import (
    HEAD,
    KEY_END,
    KEY_TYPE,
    StoreError,
    T,
    decode_line,
    filesystem_of,
    is_whole,
    put,
    remotely,
)

logger = logging.getLogger(__name__)

OPEN_PARTS, READS = 64, 10
_DAMAGED = "damaged-"
_STATE = ("name", "size", "ETag", "etag", "LastModified", "created")
"""What file systems say of an object that changes when the object does."""


class StoreIndex:
    """Which keys a store has, and where. Of several lines with one key a reply beats a failure, and of two alike the
    one with the smaller content digest wins, so the result depends on the lines that are there and not on who wrote
    them when. Takes about 90 bytes of memory a line."""

    def __init__(
        self, parts: Sequence[Path], keys: np.ndarray, part: np.ndarray, offset: np.ndarray, failed: np.ndarray
    ) -> None:
        self._parts = list(parts)
        order = np.argsort(keys, kind="stable")
        self._keys, self._part, self._offset, self._failed = keys[order], part[order], offset[order], failed[order]
        self._settle()

    def _settle(self) -> None:
        """Keep one line for each key."""
        if len(self._keys) == 0:
            return
        new = np.concatenate(([True], self._keys[1:] != self._keys[:-1]))
        starts = np.flatnonzero(new)
        ends = np.append(starts[1:], len(self._keys))
        chosen = starts.copy()
        for group in np.flatnonzero(ends - starts > 1):
            rows = range(starts[group], ends[group])
            chosen[group] = min(rows, key=lambda row: (bool(self._failed[row]), self._digest(row)))
        self._keys, self._part = self._keys[chosen], self._part[chosen]
        self._offset, self._failed = self._offset[chosen], self._failed[chosen]

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers into this index, int64, for an array of keys (KEY_TYPE) of any shape; -1 for unknown keys."""
        flat = keys.reshape(-1)
        if len(self._keys) == 0:
            return np.full(keys.shape, -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(self._keys, flat), len(self._keys) - 1)
        return np.where(self._keys[found] == flat, found, -1).reshape(keys.shape)

    def answered(self, keys: np.ndarray) -> np.ndarray:
        """Which keys have a reply (bool, same shape)."""
        rows = self.rows(keys)
        return (rows >= 0) & ~self._is_failed(rows)

    def failed(self, keys: np.ndarray) -> np.ndarray:
        """Which keys have failures only (bool, same shape)."""
        rows = self.rows(keys)
        return (rows >= 0) & self._is_failed(rows)

    def _is_failed(self, rows: np.ndarray) -> np.ndarray:
        if len(self._failed) == 0:
            return np.zeros(rows.shape, dtype=bool)
        return self._failed[np.maximum(rows, 0)]

    def records(self, keys: np.ndarray) -> Iterator[Result | None]:
        """The records of a flat array of keys, in its order, read one by one from the parts."""
        with contextlib.ExitStack() as stack:
            streams: dict[int, IO[bytes]] = {}
            for row in self.rows(keys).tolist():
                yield None if row < 0 else decode_line(self._read(row, streams, stack))

    def _read(self, row: int, streams: dict[int, IO[bytes]], stack: contextlib.ExitStack) -> bytes:
        part = int(self._part[row])
        if part not in streams:
            if len(streams) == OPEN_PARTS:
                streams.pop(next(iter(streams))).close()
            streams[part] = stack.enter_context(self._open(part))
        streams[part].seek(int(self._offset[row]))
        return streams[part].readline()

    def _open(self, part: int) -> IO[bytes]:
        """A part, also where another reader has set it aside since: its lines stand where they stood."""
        path = self._parts[part]
        try:
            return path.open("rb")
        except FileNotFoundError:
            return path.with_name(_DAMAGED + path.name).open("rb")

    def _digest(self, row: int) -> bytes:
        with self._open(int(self._part[row])) as stream:
            stream.seek(int(self._offset[row]))
            return stream.readline()[-67:-3]


class SampleStore:
    """A store by folder or URL. It need not exist yet."""

    def __init__(self, place: str | Path) -> None:
        self._fs, self.path = filesystem_of(place)
        self.place = str(place)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._copies: dict[str, Path] = {}

    def index(self, set_aside: bool = True) -> StoreIndex:
        """Read all parts. Damaged ones whose writer is gone are set aside, each with one warning that names it;
        without `set_aside` nothing is written. Raises `StoreError` where the store cannot be read."""
        for _ in range(READS):
            try:
                return self._read_all(set_aside)
            except FileNotFoundError:  # another reader set a part aside meanwhile: look again
                continue
            except OSError as error:
                raise StoreError(f"the sample store {self.place} cannot be read: {error}") from error
        raise StoreError(f"the sample store {self.place} cannot be read: its files vanish while it is looked at")

    def locked(self, name: str, on_wait: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Keep out others, on any node, that want to ask for the same; see `Storage.locked`."""
        return Storage(self.path if self.is_local else self.place.rstrip("/")).locked(name, on_wait)

    def _read_all(self, set_aside: bool) -> StoreIndex:
        names = self._part_names()
        self._copy(names)
        parts: list[Path] = []
        keys, numbers, offsets, failed = bytearray(), array("i"), array("q"), bytearray()
        for name in names:
            path = self._readable(name)
            part = _Part(path)
            if part.damaged and set_aside and not (self.is_local and is_being_written(path)):
                path = self._set_aside(name, part)
                part = _Part(path)
            keys += part.keys
            numbers.extend([len(parts)] * len(part.offsets))
            offsets.extend(part.offsets)
            failed += part.failed
            parts.append(path)
        return StoreIndex(
            parts, np.frombuffer(bytes(keys), KEY_TYPE), np.array(numbers, dtype=np.int32),
            np.array(offsets, dtype=np.int64), np.frombuffer(bytes(failed), dtype=np.bool_),
        )  # fmt: skip

    def sync(self) -> None:
        """Make what writers of this machine wrote durable, also where a writer was killed before it did so."""
        if self.is_local:
            for name in self._part_names():
                with contextlib.suppress(FileNotFoundError):
                    sync(Path(name))

    def read_text(self, name: str) -> str | None:
        """A small file beside the parts; None where there is none. Raises `StoreError`, as do those below."""
        try:
            data = self._do(self._fs.cat_file, f"{self.path}/{name}")
            return bytes(data).decode()  # pyright: ignore[reportArgumentType]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"the sample store cannot be read: {self.path}/{name}: {error}") from error

    def write_text(self, name: str, text: str) -> None:
        """Replace a small file beside the parts, whole or not at all."""
        try:
            put(self._fs, self.is_local, f"{self.path}/{name}", text.encode())
        except OSError as error:
            raise StoreError(f"the sample store cannot be written: {self.path}/{name}: {error}") from error

    def names(self, prefix: str, suffix: str) -> list[str]:
        """Names of the files beside the parts that begin and end so, sorted."""
        try:
            return [name for name in self._names() if name.startswith(prefix) and name.endswith(suffix)]
        except OSError as error:
            raise StoreError(f"the sample store {self.place} cannot be read: {error}") from error

    def _do(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """A call of the file system."""
        return call(*arguments, **named) if self.is_local else remotely(call, *arguments, **named)

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._do(self._fs.ls, self.path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def _part_names(self) -> list[str]:
        return [f"{self.path}/{name}" for name in self.names("part-", ".jsonl")]

    def _copy(self, names: Sequence[str]) -> None:
        """Copies of remote parts, which live as long as this object; only what is new or has grown is fetched."""
        if self.is_local:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qcrd-store-")
        for info in self._do(self._fs.ls, self.path, detail=True) if names else []:
            name = f"{self.path}/{str(info['name']).rsplit('/', 1)[-1]}"
            state = digest_of([str(info.get(key)) for key in _STATE])
            self._copies[name] = Path(self._folder.name) / f"{state[:32]}.jsonl"
        absent = [name for name in names if not self._copies[name].exists()]
        if absent:
            self._do(self._fs.get, absent, [str(self._copies[name]) for name in absent])

    def _readable(self, name: str) -> Path:
        return Path(name) if self.is_local else self._copies[name]

    def _set_aside(self, name: str, part: _Part) -> Path:
        """Keep the whole lines of a damaged part in a new one, and rename the damaged one out of the way."""
        folder, base = name.rsplit("/", 1)
        whole = part.whole_lines()
        target = f"{folder}/{_DAMAGED}{base}"
        kept = f"{folder}/part-kept-{hashlib.sha256(whole).hexdigest()[:16]}.jsonl"
        logger.warning(
            "%s: %d unreadable lines (torn by a crash, or damaged); the part is set aside as %s, its %d whole lines "
            "are kept and the samples it lacks are asked again", name, part.damaged, target, len(part.offsets),
        )  # fmt: skip
        put(self._fs, self.is_local, kept, whole)
        with contextlib.suppress(FileNotFoundError):  # another reader was quicker
            move(Path(name), Path(target)) if self.is_local else remotely(self._fs.mv, name, target)
        self._copy([kept])
        return self._readable(kept)


class _Part:
    """The lines of one part: keys (32 bytes each), offsets, failure flags; and how many lines are no good."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.keys, self.offsets, self.failed = bytearray(), array("q"), bytearray()
        self.damaged = 0
        offset = 0
        with path.open("rb", buffering=1 << 20) as stream:
            for line in stream:
                if is_whole(line):
                    self.keys += bytes.fromhex(line[len(HEAD) : KEY_END].decode())
                    self.offsets.append(offset)
                    self.failed.append(line[KEY_END + 3 : KEY_END + 8] == b"error")
                else:
                    self.damaged += 1
                offset += len(line)

    def whole_lines(self) -> bytes:
        with self._path.open("rb") as stream:
            return b"".join(line for line in stream if is_whole(line))

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
import json
import logging
import os
import socket
import tempfile
import threading
import uuid
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from qcrd.storage.atomic import GrowingFile, is_being_written, move, sync, write_atomically
from qcrd.storage.bucket import patiently
from qcrd.storage.fingerprints import canonical_json, digest_of
from qcrd.storage.output import Storage
from qcrd.teacher.backends.base import Failure, Reply, Result, as_count

logger = logging.getLogger(__name__)

KEY_TYPE = np.dtype("S32")
"""Keys in arrays: the 32 bytes of a SHA-256."""
REMOTE_PART_BYTES = 4 << 20
OPEN_PARTS, READS = 64, 10
_HEAD, _TAIL = b'{"key":"', b',"sha256":"'
_KEY_END = len(_HEAD) + 64
_TAIL_LENGTH = len(_TAIL) + 64 + len(b'"}\n')
_DAMAGED = "damaged-"
_COUNTS = ("prompt_tokens", "completion_tokens", "status")
_STATE = ("name", "size", "ETag", "etag", "LastModified", "created")
"""What file systems say of an object that changes when the object does."""
T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be written or read. The message says which file and why."""


# -- keys ---------------------------------------------------------------------------------------------------------


def question_key(identity: str, question: str) -> bytes:
    """SHA-256 of a question asked in a certain way: `identity` is a digest of task, prompt and what else decides a
    reply.

    The id of the question is not part of it: two questions with one text are one request.
    """
    return hashlib.sha256(canonical_json([identity, question]).encode()).digest()


def sample_key(question: bytes, index: int) -> bytes:
    """The key of sample `index` of a question: 32 bytes, the same in every run and sweep."""
    return hashlib.sha256(b"%s %d" % (question, index)).digest()


# -- one line -----------------------------------------------------------------------------------------------------


def _line(key: bytes, record: Result) -> bytes:
    name = "error" if isinstance(record, Failure) else "reply"
    values = {field: _encodable(value) for field, value in asdict(record).items()}
    whole = key.ljust(KEY_TYPE.itemsize, b"\0")  # numpy drops zeros at the end of a key that is taken out of an array
    body = f'{{"key":"{whole.hex()}","{name}":{canonical_json(values)}'.encode()
    return b'%s,"sha256":"%s"}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def _encodable(value: Any) -> Any:
    """Half of a surrogate pair (a reply cut inside an emoji) has no UTF-8; it becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _is_whole(line: bytes) -> bool:
    if not (line.startswith(_HEAD) and line.endswith(b'"}\n') and line[-_TAIL_LENGTH:].startswith(_TAIL)):
        return False
    digest = hashlib.sha256(line[:-_TAIL_LENGTH]).hexdigest().encode()
    return digest == line[-67:-3] and line[_KEY_END : _KEY_END + 10] in (b'","reply":', b'","error":')


def _record(line: bytes) -> Result:
    content = json.loads(line)
    values = content["reply"] if "reply" in content else content["error"]
    # What an endpoint gave as a count was once kept unseen.
    values |= {name: as_count(values[name]) for name in _COUNTS if name in values}
    return Reply(**values) if "reply" in content else Failure(**values)


# -- reading ------------------------------------------------------------------------------------------------------


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
                yield None if row < 0 else _record(self._read(row, streams, stack))

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
        self._fs, self.path = _filesystem(place)
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
            _put(self._fs, self.is_local, f"{self.path}/{name}", text.encode())
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
        return call(*arguments, **named) if self.is_local else _remotely(call, *arguments, **named)

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
        _put(self._fs, self.is_local, kept, whole)
        with contextlib.suppress(FileNotFoundError):  # another reader was quicker
            move(Path(name), Path(target)) if self.is_local else _remotely(self._fs.mv, name, target)
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
                if _is_whole(line):
                    self.keys += bytes.fromhex(line[len(_HEAD) : _KEY_END].decode())
                    self.offsets.append(offset)
                    self.failed.append(line[_KEY_END + 3 : _KEY_END + 8] == b"error")
                else:
                    self.damaged += 1
                offset += len(line)

    def whole_lines(self) -> bytes:
        with self._path.open("rb") as stream:
            return b"".join(line for line in stream if _is_whole(line))


# -- writing ------------------------------------------------------------------------------------------------------


class _Sink(Protocol):
    """Where a writer's lines go. `write` keeps them; `flush` makes durable what `pending` named before, while others
    are written. Both may raise OSError."""

    @property
    def path(self) -> str: ...

    def write(self, data: bytes) -> None: ...

    def pending(self) -> list[tuple[str, bytes]]: ...

    def flush(self, pending: list[tuple[str, bytes]]) -> None: ...

    def close(self) -> None: ...


class StoreWriter:
    """Appends records to parts of its own.

    In a local store a line is with the operating system when `write` returns, so it outlives the process. `flush`
    makes lines durable (on the disk, or at the URL); a background thread does so every `flush_seconds`. Raises
    `StoreError` where a line cannot be kept (a full disk), also for what the thread met. Safe from any thread.
    """

    def __init__(self, place: str | Path, flush_seconds: float) -> None:
        fs, folder = _filesystem(place)
        host = "".join(char if char.isalnum() else "_" for char in socket.gethostname())
        name = f"part-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._dirty = False
        self._error: OSError | None = None
        try:
            self._sink: _Sink = (
                _LocalPart(folder, name) if isinstance(fs, LocalFileSystem) else _RemotePart(fs, folder, name)
            )
        except OSError as error:
            raise StoreError(f"the sample store {place} cannot be written: {error}") from error
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._flush_now_and_then, args=(flush_seconds,), daemon=True)
        self._thread.start()

    def write(self, records: Sequence[tuple[bytes, Result]]) -> None:
        """Keep records, (key, record) each, all or none of them."""
        data = b"".join(_line(key, record) for key, record in records)
        with self._lock, self._reported():
            self._sink.write(data)
            self._dirty = True
            if self._error is not None:  # what is paid for is kept where that is possible, and the error told
                raise self._error

    def flush(self) -> None:
        """Make all that was written durable."""
        with self._flushing, self._reported():  # a writer need not wait for the disk, or for a server
            with self._lock:
                dirty, self._dirty = self._dirty, False
                pending = self._sink.pending() if dirty else None
            if pending is not None:
                try:
                    self._sink.flush(pending)
                except OSError:
                    self._dirty = True
                    raise
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            try:
                self.flush()
            finally:
                self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"the sample store cannot be written: {self._sink.path}: {error}") from error

    def _flush_now_and_then(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                self.flush()
            except StoreError as error:
                cause = error.__cause__
                assert isinstance(cause, OSError)
                self._error = cause
                return


class _LocalPart(GrowingFile):
    """A file that is appended to."""

    def __init__(self, folder: str, name: str) -> None:
        self.path = f"{folder}/{name}.jsonl"
        super().__init__(Path(self.path))

    def write(self, data: bytes) -> None:
        self.append(data)

    def pending(self) -> list[tuple[str, bytes]]:
        return []

    def flush(self, pending: list[tuple[str, bytes]]) -> None:
        self.sync()


class _RemotePart:
    """Objects cannot be appended to: the current one is written again, whole, at each flush, and a new one is begun
    when it has `REMOTE_PART_BYTES`. What could not be written is kept for the next flush, which waits no longer for a
    server that has been away for as long as one waits."""

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, name: str) -> None:
        self._fs, self._folder, self._name = fs, folder, name
        self._number, self._data = 0, bytearray()
        self._full: list[tuple[str, bytes]] = []
        """Parts that are not written to any more, and not stored yet."""
        self._is_away = False

    @property
    def path(self) -> str:
        return f"{self._folder}/{self._name}-{self._number:04d}.jsonl"

    def write(self, data: bytes) -> None:
        self._data += data

    def pending(self) -> list[tuple[str, bytes]]:
        current = (self.path, bytes(self._data))
        if len(self._data) >= REMOTE_PART_BYTES:
            self._full.append(current)
            self._number += 1
            self._data = bytearray()
            return list(self._full)
        return [*self._full, current]

    def flush(self, pending: list[tuple[str, bytes]]) -> None:
        patient, self._is_away = not self._is_away, True
        for path, data in pending:
            _put(self._fs, False, path, data, patient)
        self._is_away = False
        self._full = [part for part in self._full if part not in pending]

    def close(self) -> None:
        """All is written by `flush`."""


# -- files --------------------------------------------------------------------------------------------------------


def _filesystem(place: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a folder or URL, and the path in it. Raises `StoreError` for an unknown or absent one."""
    try:
        fs, path = fsspec.url_to_fs(str(place))
    except (ImportError, ValueError) as error:
        raise StoreError(f"the sample store {place} cannot be reached: {error}") from error
    return fs, str(path).rstrip("/")


def _remotely(call: Callable[..., T], *arguments: Any, patient: bool = True, **named: Any) -> T:
    """A call of a file system that is not this machine's. Raises `OSError`, if need be only after it was tried again
    for a while, also for what a client library raises of its own."""
    try:
        return patiently(call, *arguments, **named) if patient else call(*arguments, **named)
    except OSError:
        raise
    except Exception as error:  # a server that is away is an error of the client library's own, as botocore's
        raise OSError(f"{type(error).__name__}: {error}") from error


def _put(fs: fsspec.AbstractFileSystem, is_local: bool, path: str, data: bytes, patient: bool = True) -> None:
    """Write a file whole or not at all."""
    if not is_local:
        _remotely(fs.pipe_file, path, data, patient=patient)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data)

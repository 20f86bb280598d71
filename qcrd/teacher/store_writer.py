"""Writing into the sample store: parts of a writer's own, kept at once and durable every few seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from qcrd.storage.atomic import GrowingFile
from qcrd.teacher.backends.base import Result
from qcrd.teacher.store_format import (
    StoreError,
    encode_line,
    filesystem_of,
    put,
)

logger = logging.getLogger(__name__)

REMOTE_PART_BYTES = 4 << 20


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
        fs, folder = filesystem_of(place)
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
        data = b"".join(encode_line(key, record) for key, record in records)
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
            put(self._fs, False, path, data, patient)
        self._is_away = False
        self._full = [part for part in self._full if part not in pending]

    def close(self) -> None:
        """All is written by `flush`."""

"""Objects behind a URL (s3://, gs://, …), and patience with a storage that does not answer: the one retry of I/O.

Knows nothing about what the objects are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity

from qcrd.storage.atomic import FULL

RETRY_SECONDS = 120.0  # how long a storage that does not answer is asked again
T = TypeVar("T")


class StorageAway(OSError):
    """A bucket did not answer, or refused to, for as long as it was asked again; or a lease in it was lost."""


def _again(error: BaseException) -> bool:
    """Whether a call that failed may succeed later; of a server that is away libraries raise errors of their own."""
    final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, ImportError, ValueError)
    if isinstance(error, OSError) and error.errno in FULL:  # this node's disk
        return False
    return isinstance(error, Exception) and not isinstance(error, final)


def patiently(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The call's result, tried again while the storage is away. Raises `StorageAway` in the end."""
    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_again), stop=tenacity.stop_after_delay(RETRY_SECONDS),
        wait=tenacity.wait_exponential_jitter(0.2, 10), reraise=True,
    )  # fmt: skip
    try:
        return retry(call, *arguments, **named)
    except Exception as error:
        if not _again(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StorageAway(f"the output's storage has not answered for {RETRY_SECONDS:g} s: {reason}") from error


class Bucket:
    """Whole objects below one URL, by name. Every call is patient."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError` for a URL that cannot be reached by name."""
        try:
            self.fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ValueError(f"output: {url!r} cannot be reached: {error}") from error
        self.root = str(root).rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def is_file(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return patiently(self.fs.info, self.path(name))["type"] == "file"
        return False

    def read(self, name: str) -> bytes:
        return patiently(self.fs.cat_file, self.path(name))

    def write(self, name: str, data: bytes, mode: str = "overwrite") -> None:
        patiently(self.fs.pipe_file, self.path(name), data, mode=mode)

    def put(self, file: Path, name: str) -> None:
        patiently(self.fs.put_file, str(file), self.path(name))

    def get(self, name: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        patiently(self.fs.get_file, self.path(name), str(file))

    def version(self, name: str) -> str:
        """Changes whenever the object does."""
        return str(patiently(self.fs.ukey, self.path(name)))

    def names(self, folder: str) -> list[str]:
        """Of all objects in a folder and below it."""
        try:
            found = patiently(self.fs.find, self.path(folder))
        except FileNotFoundError:
            return []
        return sorted(str(path).lstrip("/").removeprefix(f"{self.root.lstrip('/')}/") for path in found)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                patiently(self.fs.rm_file, self.path(name))


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """A thread makes the call again and again until the block ends. A storage that is away waits for the next time."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(OSError):
                call()

    thread = threading.Thread(target=go_on, name="qcrd-storage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

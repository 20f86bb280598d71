"""The one way to write what must outlive a crash: whole or absent under its name, on the disk, whoever is killed when.

What is being written lies beside its place in a hidden folder `.<name>.<number>.<host>-<process>.tmp`; a folder, since
some libraries (safetensors, SQLite) write further files of their own beside what they write, and leave them where they
are killed. Files that grow are appended to instead, a whole line or nothing. Nothing else in the package renames,
replaces or syncs. Knows nothing about what is written, nor about buckets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A full disk, a spent quota, a disk that is only readable: errors that a new attempt would find again."""
_numbers = itertools.count()
_in_use: set[Path] = set()
"""The temporary folders that this process is writing in now."""


# -- whole files and folders --------------------------------------------------------------------------------------


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file such that a reader sees the old or the new content, also after a crash. Text becomes UTF-8.

    Raises `OSError` that names `path`.
    """
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_or_absent(target: Path) -> Iterator[Path]:
    """`staged`, for files and folders that are written by a library: its errors become an `OSError` that names
    `target`."""
    try:
        with staged(target) as written:
            yield written
    except (OSError, SafetensorError) as error:
        raise OSError(f"{target} not written: {error}") from error


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Gives a path to create a file or folder at; it becomes `target` once all of it is on the disk.

    A `target` that is a file is replaced; a folder must not exist. Where the block raises, `target` stays as it was.
    """
    with _temporary_folder(target) as temporary:
        temporary.mkdir()
        yield (written := temporary / target.name)
        sync_all(written)
        move(written, target)


def move(source: Path, target: Path) -> None:
    """Give a file or folder its place under another name on the same disk, durably. A file in that place is replaced;
    a folder that holds something is an `OSError`."""
    source.replace(target)
    sync(target.parent)


def discard(folder: Path) -> None:
    """Delete a folder such that no part of it is ever seen under its name."""
    with _temporary_folder(folder) as temporary:
        folder.rename(temporary)


def remove_left_overs(folder: Path) -> None:
    """Delete what dead processes of this host, or an earlier one with this one's id, were writing into `folder`."""
    _remove_left_overs(folder, "*.tmp")


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """A name beside `target` at which nothing is; whatever is there at the end is deleted, as is what dead processes
    have left of `target`."""
    temporary = target.with_name(f".{target.name}.{next(_numbers)}.{_host()}-{os.getpid()}.tmp")
    _in_use.add(temporary)
    try:
        _remove_left_overs(target.parent, f".{glob.escape(target.name)}.*.tmp")
        yield temporary
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
        _in_use.discard(temporary)


def _remove_left_overs(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        match = re.search(rf"\.{re.escape(_host())}-(\d+)\.tmp$", path.name)
        if match is None or path in _in_use:
            continue
        if int(match[1]) == os.getpid() or not is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)  # another process may be deleting it, too


def _host() -> str:
    """Without dots, so that no host's name ends in another's where they follow a dot."""
    return socket.gethostname().replace(".", "_")


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


# -- files that grow ----------------------------------------------------------------------------------------------


class GrowingFile:
    """A new file that one process appends to. It is locked while its writer lives, so that a reader can tell what is
    being written from what was torn (`is_being_written`)."""

    def __init__(self, path: Path) -> None:
        """Raises `FileExistsError`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._length = 0
        sync(path.parent)

    def append(self, data: bytes) -> None:
        """All of it or nothing; it is with the operating system then, not yet on the disk."""
        _append(self._file, data, self._length)
        self._length += len(data)

    def sync(self) -> None:
        """Make what was appended durable."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def is_being_written(path: Path) -> bool:
    """Whether the writer of a `GrowingFile` lives. A torn line at its end is then one that is not finished yet."""
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def append(path: Path, data: bytes, durably: bool = False) -> None:
    """Add to a file, all of it or nothing; `durably`: it is on the disk on return. Raises `OSError` that names `path`.

    What did not fit on a full disk is taken back: behind a torn line the next one could not be read.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            length = os.fstat(file).st_size
            _append(file, data, length)
            if durably:
                try:
                    os.fsync(file)
                except BaseException:
                    _cut(file, length)
                    raise
        finally:
            os.close(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _append(file: int, data: bytes, length: int) -> None:
    """Write all of `data` behind the `length` bytes that are there, or none of it."""
    done = 0
    try:
        while done < len(data):
            done += os.write(file, data[done:])
    except BaseException:
        _cut(file, length)
        raise


def _cut(file: int, length: int) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(file, length)


def cut(path: Path, length: int) -> None:
    """Make a file end after so many bytes."""
    os.truncate(path, length)


# -- the disk -----------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(path: Path) -> None:
    """`sync` of a file, or of a folder with all that lies in and below it."""
    for part in (path, *path.rglob("*")):
        sync(part)


def is_full(error: OSError) -> bool:
    """Whether a new attempt would find the same (see `FULL`). By the text, since safetensors gives no number."""
    return any(os.strerror(code) in str(error) for code in FULL)

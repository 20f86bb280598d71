"""Files and folders that are whole or absent under their names, whenever the process or the machine stops.

What is being written lies beside its place in `<name>.<host>-<process>.tmp`, a folder since some libraries
(safetensors) write through a temporary file of a random name, which they leave where they are killed. Knows nothing
about what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from qcrd.storage.artifacts import sync_folder
from qcrd.storage.output import is_alive


@contextlib.contextmanager
def whole_or_absent(target: Path) -> Iterator[Path]:
    """Gives a path to create a file or folder at; it becomes `target` once all of it is on the disk.

    A `target` that is a file is replaced; a folder must not exist. Raises `OSError` that names `target`.
    """
    temporary = _temporary_folder(target)
    try:
        temporary.mkdir()
        yield (written := temporary / target.name)
        for path in (written, *written.rglob("*")):
            sync_folder(path)  # a file is synced the same way
        written.replace(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{target} not written: {error}") from error
    finally:
        _remove(temporary)


def discard(folder: Path) -> None:
    """Delete a folder such that no part of it is ever seen under its name."""
    temporary = _temporary_folder(folder)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def remove_left_overs(folder: Path) -> None:
    """Delete what dead processes of this host were writing into `folder`. This process must not be writing there."""
    for path in folder.glob("*.tmp"):
        match = re.search(rf"\.{re.escape(_host())}-(\d+)\.tmp", path.name)
        if match and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
            shutil.rmtree(path)


def is_full(error: OSError) -> bool:
    """Whether a new attempt would find the same: a full disk, a spent quota, a disk that is only readable.

    By the text, since safetensors gives no number.
    """
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def _host() -> str:
    """Without dots, so that no host's name ends in another's where they follow a dot."""
    return socket.gethostname().replace(".", "_")


def _temporary_folder(target: Path) -> Path:
    """The name to write under; what an earlier process with this id left there is deleted."""
    temporary = target.with_name(f"{target.name}.{_host()}-{os.getpid()}.tmp")
    _remove(temporary)
    return temporary


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)

"""Small files that grow, kept in a bucket as they are on this node, a few seconds behind.

What was last taken from the bucket, or brought to it, is noted beside the files (`.synced.json`), so that only what
has changed travels, and what another node has written since is noticed. Knows nothing about what the files hold.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qcrd.storage.atomic import staged, write_atomically
from qcrd.storage.bucket import Bucket, every

SYNCED = ".synced.json"
SYNC_SECONDS = 5.0  # between two looks at what is mirrored


@contextlib.contextmanager
def mirrored(bucket: Bucket, root: Path, folders: Sequence[str], without: Sequence[str]) -> Iterator[None]:
    """Keep these folders below `root` in the bucket, but for hidden files and folders in them named in `without`."""
    for name in folders:
        pull(bucket, root, name, without)

    def push_all() -> None:
        for name in folders:
            push(bucket, root, name, without)

    try:
        with every(SYNC_SECONDS, push_all):
            yield
    finally:
        push_all()


def pull(bucket: Bucket, root: Path, name: str, without: Sequence[str] = ()) -> None:
    """Take what others have written since."""
    known = _known(root / name)
    for file in bucket.names(name):
        if file.removeprefix(f"{name}/").partition("/")[0] in without:
            continue
        version, path = bucket.version(file), root / file
        if path.exists() and known.get(file, {}).get("version") == version:
            continue  # nobody else has written since, so this node's is as new, or newer
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path) as temporary:
            bucket.get(file, temporary)
        known[file] = {"version": version, "state": _state(path)}
    _remember(root / name, known)


def push(bucket: Bucket, root: Path, name: str, without: Sequence[str] = ()) -> None:
    """Bring what has changed here."""
    known = _known(root / name)
    for path in sorted((root / name).rglob("*")):
        parts = path.relative_to(root / name).parts
        if not path.is_file() or parts[0] in without or any(part.startswith(".") for part in parts):
            continue
        file, state = path.relative_to(root).as_posix(), _state(path)
        if known.get(file, {}).get("state") != state:
            bucket.put(path, file)
            known[file] = {"version": bucket.version(file), "state": state}
    _remember(root / name, known)


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """What was last taken from, or brought to, the bucket."""
    path = folder / SYNCED
    return json.loads(path.read_text()) if path.exists() else {}


def _remember(folder: Path, known: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SYNCED, json.dumps(known))


def _state(path: Path) -> list[int]:
    """Changes when the file does."""
    about = path.stat()
    return [about.st_mtime_ns, about.st_size]

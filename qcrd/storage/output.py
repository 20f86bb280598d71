"""Where an output lies: in a folder that all nodes see, or behind a URL (s3://, gs://, …), a copy of it on each node.

With a URL the bucket is the truth. Each node works in a folder of its own, `$QCRD_SCRATCH` or ~/.cache/qcrd, and what
is finished there is published: the files of a folder first, then `.files.json`, their list, so that a folder is seen
whole or not at all. `mirror` does the same for a few small files that grow. Other modules name things by their path
inside the output, since that is the same on every node. Knows nothing about what lies there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qcrd.storage import mirror
from qcrd.storage.atomic import discard, staged
from qcrd.storage.bucket import Bucket
from qcrd.storage.lease import leased
from qcrd.storage.locks import locked

FILES = ".files.json"
MARK = ".output.json"


def is_url(place: str) -> bool:
    """Whether an output is one that fsspec has to reach."""
    return "://" in place


@dataclass(frozen=True)
class Storage:
    """One output. `place`: an absolute folder, or a URL; it means the same on every node. `copy`: of a URL, which of
    this node's copies; that of a reader is none that a driver works in."""

    place: str
    copy: str = ""

    @classmethod
    def of(cls, output: str | Path) -> Storage:
        """Of a config's `output`; a relative folder is one of this process."""
        output = str(output)
        return cls(output.rstrip("/") if is_url(output) else str(Path(output).resolve()))

    def for_reading(self) -> Storage:
        """The same output, in a copy that may be replaced by what the bucket has while a driver runs here."""
        return Storage(self.place, "-read")

    @property
    def is_remote(self) -> bool:
        return is_url(self.place)

    @property
    def folder(self) -> Path:
        """The output on this node."""
        if not self.is_remote:
            return Path(self.place)
        scratch = Path(os.environ.get("QCRD_SCRATCH") or Path.home() / ".cache" / "qcrd")
        tail = self.place.rstrip("/").rpartition("/")[2]
        return scratch.resolve() / f"{tail}-{hashlib.sha256(self.place.encode()).hexdigest()[:12]}{self.copy}"

    @cached_property
    def _bucket(self) -> Bucket:
        return Bucket(self.place)

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "copy": self.copy}  # a client of the bucket stays in its process

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def prepare(self) -> None:
        """Make this node's folder, and see that the output can be written to. Raises `ValueError` where it cannot."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.is_remote:
            return
        try:
            self._bucket.write(MARK, b'{"made_by": "qcrd"}\n')
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(f"output: {self.place!r} cannot be written to: {error}") from error

    def name_of(self, path: Path) -> str:
        """What a path on this node is called on all of them."""
        return path.relative_to(self.folder).as_posix()

    def names_of(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """`name_of` of the folders of some stages: stage → path."""
        return {stage: self.name_of(path) for stage, path in paths.items()}

    # -- what is whole or absent ----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a folder or file is there, on this node or published."""
        return (self.folder / name).exists() or self.is_published(name)

    def is_published(self, name: str) -> bool:
        return self.is_remote and (self._bucket.is_file(f"{name}/{FILES}") or self._bucket.is_file(name))

    def read_bytes(self, name: str) -> bytes:
        """A file, from this node or, without keeping it, from the bucket. Raises `FileNotFoundError`."""
        path = self.folder / name
        return path.read_bytes() if path.exists() or not self.is_remote else self._bucket.read(name)

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def fetch(self, name: str, replace: bool = False) -> Path:
        """The folder or file on this node; with `replace` the published one in any case.

        Raises `FileNotFoundError` where it is neither here nor published.
        """
        target = self.folder / name
        if target.exists() and not (replace and self.is_remote):
            return target
        if not self.is_remote:
            raise FileNotFoundError(
                f"{target} is not there on node {socket.gethostname()}; where stages run on several machines, output "
                "must be a folder that all of them share, or a URL (s3://…)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched = False
        try:
            with staged(target) as temporary:
                self._download(name, temporary)
                fetched = True
                if replace and target.is_dir():
                    discard(target)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.place}/{name} is not there") from error
        except OSError:
            if not (fetched and target.is_dir()):  # else another process was faster
                raise
        return target

    def _download(self, name: str, target: Path) -> None:
        """A published folder or file. Raises `FileNotFoundError`."""
        if not self._bucket.is_file(f"{name}/{FILES}"):
            self._bucket.get(name, target)
            return
        target.mkdir()
        for file, size in json.loads(self._bucket.read(f"{name}/{FILES}")).items():
            self._bucket.get(f"{name}/{file}", target / file)
            if (found := (target / file).stat().st_size) != size:
                raise OSError(f"{self.place}/{name}/{file} has {found} bytes, not {size}")

    def fetch_all(self, names: Mapping[str, str]) -> dict[str, Path]:
        """`fetch` of the folders of some stages: stage → name."""
        return {stage: self.fetch(name) for stage, name in names.items()}

    def publish(self, name: str, source: Path | None = None) -> None:
        """Put a finished folder or file of this node, or what lies at `source`, where other nodes find it."""
        if not self.is_remote:
            return
        path = source or self.folder / name
        if path.is_file():
            self._bucket.put(path, name)
            return
        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        for file, there in files.items():
            self._bucket.put(there, f"{name}/{file}")
        listed = {file: there.stat().st_size for file, there in files.items()}
        self._bucket.write(f"{name}/{FILES}", json.dumps(listed).encode())

    def published(self, folder: str) -> list[str]:
        """Names of all published files of a folder and below it; none where the output is no URL."""
        return self._bucket.names(folder) if self.is_remote else []

    def unpublish(self, name: str) -> None:
        """Take a folder or file out of the bucket, its list first, so that no part is ever taken for the whole."""
        if self.is_remote:
            self._bucket.remove([f"{name}/{FILES}", *self._bucket.names(name), name])

    def for_ray(self, name: str) -> dict[str, Any]:
        """`storage_path` and `storage_filesystem` of Ray's `RunConfig` for a folder."""
        if not self.is_remote:
            return {"storage_path": str(self.folder / name)}
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return {
            "storage_path": self._bucket.path(name), "storage_filesystem": PyFileSystem(FSSpecHandler(self._bucket.fs))
        }  # fmt: skip

    # -- who is at it ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep out others that want to do the same, here, in another process of this machine, or on another node where
        the output is a URL. `on_wait` is called where somebody else is at it."""
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self.folder / ".locks" / name, on_wait))
            if self.is_remote:
                held.enter_context(leased(self._bucket, name, on_wait))
            yield

    # -- what grows -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def mirror(self, *folders: str, without: Sequence[str] = ()) -> Iterator[None]:
        """Keep small files of these folders in the bucket as they are here, a few seconds behind, for one process.

        `without`: folders in them that are left out, as hidden files are. At first what another node has written since
        is taken from the bucket. Of a storage that stays away the end of the block raises `OSError`; what is here is
        kept, and the next start sends it.
        """
        if not self.is_remote:
            yield
            return
        with mirror.mirrored(self._bucket, self.folder, folders, without):
            yield

    def pull(self, folder: str) -> Path:
        """What is mirrored of a folder, in this copy, which must be one for reading."""
        if self.is_remote:
            mirror.pull(self._bucket, self.folder, folder)
        return self.folder / folder

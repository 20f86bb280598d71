"""Where an output lies: in a folder that all nodes see, or behind a URL (s3://, gs://, …), a copy of it on each node.

With a URL the bucket is the truth. Each node works in a folder of its own, `$QCRD_SCRATCH` or ~/.cache/qcrd, and what
is finished there is published: the files of a folder first, then `.files.json`, their list, so that a folder is seen
whole or not at all. `mirror` does the same for a few small files that grow. Other modules name things by their path
inside the output, since that is the same on every node. Knows nothing about what lies there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity

FILES = ".files.json"
MARK = ".output.json"
SYNCED = ".synced.json"
SYNC_SECONDS = 5.0  # between two looks at what is mirrored
RETRY_SECONDS = 120.0  # how long a storage that does not answer is asked again
BEAT_SECONDS, STALE_SECONDS = 5.0, 60.0  # of a lease: its holder says that it lives, others believe that it does
LOOK_SECONDS = 1.0  # between two looks at a lease of another node
T = TypeVar("T")


class StorageAway(OSError):
    """A bucket did not answer, or refused to, for as long as it was asked again; or a lease in it was lost."""


def is_url(place: str) -> bool:
    """Whether an output is one that fsspec has to reach."""
    return "://" in place


def _again(error: BaseException) -> bool:
    """Whether a call that failed may succeed later; of a server that is away libraries raise errors of their own."""
    final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, ImportError, ValueError)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # this node's disk
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


class _Bucket:
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
    def _bucket(self) -> _Bucket:
        return _Bucket(self.place)

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
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            if self._bucket.is_file(f"{name}/{FILES}"):
                temporary.mkdir()
                for file, size in json.loads(self._bucket.read(f"{name}/{FILES}")).items():
                    self._bucket.get(f"{name}/{file}", temporary / file)
                    if (found := (temporary / file).stat().st_size) != size:
                        raise OSError(f"{self.place}/{name}/{file} has {found} bytes, not {size}")
            else:
                self._bucket.get(name, temporary)
            if replace:
                _remove(target)
            if not target.is_dir():  # else another process was faster
                temporary.replace(target)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.place}/{name} is not there") from error
        finally:
            _remove(temporary)
        return target

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
        place = self.folder / ".locks" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(stream, fcntl.LOCK_EX)
            with self._leased(name, on_wait) if self.is_remote else contextlib.nullcontext():
                yield  # closing the file ends the lock, as does the end of the process

    @contextlib.contextmanager
    def _leased(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep out other nodes, while this process lives.

        Nodes are not asked for the time: a holder that has not said anything for `STALE_SECONDS` of ours is gone. One
        that only stood still for so long stops as soon as it finds that another node has taken over: it is interrupted
        as by Ctrl-C, once, and the block raises `StorageAway`.
        """
        owner = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}
        place = f".holders/{name}"
        ours = self._take(place, owner, on_wait)
        lost = threading.Event()

        def say(news: dict[str, Any]) -> bool:
            """Whether there was somebody to tell it to: nobody asks for a lease that is not the newest."""
            if self._bucket.names(place)[-1:] != [ours]:
                return False
            self._bucket.write(ours, json.dumps({**owner, **news}).encode())
            return True

        def beat() -> None:
            if not say({"beat": time.time()}) and not lost.is_set():
                lost.set()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        try:
            with _every(BEAT_SECONDS, beat):
                yield
        finally:
            if not say({"ended": True}):
                raise StorageAway(f"{name}: this process stood still for so long that another one has taken over")

    def _take(self, place: str, owner: dict[str, Any], on_wait: Callable[[], None]) -> str:
        """Wait for a lease, and return its name. Of a store it needs that it creates an object only where there is
        none, and that it lists what was created before (S3, GCS).

        Leases of a place are numbered. Whoever finds that the newest is over, or its holder gone, creates the next,
        which one alone can do, and has it if it is the newest then. The newest is never removed, so numbers only rise.
        Hence whatever a slow process does late (creates, beats, ends, removes) is done to older leases, which nobody
        asks any more: two that found the same holder gone cannot both take over.
        """
        seen, since, waited = b"", time.monotonic(), False
        while True:
            names = self._bucket.names(place)
            try:
                there = self._bucket.read(names[-1]) if names else b'{"ended": true}'
            except FileNotFoundError:  # there is a newer one
                continue
            lease = json.loads(there)
            if lease.get("id") == owner["id"]:
                self._bucket.remove(names[:-1])
                return names[-1]
            if there != seen:
                seen, since = there, time.monotonic()
            if "ended" in lease or _has_died(lease) or time.monotonic() - since > STALE_SECONDS:
                number = int(names[-1].rpartition("/")[2]) + 1 if names else 1
                with contextlib.suppress(FileExistsError):  # another one was faster, or the answer to ours was lost
                    self._bucket.write(f"{place}/{number:012d}", json.dumps(owner).encode(), mode="create")
                continue
            if not waited:
                on_wait()
                waited = True
            time.sleep(LOOK_SECONDS)

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
        for name in folders:
            self._pull(name, without)

        def push() -> None:
            for name in folders:
                self._push(name, without)

        try:
            with _every(SYNC_SECONDS, push):
                yield
        finally:
            push()

    def pull(self, folder: str) -> Path:
        """What is mirrored of a folder, in this copy, which must be one for reading."""
        if self.is_remote:
            self._pull(folder, ())
        return self.folder / folder

    def _pull(self, name: str, without: Sequence[str]) -> None:
        known = self._known(name)
        for file in self._bucket.names(name):
            if file.removeprefix(f"{name}/").partition("/")[0] in without:
                continue
            version, path = self._bucket.version(file), self.folder / file
            if path.exists() and known.get(file, {}).get("version") == version:
                continue  # nobody else has written since, so this node's is as new, or newer
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._bucket.get(file, temporary)
            temporary.replace(path)
            known[file] = {"version": version, "state": _state(path)}
        self._remember(name, known)

    def _push(self, name: str, without: Sequence[str]) -> None:
        known = self._known(name)
        for path in sorted((self.folder / name).rglob("*")):
            parts = path.relative_to(self.folder / name).parts
            if not path.is_file() or parts[0] in without or any(part.startswith(".") for part in parts):
                continue
            file, state = self.name_of(path), _state(path)
            if known.get(file, {}).get("state") != state:
                self._bucket.put(path, file)
                known[file] = {"version": self._bucket.version(file), "state": state}
        self._remember(name, known)

    def _known(self, name: str) -> dict[str, dict[str, Any]]:
        """What was last taken from, or brought to, the bucket."""
        path = self.folder / name / SYNCED
        return json.loads(path.read_text()) if path.exists() else {}

    def _remember(self, name: str, known: dict[str, dict[str, Any]]) -> None:
        path = self.folder / name / SYNCED
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{SYNCED}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known))
        temporary.replace(path)


@contextlib.contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
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


def _state(path: Path) -> list[int]:
    """Changes when the file does."""
    about = path.stat()
    return [about.st_mtime_ns, about.st_size]


def _has_died(owner: dict[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine that is gone."""
    return owner["host"] == socket.gethostname() and not is_alive(owner["process"])


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

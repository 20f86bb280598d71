"""How the sample store is written down: keys, lines, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np

from qcrd.storage.atomic import write_atomically
from qcrd.storage.bucket import patiently
from qcrd.storage.fingerprints import canonical_json
from qcrd.teacher.backends.base import Failure, Reply, Result, as_count

KEY_TYPE = np.dtype("S32")
"""Keys in arrays: the 32 bytes of a SHA-256."""
HEAD, _TAIL = b'{"key":"', b',"sha256":"'
KEY_END = len(HEAD) + 64
_TAIL_LENGTH = len(_TAIL) + 64 + len(b'"}\n')
_COUNTS = ("prompt_tokens", "completion_tokens", "status")
T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be written or read. The message says which file and why."""


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


def encode_line(key: bytes, record: Result) -> bytes:
    name = "error" if isinstance(record, Failure) else "reply"
    values = {field: _encodable(value) for field, value in asdict(record).items()}
    whole = key.ljust(KEY_TYPE.itemsize, b"\0")  # numpy drops zeros at the end of a key that is taken out of an array
    body = f'{{"key":"{whole.hex()}","{name}":{canonical_json(values)}'.encode()
    return b'%s,"sha256":"%s"}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def _encodable(value: Any) -> Any:
    """Half of a surrogate pair (a reply cut inside an emoji) has no UTF-8; it becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def is_whole(line: bytes) -> bool:
    if not (line.startswith(HEAD) and line.endswith(b'"}\n') and line[-_TAIL_LENGTH:].startswith(_TAIL)):
        return False
    digest = hashlib.sha256(line[:-_TAIL_LENGTH]).hexdigest().encode()
    return digest == line[-67:-3] and line[KEY_END : KEY_END + 10] in (b'","reply":', b'","error":')


def decode_line(line: bytes) -> Result:
    content = json.loads(line)
    values = content["reply"] if "reply" in content else content["error"]
    # What an endpoint gave as a count was once kept unseen.
    values |= {name: as_count(values[name]) for name in _COUNTS if name in values}
    return Reply(**values) if "reply" in content else Failure(**values)


def filesystem_of(place: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a folder or URL, and the path in it. Raises `StoreError` for an unknown or absent one."""
    try:
        fs, path = fsspec.url_to_fs(str(place))
    except (ImportError, ValueError) as error:
        raise StoreError(f"the sample store {place} cannot be reached: {error}") from error
    return fs, str(path).rstrip("/")


def remotely(call: Callable[..., T], *arguments: Any, patient: bool = True, **named: Any) -> T:
    """A call of a file system that is not this machine's. Raises `OSError`, if need be only after it was tried again
    for a while, also for what a client library raises of its own."""
    try:
        return patiently(call, *arguments, **named) if patient else call(*arguments, **named)
    except OSError:
        raise
    except Exception as error:  # a server that is away is an error of the client library's own, as botocore's
        raise OSError(f"{type(error).__name__}: {error}") from error


def put(fs: fsspec.AbstractFileSystem, is_local: bool, path: str, data: bytes, patient: bool = True) -> None:
    """Write a file whole or not at all."""
    if not is_local:
        remotely(fs.pipe_file, path, data, patient=patient)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data)

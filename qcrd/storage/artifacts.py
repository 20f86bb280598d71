"""Where a stage's output lies, what it is called, and what makes it finished.

A stage writes into `<stage>/<name>-<fingerprint>.<host>-<process>.partial`; finishing hashes the files, writes
`artifact.json` last and renames the folder, so a folder without `.partial` is complete and is never edited again. The
fingerprint covers the stage's version and settings and the content digests of its inputs; paths, devices and worker
counts are not in it. Where the output is a URL, a finished artifact is published there, and other nodes fetch it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qcrd.storage.atomic import move, sync_all, write_atomically
from qcrd.storage.fingerprints import digest_of, file_digest
from qcrd.storage.output import Storage

MARKER = "artifact.json"


def model_folder(storage: Storage, model: str) -> Path:
    """A model folder on this node. `model`: a path, or the URL of one in an artifact of `storage`, which is fetched."""
    if not (storage.is_remote and model.startswith(f"{storage.place}/")):
        return Path(model)
    stage, artifact, *rest = model.removeprefix(f"{storage.place}/").split("/")
    return storage.fetch(f"{stage}/{artifact}").joinpath(*rest)


@dataclass(frozen=True)
class Artifact:
    """One stage's output, finished or not."""

    storage: Storage
    stage: str
    name: str
    fingerprint: str
    revision: int = 0
    """Counts up where the same settings are frozen once more (samples whose errors were asked again)."""

    @property
    def path(self) -> Path:
        revision = f".r{self.revision}" if self.revision else ""
        return self.storage.folder / self.stage / f"{self.name}-{self.fingerprint}{revision}"

    @property
    def full_name(self) -> str:
        """Its path inside the output."""
        return self.storage.name_of(self.path)

    def fetch(self) -> Path:
        """The folder of a finished artifact, on this node."""
        return self.storage.fetch(self.full_name)

    @property
    def working_path(self) -> Path:
        """Where the stage writes until it is finished; kept after a crash, so that a stage can go on in it."""
        return self.path.with_name(f"{self.path.name}.{socket.gethostname()}-{os.getpid()}.partial")

    def is_finished(self) -> bool:
        return (self.path / MARKER).is_file() or self.storage.is_published(self.full_name)

    def newest(self) -> Artifact:
        """The last revision that is finished, else this one."""
        following = replace(self, revision=self.revision + 1)
        return following.newest() if self.is_finished() and following.is_finished() else self

    def locked(self, on_wait: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Keep out others that need the same artifact, so that nothing is computed or paid for twice."""
        return self.storage.locked(f"{self.stage}-{self.path.name}", on_wait)

    def digest(self) -> str:
        """Content digest of a finished artifact: what enters the fingerprints of the stages after it."""
        return str(self.marker()["digest"])

    def marker(self) -> dict[str, Any]:
        """The finished marker. Raises `FileNotFoundError` where the artifact is not finished."""
        return json.loads(self.storage.read_text(f"{self.full_name}/{MARKER}"))

    def begin(self) -> Path:
        """The empty folder to write into."""
        if self.working_path.exists():
            shutil.rmtree(self.working_path)
        self.working_path.mkdir(parents=True)
        return self.working_path

    def finish(self, settings: Mapping[str, Any], inputs: Mapping[str, str], summary: Mapping[str, Any]) -> None:
        """Make what lies in `working_path` the finished artifact.

        `summary` holds counts and metrics for people; times may be in it, so it is not part of the digest.
        Where another process finished the same artifact first, that one stays.
        """
        folder = self.working_path
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = {name: file_digest(folder / name) for name in names}
        sync_all(folder)
        marker = {
            "stage": self.stage,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "settings": settings,
            "inputs": inputs,
            "files": files,
            "digest": digest_of(files),
            "summary": summary,
        }
        write_atomically(folder / MARKER, json.dumps(marker, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        self.storage.publish(self.full_name, folder)
        try:
            move(folder, self.path)
        except OSError:
            if not self.is_finished():
                raise
            shutil.rmtree(folder)

"""Finds a task's file: given by `task.path`, downloaded where that is a URL, or under the data folder.

Checks checksums. Knows nothing about what stands in the file.
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from pathlib import Path

from qcrd.config import BenchmarkTaskConfig, ConfigError, TaskSettings
from qcrd.storage.atomic import staged
from qcrd.storage.fingerprints import file_digest

TIMEOUT_SECONDS = 60.0
DOWNLOAD = "download"
"""As `task.path`: from where the benchmark is published, with the checksums that its task knows."""


def data_folder() -> Path:
    """The folder of public data: $QCRD_DATA, else ../shared/data seen from the working directory."""
    return Path(os.environ.get("QCRD_DATA") or "../shared/data")


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/qcrd, else ~/.cache/qcrd."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcrd"


def is_url(path: str | None) -> bool:
    """Whether `task.path` names something to download."""
    return path is not None and path.startswith(("http://", "https://"))


def is_download(path: str | None) -> bool:
    """Whether the questions have to be downloaded before they can be read."""
    return path == DOWNLOAD or is_url(path)


def must_be_downloaded(config: TaskSettings) -> bool:
    """Whether a task's questions lie behind a URL."""
    return isinstance(config, BenchmarkTaskConfig) and is_download(config.path)


def check_file(config: BenchmarkTaskConfig, what: str, *parts: str) -> None:
    """Raise `ConfigError` where the file cannot be had; reads and downloads nothing.

    `what` names the file for people; `parts` is its place under the data folder.
    """
    if is_url(config.path):
        if config.sha256 is None:
            raise ConfigError("task.sha256: None is not allowed; a URL in task.path needs the checksum of its file")
        return
    path = Path(config.path) if config.path else data_folder().joinpath(*parts)
    if not path.is_file():
        raise ConfigError(
            f"task.path: '{path}' does not exist; give {what}, "
            f"or set QCRD_DATA to a folder that holds {'/'.join(parts)}"
        )


def data_file(config: BenchmarkTaskConfig, what: str, *parts: str, known_sha256: str | None = None) -> Path:
    """The task's file on this machine, with the right checksum.

    `known_sha256` is the checksum of the default file; a file that `task.path` names is held to `task.sha256` alone.
    Raises `ConfigError` for a missing file, a failed download or a wrong checksum.
    """
    check_file(config, what, *parts)
    expected = config.sha256 or (known_sha256 if config.path is None else None)
    if config.path is not None and is_url(config.path):
        assert config.sha256 is not None  # check_file
        return downloaded(config.path, config.sha256)
    path = Path(config.path) if config.path else data_folder().joinpath(*parts)
    if expected is not None:
        _check_digest(path, expected, str(path))
    return path


def _check_digest(path: Path, expected: str, shown: str) -> None:
    found = file_digest(path)
    if found != expected:
        raise ConfigError(f"task.path: '{shown}' has the sha256 {found}; it should be {expected}")


def downloaded(url: str, sha256: str) -> Path:
    """The file of a URL, from the cache where it was downloaded before; the checksum is part of its name.

    Raises `ConfigError` for a failed download or a wrong checksum.
    """
    name = Path(urllib.parse.urlparse(url).path).name or "file"
    target = cache_folder() / f"{sha256[:16]}-{name}"
    if target.is_file() and file_digest(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with staged(target) as temporary:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
                temporary.write_bytes(response.read())
            _check_digest(temporary, sha256, url)
    except OSError as error:  # URLError is one
        raise ConfigError(f"task.path: '{url}' could not be downloaded ({error}); give a local file") from error
    return target

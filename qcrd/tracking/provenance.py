"""Which command and which commit made a result, as a record or report may show it: without passwords."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMMIT, DIRTY = "QCRD_GIT_COMMIT", "QCRD_GIT_DIRTY"
"""Variables that say of which commit the code of a submitted job is, which travels without its repository."""


def git_state(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder`, and whether tracked files differ from it; "unknown" without one."""
    try:
        commit, status = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get(COMMIT, "unknown"), "dirty": os.environ.get(DIRTY, "unknown")}
    return {"commit": commit.stdout.strip(), "dirty": "true" if status.stdout.strip() else "false"}


def command_line(words: Sequence[str]) -> str:
    """The command that a process was started with, as a report may show it. `words`: what follows `qcrd`."""
    return redacted(" ".join(["qcrd", *words]))


def redacted(value: Any) -> Any:
    """Plain data without the user:password part of any URL in it.

    That part ends at the last @ before the path. In the URL of a database a password may hold a slash.
    """
    if isinstance(value, str):
        return re.sub(r"://([^/\s]+|[^/:@\s]*:[^@\s]*)@", "://***@", value)
    if isinstance(value, Mapping):
        return {key: redacted(child) for key, child in value.items()}
    return [redacted(child) for child in value] if isinstance(value, list | tuple) else value

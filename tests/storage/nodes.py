"""What tests of an output behind a URL share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qcrd.storage.output import Storage

BUCKET = "output"
Node = Callable[[str], Storage]
"""The test's output as the node of that name has it."""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

"""Files of one JSON value a line that only grow: added to whole lines at a time, and read line by line.

A line ends at "\\n" and nowhere else: a text in it may hold other characters that Python, too, takes for line ends.
What stands after the last line end was torn by a crash. Knows nothing about what the lines say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcrd.storage.atomic import append, cut


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line. Raises `ValueError` for NaN and infinity, which valid JSON does not have."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def parse_json_lines(data: bytes) -> list[dict[str, Any]]:
    """The rows of all complete lines."""
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of all complete lines of a file. Raises `FileNotFoundError`."""
    return parse_json_lines(path.read_bytes())


def append_line(path: Path, line: str, sync: bool = False) -> None:
    """Add a line, all of it or nothing; with `sync` it is on the disk on return. Raises `OSError` that names `path`."""
    append(path, line.encode(), sync)


def cut_torn_line(path: Path) -> None:
    """Make a file end with its last complete line, so that it can be added to. It need not be there."""
    if path.exists():
        cut(path, path.read_bytes().rfind(b"\n") + 1)

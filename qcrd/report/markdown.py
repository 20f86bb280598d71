"""Text as Markdown that a hostile rationale cannot break, and numbers as text. Knows nothing about experiments."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

NOT_MEASURED = "not measured"


def cell(text: str, limit: int = 600) -> str:
    """Any text as the content of one table cell, shown literally: HTML, pipes, backticks and emphasis are disarmed.

    Line breaks become `<br>`; text past `limit` characters is cut, and the cut is marked.
    """
    shown = text if len(text) <= limit else text[:limit] + " … (cut)"
    lines = [re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", line).strip() for line in shown.strip().splitlines()]
    escaped = html.escape("\n".join(lines), quote=False)
    escaped = re.sub(r"([\\*_\[\]~$])", r"\\\1", escaped).replace("|", "&#124;").replace("`", "&#96;")
    return escaped.replace("\n", "<br>") or "(empty)"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as lines. Cells are taken as they are: run foreign text through `cell` first.

    Raises `ValueError` where a row has not as many cells as the header.
    """
    lines = [header, ["---"] * len(header), *rows]
    for row in lines:
        if len(row) != len(header):
            raise ValueError(f"table row of {len(row)} cells, expected {len(header)}: {row}")
    return ["| " + " | ".join(row) + " |" for row in lines] + [""]


def percent(share: float | None, digits: int = 1) -> str:
    """A share as `53.2 %`."""
    return NOT_MEASURED if share is None else f"{100 * share:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """A whole number."""
    return NOT_MEASURED if value is None else str(value)

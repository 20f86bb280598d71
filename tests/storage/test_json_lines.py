"""Files that grow line by line: what a full disk or a crash leaves, and where a line ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcrd.storage.json_lines import append_line, cut_torn_line, json_line, parse_json_lines, read_json_lines
from tests.full_disk import files_end_at


@pytest.mark.parametrize("sync", [False, True])
def test_what_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "lines"
    append_line(path, json_line({"a": 1}), sync)
    with files_end_at(path.stat().st_size + 5), pytest.raises(OSError, match=rf"too large: '{path}'"):
        append_line(path, json_line({"b": 2}), sync)
    assert path.read_text() == '{"a": 1}\n'
    append_line(path, json_line({"c": 3}), sync)
    assert read_json_lines(path) == [{"a": 1}, {"c": 3}]


def test_a_line_ends_at_a_newline_only(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u2029c\u0085d\x1ce\x0bf\rg\nh"}, {"text": ""}]
    for row in rows:
        append_line(tmp_path / "lines", json_line(row))
    assert read_json_lines(tmp_path / "lines") == rows
    assert (tmp_path / "lines").read_bytes().count(b"\n") == 2


def test_a_torn_last_line_is_not_read_and_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    cut_torn_line(path)
    assert not path.exists()
    whole, torn = json_line({"a": 1}).encode(), json_line({"b": "é"}).encode()
    for end in range(len(torn)):
        path.write_bytes(whole + torn[:end])
        assert read_json_lines(path) == [{"a": 1}]
        cut_torn_line(path)
        assert path.read_bytes() == whole
    path.write_bytes(torn[:-1])
    cut_torn_line(path)
    assert path.read_bytes() == b"" and parse_json_lines(b"") == []


def test_nan_is_no_line() -> None:
    with pytest.raises(ValueError):
        json_line({"a": float("nan")})
    assert json.loads(json_line({"a": "é"})) == {"a": "é"}

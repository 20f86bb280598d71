"""The command and the commit that made a result, and no password."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qcrd.tracking.provenance import command_line, git_state, redacted


@pytest.mark.parametrize(
    "text, safe",
    [
        ("http://user:p@ssw0rd@mlflow:5000", "http://***@mlflow:5000"),
        ("http://user:p@ss:w@rd@mlflow/a and http://host/b@c", "http://***@mlflow/a and http://host/b@c"),
        ("http://token@mlflow", "http://***@mlflow"),
        ("postgresql://me:se/cret@db/x", "postgresql://***@db/x"),
        ("http://host:5000/a/b, s3://bucket/a@b", "http://host:5000/a/b, s3://bucket/a@b"),
    ],
)
def test_no_part_of_a_password_is_shown(text: str, safe: str) -> None:
    assert redacted(text) == safe
    assert command_line(["run", f"tracking.uri={text}"]) == f"qcrd run tracking.uri={safe}"


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": "unknown", "dirty": "unknown"}
    environment = os.environ | {
        f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, env=environment, check=True)
    assert len(git_state(tmp_path)["commit"]) == 40
    assert git_state(tmp_path)["dirty"] == "false"
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path)["dirty"] == "true"

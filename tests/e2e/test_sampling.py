"""A whole run with a real HTTP teacher, after which no secret is anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from qcrd.records import Sample, read_rows
from tests.e2e.whole_runs import command, only
from tests.teacher.loopback import Server, loopback

pytestmark = pytest.mark.e2e
CANARY = "sk-canary-5f1c9e"


def teacher(server: Server, *overrides: str) -> list[str]:
    return [
        "teacher.kind=openai", f"teacher.base_url={server.base_url}", "teacher.model=loopback", "method=dss",
        "train.steps=10", "train.iteration_steps=5", "teacher.samples_per_request=1", *overrides,
    ]  # fmt: skip


def wait_until_asked(server: Server, process: subprocess.Popen[str], requests: int) -> None:
    deadline = time.monotonic() + 300
    while server.asked.total() < requests:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_no_secret_is_anywhere(tmp_path: Path):
    """A server that repeats the key in every other refusal; then all that was written, shown and listed is searched."""

    def behave(number: int, prompt: str) -> tuple[int, dict[str, str], str] | None:
        if number == 0 and len(prompt) % 3 == 0:
            return 500, {"Retry-After": "0"}, json.dumps({"error": {"message": f"bad luck, Bearer {CANARY}"}})
        if len(prompt) % 7 == 0:
            return 400, {}, json.dumps({"error": {"message": f"refused for {CANARY}"}})
        return None

    ray_folder = Path(tempfile.mkdtemp(prefix="qcrd-"))  # Ray's sockets need a short path
    environment = {**os.environ, "OPENAI_API_KEY": CANARY, "RAY_TMPDIR": str(ray_folder)}
    shown: list[str] = []
    with loopback(behave, delay=0.2) as server:
        line = command(tmp_path / "runs", *teacher(server, "teacher.concurrency=4"))
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment
        ) as process:
            wait_until_asked(server, process, 30)
            children = psutil.Process(process.pid).children(recursive=True)
            shown += [" ".join(child.cmdline()) for child in [psutil.Process(process.pid), *children]]
            text, _ = process.communicate(timeout=500)
        shown.append(text)
        assert process.returncode == 0 and "test accuracy: " in text, text[-3000:]
        assert server.keys == {f"Bearer {CANARY}"}
    rows = read_rows(only(tmp_path / "runs" / "samples") / "samples.parquet", Sample)
    assert any("refused for ***" in row.error for row in rows)  # the canary was on its way, and was stopped
    assert len(shown) > 5
    assert not [one[:200] for one in shown if CANARY in one]
    searched = 0
    for path in (path for folder in (tmp_path / "runs", ray_folder) for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            searched += 1
            assert CANARY.encode() not in path.read_bytes(), path
    assert searched > 50
    shutil.rmtree(ray_folder)

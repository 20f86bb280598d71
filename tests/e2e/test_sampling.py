"""Sampling by the command line: Ctrl-C, error rows asked again, and no secret anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
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


def test_ctrl_c_ends_within_seconds_and_the_same_command_goes_on(tmp_path: Path):
    with loopback(delay=0.3) as server:
        line = command(tmp_path / "runs", *teacher(server, "teacher.concurrency=4"))
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, start_new_session=True
        ) as process:
            deadline = time.monotonic() + 90
            while server.asked.total() < 30:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            pressed = time.monotonic()
            text, _ = process.communicate(timeout=60)
            assert time.monotonic() - pressed < 15, text
        assert process.returncode == 130
        assert "interrupted; what is there is kept, and the same command goes on where this one stopped" in text
        time.sleep(1.0)  # what was in flight has arrived
        asked = server.asked.total()
        assert asked < 144
        server.delay = 0.0
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert server.asked.total() <= 144 + 4  # what was in flight
    samples = read_rows(only(tmp_path / "runs" / "samples") / "samples.parquet", Sample)
    assert len(samples) == 144 and all(one.text for one in samples)


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
            deadline = time.monotonic() + 90
            while server.asked.total() < 30:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            children = psutil.Process(process.pid).children(recursive=True)
            shown += [" ".join(child.cmdline()) for child in [psutil.Process(process.pid), *children]]
            text, _ = process.communicate(timeout=300)
        shown.append(text)
        assert process.returncode == 0, text[-3000:]
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

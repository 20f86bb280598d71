"""Jobs on a real Ray cluster of one node, on loopback and with token authentication."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil
import pytest
from ray.job_submission import JobSubmissionClient
from rich.console import Console

from qcrd.console import Display
from qcrd.jobs.submit import connect, exit_code, follow
from qcrd.tracking.provenance import git_state
from qcrd.tracking.record import read_items

ROOT = Path(__file__).parent.parent.parent
RECIPE = "experiments/quickstart.py"
KEY = "sk-of-nobody-0123456789abcdef"
TOKEN = "c0ffee" * 8
TINY = [
    "method=finetune", "task.train_size=48", "task.validation_size=12",
    "task.test_size=12", "student.d_model=32", "student.d_ff=64", "train.steps=20",
    "train.iteration_steps=10", "train.global_batch_size=8", "evaluation.explained_questions=2",
    "tracking.enabled=False", "resources.threads=1",
]  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """`folder` is the home and the temporary folder of all that runs on it."""

    address: str
    folder: Path

    def qcrd(self, *arguments: str, interrupt_at: str | None = None, **variables: str) -> tuple[int, str]:
        """Exit code and all that was printed of `qcrd … --address`, from a shell that has an API key, a token, and the
        address of another cluster. With `interrupt_at`, Ctrl-C is pressed when that is printed."""
        command = [sys.executable, "-m", "qcrd", *arguments, "--address", self.address]
        env = {**os.environ, "OPENAI_API_KEY": KEY, "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": "127.0.0.1:9", **variables}
        env.pop("RAY_AUTH_MODE", None)  # as in a new shell
        shown = ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="")
                shown += line
                if interrupt_at is not None and interrupt_at in line:
                    process.send_signal(signal.SIGINT)
        return process.returncode, shown


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    assert importlib.util.find_spec("aiohttp_cors"), "a job server needs ray[default]: pip install -e '.[dev]'"
    folder = Path(tempfile.mkdtemp(prefix="qc", dir="/tmp"))  # short: Ray's sockets lie in it
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2",
        "--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "OPENAI"))}
    env |= {"HOME": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # where jobs find their python
    address, log = f"http://127.0.0.1:{ports['dashboard-port']}", folder / "head.log"
    head = start_head(command, folder, env, log)
    try:
        for _ in range(3):  # on a busy machine Ray gives its own start up after 30 s, also when its job server answers
            wait_for(lambda head=head: head.poll() is not None or "Ray runtime started" in log.read_text(), 240, log)
            if head.poll() is None:
                break
            head = start_head(command, folder, env, log)
        wait_for(lambda: answers(address), 240, log)
        assert head.poll() is None, log.read_text()[-3000:]
        yield Cluster(address, folder)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start_head(command: list[str], folder: Path, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=folder, env=env, start_new_session=True
        )


def answers(address: str) -> bool:
    """Whether the job server takes requests that come with the token."""
    try:
        client_of(address).list_jobs()
    except (OSError, RuntimeError):
        return False
    return True


def client_of(address: str) -> JobSubmissionClient:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", address)
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {TOKEN}"})


def job_in(shown: str) -> str:
    """The submission id in what `qcrd submit` printed before the job's log."""
    found = re.search(r"^(qcrd-quickstart-[0-9a-f]{12}-\d+): python", shown, re.M)
    assert found is not None, shown
    return found[1]


def wait_for(what: Callable[[], bool], seconds: float, log: Path) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.mark.ray
def test_a_job_is_submitted_left_found_again_and_submitted_again(cluster: Cluster):
    out = cluster.folder / "out"
    submit = ["submit", RECIPE, *TINY, f"output={out}"]
    client = client_of(cluster.address)

    code, shown = cluster.qcrd(*submit, interrupt_at="Running entrypoint for job")
    assert code == 130 and "detached; qcrd-quickstart-" in shown and "stop it:" in shown
    first = job_in(shown)
    assert first.endswith("-1") and not client.get_job_status(first).is_terminal()

    code, shown = cluster.qcrd(*submit, "--no-wait")
    assert code == 0 and f"{first} is RUNNING already" in shown and f"qcrd status {first} --address" in shown

    missing = ["method=dss", "teacher.kind=openai", "teacher.api_key_env=NO_SUCH_KEY"]
    code, shown = cluster.qcrd(*submit, *missing)
    assert code == 2 and "NO_SUCH_KEY: the key for OpenAI" in shown and "exit code 2" in shown
    assert shown.count("the environment variable 'NO_SUCH_KEY' is not set") == 1
    failed = job_in(shown)

    wait_for(lambda: client.get_job_status(first).is_terminal(), 300, cluster.folder / "head.log")
    code, shown = cluster.qcrd("status", first)
    assert code == 0 and "test accuracy:" in shown and f"{first}: SUCCEEDED after" in shown
    artifacts = {path: path.stat().st_mtime_ns for path in out.glob("*/*/artifact.json")}
    assert len(artifacts) == 5
    (record,), code = (out / "records").iterdir(), git_state(ROOT)
    assert {item["tags"]["qcrd.git_commit"] for item in read_items(record) if item["kind"] == "start"} == {
        code["commit"]
    }

    code, shown = cluster.qcrd(*submit)  # after its end: a new attempt, with nothing left to do
    assert code == 0 and f"{first} SUCCEEDED; a new attempt goes on" in shown and job_in(shown) == f"{first[:-1]}2"
    assert "✓ already there: questions, training_set, student, predictions, report" in shown
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/artifact.json")} == artifacts

    code, shown = cluster.qcrd("status")
    assert code == 0 and [shown.count(state) for state in ("SUCCEEDED", "FAILED")] == [2, 1] and RECIPE in shown
    code, shown = cluster.qcrd("status", failed)
    assert code == 2 and "'NO_SUCH_KEY' is not set" in shown
    code, shown = cluster.qcrd("status", RAY_AUTH_TOKEN="another" * 6)
    assert code == 2 and shown.count("\n") == 1 and "does not accept the token" in shown

    (sent,) = cluster.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/pyproject.toml")
    names = {path.name for path in sent.parent.iterdir()}
    assert {"qcrd", "experiments"} <= names and not {".git", ".venv", "runs", "data"} & names

    jobs = [one for one in client.list_jobs() if one.submission_id]
    assert len(jobs) == 3 and KEY not in str([one.dict() for one in jobs])
    logs = [path for path in (cluster.folder / "ray").rglob("*") if path.suffix in (".log", ".out", ".err")]
    assert f"job-driver-{first}.log" in [path.name for path in logs]
    for path in logs:
        text = path.read_text(errors="replace")
        assert KEY not in text and TOKEN not in text, path


@pytest.mark.ray
def test_a_log_is_followed_over_a_tunnel_that_breaks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with Tunnel(urlsplit(cluster.address).port or 0) as tunnel:
        client = connect(f"http://127.0.0.1:{tunnel.port}", print)
        lines = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done"
        job = client.submit_job(entrypoint=f"{lines}; kill -9 $$")
        shown = Breaking(lambda text: "line 3" in text, tunnel.cut)
        info = follow(client, job, Display(Console(file=shown, width=200)))
    assert shown.broke and [line for line in shown.getvalue().splitlines() if line.startswith("line")] == [
        f"line {number}" for number in range(1, 9)
    ]
    assert exit_code(info) == 128 + 9


class Breaking(io.StringIO):
    """A file that does something once when a text has been written to it."""

    def __init__(self, when: Callable[[str], bool], what: Callable[[], None]) -> None:
        super().__init__()
        self._when, self._what, self.broke = when, what, False

    def write(self, text: str) -> int:
        if not self.broke and self._when(text):
            self.broke = True
            self._what()
        return super().write(text)


class Tunnel:
    """A TCP proxy on loopback whose open connections can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

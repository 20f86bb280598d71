"""Training under ten kills, predictions under two, a full disk: all ends as if nothing had happened."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from qcrd.tracking.record import read_metrics
from tests.e2e.whole_runs import TINY, command, only, rows_of

pytestmark = pytest.mark.faults
ITERATION_STEPS = 10
SETTINGS = [
    *TINY, f"train.iteration_steps={ITERATION_STEPS}", "train.steps=300", "loss.margin=12", "checkpoint.keep=1",
    "task.validation_size=200", "evaluation.batch_size=20", "resources.threads=1",
    "resources.max_failures=30",
]  # fmt: skip
TWO_WORKERS = ["resources.workers=2", "negatives.placement=async"]


class Job:
    """`qcrd run` in a process of its own, and what can be seen of it from outside."""

    def __init__(self, output: Path, *overrides: str) -> None:
        self.output, self.log, self.overrides = output, output.with_name(f"{output.name}.log"), overrides
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def training(self) -> Path:
        return only(self.output / "checkpoints")

    def start(self) -> None:
        self.starts += 1
        with self.log.open("wb") as stream:
            arguments = command(self.output, *SETTINGS, *self.overrides)
            self.process = subprocess.Popen(arguments, stdout=stream, stderr=stream, cwd=self.output.parent)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def finish(self) -> int:
        """Wait for the end. Returns the exit code."""
        assert self.process is not None
        return self.process.wait(timeout=300)

    def wait_for(self, what: Callable[[], Any], seconds: float = 120, pause: float = 0.02) -> Any:
        """What `what` gives once that is neither None nor False. Fails where the job ends before, or never comes."""
        deadline = time.monotonic() + seconds
        while (found := what()) is None or found is False:
            assert self.is_running(), f"ended too early:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not seen in {seconds} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(pause)
        return found

    # -- what training wrote ------------------------------------------------------------------------------------

    def has_begun(self) -> bool:
        return bool(list(self.output.glob("checkpoints/*/snapshots/snapshot-00000.safetensors")))

    def durable(self) -> int:
        """Iteration of the newest whole checkpoint; 0 where there is none."""
        paths = self.training.glob("checkpoints/iteration-*/checkpoint.json")
        return max((int(path.parent.name.removeprefix("iteration-")) for path in paths), default=0)

    def rows(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(only(self.output / "records")) if row["stage"] == "student"]

    def reported(self) -> int:
        """The last iteration of which the driver was told that it is over."""
        return max((int(row["train/iteration"]) for row in self.rows() if "train/iteration" in row), default=0)

    def went_on_from(self, since: float) -> int | None:
        """The iteration whose state training took after a moment; None until that is seen.

        The record's rows are then written anew, and those that come from a checkpoint know no durations.
        """
        rows = self.rows()
        if not rows or min(row["time"] for row in rows) < since:
            return None
        taken = [row for row in rows if "train/iteration" in row and "time/steps" not in row]
        return max((int(row["train/iteration"]) for row in taken), default=0)

    def being_written(self) -> tuple[Path, int] | None:
        """A checkpoint of which a part is on the disk, and the process that writes it."""
        for path in self.training.glob("checkpoints/*.tmp"):
            if match := re.fullmatch(r"\.iteration-\d+\..+-(\d+)\.tmp", path.name):
                return path, int(match[1])
        return None

    # -- processes ----------------------------------------------------------------------------------------------

    def everyone(self) -> list[psutil.Process]:
        """The driver and all that it started."""
        assert self.process is not None
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]


def named(title: str) -> list[psutil.Process]:
    """Ray's processes of one title below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(f"ray::{title}"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def kill(*processes: psutil.Process) -> None:
    """kill -9, and wait until they are gone."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


class Kills:
    """Kills a job in all ways, each at a random moment after training went on, and measures what was lost."""

    def __init__(self, job: Job, iteration: float, evaluation: tuple[float, float], seed: int) -> None:
        """`iteration`: seconds of one; `evaluation`: from its last step until evaluation begins, and its seconds."""
        self.job, self.iteration, self.evaluation = job, iteration, evaluation
        self.random = random.Random(seed)
        self.seen: list[tuple[str, int, int, int]] = []
        """Victim, iteration that was over, that of the newest whole checkpoint, that from which training went on."""

    def random_moment(self) -> None:
        """Up to four iterations later, anywhere in one."""
        wanted = self.job.reported() + self.random.randint(0, 3)
        self.job.wait_for(lambda: self.job.reported() >= wanted)
        deadline = time.monotonic() + self.random.random() * self.iteration
        self.job.wait_for(lambda: time.monotonic() > deadline)

    def driver(self) -> None:
        """The driver alone. Its Ray dies with it, or stays where it is a cluster's."""
        self.random_moment()
        self._end(self.job.everyone()[:1])

    def machine(self) -> None:
        """Everything at once, as when the power fails."""
        self.random_moment()
        self._end(self.job.everyone())

    def worker(self) -> None:
        self.random_moment()
        self._restart("worker", self.random.choice(named("RayTrainWorker")))

    def second_worker(self) -> None:
        """One that is not the first, which is the one that writes checkpoints."""
        first = self.job.wait_for(self.job.being_written, pause=0)[1]
        self.random_moment()
        (other,) = (process for process in named("RayTrainWorker") if process.pid != first)
        self._restart("second worker", other)

    def checkpoint(self) -> None:
        """The worker in the middle of writing a checkpoint."""
        self.random_moment()
        while True:
            path, pid = self.job.wait_for(self.job.being_written, pause=0)
            writer = psutil.Process(pid)
            writer.suspend()
            if path.exists():
                return self._restart(f"writing {path.name.partition('.')[0]}", writer)
            writer.resume()

    def evaluating(self) -> None:
        """The worker in the middle of an evaluation: after an iteration's last step, before its end is told."""

        def at_last_step() -> bool:
            rows = self.job.rows()
            return bool(rows) and "time/step" in rows[-1] and rows[-1]["step"] % ITERATION_STEPS == 0

        self.random_moment()
        before, seconds = self.evaluation
        while True:
            self.job.wait_for(at_last_step, pause=0.005)
            time.sleep(before + self.random.uniform(0.1, 0.7) * seconds)
            (worker,) = named("RayTrainWorker")
            worker.suspend()
            time.sleep(0.2)
            if at_last_step():
                return self._restart("evaluating", worker)
            worker.resume()

    def actor(self) -> None:
        """The negatives actor at work: it is replaced, and training does not begin again."""
        self.job.wait_for(lambda: self.job.reported() >= 1)
        self.random_moment()
        (actor,) = self.job.wait_for(lambda: named("NegativesActor.make") or None, pause=0.005)
        killed, reported = time.time(), self.job.reported()
        kill(actor)
        (new,) = self.job.wait_for(lambda: named("NegativesActor.make") or None, pause=0.005)
        assert new.pid != actor.pid
        self.job.wait_for(lambda: self.job.reported() >= reported + 2)
        assert self.job.went_on_from(killed) is None
        self.seen.append(("actor", reported, reported, reported))

    def _restart(self, name: str, process: psutil.Process) -> None:
        """Kill a worker, which Ray starts again."""
        kill(process)
        self._measure(name)

    def _end(self, processes: list[psutil.Process]) -> None:
        """Kill the driver, at least, and give the command again."""
        at_work = [*named("RayTrainWorker"), *named("NegativesActor")]
        kill(*processes)
        _, alive = psutil.wait_procs(at_work, timeout=60)
        assert not alive, f"still alive: {alive}"
        self._measure("everything" if len(processes) > 1 else "driver", self.job.start)

    def _measure(self, name: str, start: Callable[[], None] = lambda: None) -> None:
        killed, durable, reported = time.time(), self.job.durable(), self.job.reported()
        start()
        went_on = self.job.wait_for(lambda: self.job.went_on_from(killed))
        self.seen.append((name, reported, durable, went_on))
        assert went_on >= durable, f"{name}: checkpoint {durable} was whole, training went on from {went_on}"
        assert went_on >= reported - 1, f"{name}: iteration {reported} was over, training went on from {went_on}"


def assert_equal(output: Path, reference: Path) -> None:
    """The same bytes in loss trace, students, discriminator and predictions."""
    assert rows_of(only(output / "student")) == rows_of(only(reference / "student"))
    for stage in ("student", "predictions"):
        files, expected = (
            {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (only(output / stage), only(reference / stage))
        )
        assert files.pop("artifact.json") and expected.pop("artifact.json")
        assert files.keys() == expected.keys()
        assert [name for name in files if files[name] != expected[name]] == []


def copy_without(output: Path, copy: Path, *stages: str) -> Path:
    """A copy of an output folder that lacks some stages, and the record."""
    left_out = {"records", "mlflow.db", "mlflow-artifacts", *stages}
    return shutil.copytree(output, copy, ignore=lambda folder, _: left_out if Path(folder) == output else set())


def untrained(output: Path, copy: Path) -> Path:
    """A copy with everything before training."""
    return copy_without(output, copy, "checkpoints", "student", "predictions", "report")


def durations(output: Path) -> tuple[float, tuple[float, float]]:
    """Medians of an iteration's seconds, and of its discriminator's update and evaluation."""
    rows = [row for row in read_metrics(only(output / "records")) if "time/steps" in row]
    names = ("negatives", "scoring", "steps", "discriminator", "evaluation", "checkpoint")
    part = {name: sorted(row[f"time/{name}"] for row in rows)[len(rows) // 2] for name in names}
    return sum(part.values()), (part["discriminator"], part["evaluation"])


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    job = Job(tmp_path_factory.mktemp("one") / "runs")
    job.start()
    assert job.finish() == 0, job.log.read_text()[-3000:]
    return job.output


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray cluster that outlives its drivers."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield
    nodes.shutdown()


def finish_and_compare(job: Job, kills: Kills, reference: Path) -> None:
    assert job.finish() == 0, job.log.read_text()[-3000:]
    iteration, (_, evaluation) = durations(reference)
    print(f"\niteration {iteration:.2f} s, of which evaluation {evaluation:.2f} s; {job.starts} starts")
    for name, reported, durable, went_on in kills.seen:
        print(f"  {name}: {reported} iterations over, checkpoint {durable} whole; went on after {went_on}")
    assert_equal(job.output, reference)
    assert not list(job.training.glob("*/*.tmp"))


@pytest.mark.timeout(900)
def test_kills_of_one_worker(one_worker: Path, tmp_path: Path):
    job = Job(untrained(one_worker, tmp_path / "runs"))
    job.start()
    job.wait_for(job.has_begun)
    kills = Kills(job, *durations(one_worker), seed=1)
    for victim in (kills.machine, kills.checkpoint, kills.evaluating, kills.driver, kills.worker):
        victim()
    assert job.starts == 3 and len(kills.seen) == 5
    finish_and_compare(job, kills, one_worker)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("cluster")
def test_kills_of_two_workers_and_of_the_negatives_actor(one_worker: Path, tmp_path: Path):
    """In a cluster that outlives the driver: what the dead driver's job left must not disturb the next."""
    reference = Job(untrained(one_worker, tmp_path / "reference"), *TWO_WORKERS)
    reference.start()
    assert reference.finish() == 0, reference.log.read_text()[-3000:]
    job = Job(untrained(one_worker, tmp_path / "runs"), *TWO_WORKERS)
    job.start()
    job.wait_for(job.has_begun)
    kills = Kills(job, *durations(reference.output), seed=2)
    for victim in (kills.actor, kills.second_worker, kills.driver, kills.checkpoint, kills.worker):
        victim()
    assert job.starts == 2 and len(kills.seen) == 5
    finish_and_compare(job, kills, reference.output)


@pytest.mark.timeout(600)
def test_kills_of_the_predictions(one_worker: Path, tmp_path: Path):
    """First of the task, which Ray starts again, then of everything."""
    job = Job(copy_without(one_worker, tmp_path / "runs", "predictions", "report"))
    job.start()
    (first,) = job.wait_for(lambda: named("task") or None, pause=0.005)
    kill(first)
    (second,) = job.wait_for(lambda: named("task") or None, pause=0.005)
    assert second.pid != first.pid and list(job.output.glob("predictions/*.partial"))
    kill(*job.everyone())
    assert not [path for path in (job.output / "predictions").iterdir() if path.suffix != ".partial"]
    job.start()
    assert job.finish() == 0, job.log.read_text()[-3000:]
    assert_equal(job.output, one_worker)


@pytest.mark.timeout(600)
def test_a_driver_alone_that_died_after_training_takes_the_results(one_worker: Path, tmp_path: Path):
    job = Job(copy_without(one_worker, tmp_path / "runs", "student", "predictions", "report"))
    (results,) = job.output.glob("checkpoints/*/results")
    written = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    job.start()
    assert job.finish() == 0, job.log.read_text()[-3000:]
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == written
    assert_equal(job.output, one_worker)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk of our own: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_in_training(one_worker: Path, small_disk: Path, tmp_path: Path):
    job = Job(untrained(one_worker, small_disk / "runs"))
    job.log = tmp_path / "runs.log"
    job.start()
    job.wait_for(lambda: list(job.output.glob("checkpoints/*/checkpoints/iteration-*")) or None)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space left"):
        while True:
            stream.write(bytes(2**16))
    assert job.finish() == 1
    text = job.log.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    print(f"\n{line}")
    assert re.search(rf"{re.escape(str(job.output))}/\S+.*No space left on device", line) and "Traceback" not in text
    durable = job.durable()
    ballast.unlink()
    job.start()
    killed = time.time()
    assert job.wait_for(lambda: job.went_on_from(killed)) == durable
    assert job.finish() == 0, job.log.read_text()[-3000:]
    assert_equal(job.output, one_worker)


@pytest.mark.timeout(600)
def test_a_changed_config_gets_its_own_folder(one_worker: Path, tmp_path: Path):
    job = Job(copy_without(one_worker, tmp_path / "runs"), "loss.beta=0.3", "train.steps=10")
    (first,) = (job.output / "checkpoints").iterdir()
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    job.start()
    assert job.finish() == 0, job.log.read_text()[-3000:]
    assert before == {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    for stage in ("checkpoints", "student"):
        assert len(list((job.output / stage).iterdir())) == 2

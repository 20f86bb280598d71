"""How fast, how safe and how small teacher sampling is: `python -m experiments.benchmarks.teacher`, about 12 minutes.

Everything is measured against a simulated endpoint in a process of its own, on this machine; no language model is
asked. It prints a table, and as its last line JSON:

- clean_ratio: samples a second over 4,000 requests with answers after 500 ms and 64 at once, over the ideal 128;
- faulty_ratio: the same with 2 % 429s, 1 % 500s, 1 % stalls (cut after 3 s) and 1 % malformed bodies, unanswered;
- scan_seconds, scan_gib: opening a store of e-SNLI x 5 samples and finding what is missing; peak memory;
- driver_growth_mib: the driver's peak memory with 100,000 requests less that with 10,000 (10,000 questions, asked ten
  times or once; endpoint without delay);
- lost_replies, paid_twice, in_flight_bound: one job killed -9 at ten random moments (its driver, its actor, or all of
  its processes): replies served more than one flush interval before a kill and asked for again; the most requests
  made again after one kill; and what that may be: concurrency + the replies of one flush interval.

Times run from the first request of an actor to the last reply. Kills fall 0.5 to 3.5 s after the actors' first two
hundred requests of a start.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from qcrd.config import ExperimentConfig, OpenAITeacherConfig
from qcrd.records import Question
from qcrd.tasks import get_task
from qcrd.teacher.backends.base import Reply
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import missing_mask, wanted_samples
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_writer import StoreWriter

CONCURRENCY, DELAY, REQUESTS = 64, 0.5, 4000
FAULTS = {"429": 0.02, "500": 0.01, "timeout": 0.01, "malformed": 0.01}
ESNLI_QUESTIONS, ESNLI_SAMPLES, MISSING_EVERY = 549_367, 5, 101
KILLS, KILLED_JOB_REQUESTS = 10, 6000
FLUSH_SECONDS = OpenAITeacherConfig().flush_seconds
Numbers = dict[str, float]


@dataclass(frozen=True)
class Endpoint:
    """A simulated endpoint that runs."""

    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def read(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}") as response:
            return json.load(response)


@contextlib.contextmanager
def endpoint(delay: float, faults: dict[str, float] | None = None) -> Iterator[Endpoint]:
    command = [sys.executable, "-m", "experiments.benchmarks.endpoint", "--delay", str(delay)]
    command += ["--faults", json.dumps(faults or {})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Endpoint(int(process.stdout.readline()))
        finally:
            process.kill()


def job_command(base_url: str, output: Path, questions: int, timeout: float, samples: int = 1) -> list[str]:
    return [
        sys.executable, "-m", "experiments.benchmarks.sampling_job", "--base-url", base_url, "--output", str(output),
        "--questions", str(questions), "--timeout", str(timeout), "--samples", str(samples),
    ]  # fmt: skip


def run_job(base_url: str, questions: int, timeout: float, samples: int = 1) -> dict[str, Any]:
    """A whole job with an empty store; what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = job_command(base_url, Path(folder), questions, timeout, samples)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_throughput(faults: dict[str, float] | None) -> tuple[float, int]:
    """Samples a second over the ideal, and how many questions were left unanswered."""
    with endpoint(DELAY, faults) as served:
        result = run_job(served.base_url, REQUESTS, timeout=3.0)
        requests = served.read("log")["requests"][1:]  # the first is the probe, before the actors start
    answers = [answer for _, _, answer in requests if answer is not None]
    seconds = max(answers) - min(arrival for _, arrival, _ in requests)
    return len(answers) / seconds / (CONCURRENCY / DELAY), result["errors"]


def measure_driver() -> Numbers:
    """The driver's peak memory at 10,000 and at 100,000 requests: 10,000 questions, each asked once or ten times."""
    peaks, rates = {}, {}
    for samples in (1, 10):
        with endpoint(0.0) as served:
            started = time.perf_counter()
            peaks[samples] = run_job(served.base_url, 10_000, 120.0, samples)["driver_peak_mib"]
            rates[samples] = samples * 10_000 / (time.perf_counter() - started)
    return {
        "driver_growth_mib": peaks[10] - peaks[1], "driver_peak_mib": peaks[10],
        "requests_per_second_without_delay": rates[10],
    }  # fmt: skip


# -- the store ----------------------------------------------------------------------------------------------------


def _esnli_like() -> tuple[ExperimentConfig, list[Question]]:
    config = ExperimentConfig.model_validate({"name": "scan", "task": {"name": "svamp"}, "teacher": {"model": "m"}})
    questions = [
        Question(f"esnli-train-{row}", "train", f"Two people number {row} stand in a street.</s>Nobody stands.", "", "")
        for row in range(ESNLI_QUESTIONS)
    ]
    return config, questions


def _fill_store(folder: str) -> None:
    config, questions = _esnli_like()
    keys = wanted_samples(config.teacher, task_prompts(get_task("svamp"), None), questions).keys.reshape(-1)
    text = "The people stand in a street, so somebody stands there. So the answer is contradiction." * 2
    with StoreWriter(folder, FLUSH_SECONDS) as writer:
        for start in range(0, len(keys), 5000):
            rows = range(start, min(start + 5000, len(keys)))
            reply = Reply(text, finish_reason="stop", prompt_tokens=400, completion_tokens=40)
            writer.write([(keys[row], reply) for row in rows if row % MISSING_EVERY])


def _scan_store(folder: str, results: Any) -> None:
    config, questions = _esnli_like()
    started = time.perf_counter()
    wanted = wanted_samples(config.teacher, task_prompts(get_task("svamp"), None), questions)
    missing = missing_mask(wanted, SampleStore(folder).index(), retry_errors=False)
    seconds = time.perf_counter() - started
    expected = -(-wanted.total // MISSING_EVERY)
    assert int(missing.sum()) == expected, (int(missing.sum()), expected)
    results.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, wanted.total))


def measure_scan() -> Numbers:
    """Seconds and GiB for a store of e-SNLI x 5, each in a fresh process."""
    processes = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = processes.Queue()
        for target, arguments in ((_fill_store, (folder,)), (_scan_store, (folder, results))):
            process = processes.Process(target=target, args=arguments)
            process.start()
            process.join()
            assert process.exitcode == 0
        seconds, gib, samples = results.get()
    return {"scan_seconds": seconds, "scan_gib": gib, "scan_samples": samples}


# -- kills --------------------------------------------------------------------------------------------------------


def _victims(job: psutil.Process, kind: str) -> list[psutil.Process]:
    children = job.children(recursive=True)
    if kind == "driver":
        return [job]
    if kind == "actor":
        return [child for child in children if "SamplingActor" in " ".join(child.cmdline())]
    return [job, *children]


@dataclass
class Kill:
    """A kill -9. The actors of a driver that is killed live on for a moment, until `gone`."""

    at: float
    gone: float

    def watch(self, orphans: list[psutil.Process]) -> None:
        psutil.wait_procs(orphans)
        self.gone = time.time()


def measure_kills(seed: int = 0) -> Numbers:
    """Kill one job ten times and let it go on, then count what the endpoint was asked for again."""
    rng = random.Random(seed)
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder, endpoint(DELAY) as served:
        command = job_command(served.base_url, Path(folder), KILLED_JOB_REQUESTS, 120.0)
        kinds = ["driver", "actor", "all"] * KILLS
        while True:
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            ) as process:
                while len(kills) < KILLS and process.poll() is None:
                    _wait_for_requests(served, process)
                    time.sleep(rng.uniform(0.5, 3.5))
                    if process.poll() is not None:
                        break
                    kind = kinds[len(kills)]
                    job = psutil.Process(process.pid)
                    victims, actors = _victims(job, kind), _victims(job, "actor")
                    if not victims:  # the actor of the next pass is not there yet
                        continue
                    kills.append(Kill(time.time(), time.time()))
                    if kind == "driver":
                        threading.Thread(target=kills[-1].watch, args=(actors,), daemon=True).start()
                    for victim in victims:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(victim.pid, signal.SIGKILL)
                    if kind != "actor":
                        break
                if process.wait() == 0:
                    break
                assert len(kills) < KILLS or process.returncode == -signal.SIGKILL, "the job failed by itself"
        requests = served.read("log")["requests"]
    assert len({identity for identity, _, _ in requests}) == KILLED_JOB_REQUESTS
    return count_repeats(requests, kills) | {"kills": len(kills)}


def _wait_for_requests(served: Endpoint, process: subprocess.Popen[bytes]) -> None:
    """Until the job asks: its probe is one request, so two hundred more are its actors'."""
    before = served.read("count")
    while served.read("count") < before + 200 and process.poll() is None:
        time.sleep(0.1)


def count_repeats(requests: list[tuple[str, float, float | None]], kills: list[Kill]) -> Numbers:
    """From the endpoint's log (identity, arrival, answer) and the kills.

    A repeated request goes to the first kill whose processes were not yet gone when it arrived. Its reply is lost where
    it came more than the flush time before that kill, or, asked by a dead driver's actor, before the actor's end.
    """
    by_identity: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for identity, arrival, answer in requests:
        by_identity[identity].append((arrival, answer))
    lost, repeats = 0, [0] * len(kills)
    for served in by_identity.values():
        for (arrival, answer), (again, _) in itertools.pairwise(served):
            before = [row for row, kill in enumerate(kills) if kill.at <= again]
            assert before, "a sample was asked for twice before anything was killed"
            row = next((row for row in before if arrival <= kills[row].gone), before[-1])
            repeats[row] += 1
            end = kills[row].at if arrival <= kills[row].at else kills[row].gone
            lost += answer is not None and answer < end - FLUSH_SECONDS
    return {
        "lost_replies": lost, "paid_twice": max(repeats), "paid_twice_in_all": sum(repeats),
        "in_flight_bound": CONCURRENCY + FLUSH_SECONDS * CONCURRENCY / DELAY,
    }  # fmt: skip


def show_numbers(title: str, numbers: Numbers) -> None:
    """Print a benchmark's numbers as a table, and as JSON in the last line."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4g}")
    Console(width=100).print(table)
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def main() -> None:
    started = time.perf_counter()
    clean, _ = measure_throughput(None)
    faulty, unanswered = measure_throughput(FAULTS)
    numbers: Numbers = {"clean_ratio": clean, "faulty_ratio": faulty, "unanswered": unanswered}
    numbers |= measure_scan() | measure_driver() | measure_kills()
    numbers["benchmark_seconds"] = time.perf_counter() - started
    show_numbers("Teacher sampling against a simulated endpoint on this machine", numbers)


if __name__ == "__main__":
    main()

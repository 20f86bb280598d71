"""How what a sweep's driver and the stores hold grows: `python -m experiments.benchmarks.scale`, under 6 minutes.

Nothing is trained and no language model is asked; the records' numbers are made up, their shape is a sweep's. It prints
a table, and as its last line JSON (names say the unit; memory is the peak over what the process held before):

- sweep_*: the record of 1,000 trials x 40 iterations x 3 seeds, none ended early. Appending a fact (with fsync) is
  measured for 500 facts into an empty record and 500 into the whole one; the facts between are written in one go.
  Reading it back, telling ASHA the past, telling Optuna the past and asking it for one configuration more are measured
  in a fresh process, as a restart is one; the report page is that of the first 500 trials;
- run_*: one child's record of 400 metric rows of 11 metrics; run_memory_mib is what a driver holds of it to its end;
- mlflow_*: copying one child (its parameters and rows) into SQLite, medians over 20 children one after the other into
  an empty database, and over 10 when 200 are there. Those between are rows copied in the database itself;
- s3_moto_*: against moto, a simulated S3 server in Python on loopback, so no speed of S3's: publishing 300 files of
  4 KiB; the first and a second start and end of a mirror of them, none having changed; publishing a file of 200 MB;
- esnli_*: mean tokens of a prompt (the first 10,000 training questions, bytes / 4) and of PaLM's replies to them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import random
import resource
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import psutil

from experiments.benchmarks.teacher import Numbers, show_numbers
from experiments.sweeps.joint import recipe as joint
from qcrd.config import (
    BenchmarkTaskConfig,
    TrackingConfig,
    flatten,
)
from qcrd.config.sweep import Sweep
from qcrd.pipeline.recording import start_record
from qcrd.report.sweep.page import write_sweep_report
from qcrd.storage.output import Storage
from qcrd.sweeps.record import TRIALS, SweepRecord, read_results
from qcrd.sweeps.search_space import OptunaProposer
from qcrd.sweeps.tune_search import scheduler_of
from qcrd.tasks import get_task
from qcrd.tasks.files import data_folder
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.tokens import TokenCounter
from qcrd.tracking.mlflow_server import import_mlflow
from qcrd.tracking.mlflow_tracker import RUN_KEY
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord, read_metrics
from qcrd.tracking.tracker import RunId

TRIAL_COUNT, ITERATIONS, SEEDS, AT_ONCE = 1000, 40, (0, 1, 2), 64
APPENDED, REPORTED = 500, 500
ROWS = 400
METRICS = (
    "train/loss", "train/label_loss", "train/contrastive_loss", "train/hinge_active", "train/positive_nll",
    "train/negative_nll", "train/positive_quality", "train/negative_quality", "train/grad_norm", "train/learning_rate",
    "time/step",
)  # fmt: skip
CHILDREN_EARLY, CHILDREN_THERE, CHILDREN_LATE = 20, 200, 10
SMALL_FILES, SMALL_BYTES, LARGE_BYTES = 300, 4096, 200_000_000


def step(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_fresh_process(work: Callable[..., Numbers], *arguments: Any) -> Numbers:
    """What `work` returns in a process of its own."""
    processes = get_context("spawn")
    results = processes.Queue()
    process = processes.Process(target=_put, args=(results, work, arguments))
    process.start()
    found: Numbers = results.get()
    process.join()
    return found


def _put(results: Any, work: Callable[..., Numbers], arguments: tuple[Any, ...]) -> None:
    results.put(work(*arguments))


def memory_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- a sweep's record ---------------------------------------------------------------------------------------------


def made_sweep() -> Sweep:
    """The search of all fields of experiments/sweeps/joint.py, with one configuration more than the record has."""
    return joint("paper").model_copy(update={"num_configurations": TRIAL_COUNT + 1})


def made_facts() -> list[dict[str, Any]]:
    """What a sweep of so many trials writes, `AT_ONCE` of them side by side."""
    rng, sweep = random.Random(0), made_sweep()
    facts: list[dict[str, Any]] = []
    for begin in range(0, TRIAL_COUNT, AT_ONCE):
        keys = [f"{number:08x}" for number in range(begin, min(begin + AT_ONCE, TRIAL_COUNT))]
        best = {key: rng.uniform(0.4, 0.75) for key in keys}
        for key in keys:
            values = {field: space.sample(random_state=rng.randrange(2**31)) for field, space in sweep.space.items()}
            students = [f"{rng.getrandbits(64):016x}" for _ in SEEDS]
            facts.append({"kind": "proposed", "key": key, "values": values, "students": students})
        highest = dict.fromkeys(keys, 0.0)
        for iteration in range(1, ITERATIONS + 1):
            for key in keys:
                level = best[key] * (1 - math.exp(-iteration / 8))
                accuracies = [round(level + rng.gauss(0, 0.02), 4) for _ in SEEDS]
                highest[key] = max(highest[key], sum(accuracies) / len(SEEDS))
                seconds = [1170.0 * iteration + rng.random() for _ in SEEDS]
                facts.append({
                    "kind": "result", "key": key, "iteration": iteration, "accuracies": accuracies,
                    "score": highest[key], "seconds": sum(seconds), "seed_seconds": seconds,
                    "steps": 250 * iteration * len(SEEDS),
                })  # fmt: skip
        facts += [{"kind": "ended", "key": key, "status": "finished", "reason": ""} for key in keys]
    return facts


def append(record: SweepRecord, fact: dict[str, Any]) -> None:
    """Through the record's own methods."""
    if fact["kind"] == "proposed":
        record.propose(fact["key"], fact["values"], fact["students"])
    elif fact["kind"] == "result":
        record.result(fact["key"], fact)
    else:
        record.end(fact["key"], fact["status"], fact["reason"])


def measure_sweep(folder: Path) -> Numbers:
    facts, sweep = made_facts(), made_sweep()
    record = SweepRecord(folder)
    record.folder.mkdir()
    record.describe({
        "name": sweep.name, "title": sweep.title, "fields": list(sweep.space), "seeds": list(SEEDS), "space": {},
        "searcher": "optuna", "scheduler": "asha", "simulated": True, "task": "svamp", "method": "qcrd", "about": {},
    })  # fmt: skip
    first, between, last = facts[:APPENDED], facts[APPENDED:-APPENDED], facts[-APPENDED:]
    early = seconds_of(lambda: [append(record, fact) for fact in first])
    with (folder / TRIALS).open("a") as stream:
        stream.writelines(json.dumps({**fact, "time": time.time()}) + "\n" for fact in between)
    record = SweepRecord(folder)
    late = seconds_of(lambda: [append(record, fact) for fact in last])
    assert len(record.lines) == len(facts)
    return {
        "sweep_facts": float(len(facts)), "sweep_append_early_ms": early / APPENDED * 1e3,
        "sweep_append_late_ms": late / APPENDED * 1e3, "sweep_file_mib": (folder / TRIALS).stat().st_size / 2**20,
    }  # fmt: skip


def measure_restart(folder: Path) -> Numbers:
    """Reading the record back, and telling the past to those who decide."""
    before, started = memory_mib(), time.perf_counter()
    record = SweepRecord(folder)
    read = time.perf_counter() - started
    numbers = {"sweep_read_seconds": read, "sweep_read_peak_mib": peak_mib() - before}
    sweep, trials = made_sweep(), list(record.trials.values())
    started = time.perf_counter()
    scheduler_of(sweep, ITERATIONS, record.lines)
    numbers["sweep_asha_seconds"] = time.perf_counter() - started
    proposer = OptunaProposer(sweep, [trial.values for trial in trials])
    tell = seconds_of(lambda: [proposer.tell(trial.values, trial.score, trial.seconds) for trial in trials])
    return numbers | {"sweep_optuna_tell_seconds": tell, "sweep_optuna_propose_seconds": seconds_of(proposer.propose)}


def measure_report(folder: Path, out: Path) -> Numbers:
    before, results = memory_mib(), read_results(folder)
    results = replace(results, configurations=results.configurations[:REPORTED])
    started = time.perf_counter()
    write_sweep_report(results, out)
    return {
        "sweep_report_seconds": time.perf_counter() - started, "sweep_report_peak_mib": peak_mib() - before,
        "sweep_page_mib": (out / "report.html").stat().st_size / 2**20,
    }  # fmt: skip


# -- the records of runs, and MLflow ------------------------------------------------------------------------------


def child(output: Path, name: str, tracking: TrackingConfig) -> RunRecord:
    return open_run_record(output / "records" / name, RunId(name, name, "parent"), tracking, output)


def write_rows(record: RunRecord) -> None:
    for row in range(1, ROWS + 1):
        record.log("student", {metric: 1 / (row + index) for index, metric in enumerate(METRICS)}, 10 * row)


def measure_run(output: Path) -> Numbers:
    off, before = TrackingConfig(enabled=False), memory_mib()
    records = [child(output, f"run-{number}", off) for number in range(20)]
    written = [seconds_of(lambda one=record: write_rows(one)) for record in records]
    held = (memory_mib() - before) / len(records)
    folder = records[0].folder
    return {
        "run_append_ms": statistics.median(written) / ROWS * 1e3,
        "run_read_seconds": seconds_of(lambda: read_metrics(folder)),
        "run_file_mib": (folder / "metrics.jsonl").stat().st_size / 2**20, "run_memory_mib": held,
    }  # fmt: skip


def copy_child(output: Path, name: str) -> float:
    """Seconds in which MLflow gets one child whole that is in its record already."""
    config, tracking = joint("paper").base, TrackingConfig()
    write_rows(child(output, name, TrackingConfig(enabled=False)))
    record = child(output, name, tracking)
    started = time.perf_counter()
    start_record(record, config, {"qcrd.trial": name})
    record.close("FINISHED")
    record.join()
    return time.perf_counter() - started


def multiply(database: Path, times: int) -> None:
    """The runs that are there so often again, all of their rows under other ids."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table in ("runs", "params", "metrics", "latest_metrics", "tags"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            chosen = [":new || substr(run_uuid, 5)" if name == "run_uuid" else name for name in names]
            if table == "tags":  # a run is looked for by its key
                chosen[names.index("value")] = f"CASE key WHEN '{RUN_KEY}' THEN value || :new ELSE value END"
            query = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(chosen)} FROM {table}"
            for number in range(times):
                connection.execute(f"{query} WHERE run_uuid NOT LIKE '~%'", {"new": f"~{number:03d}"})


def measure_mlflow(output: Path) -> Numbers:
    import_mlflow()
    parent = open_run_record(output / "records" / "parent", RunId("parent", "parent"), TrackingConfig(), output)
    parent.start({}, {}, {})
    parent.close("FINISHED")
    database = output / "mlflow.db"
    empty = database.stat().st_size
    early = [copy_child(output, f"early-{number}") for number in range(CHILDREN_EARLY)]
    step(f"a child into MLflow: {statistics.median(early):.2f} s")
    size = (database.stat().st_size - empty) / 2**20 / CHILDREN_EARLY
    multiply(database, CHILDREN_THERE // CHILDREN_EARLY - 1)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        there = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    late = [copy_child(output, f"late-{number}") for number in range(CHILDREN_LATE)]
    return {
        "mlflow_params": float(len(flatten(joint("paper").base))), "mlflow_metrics": float(ROWS * len(METRICS)),
        "mlflow_child_early_seconds": statistics.median(early), "mlflow_child_early_max_seconds": max(early),
        "mlflow_runs_there": float(there), "mlflow_child_late_seconds": statistics.median(late),
        "mlflow_child_late_max_seconds": max(late), "mlflow_mib_a_child": size,
    }  # fmt: skip


# -- a bucket -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """A bucket of moto's server, a process of its own on loopback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.2)
            fsspec.filesystem("s3").mkdir("scale")
            yield "s3://scale/runs"
        finally:
            process.kill()


def measure_s3(scratch: Path) -> Numbers:
    os.environ["QCRD_SCRATCH"] = str(scratch)
    with s3_bucket() as url:
        storage = Storage.of(url)
        storage.prepare()
        small = storage.folder / "records"
        for number in range(SMALL_FILES):
            (small / f"child-{number // 3}").mkdir(parents=True, exist_ok=True)
            (small / f"child-{number // 3}" / f"{number % 3}.json").write_bytes(os.urandom(SMALL_BYTES))
        published = seconds_of(lambda: storage.publish("records"))

        def look() -> None:
            with storage.mirror("records"):
                pass

        first, again = seconds_of(look), seconds_of(look)
        (storage.folder / "large").write_bytes(os.urandom(LARGE_BYTES))
        large = seconds_of(lambda: storage.publish("large"))
    return {
        "s3_moto_small_objects_a_second": SMALL_FILES / published, "s3_moto_mirror_first_seconds": first,
        "s3_moto_mirror_unchanged_seconds": again, "s3_moto_large_mb_a_second": LARGE_BYTES / 1e6 / large,
    }  # fmt: skip


# -- e-SNLI's tokens ----------------------------------------------------------------------------------------------


def measure_tokens() -> Numbers:
    """Means of a prompt and of a reply; nothing where the data are not there."""
    if not (data_folder() / "esnli").is_dir():
        return {}
    config = joint("paper").base
    task, count = get_task("esnli"), TokenCounter(None)
    prompts = task_prompts(task, config.teacher.prompt)
    folder = data_folder() / "esnli"
    questions = [one for one in task.load(BenchmarkTaskConfig(name="esnli")) if one.split == "train"]
    prompts = count.many([prompts.prompt(question.text) for question in questions])
    with gzip.open(folder / "llm_palm" / "train_CoT_0.json.gz", "rt") as stream:
        replies = count.many([text.partition("\n\n")[0] for text in json.load(stream)])
    return {"esnli_prompt_tokens": statistics.mean(prompts), "esnli_reply_tokens": statistics.mean(replies)}


def main() -> None:
    started = time.perf_counter()
    numbers: Numbers = {"load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, measure in {
            "a sweep's record": lambda: measure_sweep(folder / "sweep"),
            "a restart": lambda: in_fresh_process(measure_restart, folder / "sweep"),
            "the report": lambda: in_fresh_process(measure_report, folder / "sweep", folder / "report"),
            "a run's record": lambda: in_fresh_process(measure_run, folder / "runs"),
            "MLflow": lambda: measure_mlflow(folder / "mlflow"),
            "S3": lambda: measure_s3(folder / "scratch"),
            "tokens": measure_tokens,
        }.items():
            since = time.perf_counter()
            numbers |= measure()
            step(f"{name}: {time.perf_counter() - since:.0f} s")
    numbers["load_average_after"] = os.getloadavg()[0]
    numbers["benchmark_seconds"] = time.perf_counter() - started
    show_numbers("What a sweep's driver and stores hold, on this machine", numbers)


if __name__ == "__main__":
    main()

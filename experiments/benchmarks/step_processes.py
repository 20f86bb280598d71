"""Parts of the step benchmark that need a process of their own: peak memory, an actor that generates, data parallelism.

`python -m experiments.benchmarks.step_processes '<JSON of a Work>'` prints JSON lines; `start` and `result_of` are the
parent's side.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import transformers

from experiments.benchmarks.step_baselines import ReferenceModel, naive_qcrd_losses, reference_dss_loss
from experiments.benchmarks.step_data import (
    QUESTIONS_A_STEP,
    Data,
    Setting,
    load_data,
    question_batch,
    random_negatives,
    sample_negatives,
    with_positives,
)
from qcrd.config import LossConfig, NegativesConfig
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.methods import METHODS
from qcrd.models.optimizer import FlatAdamW
from qcrd.runtime.workers import Workers

LEARNING_RATE = 1e-9
"""So small that the weights stay put, and with them what is active."""

ALL_ACTIVE = LossConfig(margin=1e3)
MEMORY_VARIANTS = ("reference_dss", "dss", "qcrd_m5", "qcrd_m20")


@dataclass(frozen=True)
class Work:
    """What a child does: `memory` of a `variant`, `generate` without end, or be worker `rank` of `world`."""

    kind: str
    setting: dict[str, Any]
    steps: int = 0
    variant: str = ""
    rank: int = 0
    world: int = 1
    rendezvous: str = ""


def start(work: Work) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.benchmarks.step_processes", json.dumps(asdict(work))]
    environment = os.environ | {"OMP_NUM_THREADS": str(work.setting["threads"])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result_of(process: subprocess.Popen[str]) -> dict[str, float]:
    """The last line of a child that ends. Raises `RuntimeError` where it failed."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{process.args}: exit status {process.returncode}")
    return json.loads(output.splitlines()[-1])


def _batches(data: Data, steps: int, positives: int) -> list[QuestionBatch]:
    """The same questions for every variant, with random tokens as negatives, as long as samples may be."""
    count = steps * QUESTIONS_A_STEP
    examples = with_positives(data.examples, positives)[:count]
    negatives = [[one] for one in random_negatives(data.tokenizer, count)]
    qualities = [([0.9] * positives, [0.1])] * count
    cuts = [slice(row, row + QUESTIONS_A_STEP) for row in range(0, count, QUESTIONS_A_STEP)]
    return [question_batch(examples[cut], negatives[cut], qualities[cut]) for cut in cuts]


# -- memory -------------------------------------------------------------------------------------------------------


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _reset_peak() -> Callable[[], int]:
    """Start counting peak resident memory; the result reads it. Where the kernel can't reset it: since the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return lambda: _status("VmHWM")


def _run_memory(work: Work, setting: Setting) -> None:
    """Peak over a few steps, and memory before the first one, in bytes. All hinges are active."""
    data = load_data()
    batches = _batches(data, work.steps, 20 if work.variant == "qcrd_m20" else 5)
    student = setting.student(data)
    if work.variant in ("reference_dss", "naive_m5"):
        reference = ReferenceModel(student.model, data.tokenizer, setting.dtype, LEARNING_RATE)

        def step(batch: QuestionBatch) -> None:
            if work.variant == "reference_dss":
                reference.step([reference_dss_loss(reference, batch, ALL_ACTIVE)])
            else:
                reference.step(naive_qcrd_losses(reference, batch, ALL_ACTIVE, setting.naive_questions))
    else:
        method = "dss" if work.variant == "dss" else "qcrd"
        optimizer = FlatAdamW(student.model, LEARNING_RATE, 0.0, 1.0)

        def step(batch: QuestionBatch) -> None:
            optimizer.zero_grad()
            METHODS[method].step(student, batch, ALL_ACTIVE)[0].backward()
            optimizer.step(LEARNING_RATE)

    gc.collect()
    if setting.device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what loading has freed does not count as resident
        before, peak = _status("VmRSS"), _reset_peak()
    else:
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    for batch in batches:
        step(batch)
    weights = sum(p.numel() * p.element_size() for p in student.model.parameters())
    print(json.dumps({"before": before, "peak": peak(), "weights": weights}))


# -- generation beside training -----------------------------------------------------------------------------------


def _run_generate(work: Work, setting: Setting) -> None:
    """Sample without end, a line a batch: seconds and sequences. The first line says that it starts."""
    data, size = load_data(), NegativesConfig().batch_size
    student = setting.student(data)
    print(json.dumps({"ready": True}), flush=True)
    for number in itertools.count():
        first = number * size % (len(data.examples) - size)
        examples = data.examples[first : first + size]
        started = time.perf_counter()
        sample_negatives(student, data.tokenizer, examples, size, number)
        print(json.dumps({"seconds": time.perf_counter() - started, "sequences": len(examples)}), flush=True)


# -- data parallelism ---------------------------------------------------------------------------------------------


def _run_worker(work: Work, setting: Setting) -> None:
    """Median seconds of a QCRD step of 8 questions shared out over the workers, all hinges active, after one more."""
    backend, device = "gloo", setting.device
    if device == "cuda":
        backend, device = "nccl", f"cuda:{work.rank}"
        torch.cuda.set_device(work.rank)
    if work.world > 1:
        torch.distributed.init_process_group(
            backend, init_method=f"file://{work.rendezvous}", rank=work.rank, world_size=work.world
        )
    workers = Workers()
    data = load_data()
    student = replace(setting, device=device).student(data)
    optimizer = FlatAdamW(student.model, LEARNING_RATE, 0.0, 1.0)
    share = QUESTIONS_A_STEP // work.world
    times = []
    for batch in _batches(data, work.steps + 1, 5):
        started = time.perf_counter()
        optimizer.zero_grad()
        part = batch.part(workers.rank * share, (workers.rank + 1) * share)
        METHODS["qcrd"].step(student, part, ALL_ACTIVE)[0].backward()
        workers.sum_(optimizer.gradient)
        float(optimizer.step(LEARNING_RATE))
        times.append(time.perf_counter() - started)
    if work.world > 1:
        torch.distributed.destroy_process_group()
    print(json.dumps({"seconds": statistics.median(times[1:])}))


def main() -> None:
    work = Work(**json.loads(sys.argv[1]))
    setting = Setting(**work.setting)
    setting.set_up()
    transformers.logging.set_verbosity_error()
    {"memory": _run_memory, "generate": _run_generate, "worker": _run_worker}[work.kind](work, setting)


if __name__ == "__main__":
    main()

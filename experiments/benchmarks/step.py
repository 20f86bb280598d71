"""How fast and how small a training step is: `python -m experiments.benchmarks.step`, about 12 minutes on two cores.

Reference DSS (transformers' Seq2SeqTrainer semantics), our DSS, QCRD as its formulas read ("naive") and our QCRD, on
SVAMP's questions with GPT-3.5's rationales where QCRD_DATA has them, else on generated ones (the title says which). A
step has 8 questions. Students and discriminators have random weights at T5's sizes and dropout 0.1 (with T5's tokenizer
the vocabulary has 32,100 rows; T5 pads its own to 32,128). m = 5: the first five rationales of a question all count as
positives; a vote leaves fewer, so this is the most that it can cost. m = 20: all ten, and the ten of the next question.
One negative a question (k = 1), sampled from the student itself: random weights hardly ever end a text, so nearly all
have the full 64 tokens, again the most. Without pretrained weights l is about 10; the margin is set for each batch so
that 0, 50 or 100 % of its hinges are active.

What QCRD's step costs depends on where negatives come from:
- async: the step alone, negatives and scores delivered. Beside it the contended time: an actor samples in a process of
  its own, each with half of the threads (`contended 1+1`); the slower of the two is what a step takes.
- inline: the step, and its share of what an iteration makes before it starts: negatives in batches of 128 and the
  discriminator's scores of positives and negatives. By default each visit of a question pays for both, as where no
  question is visited twice in an iteration; `reused` is SVAMP as it is: 250 steps visit its 720 training questions
  2,000 times.
- the discriminator's online update (25 of its steps in 250) comes on top, in ours as in naive QCRD: a row of its own,
  in no ratio but `inline_with_updates_over_reference_dss`.

It prints tables, and as its last line JSON (of T5-base with the prefix `base_`, of `--quick` with `tiny_`):

- inline_over_reference_dss (0 % active), _50, _100; inline_reused_over_reference_dss, async_over_reference_dss, _50,
  _100; dss_over_reference_dss; naive_over_reference_dss, naive_over_inline (50 %): ratios of median seconds a step;
- negatives_speedup: seconds a sequence sampled in batches of 8 over batches of 128, both by ours;
- memory_over_dss, memory_over_dss_m20: peak of our QCRD step less what was resident before the first step, over the
  same of our DSS; each in a process of its own, all hinges active, 64 random tokens as negatives, without
  discriminator;
- scaling_efficiency: 1 worker's seconds a step over twice those of 2, a thread each, the same 8 questions;
- the medians in seconds, memory and token numbers behind them.

Naive QCRD takes all rationales with gradient, however many hinges are active, and minutes a step on two cores: it is
measured once, at 50 %. On a CPU, at T5-base's sizes, it takes its questions two at a time, with gradients accumulated,
lest its graphs fill the memory. Counts of operations in the tables are computed (step_counts.py); every other number is
measured in the run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.step_data import SIZES, Data, Setting, load_data
from experiments.benchmarks.step_processes import MEMORY_VARIANTS, Work, result_of, start
from experiments.benchmarks.step_timing import (
    QUESTIONS_A_STEP,
    SHARES,
    Bench,
    Numbers,
    Say,
    Times,
    counted,
    measure_contended,
    measure_discriminator,
    measure_generation,
    measure_steps,
    prepare_batches,
)
from qcrd.config import (
    PretrainedDiscriminatorConfig,
)

SVAMP_TRAINING_QUESTIONS = 720
UPDATES_A_STEP = PretrainedDiscriminatorConfig().update_steps / 250
REUSED_SHARE = SVAMP_TRAINING_QUESTIONS / (250 * QUESTIONS_A_STEP)
"""Questions of an iteration over its visits, on SVAMP."""

SCALING_STEPS = 3
MEMORY_STEPS = 2


def step_seconds(times: Times, numbers: Numbers) -> Numbers:
    """Median seconds a step of every variant, with the shares of what is made before an iteration starts."""
    seconds = {name: statistics.median(values) for name, values in times.seconds.items()}
    generation = QUESTIONS_A_STEP * numbers["negative_seconds"]
    judging = QUESTIONS_A_STEP * (
        numbers["discriminator_positives_seconds"] + numbers["discriminator_negative_seconds"]
    )
    updates = UPDATES_A_STEP * numbers["discriminator_update_seconds"]
    for share in SHARES:
        step = seconds[f"qcrd_{share}"]
        seconds[f"inline_{share}"] = step + generation + judging
        seconds[f"reused_{share}"] = step + REUSED_SHARE * (generation + judging)
    parts = {f"naive_{name}": statistics.median(values) for name, values in times.parts.items()}
    return {**seconds, **parts, "generation": generation, "judging": judging, "updates": updates}


def ratios(seconds: Numbers) -> Numbers:
    """The keys that are ratios of times."""
    unit = seconds["reference_dss"]
    found = {"dss_over_reference_dss": seconds["dss"] / unit}
    for share in SHARES:
        suffix = f"_{share}" if share else ""
        found[f"inline_over_reference_dss{suffix}"] = seconds[f"inline_{share}"] / unit
        found[f"inline_reused_over_reference_dss{suffix}"] = seconds[f"reused_{share}"] / unit
        found[f"async_over_reference_dss{suffix}"] = seconds[f"qcrd_{share}"] / unit
    return found | {
        "inline_with_updates_over_reference_dss": (seconds["inline_0"] + seconds["updates"]) / unit,
        "naive_over_reference_dss": seconds["naive_50"] / unit,
        "naive_over_inline": seconds["naive_50"] / seconds["inline_50"],
    }


def step_table(title: str, times: Times, seconds: Numbers, numbers: Numbers, counts: dict[str, tuple[float, float]]):
    """Seconds, ratio to reference DSS, and counted operations of every variant."""
    unit = seconds["reference_dss"]
    table = Table(title=title, title_justify="left")
    for name, justify in (("variant", "left"), ("hinges active", "right"), ("s a step", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for name in ("÷ reference DSS", "counted, padded", "counted, unpadded"):
        table.add_column(name, justify="right")
    before = [
        sum(counts[part][i] for part in ("generation", "discriminator_positives", "discriminator_negatives"))
        for i in (0, 1)
    ]

    def row(name: str, active: str, value: float, count: tuple[float, float] | None) -> None:
        shown = ("", "") if count is None else (f"{count[0]:.2f}", f"{count[1]:.2f}")
        table.add_row(name, active, f"{value:.3f}", f"{value / unit:.2f}", *shown)

    row("reference DSS", "", unit, counts["reference_dss"])
    row("our DSS", "", seconds["dss"], counts["dss"])
    for name, key, weight in (
        ("our QCRD, async: step alone", "qcrd", 0.0),
        ("our QCRD, inline, each visit", "inline", 1.0),
        ("our QCRD, inline, SVAMP's reuse", "reused", REUSED_SHARE),
    ):
        for share in SHARES:
            measured = 100 * statistics.mean(times.active[f"qcrd_{share}"])
            padded, unpadded = (counts[f"qcrd_{share}"][i] + weight * before[i] for i in (0, 1))
            row(name, f"{measured:.0f} %", seconds[f"{key}_{share}"], (padded, unpadded))
    threads = numbers["contended_threads_each"]
    row(f"our QCRD, async, contended {threads}+{threads}", "50 %", numbers["contended_seconds"], None)
    naive = [counts["naive_training"][i] + before[i] for i in (0, 1)]
    row("naive QCRD (one round)", "50 %", seconds["naive_50"], (naive[0], naive[1]))
    return table


def parts_table(seconds: Numbers, numbers: Numbers, counts: dict[str, tuple[float, float]]) -> Table:
    """What comes on top of a step, for 8 questions."""
    unit = seconds["reference_dss"]
    table = Table(title="What comes on top of the step, for its 8 questions", title_justify="left")
    for name in ("part", "s a step", "÷ reference DSS", "counted, padded", "counted, unpadded"):
        table.add_column(name, justify="left" if name == "part" else "right")
    rows = (
        ("negatives, 128 at a time", seconds["generation"], "generation"),
        ("negatives, 8 at a time", QUESTIONS_A_STEP * numbers["negative_seconds_by_8"], "generation"),
        (
            "scores of 5 positives each",
            QUESTIONS_A_STEP * numbers["discriminator_positives_seconds"],
            "discriminator_positives",
        ),
        (
            "scores of the negatives",
            QUESTIONS_A_STEP * numbers["discriminator_negative_seconds"],
            "discriminator_negatives",
        ),
        ("the discriminator's online update", seconds["updates"], ""),
        ("actor's negatives, contended", numbers["contended_generation_seconds_per_step"], "generation"),
        ("naive: generation by transformers", seconds["naive_generation"], "generation"),
        ("naive: scores of all", seconds["naive_discriminator"], ""),
        ("naive: losses and gradients", seconds["naive_training"], "naive_training"),
    )
    for name, value, key in rows:
        shown = (f"{counts[key][0]:.2f}", f"{counts[key][1]:.2f}") if key else ("", "")
        table.add_row(name, f"{value:.3f}", f"{value / unit:.2f}", *shown)
    return table


# -- memory and scaling, in other processes -----------------------------------------------------------------------


def measure_memory(setting: Setting, say: Say) -> tuple[Numbers, Table]:
    """Peak less resident before the first step, MiB, of each variant; ring and discriminator by count of weights."""
    table = Table(title="Peak memory of a step, each variant in its own process", title_justify="left")
    for name in ("variant", "before, MiB", "peak - before, MiB", "÷ our DSS"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    found: dict[str, dict[str, float]] = {}
    for variant in MEMORY_VARIANTS:
        say(f"memory: {variant}")
        found[variant] = result_of(start(Work("memory", vars(setting), steps=MEMORY_STEPS, variant=variant)))
    grown = {variant: (one["peak"] - one["before"]) / 2**20 for variant, one in found.items()}
    for variant in MEMORY_VARIANTS:
        before = found[variant]["before"] / 2**20
        table.add_row(variant, f"{before:.0f}", f"{grown[variant]:.0f}", f"{grown[variant] / grown['dss']:.2f}")
    numbers = {f"memory_mib_{variant}": value for variant, value in grown.items()}
    numbers["memory_over_dss"] = grown["qcrd_m5"] / grown["dss"]
    numbers["memory_over_dss_m20"] = grown["qcrd_m20"] / grown["dss"]
    numbers["weights_mib"] = found["dss"]["weights"] / 2**20
    return numbers, table


def measure_scaling(setting: Setting, say: Say) -> Numbers:
    """Seconds a step of one worker and of two, each with one thread (on GPUs: each with one GPU)."""
    if setting.device == "cuda" and torch.cuda.device_count() < 2:
        return {}
    settings = vars(Setting(setting.size, setting.device, setting.dtype, 1))
    seconds = {}
    for world in (1, 2):
        say(f"scaling: {world} worker{'s' if world > 1 else ''}")
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "rendezvous")
            children = [
                start(Work("worker", settings, SCALING_STEPS, rank=rank, world=world, rendezvous=file))
                for rank in range(world)
            ]
            seconds[world] = max(result_of(child)["seconds"] for child in children)
    return {
        "scaling_seconds_1": seconds[1], "scaling_seconds_2": seconds[2],
        "scaling_efficiency": seconds[1] / (2 * seconds[2]),
    }  # fmt: skip


# -- one size -----------------------------------------------------------------------------------------------------


def measure_size(setting: Setting, data: Data, rounds: int, console: Console, say: Say) -> Numbers:
    """Everything about one size; prints its tables."""
    say("building models")
    bench = Bench.build(setting, data, rounds, say)
    numbers, negatives = measure_generation(bench)
    of_discriminator, qualities = measure_discriminator(bench, negatives)
    prepare_batches(bench, negatives, qualities)
    times = measure_steps(bench)
    numbers |= of_discriminator | measure_contended(bench)
    counts, seconds = counted(bench), step_seconds(times, numbers)
    where = torch.cuda.get_device_name() if setting.device == "cuda" else f"CPU, {setting.threads} threads"
    title = f"T5-{setting.size}, {setting.dtype}, {where}: {data.name}"
    console.print(step_table(title, times, seconds, numbers, counts))
    console.print(
        "[dim]Counted: multiply-adds of linear layers over reference DSS, padded; computed. "
        f"Tokens a negative: {numbers['tokens_per_negative']:.1f}. Medians of {rounds} rounds.[/dim]"
    )
    console.print(parts_table(seconds, numbers, counts))
    weights, discriminator = (
        sum(p.numel() for p in module.parameters()) for module in (bench.student.model, bench.discriminator)
    )
    del bench
    gc.collect()
    memory, table = measure_memory(setting, say)
    numbers |= {f"{name}_seconds": value for name, value in seconds.items()} | ratios(seconds) | memory
    numbers |= {
        "discriminator_mib": discriminator * 4 / 2**20,
        "snapshot_mib": weights * 4 / 2**20,
        "threads": setting.threads,
    }
    console.print(table)
    console.print(
        f"[dim]Apart from these: the discriminator {numbers['discriminator_mib']:.0f} MiB, and each snapshot of the "
        f"ring {numbers['snapshot_mib']:.0f} MiB. What grows holds Adam's state and, in reference and naive, "
        f"gradients: {numbers['weights_mib']:.0f} MiB each, Adam twice.[/dim]"
    )
    if scaling := measure_scaling(setting, say):
        numbers |= scaling
        console.print(
            f"Workers of one thread each, QCRD with all hinges active: 1 takes {scaling['scaling_seconds_1']:.2f} s a "
            f"step, 2 take {scaling['scaling_seconds_2']:.2f} s; efficiency {scaling['scaling_efficiency']:.2f}"
        )
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of training steps.")
    parser.add_argument("--size", choices=("small", "base", "both"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, default=4, help="timed rounds, each on a batch of its own (1 to 15)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="a tiny model: checks the benchmark, measures nothing")
    arguments = parser.parse_args()
    if not 1 <= arguments.batches <= 15:
        parser.error("--batches: 1 to 15")
    started = time.perf_counter()
    sizes = ["tiny"] if arguments.quick else ["small", "base"] if arguments.size == "both" else [arguments.size]
    assert set(sizes) <= set(SIZES)
    transformers.logging.set_verbosity_error()
    console, progress = Console(width=120), Console(stderr=True, log_path=False)
    data = load_data()
    numbers: Numbers = {}
    for size in sizes:
        setting = Setting(size, arguments.device, arguments.dtype, arguments.threads)
        setting.set_up()
        prefix = "" if size == "small" else f"{size}_"
        found = measure_size(setting, data, arguments.batches, console, progress.log)
        numbers |= {prefix + name: value for name, value in found.items()}
    numbers["benchmark_seconds"] = time.perf_counter() - started
    about = {"data": data.name, "device": arguments.device, "dtype": arguments.dtype, "torch": torch.__version__}
    about["python"] = platform.python_version()
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()} | about))


if __name__ == "__main__":
    main()

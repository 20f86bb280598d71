"""The arithmetic of cluster/SCALE.md: `python -m experiments.benchmarks.scale_table` prints its tables.

Its inputs are the paper's training hours, our measurements and a list price, each with where it is from; a test
compares the text with these tables. Knows nothing about how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from experiments.paper import BASE, TRAINING_HOURS
from experiments.settings import BENCHMARKS, METHODS
from qcrd.config import OpenAITeacherConfig, TrainConfig
from qcrd.teacher.prices import read_price, spent_usd

GPUS, NODE = (1, 8, 64), 8
"""In all, and of the largest node; a node is paid for as a whole."""
SEEDS, STEPS, BATCH, ITERATIONS = 3, 10_000, 8, 40
"""Of a student: the paper's steps and batch; checkpoints are written after each of the iterations of 250 steps."""
TRAINED_ON = {"svamp": 720, "cqa": 8766, "anli1": 16_946, "esnli": STEPS * BATCH}
"""Training questions of Table 1: the paper's splits (A-Table 1), of e-SNLI as many as the steps can visit."""
ESNLI_QUESTIONS, SAMPLES = 549_367, 5
TRIALS, SEEDS_OF_A_SWEEP = 500, 1
SINGLE_TASK_HOURS = TRAINING_HOURS[BASE, "finetune"]
"""A guess: the paper's table lacks this method."""

ASHA_STEPS = 0.34
"""Measured: README.md, `python -m experiments.benchmarks.sweep`, 16 tiny students."""
CALLS_A_MINUTE = round(0.94 * 128 * 60)
"""Measured: README.md, `python -m experiments.benchmarks.teacher`, 64 at once, answers after 500 ms."""
PROMPT_TOKENS, REPLY_TOKENS, MOST_REPLY_TOKENS = 458, 19, OpenAITeacherConfig().max_tokens
"""Measured by experiments.benchmarks.scale on e-SNLI; the limit of a reply is the config's."""
CHILD_MIB, CHILD_MLFLOW_MIB, CHILD_SECONDS, CHILD_ROWS = 0.339, 1.23, 1.56, 400
"""Measured there: what a driver holds of a child's record, what SQLite does, how long that takes; at so many rows.

Of two runs the larger median, as everywhere here."""
FILE_SECONDS = 5.21 / 300
"""Measured there against moto: a mirrored file of which a start finds that nothing has changed."""
ROWS_OF_A_STUDENT, FILES_OF_A_CHILD = STEPS // TrainConfig().log_every + ITERATIONS, 4
CALLS = (500, 3000, CALLS_A_MINUTE, 30_000)
"""Requests a minute; all but the measured one are examples."""

GPU_HOUR_USD = 27.44705 / 8
"""p4de.24xlarge (8 A100 80 GB), on demand, us-east-1, read 2026-11-09; the source is in SCALE.md."""
TEACHER = OpenAITeacherConfig(model="gpt-4o-mini")
STUDENT, DISCRIMINATOR = 222_903_552, 109_628_544 + 591_361
"""Parameters, counted: T5-base; T5-base's encoder and the discriminator's head."""


@dataclass(frozen=True)
class Work:
    """Trainings of one GPU each, in the order in which they begin. `share`: of their steps that is trained at all."""

    name: str
    hours: tuple[float, ...]
    share: float = 1.0

    @property
    def total(self) -> float:
        return sum(self.hours) * self.share

    def span(self, gpus: int) -> tuple[float, float]:
        """Hours until the last one ends, at least and at most; equal where it is known which steps are trained."""
        if self.share == 1:
            hours = makespan(self.hours, gpus)
            return hours, hours
        return self.total / gpus, self.total / gpus + max(self.hours) * (1 - 1 / gpus)


def makespan(hours: Sequence[float], gpus: int) -> float:
    """Hours until the last of these trainings ends: each begins, in this order, on the first GPU that is free."""
    free = [0.0] * gpus
    heapify(free)
    for one in hours:
        heapreplace(free, free[0] + one)
    return max(free)


def table1_hours() -> tuple[float, ...]:
    """Of each student in the order of `runs_of`: seed by seed, the longest first, those that the paper lacks last."""
    known = [TRAINING_HOURS.get((BASE, str(changes["method"])), 0.0) for changes in METHODS.values()]
    each = [hours or SINGLE_TASK_HOURS for hours in sorted(known, reverse=True) for _ in BENCHMARKS]
    return tuple(each * SEEDS)


def works() -> list[Work]:
    qcrd = TRAINING_HOURS[BASE, "qcrd"]
    epoch = qcrd * -(-ESNLI_QUESTIONS // BATCH) / STEPS
    trials = (qcrd,) * (TRIALS * SEEDS_OF_A_SWEEP)
    return [
        Work("Table 1 whole", table1_hours()), Work("e-SNLI whole: QCRD, one epoch, 3 seeds", (epoch,) * SEEDS),
        Work("500 trials, each to its end", trials), Work("500 trials with ASHA", trials, ASHA_STEPS),
    ]  # fmt: skip


def span_text(low: float, high: float, digits: int = 1, unit: str = "") -> str:
    texts = [f"{unit}{value:,.{digits}f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def gpu_table() -> list[str]:
    """Time and money. Paid: at least the hours at work; at most all nodes that have work, from beginning to end."""
    lines = [
        "| work | GPUs | GPU hours at work | hours | GPU hours paid (x P) | at $3.43 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for work in works():
        for gpus in GPUS:
            low, high = work.span(gpus)
            most = min(gpus, -(-len(work.hours) // NODE) * NODE) * high
            lines.append(
                f"| {work.name} | {gpus} | {work.total:,.1f} | {span_text(low, high)} | "
                f"{span_text(work.total, most)} | "
                f"{span_text(work.total * GPU_HOUR_USD, most * GPU_HOUR_USD, 0, '$')} |"
            )
    return lines


def calls(questions: int, a_call: int) -> int:
    return questions * -(-SAMPLES // a_call)


def sampling_table() -> list[str]:
    """Hours of asking at so many requests a minute."""
    lines = [
        f"| requests | {' | '.join(f'{rate:,} a minute' for rate in CALLS)} |", f"| --- {'| --- ' * len(CALLS)}|"
    ]  # fmt: skip
    for name, questions in {"Table 1": sum(TRAINED_ON.values()), "e-SNLI whole": ESNLI_QUESTIONS}.items():
        for a_call in (SAMPLES, 1):
            count = calls(questions, a_call)
            hours = " | ".join(f"{count / rate / 60:,.1f} h" for rate in CALLS)
            lines.append(f"| {name}, {a_call} {'samples' if a_call > 1 else 'sample'} a call: {count:,} | {hours} |")
    for a_call in (SAMPLES, 1):
        tokens = " | ".join(f"{rate * (PROMPT_TOKENS + a_call * REPLY_TOKENS) / 1e6:,.1f} M" for rate in CALLS)
        lines.append(f"| tokens a minute of e-SNLI, {a_call} a call | {tokens} |")
    return lines


def token_table() -> list[str]:
    """e-SNLI's tokens and their price."""
    price = read_price(TEACHER)
    assert price is not None
    lines = [
        "| e-SNLI whole | prompt tokens | reply tokens (expected; at most) | price (the same) | in batch mode |",
        "| --- | --- | --- | --- | --- |",
    ]
    samples = ESNLI_QUESTIONS * SAMPLES
    for a_call in (SAMPLES, 1):
        prompt = calls(ESNLI_QUESTIONS, a_call) * PROMPT_TOKENS
        replies = [samples * tokens for tokens in (REPLY_TOKENS, MOST_REPLY_TOKENS)]
        usd = ["; ".join(f"${spent_usd(price, prompt, one, batch):,.0f}" for one in replies) for batch in (False, True)]
        texts = "; ".join(f"{one / 1e6:,.0f} M" for one in replies)
        lines.append(f"| {a_call} a call | {prompt / 1e6:,.0f} M | {texts} | {usd[0]} | {usd[1]} |")
    return lines


def checkpoint_bytes() -> int:
    """Written after each iteration: snapshot and Adam's moments of student and discriminator, float32."""
    return 12 * (STUDENT + DISCRIMINATOR)


def left_bytes() -> int:
    """Left of a training that went to its end: three students and the discriminator."""
    return 3 * 4 * STUDENT + 4 * DISCRIMINATOR


def held_bytes() -> int:
    """At most held for a training that is under way, or that a scheduler has ended: three checkpoints, twelve
    snapshots."""
    return 3 * (8 * STUDENT + 12 * DISCRIMINATOR) + 12 * 4 * STUDENT


def bucket_table() -> list[str]:
    """What trainings send to the bucket, at the paper's hours."""
    seconds = TRAINING_HOURS[BASE, "qcrd"] * 3600 / ITERATIONS
    lines = ["| QCRD students at once | 1 | 8 | 64 |", "| --- | --- | --- | --- |"]
    rates = " | ".join(f"{count * checkpoint_bytes() / seconds / 1e6:,.1f} MB/s" for count in GPUS)
    rows = " | ".join(f"{count * ROWS_OF_A_STUDENT / (seconds * ITERATIONS):.2f}" for count in GPUS)
    return [
        *lines, f"| checkpoints ({checkpoint_bytes() / 1e9:.2f} GB each {seconds:,.0f} s) | {rates} |",
        f"| metric rows a second to the driver | {rows} |",
    ]  # fmt: skip


def growth_table() -> list[str]:
    """What a sweep's trainings leave with its driver and stores, in proportion to rows, files and trainings."""
    counts, longer = (TRIALS, TRIALS * 3), ROWS_OF_A_STUDENT / CHILD_ROWS
    rows = {
        "rows of children in the driver's memory, at most": (CHILD_MIB * longer / 1024, "{:,.1f} GiB"),
        "MLflow's SQLite file": (CHILD_MLFLOW_MIB * longer / 1024, "{:,.1f} GiB"),
        "copying all of it to MLflow anew, in one thread": (CHILD_SECONDS * longer / 60, "{:,.0f} min"),
        "a driver's start looks at what is mirrored (moto's speed)": (
            FILES_OF_A_CHILD * FILE_SECONDS / 60,
            "{:,.1f} min",
        ),
        "checkpoints written to the bucket in all": (checkpoint_bytes() * ITERATIONS / 1e12, "{:,.0f} TB"),
        "students and discriminators left in the bucket": (left_bytes() / 1e12, "{:,.1f} TB"),
    }
    return [
        f"| trainings of a sweep, each to its end | {' | '.join(f'{count:,}' for count in counts)} |",
        "| --- | --- | --- |",
        *(f"| {name} | {' | '.join(text.format(each * count) for count in counts)} |"
          for name, (each, text) in rows.items()),
    ]  # fmt: skip


def main() -> None:
    for table in (gpu_table(), sampling_table(), token_table(), bucket_table(), growth_table()):
        print("\n".join(table), end="\n\n")
    print(
        f"A training leaves {left_bytes() / 1e9:.1f} GB, holds at most {held_bytes() / 1e9:.1f} GB while it runs, and "
        f"writes {checkpoint_bytes() * ITERATIONS / 1e9:.0f}."
    )


if __name__ == "__main__":
    main()

"""Times the training step's variants, the sampling of negatives and the discriminator, all in one process.

Every round runs all variants one after the other on one batch of 8 questions, so that what slows the machine slows
them alike; a first round is not counted. The learning rate is 1e-9 and the margin is set for each batch so that none,
half or all of its negatives are active, whatever a random student's l. Each of the two sides, transformers' model and
ours, has weights and an optimizer of its own, shared among its variants: only time is measured. Knows nothing about
tables.
"""

from __future__ import annotations

import json
import queue
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from experiments.benchmarks import step_counts as counts
from experiments.benchmarks.step_baselines import ReferenceModel, naive_qcrd_losses, padded_scores, reference_dss_loss
from experiments.benchmarks.step_data import (
    NEGATIVE_TOKENS,
    QUESTIONS_A_STEP,
    Data,
    Setting,
    question_batch,
    sample_negatives,
    with_positives,
)
from experiments.benchmarks.step_processes import LEARNING_RATE, Work, start
from qcrd.config import (
    LossConfig,
    PretrainedDiscriminatorConfig,
)
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.discriminator import Discriminator, QuestionRationales, discriminator_optimizer, optimizer_step
from qcrd.distill.methods import METHODS
from qcrd.distill.negatives import Negative
from qcrd.models.optimizer import FlatAdamW
from qcrd.models.student import Student
from qcrd.records import Example

T = TypeVar("T")
Say = Callable[[str], None]
Numbers = dict[str, float]
POSITIVES = 5
SHARES = (0, 50, 100)
"""Percent of negatives whose hinge is active."""

GENERATION_QUESTIONS = 128
SMALL_GENERATION_BATCHES = 4


@dataclass
class Bench:
    """One size's models and batches. `loss_configs[share][row]` has the margin that makes `share` percent of batch
    `row`'s negatives active."""

    setting: Setting
    data: Data
    rounds: int
    say: Say
    examples: list[Example]
    student: Student
    optimizer: FlatAdamW
    reference: ReferenceModel
    discriminator: Discriminator
    batches: list[QuestionBatch] = field(default_factory=list)
    loss_configs: dict[int, list[LossConfig]] = field(default_factory=dict)
    pairs: list[list[tuple[str, str]]] = field(default_factory=list)

    @classmethod
    def build(cls, setting: Setting, data: Data, rounds: int, say: Say) -> Bench:
        student = setting.student(data)
        optimizer = FlatAdamW(student.model, LEARNING_RATE, 0.0, 1.0)
        reference = ReferenceModel(setting.student(data).model, data.tokenizer, setting.dtype, LEARNING_RATE)
        examples = with_positives(data.examples, POSITIVES)
        return cls(setting, data, rounds, say, examples, student, optimizer, reference, setting.discriminator(data))

    @property
    def used(self) -> list[Example]:
        """The questions of all rounds, the one not counted included."""
        return self.examples[: (self.rounds + 1) * QUESTIONS_A_STEP]

    def timed(self, work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
        """Wall time of `work(*arguments)`, the device's part included, and what it returned."""
        self._synchronize()
        started = time.perf_counter()
        result = work(*arguments)
        self._synchronize()
        return time.perf_counter() - started, result

    def _synchronize(self) -> None:
        if self.setting.device == "cuda":
            torch.cuda.synchronize()


# -- negatives and discriminator ---------------------------------------------------------------------------------------


def _sample(bench: Bench, examples: Sequence[Example], batch_size: int, number: int) -> list[list[Negative]]:
    return sample_negatives(bench.student, bench.data.tokenizer, examples, batch_size, number)


def measure_generation(bench: Bench) -> tuple[Numbers, list[list[Negative]]]:
    """Seconds a sequence in batches of 128 and of 8, interleaved, and the negatives of the questions that are used.

    Batches of 8 are four of the sixteen that the same 128 questions make, spread evenly over their lengths.
    """
    examples = bench.examples[:GENERATION_QUESTIONS]
    by_length = sorted(examples, key=lambda example: -len(example.explain_ids))
    every = GENERATION_QUESTIONS // QUESTIONS_A_STEP // SMALL_GENERATION_BATCHES
    few = [
        example
        for number in range(SMALL_GENERATION_BATCHES)
        for example in by_length[(number * every + every // 2) * QUESTIONS_A_STEP :][:QUESTIONS_A_STEP]
    ]
    _sample(bench, examples[:QUESTIONS_A_STEP], QUESTIONS_A_STEP, -1)
    negatives: list[list[Negative]] = []
    large, small = [], []
    for number in range(bench.rounds):
        bench.say(f"negatives, round {number + 1} of {bench.rounds}")
        seconds, negatives = bench.timed(_sample, bench, examples, GENERATION_QUESTIONS, number)
        large.append(seconds)
        small.append(bench.timed(_sample, bench, few, QUESTIONS_A_STEP, number)[0])
    tokens = [len(one.target_ids) for own in negatives for one in own]
    numbers = {
        "negative_seconds": statistics.median(large) / len(examples),
        "negative_seconds_by_8": statistics.median(small) / len(few),
        "tokens_per_negative": statistics.mean(tokens),
    }
    numbers["negatives_speedup"] = numbers["negative_seconds_by_8"] / numbers["negative_seconds"]
    return numbers, negatives[: len(bench.used)]


def measure_discriminator(
    bench: Bench, negatives: Sequence[Sequence[Negative]]
) -> tuple[Numbers, list[tuple[list[float], list[float]]]]:
    """Seconds a question for scores of its positives, of its negative, and of an online update's step; the scores."""
    bench.say("discriminator")
    used = bench.used
    positives = [(example.text, text) for example in used for text in example.positive_texts]
    sampled = [(example.text, one.text) for example, own in zip(used, negatives, strict=True) for one in own]
    bench.discriminator.score(positives[:8])
    scores: dict[str, list[float]] = {}
    times = defaultdict(list)
    for _ in range(2):
        for side, pairs in (("positives", positives), ("negatives", sampled)):
            seconds, scores[side] = bench.timed(bench.discriminator.score, pairs)
            times[side].append(seconds)
    config = PretrainedDiscriminatorConfig()
    optimizer = discriminator_optimizer(bench.discriminator, config)
    judged = [
        QuestionRationales(example.question_id, example.text, example.positive_texts, [one.text for one in own])
        for example, own in zip(used, negatives, strict=True)
    ][: config.batch_questions]
    updates = [bench.timed(optimizer_step, bench.discriminator, optimizer, judged, 0.5, 0)[0] for _ in range(3)]
    numbers = {
        "discriminator_positives_seconds": statistics.median(times["positives"]) / len(used),
        "discriminator_negative_seconds": statistics.median(times["negatives"]) / len(used),
        "discriminator_update_seconds": statistics.median(updates[1:]),
    }
    iter_pos, iter_neg = iter(scores["positives"]), iter(scores["negatives"])
    qualities = [
        ([next(iter_pos) for _ in example.positive_texts], [next(iter_neg) for _ in own])
        for example, own in zip(used, negatives, strict=True)
    ]
    return numbers, qualities


def prepare_batches(
    bench: Bench, negatives: Sequence[Sequence[Negative]], qualities: Sequence[tuple[list[float], list[float]]]
) -> None:
    """Cut the questions into batches and set each batch's margins."""
    bench.loss_configs = {share: [] for share in SHARES}
    for first in range(0, len(bench.used), QUESTIONS_A_STEP):
        cut = slice(first, first + QUESTIONS_A_STEP)
        batch = question_batch(bench.used[cut], negatives[cut], qualities[cut])
        bench.batches.append(batch)
        bench.pairs.append(
            [(e.text, text) for e in bench.used[cut] for text in e.positive_texts]
            + [(e.text, one.text) for e, own in zip(bench.used[cut], negatives[cut], strict=True) for one in own]
        )
        places = [len(batch.predict_ids) + n for n, own in enumerate(batch.negatives) for _ in own]
        torch.manual_seed(len(bench.batches) - 1)
        with torch.no_grad():
            encoded = bench.student.encode([*batch.predict_ids, *batch.explain_ids])
            targets = [target for own in batch.negatives for target in own]
            nll = bench.student.sequence_nll(encoded, places, targets)
        for share, margin in zip(SHARES, (1e-6, float(nll.quantile(0.5)), 2 * float(nll.max())), strict=True):
            bench.loss_configs[share].append(LossConfig(margin=margin))


# -- steps --------------------------------------------------------------------------------------------------------


@dataclass
class Times:
    """Seconds of each round by variant, the parts of the naive step, and the measured shares of active hinges."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    active: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def deterministic(bench: Bench, on: bool) -> None:
    """As the runner has it on a GPU; transformers' Trainer goes without."""
    if bench.setting.device == "cuda":
        torch.use_deterministic_algorithms(on)


def reference_dss(bench: Bench, row: int) -> None:
    deterministic(bench, False)
    bench.reference.step([reference_dss_loss(bench.reference, bench.batches[row], LossConfig())])


def our_step(bench: Bench, row: int, method: str, config: LossConfig) -> dict[str, torch.Tensor]:
    """One step of ours. Returns its metrics. Dropout is seeded as in `prepare_batches`, so that a batch's margin lies
    where it was set."""
    deterministic(bench, True)
    torch.manual_seed(row)
    bench.optimizer.zero_grad()
    loss, metrics = METHODS[method].step(bench.student, bench.batches[row], config)
    loss.backward()
    bench.optimizer.step(LEARNING_RATE)
    return metrics


def naive_step(bench: Bench, row: int, config: LossConfig) -> None:
    at_once = bench.setting.naive_questions
    bench.reference.step(naive_qcrd_losses(bench.reference, bench.batches[row], config, at_once))


def naive_qcrd(bench: Bench, row: int, config: LossConfig) -> dict[str, float]:
    """Sample 8 negatives, score every pair, train. Returns seconds by part. The texts and scores are thrown away: all
    variants train on the same ones."""
    deterministic(bench, False)
    questions = bench.batches[row].explain_ids
    return {
        "generation": bench.timed(bench.reference.sample, questions, NEGATIVE_TOKENS)[0],
        "discriminator": bench.timed(padded_scores, bench.discriminator, bench.pairs[row])[0],
        "training": bench.timed(naive_step, bench, row, config)[0],
    }


def measure_steps(bench: Bench) -> Times:
    """All variants, round robin, after a round that is not counted; naive QCRD, which takes minutes, in one round."""
    times = Times()
    for row in range(bench.rounds + 1):
        kept = times if row else Times()
        bench.say(f"steps, round {row} of {bench.rounds}" if row else "steps, a round that is not counted")
        kept.seconds["reference_dss"].append(bench.timed(reference_dss, bench, row)[0])
        kept.seconds["dss"].append(bench.timed(our_step, bench, row, "dss", LossConfig())[0])
        for share in SHARES if row else SHARES[1:2]:
            config = bench.loss_configs[share][row]
            seconds, metrics = bench.timed(our_step, bench, row, "qcrd", config)
            kept.seconds[f"qcrd_{share}"].append(seconds)
            kept.active[f"qcrd_{share}"].append(float(metrics["hinge_active"]))
        if row == 1:
            bench.say("naive QCRD")
            seconds, parts = bench.timed(naive_qcrd, bench, row, bench.loss_configs[50][row])
            kept.seconds["naive_50"].append(seconds)
            for part, value in parts.items():
                kept.parts[part].append(value)
    return times


def measure_contended(bench: Bench) -> Numbers:
    """Steps at 50 % active while another process samples negatives in batches of 128, each with half the threads.

    Steps go on until the other process has finished a batch. What a step then takes is the slower of the two: training
    waits for negatives that are late.
    """
    half = max(1, bench.setting.threads // 2)
    child = start(Work("generate", vars(replace(bench.setting, threads=half))))
    lines: queue.Queue[Numbers] = queue.Queue()
    assert child.stdout is not None
    output = child.stdout
    reader = threading.Thread(target=lambda: [lines.put(json.loads(line)) for line in output], daemon=True)
    reader.start()
    steps: list[float] = []
    made: list[Numbers] = []
    try:
        bench.say("training beside an actor: the actor starts")
        lines.get(timeout=300)
        bench.say("training beside an actor")
        torch.set_num_threads(half)
        config = bench.loss_configs[50]
        while len(steps) < bench.rounds or not made:
            row = 1 + len(steps) % bench.rounds
            steps.append(bench.timed(our_step, bench, row, "qcrd", config[row])[0])
            if child.poll() is not None:
                raise RuntimeError(f"the actor ended with status {child.returncode}")
            while not lines.empty():
                made.append(lines.get())
    finally:
        child.kill()
        child.wait()
        reader.join()
        bench.setting.set_up()
    generation = statistics.median(one["seconds"] / one["sequences"] for one in made) * QUESTIONS_A_STEP
    step = statistics.median(steps)
    return {
        "contended_step_seconds": step, "contended_generation_seconds_per_step": generation,
        "contended_seconds": max(step, generation), "contended_threads_each": half,
    }  # fmt: skip


def counted(bench: Bench) -> dict[str, tuple[float, float]]:
    """Multiply-adds of each variant's mean step over those of reference DSS: (as if padded, without padding)."""
    costs = counts.TokenCosts.of(bench.setting.scratch(bench.data), bench.student.model.config.vocab_size)
    batches = bench.batches[1:]
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for batch, pairs in zip(batches, bench.pairs[1:], strict=True):
        judged = bench.discriminator.tokenize(pairs)
        num_positives = sum(len(own) for own in batch.positives)
        targets = [target for own in batch.negatives for target in own]
        questions = [batch.explain_ids[n] for n, own in enumerate(batch.negatives) for _ in own]
        for column, padded in enumerate((True, False)):
            for name in ("reference_dss", "dss"):
                totals[name][column] += counts.dss_step(costs, batch, padded)
            for share in SHARES:
                totals[f"qcrd_{share}"][column] += counts.qcrd_step(costs, batch, share / 100, padded)
            totals["naive_training"][column] += counts.naive_step(costs, batch, padded)
            totals["generation"][column] += counts.generation(costs, questions, targets, padded)
            totals["discriminator_positives"][column] += counts.judging(costs, judged[:num_positives], padded)
            totals["discriminator_negatives"][column] += counts.judging(costs, judged[num_positives:], padded)
    unit = totals["reference_dss"][0]
    return {name: (padded / unit, unpadded / unit) for name, (padded, unpadded) in totals.items()}

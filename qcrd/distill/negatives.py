"""Self-adversarial negatives: rationales that an earlier snapshot of the student writes at high temperature.

All negatives of an iteration are made in large batches that are cut over the whole iteration, so it does not matter
who makes which batch. A sample draws from a stream seeded by (run seed, iteration, question id, sample index): these
are the texts that a step-by-step implementation would have made. Section 7 of the method; paper, section 3.2.1 and
appendix A.2. Knows nothing about the loss or about Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from qcrd.config import NegativesConfig
from qcrd.distill.data import TrainingData
from qcrd.distill.schedule import Schedule
from qcrd.models.batching import length_sorted_batches
from qcrd.models.generation import Generated, generate_batches, in_order
from qcrd.models.student import Student, load_student
from qcrd.models.tokenizer import eos_of
from qcrd.records import Example
from qcrd.seeding import generator
from qcrd.storage.artifacts import model_folder
from qcrd.storage.output import Storage


@dataclass(frozen=True)
class Negative:
    """One sampled rationale as a target: with EOS, unless it was truncated."""

    target_ids: list[int]
    text: str
    truncated: bool


def snapshot_for(iteration: int, gap: int) -> int:
    """The snapshot that iteration t samples from: max(0, t - j)."""
    return max(0, iteration - gap)


class NegativeMaker:
    """Makes an iteration's negatives, whole or batch by batch.

    `student` builds a model of the student's shape, once there is something to write; `load_snapshot` sets its weights
    to those of a snapshot, except where `negatives.source` is a fixed model.
    """

    def __init__(
        self, settings: NegativesConfig, seed: int, data: TrainingData, schedule: Schedule, storage: Storage,
        load_snapshot: Callable[[int, nn.Module], None], student: Callable[[], Student],
    ) -> None:  # fmt: skip
        """`storage`: of the output, which may hold the fixed model."""
        self.settings, self.seed, self.data, self.schedule = settings, seed, data, schedule
        self._storage, self._load_snapshot, self._student = storage, load_snapshot, student
        self._loaded: int | None = None

    @cached_property
    def _sampler(self) -> Student:
        """The model that writes. Raises `ValueError` for a fixed one with another vocabulary."""
        student, fixed = self._student(), self.settings.fixed
        if self.settings.source != "fixed":
            return student
        sampler, tokenizer = load_student(model_folder(self._storage, str(fixed)), student.dtype, student.device)
        if tokenizer.get_vocab() != self.data.tokenizer.get_vocab():
            raise ValueError(f"negatives.fixed: {fixed!r} has another vocabulary")
        return sampler

    def _examples(self, iteration: int) -> list[Example]:
        return [self.data.examples[index] for index in self.schedule.visited(iteration)]

    def batches(self, iteration: int) -> list[list[int]]:
        """The generation batches of an iteration: indices of its samples, question by question."""
        samples = self.settings.num_samples
        lengths = [len(example.explain_ids) for example in self._examples(iteration) for _ in range(samples)]
        return length_sorted_batches(lengths, self.settings.batch_size)

    def make(
        self, iteration: int, batches: Sequence[list[int]], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Generated]]:
        """Write the sequences of some of the iteration's batches. `on_progress` is told how many are done."""
        settings = self.settings
        if settings.source != "fixed":
            wanted = snapshot_for(iteration, settings.gap)
            if wanted != self._loaded:
                self._load_snapshot(wanted, self._sampler.model)
                self._loaded = wanted
        requests = [(example, index) for example in self._examples(iteration) for index in range(settings.num_samples)]
        return generate_batches(
            self._sampler,
            [example.explain_ids for example, _ in requests],
            batches,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            stream=lambda row: generator(
                self.seed, "negative", iteration, requests[row][0].question_id, requests[row][1]
            ),
            on_progress=on_progress,
        )

    def negatives(self, iteration: int, made: Sequence[list[Generated]]) -> dict[int, list[Negative]]:
        """The negatives of each visited example, from all batches. Empty samples are dropped."""
        visited = self.schedule.visited(iteration)
        sequences = in_order(self.batches(iteration), made)
        texts = self.data.tokenizer.batch_decode([one.ids for one in sequences], skip_special_tokens=True)
        eos = eos_of(self.data.tokenizer)
        negatives: dict[int, list[Negative]] = {index: [] for index in visited}
        for position, (one, text) in enumerate(zip(sequences, texts, strict=True)):
            if one.ids and text.strip():
                target = one.ids if one.truncated else [*one.ids, eos]
                owner = visited[position // self.settings.num_samples]
                negatives[owner].append(Negative(target, text.strip(), one.truncated))
        return negatives

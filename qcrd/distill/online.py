"""The discriminator while the student trains: its scores of rationales, and its update after an iteration.

Between two updates its scores are constants, so a pair is scored once an update, not once a step (method.md section 6).
Knows nothing about where negatives come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcrd.config import DiscriminatorConfig, LossConfig
from qcrd.distill.discriminator import Discriminator, QuestionRationales, discriminator_optimizer
from qcrd.distill.discriminator_training import update_online
from qcrd.records import Example
from qcrd.runtime.workers import Workers

Quality = dict[int, tuple[list[float], list[float]]]
"""(s+ of each positive, s- of each negative) of each question, by the index of its example."""


def quality_without_discriminator(examples: Sequence[Example], negatives: Mapping[int, Sequence[str]]) -> Quality:
    """s+ = 1 and s- = 0, for the questions whose `negatives` are given."""
    return {i: ([1.0] * len(examples[i].positives), [0.0] * len(texts)) for i, texts in negatives.items()}


class OnlineDiscriminator:
    """A discriminator with an optimizer of its own, and its scores of positives since the last update."""

    def __init__(
        self, discriminator: Discriminator, settings: DiscriminatorConfig, loss: LossConfig, seed: int,
        examples: Sequence[Example], workers: Workers,
    ) -> None:  # fmt: skip
        """`seed`: the run's."""
        self.discriminator, self.optimizer = discriminator, discriminator_optimizer(discriminator, settings)
        self._settings, self._loss, self._seed = settings, loss, seed
        self._examples, self._workers = examples, workers
        self._positives: dict[int, list[float]] = {}

    def quality(self, negatives: Mapping[int, Sequence[str]]) -> Quality:
        """Scores of the questions whose `negatives` are given."""
        examples = self._examples
        new = [index for index in negatives if index not in self._positives]
        pairs = [(examples[i].text, text) for i in new for text in examples[i].positive_texts]
        scores = iter(self.discriminator.score(pairs, workers=self._workers))
        for index in new:
            self._positives[index] = [next(scores) for _ in examples[index].positive_texts]
        pairs = [(examples[i].text, text) for i, texts in negatives.items() for text in texts]
        scores = iter(self.discriminator.score(pairs, workers=self._workers))
        return {i: (self._positives[i], [next(scores) for _ in texts]) for i, texts in negatives.items()}

    def update(self, iteration: int, fresh: Mapping[int, Sequence[str]]) -> dict[str, float]:
        """Train on the questions just visited: teacher positives, teacher negatives, and `fresh` negatives of each."""
        settings, loss = self._settings, self._loss
        if iteration % settings.update_every:
            return {}
        questions = [
            QuestionRationales(e.question_id, e.text, e.positive_texts, [*e.negative_texts, *fresh[i]])
            for i, e in ((i, self._examples[i]) for i in fresh)
        ]
        weight = loss.discriminator_weight * loss.discriminator_decay ** (iteration - 1)
        mean = update_online(
            self.discriminator, self.optimizer, settings, questions, weight, (self._seed, iteration), self._workers
        )
        if mean is None:
            return {}
        self._positives.clear()
        return {
            "discriminator/online_loss": mean,
            "discriminator/updates": settings.update_steps,
            "discriminator/weight": weight,
        }

"""Which questions each step visits, and how steps form iterations. Pure arithmetic on seeds (method.md section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from qcrd.config import TrainConfig
from qcrd.seeding import generator


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> tuple[int, ...]:
    return tuple(generator(seed, "epoch_order", epoch).permutation(num_examples).tolist())


@dataclass(frozen=True)
class Schedule:
    """Steps are numbered from 0, iterations from 1. The order of an epoch depends on the run's seed alone."""

    num_examples: int
    global_batch_size: int
    steps: int
    iteration_steps: int
    seed: int

    @property
    def num_iterations(self) -> int:
        return -(-self.steps // self.iteration_steps)

    def steps_of(self, iteration: int) -> range:
        """The steps of iteration t; the last iteration may be shorter."""
        return range((iteration - 1) * self.iteration_steps, min(iteration * self.iteration_steps, self.steps))

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of a step; a batch may reach into the next epoch."""
        first = step * self.global_batch_size
        return [
            _epoch_order(self.seed, position // self.num_examples, self.num_examples)[position % self.num_examples]
            for position in range(first, first + self.global_batch_size)
        ]

    def visited(self, iteration: int) -> list[int]:
        """The examples that iteration t visits, each once, in the order of first visit."""
        return list(dict.fromkeys(index for step in self.steps_of(iteration) for index in self.batch(step)))

    def learning_rate_factor(self, step: int) -> float:
        """Linear decay from 1 at step 0 to 0 after the last step, no warm-up."""
        return 1.0 - step / self.steps


def iteration_length(iteration_steps: int | str, num_examples: int, global_batch_size: int) -> int:
    """Steps of one iteration; `epoch` is the steps that visit every example once."""
    if iteration_steps == "epoch":
        return -(-num_examples // global_batch_size)
    return int(iteration_steps)


def schedule_of(train: TrainConfig, seed: int, num_examples: int) -> Schedule:
    """The order of a run's examples, which depends on its settings alone."""
    length = iteration_length(train.iteration_steps, num_examples, train.global_batch_size)
    return Schedule(num_examples, train.global_batch_size, train.steps, length, seed)

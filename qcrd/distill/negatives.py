"""Self-adversarial negatives: rationales that an earlier snapshot of the student writes at high temperature.

All negatives of an iteration are made before it starts, in large batches. A sample draws from a stream seeded by
(run seed, iteration, question id, sample index), so these are the texts that a step-by-step implementation would have
made. Section 7 of the method; paper, section 3.2.1 and appendix A.2. Knows nothing about the loss or about Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from qcrd.config import NegativesConfig
from qcrd.distill.generation import generate
from qcrd.distill.student import Student
from qcrd.records import Example
from qcrd.seeding import generator


@dataclass(frozen=True)
class Negative:
    """One sampled rationale as a target: with EOS, unless it was truncated."""

    target_ids: list[int]
    text: str
    truncated: bool


def snapshot_for(iteration: int, gap: int) -> int:
    """The snapshot that iteration t samples from: max(0, t - j)."""
    return max(0, iteration - gap)


def sample_negatives(
    sampler: Student,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: NegativesConfig,
    seed: int,
    iteration: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Negative]]:
    """`config.num_samples` negatives for each example. Empty samples are dropped, so a list may be shorter."""
    requests = [(example, index) for example in examples for index in range(config.num_samples)]
    total = len(requests)
    made = generate(
        sampler,
        [example.explain_ids for example, _ in requests],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        temperature=config.temperature,
        top_k=config.top_k,
        streams=[generator(seed, "negative", iteration, example.question_id, index) for example, index in requests],
        on_progress=(lambda done: on_progress(done, total)) if on_progress is not None else None,
    )
    texts = tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)
    negatives: list[list[Negative]] = [[] for _ in examples]
    for position, (one, text) in enumerate(zip(made, texts, strict=True)):
        if one.ids and text.strip():
            target = one.ids if one.truncated else [*one.ids, sampler.eos_id]
            negatives[position // config.num_samples].append(Negative(target, text.strip(), one.truncated))
    return negatives

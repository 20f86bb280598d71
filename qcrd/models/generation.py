"""Sampling from a student in large batches, such that neither batching nor order changes any text.

Every sequence brings its own uniform draws, one a token. A token is drawn by inverse CDF in float64 over the top-k
candidates sorted by token id, so that the rounding of a batch's matrix products does not reach the choice. Knows
nothing about rationales, iterations or what the text is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qcrd.models.batching import length_sorted_batches
from qcrd.models.student import Student
from qcrd.runtime.workers import Workers

SHRINK = 0.75
"""Rows that have ended leave a batch once no more than this share of its rows is still being written."""


@dataclass(frozen=True)
class Generated:
    """Token ids of one sequence, without EOS. `truncated`: it was cut at the limit before it ended."""

    ids: list[int]
    truncated: bool


def draw_tokens(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    """One token a row, (B,): inverse CDF of softmax(logits / temperature) over the top-k in order of token id.

    `temperature` 0 is greedy; `top_k` 0 is the whole vocabulary. `uniforms_B` are float64 in [0, 1).
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    if 0 < top_k < logits_BV.shape[-1]:
        ids_BC = logits_BV.topk(top_k, dim=-1).indices.sort(dim=-1).values
        logits_BV = logits_BV.gather(-1, ids_BC)
    else:
        ids_BC = torch.arange(logits_BV.shape[-1], device=logits_BV.device).expand_as(logits_BV)
    cdf_BC = (logits_BV.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    position_B = (cdf_BC <= (uniforms_B * cdf_BC[:, -1])[:, None]).sum(dim=-1).clamp(max=cdf_BC.shape[-1] - 1)
    return ids_BC.gather(-1, position_B[:, None])[:, 0]


@torch.no_grad()
def _generate_batch(
    student: Student,
    rows: Sequence[Sequence[int]],
    uniforms: np.ndarray,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
) -> list[Generated]:
    """One batch with a key-value cache, from which rows leave some time after they end.

    Within one `precision`, so that mixed precision casts each weight once a batch, not once a token.
    """
    decoding = student.passes.start(rows, max_new_tokens)
    uniforms_BT = torch.from_numpy(uniforms).to(student.device)
    outputs: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    batch = list(range(len(rows)))
    tokens = torch.full((len(rows),), student.start_id, dtype=torch.int64, device=student.device)
    for position in range(max_new_tokens):
        logits = decoding.step(tokens)
        with torch.autocast(student.device.type, enabled=False):
            tokens = draw_tokens(logits, uniforms_BT[batch, position], temperature, top_k)
        for row, token in zip(batch, tokens.tolist(), strict=True):
            ended[row] = ended[row] or token == student.eos_id
            if not ended[row]:
                outputs[row].append(token)
        alive = [slot for slot, row in enumerate(batch) if not ended[row]]
        if not alive:
            break
        if len(alive) <= SHRINK * len(batch):
            index = torch.tensor(alive, device=student.device)
            decoding.keep(index)
            tokens, batch = tokens[index], [batch[slot] for slot in alive]
    return [Generated(row, not done) for row, done in zip(outputs, ended, strict=True)]


def generate_batches(
    student: Student,
    rows: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    stream: Callable[[int], np.random.Generator] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[Generated]]:
    """Generate, dropout off, one sequence for each row that `batches` names, batch by batch.

    `stream(i)` belongs to row i and gives its draws; greedy generation (`temperature` 0) needs none. `on_progress` is
    told how many sequences are done.
    """
    if temperature > 0 and stream is None:
        raise ValueError("sampling needs one random stream a sequence")
    made: list[list[Generated]] = []
    was_training = student.model.training
    student.model.eval()
    try:
        for batch in batches:
            draws = np.zeros((len(batch), max_new_tokens))
            if stream is not None and temperature > 0:
                draws = np.stack([stream(row).random(max_new_tokens) for row in batch])
            texts = [rows[index] for index in batch]
            with student.precision():
                made.append(_generate_batch(student, texts, draws, max_new_tokens, temperature, top_k))
            if on_progress is not None:
                on_progress(sum(map(len, made)))
    finally:
        student.model.train(was_training)
    return made


def in_order(batches: Sequence[Sequence[int]], made: Sequence[Sequence[Generated]]) -> list[Generated]:
    """The sequences of all batches in the order of their rows."""
    results = {
        row: one
        for batch, sequences in zip(batches, made, strict=True)
        for row, one in zip(batch, sequences, strict=True)
    }
    return [results[row] for row in range(len(results))]


def generate(
    student: Student,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_k: int = 0,
    stream: Callable[[int], np.random.Generator] | None = None,
    on_progress: Callable[[int], None] | None = None,
    workers: Workers | None = None,
) -> list[Generated]:
    """One sequence for each row of input ids, in the order of `rows`; the arguments are those of `generate_batches`.

    Batches of like lengths are cut over all rows and only then dealt to `workers`; every worker gets all results.
    """
    workers = workers or Workers()
    batches = length_sorted_batches([len(row) for row in rows], batch_size)
    made = generate_batches(
        student, rows, workers.share(batches), max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
        stream=stream, on_progress=on_progress,
    )  # fmt: skip
    return in_order(batches, workers.gather(made))

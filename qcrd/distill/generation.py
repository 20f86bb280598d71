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
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from qcrd.distill.student import Student


@dataclass(frozen=True)
class Generated:
    """Token ids of one sequence, without EOS. `truncated`: it was cut at the limit before it ended."""

    ids: list[int]
    truncated: bool


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices cut into batches of like lengths, longest first; equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


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
    student: Student, rows: Sequence[Sequence[int]], uniforms: np.ndarray, max_new_tokens: int, temperature: float,
    top_k: int,
) -> list[Generated]:
    """One batch with a key-value cache, from which rows leave as they end."""
    ids, mask = student.inputs(rows)
    states = student.encode(ids, mask)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    uniforms_BT = torch.from_numpy(uniforms).to(student.device)
    outputs: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    alive = list(range(len(rows)))
    tokens = torch.full((len(rows), 1), student.start_id, dtype=torch.int64, device=student.device)
    for position in range(max_new_tokens):
        with student.precision():
            logits = student.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),  # pyright: ignore[reportArgumentType]
                attention_mask=mask,
                decoder_input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        drawn = draw_tokens(logits, uniforms_BT[alive, position], temperature, top_k)
        values = drawn.tolist()
        keep = [slot for slot, value in enumerate(values) if value != student.eos_id]
        for slot, value in enumerate(values):
            if value == student.eos_id:
                ended[alive[slot]] = True
            else:
                outputs[alive[slot]].append(value)
        if not keep:
            break
        if len(keep) < len(alive):
            index = torch.tensor(keep, device=student.device)
            cache.batch_select_indices(index)
            states, mask, drawn = states[index], mask[index], drawn[index]
            alive = [alive[slot] for slot in keep]
        tokens = drawn[:, None]
    return [Generated(row, not done) for row, done in zip(outputs, ended, strict=True)]


def generate(
    student: Student,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_k: int = 0,
    streams: Sequence[np.random.Generator] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Generate one sequence for each row of input ids, dropout off, in batches sorted by length.

    `streams[i]` belongs to row i and gives its draws; greedy generation (`temperature` 0) needs none. `on_progress` is
    told how many sequences are done. Results are in the order of `rows`.
    """
    if temperature > 0 and (streams is None or len(streams) != len(rows)):
        raise ValueError("sampling needs one random stream a sequence")
    results: dict[int, Generated] = {}
    was_training = student.model.training
    student.model.eval()
    try:
        for batch in length_sorted_batches([len(row) for row in rows], batch_size):
            draws = np.zeros((len(batch), max_new_tokens))
            if streams is not None and temperature > 0:
                draws = np.stack([streams[index].random(max_new_tokens) for index in batch])
            made = _generate_batch(
                student, [rows[index] for index in batch], draws, max_new_tokens, temperature, top_k
            )
            results.update(zip(batch, made, strict=True))
            if on_progress is not None:
                on_progress(len(results))
    finally:
        student.model.train(was_training)
    return [results[index] for index in range(len(rows))]

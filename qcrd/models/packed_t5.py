"""T5 on packed tokens: no padding reaches a matrix product, and all encodings of a step serve all of its decodings.

The weights are those of transformers' `T5ForConditionalGeneration`; this is another order of the same arithmetic. All
tokens of all sequences lie one after the other, (P, H); see packing.py. Only attention sees them as padded (rows,
longest), in groups of like lengths. Cross-attention keys and values are computed once a question, however many
rationales it has. Norms are taken in the dtype of the weights (transformers takes them in fp32 even in float64).

P tokens, B rows, L longest row, H width, S input tokens, T target tokens, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers.models.t5.modeling_t5 import T5Attention, T5ForConditionalGeneration, T5LayerFF, T5Stack

from qcrd.models.batching import Ids, on_device, token_batches
from qcrd.models.cross_entropy import nll_of_tokens, weighted_nll
from qcrd.models.packing import Layout

SCORING_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Target tokens of one decoder pass without gradient: bounds its memory."""


@dataclass
class EncodedQuestions:
    """Encoder states of some questions, packed."""

    states_PH: torch.Tensor
    layout: Layout
    keys_values: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    """Cross-attention keys and values of every decoder layer, without gradient, once they were asked for."""

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to cross-attention scores, (questions, 1, 1, S): 0, and -inf on padding."""
        return _padding_mask(self.layout.lengths, self.layout.longest, self.states_PH.device, dtype)


def _padding_mask(lengths: Sequence[int], longest: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    counts = on_device(lengths, device)
    is_padding = torch.arange(longest, device=device)[None, :] >= counts[:, None]
    mask = torch.zeros(is_padding.shape, dtype=dtype, device=device).masked_fill(is_padding, float("-inf"))
    return mask[:, None, None]


def _norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)  # pyright: ignore[reportArgumentType]


def _heads(x_BLE: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, L, heads * D) -> (B, heads, L, D)."""
    return x_BLE.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _position_bias(attention: T5Attention, longest: int) -> torch.Tensor:
    """Relative position bias, (1, heads, L, L); that of shorter rows is its upper left corner."""
    return attention.compute_bias(longest, longest)


def _attend(
    attention: T5Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """(B, heads, L, D) -> (B, L, heads * D). T5 does not scale its scores."""
    dropout = attention.dropout if attention.training else 0.0
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout, scale=1.0)
    return out.transpose(1, 2).flatten(2)


def _joined_weights(layer: Any) -> torch.Tensor:
    """Of a self-attention's queries, keys and values, for one product, (3 * heads * D, H)."""
    attention = layer.SelfAttention
    return torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])


def _before_logits(model: T5ForConditionalGeneration, x: torch.Tensor) -> torch.Tensor:
    """The decoder's last states as the output weights take them."""
    x = model.decoder.dropout(_norm(model.decoder.final_layer_norm, x))
    return x * model.model_dim**-0.5 if model.config.scale_decoder_outputs else x


def _self_attention(layer: nn.Module, x_PH: torch.Tensor, layout: Layout, biases: list[torch.Tensor]) -> torch.Tensor:
    attention: T5Attention = layer.SelfAttention  # pyright: ignore[reportAssignmentType]
    qkv = linear(_norm(layer.layer_norm, x_PH), _joined_weights(layer))  # pyright: ignore[reportArgumentType]
    parts = []
    for group, bias in zip(layout.groups, biases, strict=True):
        q, k, v = (_heads(one, attention.n_heads) for one in group.pad(qkv).chunk(3, dim=2))
        parts.append(group.padding.pack(_attend(attention, q, k, v, bias)))
    return x_PH + layer.dropout(attention.o(torch.cat(parts)))  # pyright: ignore[reportCallIssue]


def _feed_forward(layer: T5LayerFF, x_PH: torch.Tensor) -> torch.Tensor:
    dense = layer.DenseReluDense
    hidden = _norm(layer.layer_norm, x_PH)
    if hasattr(dense, "wi_0"):
        hidden = dense.act(dense.wi_0(hidden)) * dense.wi_1(hidden)  # pyright: ignore[reportCallIssue]
    else:
        hidden = dense.act(dense.wi(hidden))  # pyright: ignore[reportCallIssue]
    return x_PH + layer.dropout(dense.wo(dense.dropout(hidden)))


def encode(stack: T5Stack, rows: Sequence[Ids]) -> EncodedQuestions:
    """Run an encoder stack over rows of ids."""
    device = stack.final_layer_norm.weight.device
    layout = Layout([len(row) for row in rows], device)
    x = stack.dropout(stack.embed_tokens(on_device(layout.flatten(rows), device)))
    bias = _position_bias(stack.block[0].layer[0].SelfAttention, layout.longest)  # pyright: ignore
    biases = []
    for group in layout.groups:
        size = group.longest
        lengths = [layout.lengths[row] for row in group.rows]
        biases.append(bias[..., :size, :size] + _padding_mask(lengths, size, device, bias.dtype))
    for block in stack.block:
        x = _self_attention(block.layer[0], x, layout, biases)  # pyright: ignore
        x = _feed_forward(block.layer[-1], x)  # pyright: ignore
    return EncodedQuestions(stack.dropout(_norm(stack.final_layer_norm, x)), layout)


def _cross_keys_values(stack: T5Stack, encoded: EncodedQuestions) -> list:
    """Keys and values of every decoder layer, (questions, heads, S, D) each."""
    result = []
    for block in stack.block:
        attention: T5Attention = block.layer[1].EncDecAttention  # pyright: ignore
        kv = encoded.layout.padded(linear(encoded.states_PH, torch.cat([attention.k.weight, attention.v.weight])))
        result.append(tuple(_heads(one, attention.n_heads) for one in kv.chunk(2, dim=2)))
    return result


def _cross_attention(
    layer: nn.Module, x_PH: torch.Tensor, layout: Layout, keys_values: tuple[torch.Tensor, torch.Tensor],
    questions: list[torch.Tensor], masks: list[torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    attention: T5Attention = layer.EncDecAttention  # pyright: ignore[reportAssignmentType]
    q_PE = attention.q(_norm(layer.layer_norm, x_PH))  # pyright: ignore[reportArgumentType]
    parts = []
    for group, question_B, mask in zip(layout.groups, questions, masks, strict=True):
        k, v = (one.index_select(0, question_B) for one in keys_values)
        parts.append(group.padding.pack(_attend(attention, _heads(group.pad(q_PE), attention.n_heads), k, v, mask)))
    return x_PH + layer.dropout(attention.o(torch.cat(parts)))  # pyright: ignore[reportCallIssue]


def _causal(bias: torch.Tensor) -> torch.Tensor:
    size = bias.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=bias.device).triu(1)
    return bias.masked_fill(future, float("-inf"))


class PackedT5:
    """The passes of a T5 student (student.py) on packed tokens."""

    def __init__(self, model: T5ForConditionalGeneration, start_id: int) -> None:
        self.model, self.start_id = model, start_id

    def encode(self, rows: Sequence[Ids]) -> EncodedQuestions:
        return encode(self.model.encoder, rows)

    def _decode(
        self, encoded: EncodedQuestions, keys_values: list, question_R: Sequence[int], targets: Sequence[Ids],
        layout: Layout,
    ) -> torch.Tensor:  # fmt: skip
        """Hidden states before the output weights, (P, H), of target tokens in packed order."""
        stack, device = self.model.decoder, self.model.device
        inputs = [[self.start_id, *row[:-1]] for row in targets]
        x = stack.dropout(stack.embed_tokens(on_device(layout.flatten(inputs), device)))
        bias = _causal(_position_bias(stack.block[0].layer[0].SelfAttention, layout.longest))  # pyright: ignore
        biases = [bias[..., : group.longest, : group.longest] for group in layout.groups]
        questions = [on_device([question_R[row] for row in group.rows], device) for group in layout.groups]
        mask = encoded.mask(bias.dtype)
        masks = [mask.index_select(0, question_B) for question_B in questions]
        for block, pair in zip(stack.block, keys_values, strict=True):
            x = _self_attention(block.layer[0], x, layout, biases)  # pyright: ignore
            x = _cross_attention(block.layer[1], x, layout, pair, questions, masks)  # pyright: ignore
            x = _feed_forward(block.layer[2], x)  # pyright: ignore
        return _before_logits(self.model, x)

    @torch.no_grad()
    def sequence_nll(
        self, encoded: EncodedQuestions, question_R: Sequence[int], targets: Sequence[Ids]
    ) -> torch.Tensor:
        """l(r) of each target, (R,), in passes of bounded size over like lengths."""
        device = self.model.device
        if encoded.keys_values is None:
            encoded.keys_values = _cross_keys_values(self.model.decoder, encoded)
        nll = torch.zeros(len(targets), dtype=torch.promote_types(self.model.dtype, torch.float32), device=device)
        for rows in token_batches([len(row) for row in targets], SCORING_TOKENS.get(device.type, 32768)):
            some = [targets[row] for row in rows]
            layout = Layout([len(row) for row in some], device)
            hidden = self._decode(encoded, encoded.keys_values, [question_R[row] for row in rows], some, layout)
            flat = on_device(layout.flatten(some), device)
            sums = layout.row_sums(nll_of_tokens(hidden, self.model.lm_head.weight, flat))
            lengths = on_device(layout.lengths, device, nll.dtype)
            nll[on_device(rows, device)] = sums / lengths
        return nll

    def weighted_nll(
        self, encoded: EncodedQuestions, question_R: Sequence[int], targets: Sequence[Ids], weights_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of weights * l(r) with gradient, l(r) of each target, (R,), without)."""
        device = self.model.device
        layout = Layout([len(row) for row in targets], device)
        keys_values = _cross_keys_values(self.model.decoder, encoded)
        hidden = self._decode(encoded, keys_values, question_R, targets, layout)
        flat = on_device(layout.flatten(targets), device)
        lengths = on_device(layout.lengths, device, weights_R.dtype)
        weights_P = layout.per_token(weights_R / lengths)
        loss, nll_P = weighted_nll(hidden, self.model.lm_head.weight, flat, weights_P)
        return loss, layout.row_sums(nll_P) / lengths

    def target_logits(
        self, encoded: EncodedQuestions, question_R: Sequence[int], targets: Sequence[Ids]
    ) -> list[torch.Tensor]:
        """Logits of each target's tokens, (T, V) each, with gradient."""
        layout = Layout([len(row) for row in targets], self.model.device)
        keys_values = _cross_keys_values(self.model.decoder, encoded)
        hidden = self._decode(encoded, keys_values, question_R, targets, layout)
        parts = linear(hidden, self.model.lm_head.weight).split([layout.lengths[row] for row in layout.order])
        made = dict(zip(layout.order, parts, strict=True))
        return [made[row] for row in range(len(targets))]

    def start(self, rows: Sequence[Ids], max_new_tokens: int) -> T5Decoding:
        """Begin to generate for each row of input ids."""
        return T5Decoding(self, self.encode(rows), max_new_tokens)


class T5Decoding:
    """Token by token, with the keys and values of what was written in one buffer."""

    def __init__(self, t5: PackedT5, encoded: EncodedQuestions, max_new_tokens: int) -> None:
        self.model = t5.model
        stack = self.model.decoder
        attention: T5Attention = stack.block[0].layer[0].SelfAttention  # pyright: ignore
        self.cross = _cross_keys_values(stack, encoded)
        self.mask = encoded.mask(encoded.states_PH.dtype)
        keys = self.cross[0][0]
        self.joined = [_joined_weights(block.layer[0]).to(keys.dtype) for block in stack.block]  # pyright: ignore
        shape = (len(stack.block), 2, keys.shape[0], attention.n_heads, max_new_tokens, keys.shape[3])
        self.cache = keys.new_zeros(shape)
        self.bias = _position_bias(attention, max_new_tokens)
        self.length = 0

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, (B, V), after these."""
        stack, now = self.model.decoder, self.length
        x = stack.dropout(stack.embed_tokens(tokens_B))
        bias = self.bias[..., now : now + 1, : now + 1]
        parts = zip(stack.block, self.joined, self.cache, self.cross, strict=True)
        for block, joined, cache, (k_cross, v_cross) in parts:
            layer: Any = block.layer[0]  # pyright: ignore
            attention = layer.SelfAttention
            qkv = linear(_norm(layer.layer_norm, x), joined)
            q, k, v = (_heads(one[:, None], attention.n_heads) for one in qkv.chunk(3, dim=1))
            cache[0, :, :, now], cache[1, :, :, now] = k[:, :, 0], v[:, :, 0]
            out = _attend(attention, q, cache[0, :, :, : now + 1], cache[1, :, :, : now + 1], bias)
            x = x + attention.o(out[:, 0])
            layer = block.layer[1]  # pyright: ignore
            attention = layer.EncDecAttention
            q = _heads(attention.q(_norm(layer.layer_norm, x))[:, None], attention.n_heads)
            x = x + attention.o(_attend(attention, q, k_cross, v_cross, self.mask)[:, 0])
            x = _feed_forward(block.layer[2], x)  # pyright: ignore
        self.length += 1
        return linear(_before_logits(self.model, x), self.model.lm_head.weight)

    def keep(self, index: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.cache, self.mask = self.cache[:, :, index], self.mask[index]
        self.cross = [tuple(one[index] for one in pair) for pair in self.cross]

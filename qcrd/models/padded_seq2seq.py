"""Any sequence-to-sequence model through transformers' own forward, on padded batches of like lengths.

The counterpart of packed_t5.py for models that have no arithmetic of their own here: encoder states are shared by all
rationales of a question, logits are made for a bounded number of tokens where no gradient is wanted.

R targets, B rows, S input tokens, T target tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from qcrd.models.batching import Ids, length_sorted_batches, on_device, pad, padded_inputs
from qcrd.models.cross_entropy import IGNORED, sequence_nll

ROWS = 16
"""Targets of one padded decoder pass."""


@dataclass
class PaddedStates:
    """Encoder states of some questions, (B, S, H), and their mask, (B, S)."""

    states_BSH: torch.Tensor
    mask_BS: torch.Tensor


class PaddedSeq2Seq:
    """The passes of a student (student.py) through transformers."""

    def __init__(self, model: PreTrainedModel, pad_id: int, start_id: int) -> None:
        self.model, self.pad_id, self.start_id = model, pad_id, start_id

    def encode(self, rows: Sequence[Ids]) -> PaddedStates:
        ids, mask = padded_inputs(rows, self.pad_id, self.model.device)
        return PaddedStates(self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def logits(self, states_BSH: torch.Tensor, mask_BS: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits, (B, T, V), of targets that are padded with `IGNORED`."""
        inputs_BT = targets_BT.new_full(targets_BT.shape, self.start_id)
        inputs_BT[:, 1:] = targets_BT[:, :-1].masked_fill(targets_BT[:, :-1] == IGNORED, self.pad_id)
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BSH),  # pyright: ignore[reportArgumentType]
            attention_mask=mask_BS,
            decoder_input_ids=inputs_BT,
            use_cache=False,
        ).logits

    def _nll(
        self, encoded: PaddedStates, states_BSH: torch.Tensor, question_R: Sequence[int], targets: Sequence[Ids]
    ) -> torch.Tensor:
        """l(r) of each target, (R,)."""
        device = self.model.device
        parts, places = [], []
        for rows in length_sorted_batches([len(row) for row in targets], ROWS):
            question = on_device([question_R[row] for row in rows], device)
            targets_BT = pad([targets[row] for row in rows], IGNORED, device)
            logits = self.logits(states_BSH[question], encoded.mask_BS[question], targets_BT)
            parts.append(sequence_nll(logits, targets_BT))
            places += rows
        nll = torch.cat(parts)
        return torch.zeros_like(nll).index_copy(0, on_device(places, device), nll)

    @torch.no_grad()
    def sequence_nll(self, encoded: PaddedStates, question_R: Sequence[int], targets: Sequence[Ids]) -> torch.Tensor:
        """l(r) of each target, (R,)."""
        return self._nll(encoded, encoded.states_BSH, question_R, targets)

    def weighted_nll(
        self, encoded: PaddedStates, question_R: Sequence[int], targets: Sequence[Ids], weights_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of weights * l(r) with gradient, l(r) of each target, (R,), without)."""
        nll = self._nll(encoded, encoded.states_BSH, question_R, targets)
        return (weights_R * nll).sum(), nll.detach()

    def target_logits(
        self, encoded: PaddedStates, question_R: Sequence[int], targets: Sequence[Ids]
    ) -> list[torch.Tensor]:
        """Logits of each target's tokens, (T, V) each, with gradient."""
        made: dict[int, torch.Tensor] = {}
        for rows in length_sorted_batches([len(row) for row in targets], ROWS):
            question = on_device([question_R[row] for row in rows], self.model.device)
            targets_BT = pad([targets[row] for row in rows], IGNORED, self.model.device)
            logits = self.logits(encoded.states_BSH[question], encoded.mask_BS[question], targets_BT)
            made |= {row: some[: len(targets[row])] for row, some in zip(rows, logits.unbind(), strict=True)}
        return [made[row] for row in range(len(targets))]

    def start(self, rows: Sequence[Ids], max_new_tokens: int) -> PaddedDecoding:
        """Begin to generate for each row of input ids."""
        return PaddedDecoding(self.model, self.encode(rows))


class PaddedDecoding:
    """Token by token with transformers' key-value cache."""

    def __init__(self, model: PreTrainedModel, encoded: PaddedStates) -> None:
        self.model, self.encoded = model, encoded
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, (B, V), after these."""
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded.states_BSH),  # pyright: ignore[reportArgumentType]
            attention_mask=self.encoded.mask_BS,
            decoder_input_ids=tokens_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    def keep(self, index: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(index)
        self.encoded = PaddedStates(self.encoded.states_BSH[index], self.encoded.mask_BS[index])

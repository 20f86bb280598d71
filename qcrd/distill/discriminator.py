"""The discriminator: an encoder over question + rationale, masked max-pool, Linear-ReLU-Linear, sigmoid.

Section 6 of the method; the paper's eqs. 1 and 2 and appendix A.3. It reads text, through a tokenizer of its own, and
shares no weights with the student: its optimizer and its clipping are its own, and under Adam the factor alpha_3 of
L_D, which scales all of its gradients alike, hardly matters. Knows nothing about Ray, files of a run, or where
rationales come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from qcrd.config import DiscriminatorConfig
from qcrd.distill.losses import discriminator_loss
from qcrd.models.batching import Ids, length_sorted_batches, padded_inputs
from qcrd.models.optimizer import FlatAdamW
from qcrd.models.packed_t5 import encode
from qcrd.models.student import t5_config
from qcrd.models.tokenizer import eos_of, load_tokenizer, train_tokenizer, with_separator
from qcrd.models.weights import set_weights, weights_of
from qcrd.runtime.workers import Workers
from qcrd.seeding import stable_seed

_T5_TYPES = ("t5", "mt5", "umt5")


class Discriminator(nn.Module):
    """Scores in (0, 1) for (question, rationale) pairs."""

    def __init__(
        self,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        hidden_size: int | None,
        max_tokens: int,
        dtype: str = "float32",
    ) -> None:
        """`dtype`: bfloat16 is mixed precision of the encoder's passes."""
        super().__init__()
        width = int(encoder.config.hidden_size)
        hidden = hidden_size or width
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.dtype = dtype

    def tokenize(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Ids of question and rationale; where they are too long together, the longer is cut."""
        questions = [with_separator(self.tokenizer, question) for question, _ in pairs]
        return self.tokenizer(
            questions, [rationale for _, rationale in pairs], truncation="longest_first", max_length=self.max_tokens
        )["input_ids"]  # pyright: ignore[reportReturnType]

    def forward(self, rows: Sequence[Ids]) -> torch.Tensor:
        """Scores, (B,), of rows of ids; padding never wins the max-pool."""
        device = next(self.head.parameters()).device
        pad_id = self.tokenizer.pad_token_id
        ids, mask_BS = padded_inputs(rows, pad_id if isinstance(pad_id, int) else 0, device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            if isinstance(self.encoder, T5EncoderModel):
                encoded = encode(self.encoder.encoder, rows)
                states_BSH = encoded.layout.padded(encoded.states_PH)
            else:
                states_BSH = self.encoder(input_ids=ids, attention_mask=mask_BS).last_hidden_state
        states_BSH = states_BSH.to(next(self.head.parameters()).dtype)
        pooled_BH = states_BSH.masked_fill(mask_BS[:, :, None] == 0, float("-inf")).max(dim=1).values
        return torch.sigmoid(self.head(pooled_BH)[:, 0])

    @torch.no_grad()
    def score(
        self, pairs: Sequence[tuple[str, str]], batch_size: int = 64, workers: Workers | None = None
    ) -> list[float]:
        """Scores without gradient or dropout, in batches of like lengths, dealt to `workers`."""
        workers = workers or Workers()
        was_training = self.training
        self.eval()
        rows = self.tokenize(pairs) if pairs else []
        batches = length_sorted_batches([len(row) for row in rows], batch_size)
        made = [self([rows[index] for index in batch]).tolist() for batch in workers.share(batches)]
        self.train(was_training)
        scores = [0.0] * len(pairs)
        for batch, values in zip(batches, workers.gather(made), strict=True):
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
        return scores


@dataclass(frozen=True)
class QuestionRationales:
    """What the discriminator learns from for one question."""

    question_id: str
    text: str
    positives: list[str]
    negatives: list[str]


def rationale_loss(
    discriminator: Discriminator, questions: Sequence[QuestionRationales], num_questions: int | None = None
) -> torch.Tensor:
    """L_D (eq. 2) of a few questions, with gradient. A question with an empty side counts nothing.

    `num_questions`: how many have both sides in the global batch, where these are a part of it.
    """
    questions = [q for q in questions if q.positives and q.negatives]
    if not questions:
        return sum(p.sum() for p in discriminator.head.parameters()) * 0.0  # pyright: ignore[reportReturnType]
    sides = [[(q.text, r) for q in questions for r in side(q)] for side in (_positives, _negatives)]
    scores = discriminator(discriminator.tokenize(sides[0] + sides[1]))
    pos, neg = scores[: len(sides[0])], scores[len(sides[0]) :]
    return discriminator_loss(
        *_padded(pos, [len(q.positives) for q in questions]),
        *_padded(neg, [len(q.negatives) for q in questions]),
        num_questions,
    )


def _positives(question: QuestionRationales) -> list[str]:
    return question.positives


def _negatives(question: QuestionRationales) -> list[str]:
    return question.negatives


def _padded(flat: torch.Tensor, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat scores as (questions, longest) with a mask."""
    width = max(counts)
    mask = torch.arange(width, device=flat.device)[None, :] < torch.tensor(counts, device=flat.device)[:, None]
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask


def discriminator_optimizer(discriminator: Discriminator, config: DiscriminatorConfig) -> FlatAdamW:
    """AdamW of the discriminator alone."""
    return FlatAdamW(discriminator, config.learning_rate, 0.0, config.max_grad_norm)


def optimizer_step(
    discriminator: Discriminator,
    optimizer: FlatAdamW,
    questions: Sequence[QuestionRationales],
    weight: float,
    seed: int,
    workers: Workers | None = None,
) -> torch.Tensor:
    """One step on weight * L_D over questions dealt to `workers`, dropout drawn from `seed` and the rank.

    Returns L_D of this worker's questions, as its part of the mean.
    """
    workers = workers or Workers()
    both = [q for q in questions if q.positives and q.negatives]
    torch.manual_seed(stable_seed(seed, workers.rank))
    discriminator.train()
    optimizer.zero_grad()
    loss = rationale_loss(discriminator, workers.share(both), len(both))
    (weight * loss).backward()
    workers.sum_(optimizer.gradient)
    optimizer.step()
    return loss.detach()


def _encoder(name: str, revision: str | None) -> PreTrainedModel:
    """A pretrained encoder; of a sequence-to-sequence model, its encoder alone."""
    config = AutoConfig.from_pretrained(name, revision=revision)
    kind = AutoModelForTextEncoding if config.model_type in _T5_TYPES else AutoModel
    model = kind.from_pretrained(name, revision=revision, use_safetensors=True, dtype=torch.float32)
    return model.get_encoder() if model.config.is_encoder_decoder else model


def build_discriminator(config: DiscriminatorConfig, texts: Sequence[str], device: torch.device) -> Discriminator:
    """The discriminator before pretraining. Random weights come from `discriminator.seed` alone.

    A discriminator from scratch whose settings name no tokenizer trains one on `texts`.
    """
    torch.manual_seed(stable_seed(config.seed, "discriminator_initialisation"))
    if config.kind == "scratch":
        named = config.tokenizer
        tokenizer = load_tokenizer(named) if named else train_tokenizer(texts, config.vocab_size)
        pad_id = tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        encoder: PreTrainedModel = T5EncoderModel(
            t5_config(config, len(tokenizer), pad_id, eos_of(tokenizer), config.dropout)
        )
    else:
        tokenizer = load_tokenizer(config.model, config.revision)
        encoder = _encoder(config.model, config.revision)
    return Discriminator(encoder, tokenizer, config.hidden_size, config.max_tokens, config.dtype).to(device)


def save_discriminator(discriminator: Discriminator, folder: Path) -> None:
    """Write weights (safetensors), the encoder's config, sizes and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights_of(discriminator), folder / "discriminator.safetensors")
    discriminator.encoder.config.save_pretrained(folder)
    discriminator.tokenizer.save_pretrained(folder)
    head = discriminator.head[0]
    assert isinstance(head, nn.Linear)
    sizes = {"hidden_size": head.out_features, "max_tokens": discriminator.max_tokens, "dtype": discriminator.dtype}
    (folder / "discriminator.json").write_text(json.dumps(sizes) + "\n")


def load_discriminator(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Discriminator:
    """Read what `save_discriminator` wrote."""
    sizes = json.loads((folder / "discriminator.json").read_text())
    config = AutoConfig.from_pretrained(folder)
    is_t5 = config.model_type in _T5_TYPES
    encoder = (AutoModelForTextEncoding if is_t5 else AutoModel).from_config(config)
    discriminator = Discriminator(encoder, load_tokenizer(str(folder)), **sizes)
    set_weights(discriminator, load_file(folder / "discriminator.safetensors"))
    return discriminator.to(device=device, dtype=dtype)

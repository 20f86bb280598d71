"""Tokenizers of students and discriminators: training one, reading one, and texts as rows of ids.

Knows nothing about models or tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from qcrd.records import SEPARATOR


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of at most `vocab_size` pieces, trained on `texts`; it ends every sequence with `</s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"[.,?!:;\n]"), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:0 </s>:0", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the hub. Raises `ValueError` naming it where it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except OSError as error:
        raise ValueError(f"tokenizer {name_or_path!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def eos_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end-of-sequence id; where a tokenizer has none, its separator serves."""
    for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if isinstance(token_id, int):
            return token_id
    raise ValueError("the tokenizer has neither an end-of-sequence nor a separator token")


def with_separator(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A question's text with the tokenizer's own EOS (or separator) where `SEPARATOR` stands."""
    own = tokenizer.eos_token or tokenizer.sep_token
    return text.replace(SEPARATOR, str(own)) if own else text


def encode_inputs(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Input ids, with the tokenizer's own special tokens, cut at `max_tokens`."""
    if not texts:
        return []
    texts = [with_separator(tokenizer, text) for text in texts]
    return tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]  # pyright: ignore[reportReturnType]


def encode_targets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Target ids: the text, cut so that the EOS still fits into `max_tokens`, then EOS."""
    if not texts:
        return []
    eos = eos_of(tokenizer)
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return [[*row[: max_tokens - 1], eos] for row in rows]


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id. Raises `ValueError` where there is none."""
    if not isinstance(tokenizer.pad_token_id, int):
        raise ValueError("the tokenizer has no padding token")
    return tokenizer.pad_token_id

"""How many tokens a text has: by a tokenizer, estimated, or at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcrd.config import ConfigError, LanguageModelSettings
from qcrd.records import Question
from qcrd.teacher.prompts import Prompts

BYTES_PER_TOKEN = 4
"""Of English prose; what the estimate goes by where there is no tokenizer."""
WRAPPING_TOKENS = 16
"""More than the tokens that a chat request adds to its text (OpenAI: 7 for one message)."""


class TokenCounter:
    """Tokens of texts: by a tokenizer, without special tokens; without one, bytes / 4 rounded up."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> int:
        return self.many([text])[0]

    def many(self, texts: Sequence[str]) -> list[int]:
        """The counts of many texts; 80,000 questions take seconds."""
        if self._tokenizer is None:
            return [math.ceil(_size(text) / BYTES_PER_TOKEN) for text in texts]
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
            verbose=False,
        )  # fmt: skip
        return [len(ids) for ids in encoded["input_ids"]]


def prompt_token_counter(config: LanguageModelSettings) -> tuple[TokenCounter, bool]:
    """How prompt tokens are counted, and whether that is measured (True) or estimated (False).

    Measured: by `teacher.tokenizer`, or by the tokenizer of a model in a local folder. The few tokens that a chat
    request adds are not counted. Raises `ConfigError` where the tokenizer cannot be loaded.
    """
    name = config.tokenizer
    if name is None and (Path(config.model) / "tokenizer_config.json").is_file():
        name = config.model
    if name is None:
        return TokenCounter(None), False
    from transformers import AutoTokenizer  # a plan without a tokenizer need not wait for it

    try:
        return TokenCounter(AutoTokenizer.from_pretrained(name)), True
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"teacher.tokenizer: {name!r} cannot be loaded ({reason}); give a folder or a hub name"
        ) from error


def worst_case_prompt_tokens(prompt: str) -> int:
    """No prompt has more tokens than this, whatever is in it; for reserving budget before a call is made.

    Byte-level tokenizers (OpenAI, Llama 3, Qwen) and those that fall back on bytes make at most one token of a byte,
    and do so for strings of digits or rare characters. Prose has a quarter of that: what is too much is given back once
    the call's real counts are known. For limits of tokens a minute it is far too high.
    """
    return _size(prompt) + WRAPPING_TOKENS


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def prompt_tokens(counter: TokenCounter, prompts: Prompts, questions: Sequence[Question]) -> np.ndarray:
    """Tokens of each question's prompt (int64).

    What all prompts begin with is counted once, up to its last line break, and the rest by question. The break may
    fall inside a token of the whole prompt, so a count may be off by one.
    """

    def prompt(question: Question) -> str:
        return prompts.prompt(question.text)

    if not questions:
        return np.zeros(0, dtype=np.int64)
    # What the first and the last in sorted order share is shared by all.
    first, last = min(map(prompt, questions)), max(map(prompt, questions))
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = first.rfind("\n", 0, shared) + 1
    rest = counter.many([prompt(question)[start:] for question in questions])
    return np.array(rest, dtype=np.int64) + counter(first[:start])

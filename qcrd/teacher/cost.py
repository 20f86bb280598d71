"""What a teacher's samples cost: prices, token counts, and an estimate before anything is asked.

Prices come from a file that anybody can edit (`teacher.prices`, else `prices.json` beside this module), each with its
date and source, and go by the exact name of the model. Discounts for cached prompts are left out, so no price here is
too low because of them. This module knows nothing about Ray, about endpoints or about what a reply says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from qcrd.config import ConfigError, LanguageModelSettings, PaidSettings, Settings, TeacherSettings
from qcrd.records import Question
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.prompts import Prompts
from qcrd.teacher.requests import Wanted, split_calls

PRICES = Path(__file__).with_name("prices.json")
BYTES_PER_TOKEN = 4
"""Of English prose; what the estimate goes by where there is no tokenizer."""
WRAPPING_TOKENS = 16
"""More than the tokens that a chat request adds to its text (OpenAI: 7 for one message)."""

# -- prices -------------------------------------------------------------------------------------------------------

Usd = Annotated[float, Field(ge=0)]


class _Entry(Settings):
    """One model in a price file. `aliases` are further exact names; `batch_factor` is null without a batch mode."""

    model: str
    aliases: tuple[str, ...] = ()
    prompt_usd_per_million: Usd
    completion_usd_per_million: Usd
    batch_factor: Annotated[float, Field(gt=0, le=1)] | None
    as_of: date
    source: str
    note: str = ""


_ENTRIES = TypeAdapter(list[_Entry])


@dataclass(frozen=True)
class Price:
    """What a model's tokens cost, in US dollars a token. Batch mode costs `batch_factor` of that; None: there is none,
    or its price is not known."""

    prompt_usd: float
    completion_usd: float
    batch_factor: float | None
    as_of: str
    source: str
    note: str = ""


def price_file(config: PaidSettings) -> Path:
    """`teacher.prices`, else the packaged file."""
    return Path(config.prices) if config.prices else PRICES


def read_price(config: TeacherSettings) -> Price | None:
    """The price of `teacher.model`; None where it is unknown, or where nothing is paid for a token.

    Names match exactly, and dated snapshots only where the file lists them. Raises `ConfigError` for a bad file.
    """
    if not isinstance(config, PaidSettings):
        return None
    for entry in _read_entries(price_file(config)):
        if config.model in (entry.model, *entry.aliases):
            return Price(
                prompt_usd=entry.prompt_usd_per_million / 1e6,
                completion_usd=entry.completion_usd_per_million / 1e6,
                batch_factor=entry.batch_factor,
                as_of=entry.as_of.isoformat(),
                source=entry.source,
                note=entry.note,
            )
    return None


def _read_entries(path: Path) -> list[_Entry]:
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"teacher.prices: '{path}' cannot be read ({error.strerror}); give a price file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"teacher.prices: '{path}'{f', {place}' if place else ''}: {first['msg']}; "
            "a price file is a list like that of qcrd/teacher/prices.json"
        ) from None
    names = [name for entry in entries for name in (entry.model, *entry.aliases)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"teacher.prices: '{path}' has {name!r} more than once; one price a name is allowed")
    return entries


def check_budget(config: TeacherSettings) -> None:
    """Raise `ConfigError` where there is a budget and no price to hold it by."""
    if not isinstance(config, PaidSettings) or config.budget_usd is None:
        return
    price = read_price(config)
    if price is None or (config.mode == "batch" and price.batch_factor is None):
        lacking = "price" if price is None else "batch_factor"
        raise ConfigError(
            f"teacher.budget_usd: {config.budget_usd:g} cannot be held, for '{price_file(config)}' has no {lacking} "
            f"of model {config.model!r}; add it there, or name another file in teacher.prices"
        )


def spent_usd(price: Price, prompt_tokens: int, completion_tokens: int, batch: bool) -> float:
    """US dollars for these tokens. In batch mode without a batch price it is the full price, which is not too low."""
    usd = prompt_tokens * price.prompt_usd + completion_tokens * price.completion_usd
    return usd * price.batch_factor if batch and price.batch_factor is not None else usd


# -- tokens -------------------------------------------------------------------------------------------------------


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


def _prompt_tokens(counter: TokenCounter, prompts: Prompts, questions: Sequence[Question]) -> np.ndarray:
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


# -- the estimate -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of asking for the samples that are missing, and its price; a price is None where it is not known.

    "Most" counts `teacher.max_tokens` for each sample, "expected" the mean of stored replies (None without any).
    """

    samples_per_request: int
    batch: bool
    chosen: bool
    requests: int
    prompt_tokens: int
    most_completion_tokens: int
    expected_completion_tokens: int | None
    most_usd: float | None
    expected_usd: float | None


@dataclass(frozen=True)
class CostEstimate:
    """The ways of getting `samples` missing samples. `measured`: whether a tokenizer counted the prompts' tokens;
    `replies`: how many stored replies the expected completion tokens come from."""

    config: LanguageModelSettings
    samples: int
    measured: bool
    replies: int
    price: Price | None
    ways: tuple[Way, ...]


def estimate_cost(
    config: LanguageModelSettings, prompts: Prompts, wanted: Wanted, missing: np.ndarray,
    known_completion: tuple[int, int] | None,
) -> CostEstimate:  # fmt: skip
    """What the missing samples (bool, shape of `wanted.keys`) cost: one call a sample or several samples a call, each
    online and, for an endpoint, in batch mode. `known_completion`: completion tokens and number of stored replies.

    Several: as `teacher.samples_per_request` has it, else all that a question lacks. A prompt is paid once a call.
    """
    counter, measured = prompt_token_counter(config)
    tokens = np.zeros(len(wanted.questions), dtype=np.int64)
    lacking = np.flatnonzero(missing.any(axis=1))
    tokens[lacking] = _prompt_tokens(counter, prompts, [wanted.questions[row] for row in lacking.tolist()])
    samples = int(missing.sum())
    replies = known_completion[1] if known_completion else 0
    expected = round(samples * known_completion[0] / replies) if known_completion and replies else None
    price = read_price(config)
    several = config.num_samples if config.samples_per_request in ("auto", 1) else config.samples_per_request
    own = 1 if config.samples_per_request == 1 else several
    most = samples * config.max_tokens
    calls_by_count = {count: split_calls(missing, count) for count in sorted({1, several})}
    is_paid = isinstance(config, PaidSettings)
    in_batches = is_paid and config.mode == "batch"
    ways: list[Way] = []
    for batch in (False, True) if is_paid else (False,):
        for count, calls in calls_by_count.items():
            prompt = int(tokens[calls[:, 0]].sum())
            ways.append(
                Way(
                    samples_per_request=count,
                    batch=batch,
                    chosen=count == own and batch == in_batches,
                    requests=len(calls),
                    prompt_tokens=prompt,
                    most_completion_tokens=most,
                    expected_completion_tokens=expected,
                    most_usd=_usd(price, prompt, most, batch),
                    expected_usd=_usd(price, prompt, expected, batch),
                )
            )
    return CostEstimate(config, samples, measured, replies, price, tuple(ways))


def _usd(price: Price | None, prompt_tokens: int, completion_tokens: int | None, batch: bool) -> float | None:
    if price is None or completion_tokens is None or (batch and price.batch_factor is None):
        return None
    return spent_usd(price, prompt_tokens, completion_tokens, batch)


def cost_rows(estimate: CostEstimate) -> tuple[list[str], list[list[str]], list[str]]:
    """The estimate as a table of strings, (columns, rows), and the notes that belong under it."""
    columns = ["way", "requests", "prompt tokens", "completion tokens", "price"]
    counted = "by tokenizer" if estimate.measured else "estimated"
    rows = [
        [
            _name(estimate.config, way),
            f"{way.requests:,}",
            f"{way.prompt_tokens:,} ({counted})",
            _completion_cell(way),
            _price_cell(estimate, way),
        ]
        for way in estimate.ways
    ]
    return columns, rows, _notes(estimate)


def _name(config: LanguageModelSettings, way: Way) -> str:
    count = way.samples_per_request
    name = "1 sample a call" if count == 1 else f"up to {count} samples a call"
    doubt = ", if the server honours n" if config.samples_per_request == "auto" and count > 1 else ""
    return name + (", batch" if way.batch else "") + (f" (this config{doubt})" if way.chosen else "")


def _completion_cell(way: Way) -> str:
    cell = f"at most {way.most_completion_tokens:,}"
    if way.expected_completion_tokens is None:
        return cell
    return f"{cell}, about {way.expected_completion_tokens:,}"


def _price_cell(estimate: CostEstimate, way: Way) -> str:
    if not isinstance(estimate.config, PaidSettings):
        return "none"
    if way.most_usd is None:
        return "price unknown" if estimate.price is None else "no batch price"
    cell = f"at most ${math.ceil(round(way.most_usd * 100, 6)) / 100:,.2f}"
    if way.expected_usd is None:
        return cell
    return f"{cell}, about ${way.expected_usd:,.2f} (mean of {estimate.replies:,} stored replies)"


def _notes(estimate: CostEstimate) -> list[str]:
    config, price = estimate.config, estimate.price
    notes: list[str] = []
    if not isinstance(config, PaidSettings):
        notes.append(f"teacher.kind = {backend_of(config).kind}: nothing is paid per token")
    elif price is None:
        notes.append(f"price unknown: model {config.model!r} is not in {price_file(config)}")
    else:
        notes.append(f"price of {config.model} as of {price.as_of}: {price.source}")
        if price.note:
            notes.append(f"{config.model}: {price.note}")
        endpoint = backend_of(config).endpoint(config)
        if endpoint is not None and endpoint.base_url is not None:
            notes.append("teacher.base_url is set: the price goes by the model's name, not by the endpoint")
    if not estimate.measured:
        notes.append(
            f"prompt tokens are estimated as bytes / {BYTES_PER_TOKEN}, so no price here is strict; "
            "teacher.tokenizer would count them"
        )
    return notes

"""What a teacher's missing samples cost: an estimate before anything is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qcrd.config import LanguageModelSettings, PaidSettings
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.prices import Price, price_file, read_price, spent_usd
from qcrd.teacher.prompts import Prompts
from qcrd.teacher.requests import Wanted, split_calls
from qcrd.teacher.tokens import BYTES_PER_TOKEN, prompt_token_counter, prompt_tokens


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
    tokens[lacking] = prompt_tokens(counter, prompts, [wanted.questions[row] for row in lacking.tolist()])
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

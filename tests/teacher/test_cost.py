"""Money: prices by exact name, tokens, and estimates that were worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcrd.config import (
    ConfigError,
    ImportedTeacherConfig,
    LanguageModelSettings,
    OpenAITeacherConfig,
    SimulatedTeacherConfig,
    VllmTeacherConfig,
)
from qcrd.records import Question
from qcrd.tasks import svamp
from qcrd.teacher import prices as prices_module
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.cost import CostEstimate, cost_rows, estimate_cost
from qcrd.teacher.prices import check_budget, read_price, spent_usd
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import Wanted
from qcrd.teacher.store_format import KEY_TYPE
from qcrd.teacher.tokens import prompt_token_counter, worst_case_prompt_tokens

ENTRY: dict[str, Any] = {
    "model": "m", "aliases": ["m-2026-01-02"], "prompt_usd_per_million": 10_000, "completion_usd_per_million": 20_000,
    "batch_factor": 0.5, "as_of": "2026-01-03", "source": "a page",
}  # fmt: skip
# Two questions of three samples each; of the second, the middle one is there already.
QUESTIONS = [Question(id=text[0], split="train", text=text, label="", answer="") for text in ("a" * 5, "b" * 13)]
MISSING = np.array([[True, True, True], [True, False, True]])
WANTED = Wanted("", QUESTIONS, np.zeros((2, 3), KEY_TYPE))


@pytest.fixture
def prices(tmp_path: Path) -> str:
    return price_file(tmp_path, ENTRY)


def price_file(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "prices.json"
    path.write_text(json.dumps(list(entries)))
    return str(path)


def teacher(tmp_path: Path, **settings: Any) -> OpenAITeacherConfig:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Q: 1\nA: 1\n")
    defaults = {"model": "m", "prompt": str(prompt), "num_samples": 3, "max_tokens": 100}
    return OpenAITeacherConfig(**{**defaults, **settings})


def estimate(config: LanguageModelSettings, known: tuple[int, int] | None = None) -> CostEstimate:
    return estimate_cost(config, task_prompts(svamp, config.prompt), WANTED, MISSING, known)


# -- prices -------------------------------------------------------------------------------------------------------


def test_a_price_goes_by_the_exact_name_or_a_listed_alias(prices: str):
    price = read_price(OpenAITeacherConfig(model="m", prices=prices))
    assert price is not None and (price.prompt_usd, price.completion_usd) == (0.01, 0.02)
    assert (price.batch_factor, price.as_of, price.source) == (0.5, "2026-01-03", "a page")
    assert read_price(OpenAITeacherConfig(model="m-2026-01-02", prices=prices)) == price
    assert read_price(OpenAITeacherConfig(model="m-2026-01-03", prices=prices)) is None
    assert read_price(OpenAITeacherConfig(model="M", prices=prices)) is None


def test_the_packaged_prices():
    price = read_price(OpenAITeacherConfig(model="gpt-4o-mini-2024-07-18"))
    assert price is not None and price.prompt_usd == pytest.approx(0.15e-6) and price.batch_factor == 0.5
    for entry in json.loads(prices_module.PRICES.read_text()):
        known = read_price(OpenAITeacherConfig(model=entry["model"]))
        assert known is not None and known.completion_usd > known.prompt_usd > 0
        assert "https://" in known.source


def test_free_is_not_unknown(prices: str):
    for free in (SimulatedTeacherConfig(), ImportedTeacherConfig(path="x"), VllmTeacherConfig(model="gpt-4o-mini")):
        assert backend_of(free).costs != "per_token" and read_price(free) is None
        check_budget(free)
    unknown = OpenAITeacherConfig(model="x", prices=prices)
    assert backend_of(unknown).costs == "per_token" and read_price(unknown) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_usd_per_million": -1}, "0.prompt_usd_per_million"),
        ({"as_of": "yesterday"}, "0.as_of"),
        ({"batch_factor": 2}, "0.batch_factor"),
        ({"price": 1}, "0.price"),
        ({"aliases": ["m"]}, "'m' more than once"),
    ],
)
def test_a_malformed_price_file_is_named(tmp_path: Path, change: dict[str, Any], says: str):
    path = price_file(tmp_path, {**ENTRY, **change})
    with pytest.raises(ConfigError, match=f"^teacher.prices: '{path}'.*{says}") as error:
        read_price(OpenAITeacherConfig(model="m", prices=path))
    assert "\n" not in str(error.value)


def test_a_price_file_that_is_not_json_or_not_there(tmp_path: Path):
    (tmp_path / "broken").write_text("[")
    for name, says in (("broken", "JSON"), ("missing", "No such file")):
        with pytest.raises(ConfigError, match=f"^teacher.prices: '{tmp_path / name}'.*{says}"):
            read_price(OpenAITeacherConfig(prices=str(tmp_path / name)))


def test_a_budget_needs_a_price(tmp_path: Path, prices: str):
    check_budget(OpenAITeacherConfig(model="x", prices=prices))
    check_budget(OpenAITeacherConfig(model="m", prices=prices, budget_usd=5, mode="batch"))
    with pytest.raises(ConfigError, match=r"^teacher\.budget_usd: 5 cannot be held.*no price of model 'x'"):
        check_budget(OpenAITeacherConfig(model="x", prices=prices, budget_usd=5))
    online_only = price_file(tmp_path, {**ENTRY, "batch_factor": None})
    check_budget(OpenAITeacherConfig(model="m", prices=online_only, budget_usd=5))
    with pytest.raises(ConfigError, match="no batch_factor of model 'm'"):
        check_budget(OpenAITeacherConfig(model="m", prices=online_only, budget_usd=5, mode="batch"))


def test_what_was_spent(tmp_path: Path, prices: str):
    price = read_price(OpenAITeacherConfig(model="m", prices=prices))
    assert price is not None
    assert spent_usd(price, 100, 50, batch=False) == pytest.approx(2.0)
    assert spent_usd(price, 100, 50, batch=True) == pytest.approx(1.0)
    without_batch = price_file(tmp_path, {**ENTRY, "batch_factor": None})
    online_only = read_price(OpenAITeacherConfig(model="m", prices=without_batch))
    assert online_only is not None and spent_usd(online_only, 100, 50, batch=True) == pytest.approx(2.0)


# -- tokens -------------------------------------------------------------------------------------------------------


def test_without_a_tokenizer_a_token_is_four_bytes_rounded_up():
    count, measured = prompt_token_counter(OpenAITeacherConfig())
    assert not measured
    assert (count(""), count("abcd"), count("abcde"), count("éé"), count("ééé")) == (0, 1, 2, 1, 2)
    assert count.many(["abcd", "abcde"]) == [1, 2]


def test_a_tokenizer_counts_exactly(shared_data: Path):
    folder = str(shared_data / "t5-tokenizer")
    for config in (OpenAITeacherConfig(tokenizer=folder), VllmTeacherConfig(model=folder)):
        count, measured = prompt_token_counter(config)
        assert measured
        assert (count(""), count("Hello world"), count("translate English to German")) == (0, 2, 4)
        assert count.many(["Hello", "Hello world", ""]) == [1, 2, 0] and count.many([]) == []


def test_an_unknown_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^teacher\.tokenizer: '.*nothing' cannot be loaded"):
        prompt_token_counter(OpenAITeacherConfig(tokenizer=str(tmp_path / "nothing")))


def test_no_prompt_has_more_tokens_than_the_worst_case(shared_data: Path):
    assert worst_case_prompt_tokens("") == 16
    assert worst_case_prompt_tokens("aé") == 19
    assert worst_case_prompt_tokens("\ud83d") == 19  # half of a surrogate pair
    count, _ = prompt_token_counter(OpenAITeacherConfig(tokenizer=str(shared_data / "t5-tokenizer")))
    for text in ("1234567890" * 9, "( 8.0 - 3.0 )" * 9, "汉字" * 9, svamp.PROMPT.read_text()):
        assert count(text) <= worst_case_prompt_tokens(text)


# -- the estimate -------------------------------------------------------------------------------------------------


def test_the_four_ways_by_hand(tmp_path: Path, prices: str):
    """The few-shot part has 11 bytes, so 3 tokens; what follows has 11 and 19, so the prompts have 6 and 8 tokens.

    One sample a call: 3 × 6 + 2 × 8 = 34. Three: one call for the first question, and two for the second, whose
    missing samples are no neighbours: 6 + 2 × 8 = 22. Completions: 5 × 100 at most, 5 × 30 expected.
    """
    config = teacher(tmp_path, prices=prices)
    found = estimate(config, known=(120, 4))
    assert (found.samples, found.measured, found.replies) == (5, False, 4)
    single, several, single_batch, several_batch = found.ways
    assert (single.samples_per_request, single.requests, single.prompt_tokens) == (1, 5, 34)
    assert (several.samples_per_request, several.requests, several.prompt_tokens) == (3, 3, 22)
    assert (single_batch.requests, several_batch.requests, several_batch.prompt_tokens) == (5, 3, 22)
    assert {way.most_completion_tokens for way in found.ways} == {500}
    assert {way.expected_completion_tokens for way in found.ways} == {150}
    assert [way.most_usd for way in found.ways] == pytest.approx([10.34, 10.22, 5.17, 5.11])
    assert [way.expected_usd for way in found.ways] == pytest.approx([3.34, 3.22, 1.67, 1.61])
    assert [way.chosen for way in found.ways] == [False, True, False, False]


def test_two_samples_a_call(tmp_path: Path, prices: str):
    found = estimate(teacher(tmp_path, prices=prices, samples_per_request=2, mode="batch"))
    assert [way.samples_per_request for way in found.ways] == [1, 2, 1, 2]
    assert (found.ways[1].requests, found.ways[1].prompt_tokens) == (4, 28)  # 2 + 1, and 1 + 1
    assert [way.chosen for way in found.ways] == [False, False, False, True]
    assert found.ways[0].expected_usd is None and found.ways[0].expected_completion_tokens is None


def test_one_sample_has_no_second_way(tmp_path: Path, prices: str):
    config = teacher(tmp_path, prices=prices, num_samples=1)
    wanted, prompts = Wanted("", QUESTIONS, WANTED.keys[:, :1]), task_prompts(svamp, config.prompt)
    found = estimate_cost(config, prompts, wanted, MISSING[:, :1], None)
    assert [way.samples_per_request for way in found.ways] == [1, 1]
    assert [(way.batch, way.chosen) for way in found.ways] == [(False, True), (True, False)]


def test_nothing_missing_costs_nothing(tmp_path: Path, prices: str):
    config = teacher(tmp_path, prices=prices)
    prompts = task_prompts(svamp, config.prompt)
    found = estimate_cost(config, prompts, WANTED, np.zeros((2, 3), dtype=bool), (120, 4))
    assert [(way.requests, way.prompt_tokens, way.most_usd) for way in found.ways] == [(0, 0, 0.0)] * 4


def test_a_tokenizer_counts_the_prompts(tmp_path: Path, shared_data: Path):
    """Counting what is shared once gives the count of the whole prompt, but for one token at the join."""
    config = teacher(tmp_path, tokenizer=str(shared_data / "t5-tokenizer"), prompt=None)
    count, _ = prompt_token_counter(config)
    whole = [count(svamp.format_prompt(svamp.PROMPT.read_text(), question.text)) for question in QUESTIONS]
    found = estimate(config)
    assert found.measured and abs(found.ways[0].prompt_tokens - (3 * whole[0] + 2 * whole[1])) <= 5
    assert whole[0] > 300


def test_the_table(tmp_path: Path, prices: str):
    columns, rows, notes = cost_rows(estimate(teacher(tmp_path, prices=prices), known=(120, 4)))
    assert columns == ["way", "requests", "prompt tokens", "completion tokens", "price"]
    mean = "(mean of 4 stored replies)"
    assert rows == [
        ["1 sample a call", "5", "34 (estimated)", "at most 500, about 150", f"at most $10.34, about $3.34 {mean}"],
        [
            "up to 3 samples a call (this config, if the server honours n)", "3", "22 (estimated)",
            "at most 500, about 150", f"at most $10.22, about $3.22 {mean}",
        ],
        [
            "1 sample a call, batch", "5", "34 (estimated)",
            "at most 500, about 150", f"at most $5.17, about $1.67 {mean}",
        ],
        [
            "up to 3 samples a call, batch", "3", "22 (estimated)",
            "at most 500, about 150", f"at most $5.11, about $1.61 {mean}",
        ],
    ]  # fmt: skip
    assert notes[0] == "price of m as of 2026-01-03: a page" and "bytes / 4" in notes[1] and len(notes) == 2


def test_at_most_is_rounded_up(tmp_path: Path):
    small = {"prompt_usd_per_million": 0, "completion_usd_per_million": 0.1, "note": "old"}
    path = price_file(tmp_path, {**ENTRY, **small})
    _, rows, notes = cost_rows(estimate(teacher(tmp_path, prices=path, base_url="http://127.0.0.1:1/v1")))
    assert rows[0][4] == "at most $0.01" and "m: old" in notes and any("teacher.base_url" in note for note in notes)


def test_the_table_without_a_price(tmp_path: Path, prices: str, shared_data: Path):
    folder = str(shared_data / "t5-tokenizer")
    _, rows, notes = cost_rows(estimate(teacher(tmp_path, prices=prices, model="x", tokenizer=folder)))
    assert [row[4] for row in rows] == ["price unknown"] * 4 and rows[0][2].endswith("(by tokenizer)")
    assert notes == [f"price unknown: model 'x' is not in {prices}"]
    online_only = price_file(tmp_path, {**ENTRY, "batch_factor": None})
    _, rows, _ = cost_rows(estimate(teacher(tmp_path, prices=online_only)))
    assert [row[4] for row in rows[2:]] == ["no batch price"] * 2 and rows[0][4] == "at most $10.34"


def test_the_table_of_a_free_teacher(tmp_path: Path):
    prompt = teacher(tmp_path).prompt
    _, rows, notes = cost_rows(estimate(VllmTeacherConfig(model="m", prompt=prompt, num_samples=3)))
    assert len(rows) == 2 and {row[4] for row in rows} == {"none"}
    assert notes[0] == "teacher.kind = vllm: nothing is paid per token"

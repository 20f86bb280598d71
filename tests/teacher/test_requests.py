"""Which samples are wanted and missing: what a key depends on, and calls worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcrd.config import ConfigError, ExperimentConfig, OpenAITeacherConfig, VllmTeacherConfig
from qcrd.records import SEPARATOR, Question
from qcrd.storage.output import Storage
from qcrd.tasks import get_task
from qcrd.teacher.backends.base import Call, Failure, Reply, Result
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import (
    Wanted,
    build_call,
    missing_mask,
    split_calls,
    store_place,
    wanted_samples,
)
from qcrd.teacher.store import SampleStore, StoreIndex
from qcrd.teacher.store_writer import StoreWriter

SVAMP = get_task("svamp")
QUESTIONS = [
    Question("a", "train", "1 + 1?", "", ""), Question("t", "test", "2 + 2?", "", ""),
    Question("b", "train", "3 + 3?", "", ""),
]  # fmt: skip


def config_of(**teacher: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"name": "x", "teacher": {"num_samples": 3, **teacher}, "rationales": {"num_samples": 1}}
    )


def wanted(task: str = "svamp", questions: list[Question] = QUESTIONS, **teacher: Any) -> Wanted:
    settings = config_of(**teacher).teacher
    return wanted_samples(settings, task_prompts(get_task(task), settings.prompt), questions)


# -- keys ---------------------------------------------------------------------------------------------------------


def test_samples_of_the_training_questions_are_wanted_in_order():
    found = wanted()
    assert [question.id for question in found.questions] == ["a", "b"]
    assert found.keys.shape == (2, 3) and found.total == 6 and len(np.unique(found.keys)) == 6
    assert found.keys_of(1, 1, 2) == [key.ljust(32, b"\0") for key in found.keys[1, 1:]]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"}, {"temperature": 0.8}, {"top_p": 0.9}, {"max_tokens": 100}, {"seed": 1},
        {"api": "completions"}, {"extra_body": {"top_k": 40}}, {"extra_body": {"top_k": 41}}, {"kind": "simulated"},
        {"kind": "simulated", "error_rate": 0.5}, {"kind": "vllm"},
        {"kind": "vllm", "revision": "abc"}, {"kind": "vllm", "dtype": "float16"},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_a_reply_changes_its_key(changes: dict[str, Any]):
    keys = [wanted(**settings).keys for settings in ({}, {"extra_body": {"top_k": 39}}, changes)]
    assert len(np.unique(np.stack(keys))) == 18


def test_the_keys_of_all_those_differ_among_themselves():
    settings: list[dict[str, Any]] = [{"kind": "vllm"}, {"kind": "simulated"}, {}, {"kind": "vllm", "model": "x"}]
    assert len({wanted(**one).identity for one in settings}) == 4


MEANS: dict[str, Any] = {
    "mode": "batch", "base_url": "http://elsewhere/v1", "api_key_env": "K", "api_key_file": "/k", "store": "/s",
    "flush_seconds": 1.0, "concurrency": 7, "actors": 3, "samples_per_request": 2, "requests_per_minute": 60,
    "tokens_per_minute": 1000, "timeout_seconds": 3.0, "max_attempts": 2, "budget_usd": 1.0, "prices": "/p",
    "tokenizer": "/t", "batch": {"poll_seconds": 1.0},
}  # fmt: skip
VLLM_MEANS: dict[str, Any] = {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.5, "max_model_len": 9}


def test_how_replies_are_got_changes_no_key():
    deciding = {"kind", "model", "temperature", "top_p", "max_tokens", "prompt", "seed", "extra_body", "api"}
    of_others = {"num_samples", "splits", "parser", "max_tokens_field"}  # which are asked, how they are read and sent
    assert {*MEANS, *deciding, *of_others} == set(OpenAITeacherConfig.model_fields)  # a new one gets a value here
    of_vllm = {"dtype", "revision"}
    assert set(VllmTeacherConfig.model_fields) - set(OpenAITeacherConfig.model_fields) == {*VLLM_MEANS, *of_vllm}
    first = wanted()
    for name, value in MEANS.items():
        assert value != getattr(OpenAITeacherConfig(), name)
        assert (wanted(**{name: value}).keys == first.keys).all(), name
    assert wanted(**MEANS).identity == first.identity
    assert wanted(kind="vllm", **VLLM_MEANS).identity == wanted(kind="vllm").identity


def test_the_field_that_max_tokens_is_sent_in_changes_no_key():
    assert wanted(max_tokens_field="max_completion_tokens").identity == wanted().identity


def test_a_key_goes_by_the_prompts_text_and_not_by_its_file(tmp_path: Path):
    for name, text in (("a", "Q: 1\nA: 1"), ("b", "Q: 1\nA: 1"), ("c", "Q: 1\nA: 2")):
        (tmp_path / name).write_text(text)
    a, b, c = (wanted(prompt=str(tmp_path / name)).identity for name in "abc")
    assert a == b != c and a != wanted().identity
    (tmp_path / "own").write_text(SVAMP.PROMPT.read_text())
    assert wanted(prompt=str(tmp_path / "own")).identity == wanted().identity
    with pytest.raises(ConfigError, match=r"^teacher\.prompt: '/no/such' does not exist"):
        wanted(prompt="/no/such")


def test_a_key_goes_by_task_and_text_and_not_by_the_questions_id(tmp_path: Path):
    prompt = tmp_path / "prompt"
    prompt.write_text("Q: 1\nA: 1")
    svamp, arithmetic = (wanted(task, prompt=str(prompt)).keys for task in ("svamp", "arithmetic"))
    assert len(np.unique(np.stack([svamp, arithmetic]))) == 12
    renamed = [Question("z", "train", "1 + 1?", "label", "1"), Question("y", "train", "3 + 4?", "", "")]
    keys = wanted(questions=renamed).keys
    assert (keys[0] == wanted().keys[0]).all() and not np.isin(keys[1], wanted().keys).any()


@pytest.mark.parametrize("task", ["anli1", "esnli", "cqa"])
def test_tasks_whose_questions_have_two_texts_have_keys_too(task: str):
    pair = [Question("a", "train", f"It rains.{SEPARATOR}It is dry.", "", "")]
    other = [Question("a", "train", f"It rains.{SEPARATOR}It is wet.", "", "")]
    assert len(np.unique(np.stack([wanted(task, pair).keys, wanted(task, other).keys]))) == 6


def test_imported_completions_go_by_content(tmp_path: Path):
    for name, text in (("a", "[]"), ("b", "[]"), ("c", "[1]")):
        (tmp_path / name).write_text(text)
    a, b, c = (wanted(kind="imported", path=str(tmp_path / name)).identity for name in "abc")
    assert a == b != c
    assert wanted(kind="imported", path=str(tmp_path / "a"), completions_field="other").identity != a


# -- what is missing ----------------------------------------------------------------------------------------------


def index_of(folder: Path, of: Wanted, records: dict[tuple[int, int], Result]) -> StoreIndex:
    with StoreWriter(folder, 60) as writer:
        writer.write([(of.keys_of(row, column, 1)[0], record) for (row, column), record in records.items()])
    return SampleStore(folder).index()


def test_more_samples_ask_only_for_the_difference(tmp_path: Path):
    few, many = wanted(num_samples=2), wanted(num_samples=4)
    index = index_of(tmp_path, few, {(row, column): Reply("x") for row in range(2) for column in range(2)})
    assert not missing_mask(few, index, False).any()
    assert missing_mask(many, index, False).tolist() == [[False, False, True, True]] * 2


def test_failures_are_asked_again_only_on_request(tmp_path: Path):
    found = wanted()
    failure = Failure("no", 400, 1)
    index = index_of(tmp_path, found, {(0, 0): Reply("x"), (0, 1): failure, (1, 2): failure})
    assert missing_mask(found, index, False).tolist() == [[False, False, True], [True, True, False]]
    assert missing_mask(found, index, True).tolist() == [[False, True, True], [True, True, True]]


def test_questions_with_one_text_are_asked_once(tmp_path: Path):
    twins = [QUESTIONS[0], QUESTIONS[2], Question("c", "train", "1 + 1?", "", "")]
    found = wanted(questions=twins)
    assert (found.keys[0] == found.keys[2]).all()
    once = [[True] * 3, [True] * 3, [False] * 3]
    assert found.distinct().tolist() == once
    assert missing_mask(found, index_of(tmp_path, found, {}), False).tolist() == once
    index = index_of(tmp_path, found, {(2, 1): Reply("x"), (0, 2): Failure("no", 400, 1)})
    assert missing_mask(found, index, True).tolist() == [[True, False, True], [True] * 3, [False] * 3]
    assert index.answered(found.keys).tolist() == [[False, True, False], [False] * 3, [False, True, False]]


def test_the_store_is_where_it_is_set_or_in_the_output(tmp_path: Path):
    assert store_place(config_of(store="s3://bucket/x").teacher, Storage.of("runs")) == "s3://bucket/x"
    assert store_place(config_of().teacher, Storage.of(str(tmp_path))) == f"{tmp_path}/store"


# -- calls --------------------------------------------------------------------------------------------------------

HOLES = np.array(
    [
        [True, True, True, True, True],
        [False, False, False, False, False],
        [True, False, True, True, False],
        [False, True, True, True, True],
    ]
)


def test_single_calls_go_by_sample_index():
    assert split_calls(HOLES, 1).tolist() == [
        [0, 0, 1], [2, 0, 1], [0, 1, 1], [3, 1, 1], [0, 2, 1], [2, 2, 1], [3, 2, 1], [0, 3, 1], [2, 3, 1], [3, 3, 1],
        [0, 4, 1], [3, 4, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (3, [[0, 0, 3], [0, 3, 2], [2, 0, 1], [2, 2, 2], [3, 1, 3], [3, 4, 1]]),
        (2, [[0, 0, 2], [0, 2, 2], [0, 4, 1], [2, 0, 1], [2, 2, 2], [3, 1, 2], [3, 3, 2]]),
        (9, [[0, 0, 5], [2, 0, 1], [2, 2, 2], [3, 1, 4]]),
    ],
)
def test_calls_of_several_samples_go_around_the_holes(n: int, expected: list[list[int]]):
    assert split_calls(HOLES, n).tolist() == expected


@pytest.mark.parametrize("n", [1, 3])
def test_nothing_missing_is_no_call(n: int):
    calls = split_calls(np.zeros((2, 3), dtype=bool), n)
    assert calls.shape == (0, 3) and calls.dtype == np.int32


def test_a_call_has_its_prompt_and_seeds_of_its_own():
    question = Question("q", "train", "1 + 1?", "gold", "2", "facts")
    prompts = replace(task_prompts(SVAMP, None), template="Q: 0\nA: 0")
    call = build_call(OpenAITeacherConfig(seed=5), prompts, question, 1, 3)
    assert (call.question_id, call.indices, call.label, call.facts) == ("q", (1, 2, 3), "gold", "facts")
    assert call.prompt == "Q: 0\nA: 0\n\nQ: 1 + 1?\nA:" and "gold" not in call.prompt
    assert len(set(call.seeds)) == 3 and all(0 <= seed < 2**31 for seed in call.seeds)
    alone = build_call(OpenAITeacherConfig(seed=5), prompts, question, 2, 1)
    assert alone == call.part(slice(1, 2)) and isinstance(alone, Call)
    assert build_call(OpenAITeacherConfig(seed=6), prompts, question, 2, 1).seeds != alone.seeds

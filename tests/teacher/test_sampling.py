"""What a start of sampling decides, without Ray: batch mode against a real server, and passes that the test makes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from qcrd.config import ExperimentConfig, OpenAITeacherConfig
from qcrd.pipeline.stages.samples import sample_source
from qcrd.records import Sample, read_rows
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.asking import Stopped
from qcrd.teacher.backends.base import Failure, Reply
from qcrd.teacher.limits import GaveUp, Need, Outcome
from qcrd.teacher.prices import read_price
from qcrd.teacher.requests import wanted_samples
from qcrd.teacher.sample import LimitsActor, Sampling, sample
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_writer import StoreWriter
from tests.teacher.loopback import BREAK, Reaction, loopback
from tests.teacher.loopback_batches import BatchServer, completion, loopback_batches

TASK = get_task("arithmetic")
MAX_TOKENS = 100
PRICES = [
    {"model": "m", "prompt_usd_per_million": 0, "completion_usd_per_million": 2e6 / MAX_TOKENS, "batch_factor": 0.5,
     "as_of": "2026-01-01", "source": "a test"}
]  # fmt: skip
"""Of a call that uses all its tokens: $1 in batch mode, else $2."""


def config_of(folder: Path, questions: int = 6, samples: int = 1, **teacher: Any) -> ExperimentConfig:
    prices = folder / "prices.json"
    prices.write_text(json.dumps(PRICES))
    return ExperimentConfig.model_validate(
        {
            "name": "x",
            "output": str(folder),
            "task": {
                "train_size": questions, "validation_size": 2, "test_size": 2, "train_limit": None,
            },
            "teacher": teacher if "kind" in teacher else {
                "model": "m", "num_samples": samples, "samples_per_request": 1, "max_tokens": MAX_TOKENS,
                "prices": str(prices), **teacher,
            },
            "rationales": {"num_samples": samples},
        }
    )  # fmt: skip


def in_batches(server: BatchServer, folder: Path, questions: int = 6, **teacher: Any) -> ExperimentConfig:
    batch = {"mode": "batch", "base_url": server.base_url, "batch": {"poll_seconds": 0.01}}
    return config_of(folder, questions, **batch, **teacher)


def sampling_of(config: ExperimentConfig) -> Sampling:
    source = sample_source(config)
    wanted = wanted_samples(source.teacher, source.prompts, load_questions(TASK, config.task))
    store, price = SampleStore(source.store), read_price(source.teacher)
    return Sampling(source.teacher, source.prompts, wanted, store, price, {}, lambda *how: None)


def start(config: ExperimentConfig, name: str = "samples", **how: bool) -> tuple[list[Sample], dict[str, Any]]:
    out = Path(config.output) / f"{name}.parquet"
    summary = sample(sample_source(config), load_questions(TASK, config.task), out, lambda *how: None, **how)
    return read_rows(out, Sample), summary


# -- starts that share samples ------------------------------------------------------------------------------------


def test_starts_that_share_samples_buy_each_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with loopback_batches(polls=20) as server:
        configs = [in_batches(server, tmp_path, samples=count) for count in (2, 4)]
        rows: dict[int, list[Sample]] = {}

        def run(number: int) -> None:
            rows[number] = start(configs[number], f"samples-{number}")[0]

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(rows[number]) for number in range(2)] == [12, 24] and all(row.text for row in rows[1])
        online = server.paid.pop("online")
        assert set(server.paid.values()) == {1} and online + len(server.paid) == 24
    assert "another run asks for the same samples; waiting" in caplog.text


def test_a_start_that_lacks_nothing_waits_for_nobody(tmp_path: Path):
    with loopback_batches() as server:
        config = in_batches(server, tmp_path)
        first, _ = start(config)
        again: list[list[Sample]] = []
        thread = threading.Thread(target=lambda: again.append(start(config)[0]))
        sampling = sampling_of(config)
        with sampling.store.locked(f"samples-{sampling.wanted.identity}", lambda: None):
            thread.start()
            thread.join(30)
            assert again == [first]


# -- batch mode with a budget -------------------------------------------------------------------------------------


def all_tokens(body: dict[str, Any]) -> tuple[int, Any]:
    """A reply that uses all the tokens it may."""
    status, found = completion(body)
    return status, {**found, "usage": {"prompt_tokens": 7, "completion_tokens": MAX_TOKENS}}


def test_rounds_that_bring_nothing_are_not_repeated(tmp_path: Path):
    def result(body: dict[str, Any]) -> tuple[int, Any]:
        good = all_tokens(body)[1]
        return 200, good if not server.batches else {**good, "choices": [{"message": {"content": []}}]}

    with loopback_batches(result=result) as server:
        with pytest.raises(Stopped, match=r"^batches of 3 requests brought nothing; errors: \{'malformed': 3\}$"):
            start(in_batches(server, tmp_path, 10, budget_usd=5.5))  # the first call is an ordinary one, for $2
        assert server.paid.total() == 4


@pytest.mark.parametrize("bad", ["no text", "no counts", "no line"])
def test_what_does_not_say_what_it_cost_counts_as_the_most_it_can(bad: str, tmp_path: Path):
    """Every other reply of a batch is bad."""

    def result(body: dict[str, Any]) -> tuple[int, Any]:
        good = all_tokens(body)[1]
        if not server.batches or server.paid.total() % 2 == 0 or bad == "no line":
            return 200, good
        return 200, {**good, "usage": None} if bad == "no counts" else {**good, "choices": []}

    def output(lines: list[str]) -> list[str]:
        return lines[::2] if bad == "no line" else lines

    with loopback_batches(result=result, output=output) as server:
        with pytest.raises(Stopped, match=r"^teacher\.budget_usd: .* pass \$6\.5; at most \$6\.0000 are spent$"):
            start(in_batches(server, tmp_path, 20, budget_usd=6.5))
        assert server.paid.pop("online") == 1 and len(server.paid) == 4 and set(server.paid.values()) == {1}
        assert len(server.batches) == 1


def test_rounds_follow_where_calls_cost_less_than_they_may(tmp_path: Path):
    with loopback_batches() as server:
        rows, summary = start(in_batches(server, tmp_path, 20, budget_usd=3.5))  # 5 of 100 tokens each
        assert len(rows) == 20 and all(row.text for row in rows)
        assert summary["usd"] == pytest.approx(0.1 + 19 * 0.05) and summary["asked"] == 20
        assert server.paid.pop("online") == 1 and set(server.paid.values()) == {1} and len(server.batches) > 5


def test_what_is_missing_after_its_round_is_left_to_the_next_start(tmp_path: Path):
    slow: list[str] = []

    def result(body: dict[str, Any]) -> tuple[int, Any]:
        prompt = body["messages"][0]["content"]
        if len(server.paid) == 2 and len(slow) < 1:
            slow.append(prompt)
        return (429, {"error": {"message": "slow down"}}) if prompt in slow else completion(body)

    with loopback_batches(result=result) as server:
        config = in_batches(server, tmp_path, 12, budget_usd=3.5)
        with pytest.raises(Stopped, match=r"^1 samples were not answered$"):
            start(config)
        assert len(server.paid) == 12 and set(server.paid.values()) == {1}  # the probe's is "online"
        slow[0] = "none"
        assert len(start(config)[0]) == 12 and server.paid["online"] == 2


def test_a_failure_is_asked_again_once(tmp_path: Path):
    with loopback_batches() as server:
        config = in_batches(server, tmp_path, budget_usd=3.5)
        sampling = sampling_of(config)
        keys = [sampling.wanted.keys_of(row, 0, 1)[0] for row in range(6)]
        with StoreWriter(sampling.store.place, 60) as writer:
            writer.write([(key, Failure("status 400: no", 400, 1)) for key in keys])
        rows, _ = start(config, retry_errors=True)
        assert not any(row.error for row in rows)
        assert server.paid == {"online": 1, **{key.hex(): 1 for key in keys[1:]}}  # the first call settles the first


# -- passes -------------------------------------------------------------------------------------------------------


def test_a_pass_counts_what_the_first_call_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spent: list[float] = []
    monkeypatch.setattr(Sampling, "_pass", lambda self, calls, usd: spent.append(usd))

    def behaviour(number: int, prompt: str) -> Reaction | None:
        return BREAK if number == 0 else None

    with loopback(behaviour) as server, pytest.raises(Stopped, match="5 samples were not answered"):
        sampling_of(config_of(tmp_path, base_url=server.base_url, budget_usd=100)).run(False)
    assert spent == [pytest.approx(2.0 + 5 * 2 / MAX_TOKENS)]  # perhaps paid, and paid


class Deaths:
    """Passes that end with the death of an actor, after it has kept so many replies and handed none back."""

    def __init__(self, *replies: int) -> None:
        self.replies = list(replies)

    def __call__(self, sampling: Sampling, calls: np.ndarray, spent: float) -> None:
        count = self.replies.pop(0)
        with StoreWriter(sampling.store.place, 60) as writer:
            for row, first, _ in calls[:count].tolist():
                writer.write([(sampling.wanted.keys_of(row, first, 1)[0], Reply("a"))])
        raise ActorDiedError


def test_deaths_end_a_job_only_where_the_store_gains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deaths = Deaths(1, 1, 0, 0, 1, 1, 1, 1)
    monkeypatch.setattr(Sampling, "_pass", lambda *how: deaths(*how))
    config = config_of(tmp_path, kind="simulated", num_samples=1)
    sampling = sampling_of(config)
    assert sampling.run(False).answered(sampling.wanted.keys).all() and not deaths.replies

    deaths = Deaths(1, 0, 0, 0, 1)
    sampling = sampling_of(config_of(tmp_path, 30, kind="simulated", num_samples=1))
    with pytest.raises(ActorDiedError):
        sampling.run(False)
    assert deaths.replies == [1]


def test_what_the_dead_have_under_way_is_not_waited_for():
    limits = LimitsActor(OpenAITeacherConfig(concurrency=20), 0.0)
    need = Need(usd=1.0)
    for who, count in ((("n1", "a"), 3), (("n1", "b"), 2), (("n2", "c"), 4)):
        assert limits.lease([need] * count, [], who).count == count
    limits.lease([need], [Outcome(need), GaveUp("x")], ("n2", "c"))  # one more, and one less
    assert [limits.under_way(gone) for gone in ({"a"}, {"b", "c"}, {"n1"}, {"n1", "c"}, {None})] == [6, 3, 4, 0, 9]
    limits.lease([], [Outcome(need)] * 2, ("n1", "b"))
    limits.stop("another pass begins")
    assert limits.lease([need], [], ("n1", "b")).count == 0 and limits.under_way({"a", "n2"}) == 0

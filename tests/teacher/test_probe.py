"""The first call of a job against a real server: clear errors, what is learnt about n, and a reply that is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ConfigError, ExperimentConfig, OpenAITeacherConfig
from qcrd.records import Question
from qcrd.tasks import get_task
from qcrd.teacher import asking
from qcrd.teacher.asking import Stopped
from qcrd.teacher.backends.base import Failure, Reply, Result
from qcrd.teacher.prices import Price
from qcrd.teacher.probe import MEMORY, probe, remember, samples_per_request
from qcrd.teacher.prompts import Prompts, task_prompts
from qcrd.teacher.requests import Wanted, missing_mask, wanted_samples
from qcrd.teacher.store import SampleStore
from qcrd.teacher.tokens import worst_case_prompt_tokens
from tests.teacher.loopback import BREAK, Behaviour, Reaction, Server, answer, error, loopback

TASK = get_task("svamp")
QUESTIONS = [Question(f"q{n}", "train", f"{n} and 1?", "", "") for n in range(5)]
PRICE = Price(0.001, 0.002, None, "2026-01-01", "a test")
AT_ONCE = {"Retry_After": "0"}


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_BACKOFF", lambda state: 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@dataclass
class Probing:
    teacher: OpenAITeacherConfig
    store: SampleStore
    wanted: Wanted
    prompts: Prompts

    def missing(self) -> list[int]:
        """How many samples of each question are missing."""
        return missing_mask(self.wanted, self.store.index(), False).sum(axis=1).tolist()

    def probe(self, price: Price | None = None, spent: float = 0.0, is_proven: bool = False) -> tuple[int, int]:
        """n for the others, and how many samples the first call settled."""
        missing = missing_mask(self.wanted, self.store.index(), False)
        probed = probe(self.teacher, self.prompts, self.wanted, missing, self.store, spent, price, is_proven)
        return probed.samples_per_request, probed.count

    def records(self) -> list[Result | None]:
        return list(self.store.index().records(self.wanted.keys.reshape(-1)))

    def memory(self) -> dict[str, Any]:
        return json.loads(self.store.read_text(MEMORY) or "{}")


def job_of(folder: Path, base_url: str, **teacher: Any) -> Probing:
    prompt = folder / "prompt.txt"
    prompt.write_text("Q: 0\nA: The answer is 0.\n")
    config = ExperimentConfig.model_validate(
        {
            "name": "x",
            "teacher": {
                "base_url": base_url, "model": "m", "num_samples": 3, "max_tokens": 10, "prompt": str(prompt),
                "store": str(folder / "store"), **teacher,
            },
            "rationales": {"num_samples": 1},
        }
    )  # fmt: skip
    store = SampleStore(str(folder / "store"))
    prompts = task_prompts(TASK, config.teacher.prompt)
    return Probing(config.teacher, store, wanted_samples(config.teacher, prompts, QUESTIONS), prompts)


def refuse(*numbers: int, status: int = 400) -> Behaviour:
    """Refuses these questions."""
    return lambda _, prompt: error(status) if any(f"Q: {n} and" in prompt for n in numbers) else None


# -- what is wrong is told ----------------------------------------------------------------------------------------


def test_an_unknown_model_is_named(tmp_path: Path):
    with loopback(lambda number, prompt: error(404, "no such model")) as server:
        job = job_of(tmp_path, server.base_url)
        with pytest.raises(ConfigError) as caught:
            job.probe()
    assert str(caught.value) == (f"teacher.model: 'm' is not known at {server.base_url}: status 404: no such model")
    assert server.asked.total() == 1 and job.missing() == [3] * 5 and job.memory() == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_place_and_not_told(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = "sk-canary-0123"
    monkeypatch.setenv("MY_KEY", key)
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    with loopback(lambda number, prompt: error(status, f"bad key {key}")) as server:
        for settings, name in (
            ({"api_key_env": "MY_KEY"}, "variable 'MY_KEY'"),
            ({"api_key_file": str(tmp_path / "key")}, f"file '{tmp_path}/key'"),
        ):
            with pytest.raises(ConfigError, match=r"^teacher\.api_key") as caught:
                job_of(tmp_path, server.base_url, **settings).probe()
            assert name in str(caught.value) and key not in str(caught.value)
            assert str(caught.value).endswith(f"status {status}: bad key ***")
    assert server.keys == {f"Bearer {key}"} and server.asked.total() == 2


def test_a_dead_endpoint_is_named(tmp_path: Path):
    with loopback() as server:
        pass
    job = job_of(tmp_path, server.base_url)
    with pytest.raises(Stopped, match=rf"^the endpoint {server.base_url} does not answer: connection: "):
        job.probe()
    assert job.missing() == [3] * 5


@pytest.mark.parametrize(
    "reaction",
    [error(500, **AT_ONCE), BREAK, error(429, "pay first", "insufficient_quota"), error(503, Retry_After="9999")],
    ids=["500", "break", "quota", "a long wait"],
)
def test_an_endpoint_that_fails_is_asked_a_few_times(reaction: Reaction, tmp_path: Path):
    with loopback(lambda number, prompt: reaction) as server:
        job = job_of(tmp_path, server.base_url, max_attempts=100)
        with pytest.raises(Stopped, match="does not answer"):
            job.probe()
    assert 1 <= server.asked.total() <= 5 and job.missing() == [3] * 5


def test_too_small_a_budget_is_told_before_anything_is_asked(tmp_path: Path):
    with loopback() as server:
        job = job_of(tmp_path, server.base_url, budget_usd=1.0)
        with pytest.raises(Stopped, match=r"^teacher\.budget_usd: .* budget of \$1; at most \$0\.9900 are spent"):
            job.probe(PRICE, spent=0.99)
        assert server.asked.total() == 0
        assert job.probe(PRICE, spent=0.5) == (1, 1) and server.asked.total() == 1


def test_what_the_first_call_cost_is_told(tmp_path: Path):
    def behaviour(number: int, prompt: str) -> Reaction | None:
        return BREAK if number == 0 else error(503, **AT_ONCE) if number == 1 else None

    with loopback(behaviour) as server:
        job = job_of(tmp_path, server.base_url, budget_usd=1.0, samples_per_request=1)
        missing = missing_mask(job.wanted, job.store.index(), False)
        probed = probe(job.teacher, job.prompts, job.wanted, missing, job.store, 0.5, PRICE, False)
    prompt = server.bodies[0]["messages"][0]["content"]
    assert probed.usd == pytest.approx(7 * 0.001 + 5 * 0.002)
    # Of the one that broke nothing is known; the one that was refused cost nothing.
    assert probed.unpriced == pytest.approx(worst_case_prompt_tokens(prompt) * 0.001 + 10 * 0.002)


# -- a question that is refused -----------------------------------------------------------------------------------


def test_where_the_first_question_is_bad_the_second_is_asked(tmp_path: Path):
    with loopback(refuse(0), most_choices=3) as server:
        job = job_of(tmp_path, server.base_url)
        assert job.probe() == (3, 3)
    # The first with n = 3, then alone; the second with n = 3.
    assert [body.get("n") for body in server.bodies] == [3, None, 3]
    assert job.missing() == [3, 0, 3, 3, 3]  # the bad one is left to the job
    with loopback(refuse(0, 1)) as server:
        job = job_of(tmp_path, server.base_url, samples_per_request=1, temperature=0.1)
        assert job.probe() == (1, 1) and job.missing() == [3, 3, 2, 3, 3]


def test_where_all_are_refused_it_is_not_the_question(tmp_path: Path):
    with loopback(lambda number, prompt: error(400, "no such field")) as server:
        job = job_of(tmp_path, server.base_url)
        with pytest.raises(ConfigError) as caught:
            job.probe()
    assert str(caught.value) == "teacher: the endpoint refuses these requests: status 400: no such field"
    assert [body.get("n") for body in server.bodies] == [3, None] * 3
    assert job.missing() == [3] * 5 and job.memory() == {}


def test_where_there_are_few_questions_and_all_are_refused(tmp_path: Path):
    with loopback(lambda number, prompt: error(400)) as server:
        job = job_of(tmp_path, server.base_url)
        job.wanted = wanted_samples(job.teacher, job.prompts, QUESTIONS[:1])
        with pytest.raises(ConfigError, match="refuses these requests"):
            job.probe()


def test_an_answer_that_was_withheld_is_a_record(tmp_path: Path):
    withheld = (200, {}, '{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}')
    with loopback(lambda number, prompt: withheld) as server:
        job = job_of(tmp_path, server.base_url, samples_per_request=1)
        assert job.probe() == (1, 1) and server.asked.total() == 1
    assert job.records()[0] == Failure("content filter: the endpoint withheld the answer", 200, 1)


# -- what is learnt -----------------------------------------------------------------------------------------------


def text_of(question: int) -> str:
    return answer(f"Q: {question} and 1?\nA:")


@pytest.mark.parametrize(
    ("most_choices", "n", "got", "requests", "missing", "after"),
    [
        (3, 3, 3, 1, [0, 3, 3, 3, 3], [0, 0, 3, 3, 3]), (1, 1, 1, 1, [2, 3, 3, 3, 3], [2, 2, 3, 3, 3]),
        (0, 1, 1, 2, [2, 3, 3, 3, 3], [2, 2, 3, 3, 3]), (2, 3, 2, 1, [1, 3, 3, 3, 3], [0, 3, 3, 3, 3]),
    ],
    ids=["honours", "ignores", "refuses", "gives two"],
)  # fmt: skip
def test_n_is_learnt_and_remembered_and_the_reply_is_kept(
    most_choices: int, n: int, got: int, requests: int, missing: list[int], after: list[int], tmp_path: Path
):
    with loopback(most_choices=most_choices) as server:
        job = job_of(tmp_path, server.base_url)
        assert samples_per_request(job.teacher, job.store) is None
        assert job.probe() == (n, got) and server.asked.total() == requests
        assert job.missing() == missing
        first = job.records()[0]
        assert isinstance(first, Reply) and first.text == text_of(0) and first.prompt_tokens == 7
        assert job.memory() == {f"{server.base_url} m chat": n > 1}
        # Another start knows it, and asks for what is missing only.
        again = job_of(tmp_path, server.base_url)
        assert samples_per_request(again.teacher, again.store) == n
        again.probe()
    assert again.missing() == after
    assert len({json.dumps(body) for body in server.bodies}) == len(server.bodies)  # nothing was asked twice
    other = job_of(tmp_path, server.base_url, model="other")
    assert samples_per_request(other.teacher, other.store) is None


def test_a_server_that_fails_with_n_is_asked_for_one(tmp_path: Path):
    server: Server
    with loopback(lambda number, prompt: error(500, **AT_ONCE) if "n" in server.bodies[-1] else None) as server:
        job = job_of(tmp_path, server.base_url)
        assert job.probe() == (1, 1)
    assert [body.get("n") for body in server.bodies] == [3, 3, None]
    assert job.memory() == {f"{server.base_url} m chat": False}


def test_n_that_is_set_is_not_learnt(tmp_path: Path):
    with loopback(most_choices=3) as server:
        job = job_of(tmp_path, server.base_url, samples_per_request=2)
        assert job.probe() == (2, 2) and job.missing() == [1, 3, 3, 3, 3]
    assert job.memory() == {} and server.bodies[0]["n"] == 2


def test_where_one_sample_is_missing_nothing_is_learnt(tmp_path: Path):
    with loopback(most_choices=3) as server:
        job = job_of(tmp_path, server.base_url, samples_per_request=2)
        job.wanted = wanted_samples(job.teacher, job.prompts, QUESTIONS[:1])
        job.probe()
        auto = job_of(tmp_path, server.base_url)
        auto.wanted = job.wanted
        assert auto.missing() == [1] and auto.probe() == (1, 1)
    assert auto.memory() == {} and auto.missing() == [0]


@pytest.mark.parametrize(
    ("settings", "n"),
    [({"kind": "simulated"}, 1), ({"kind": "imported", "path": "x"}, 1), ({"kind": "vllm"}, 3),
     ({"num_samples": 1}, 1), ({"samples_per_request": 2}, 2), ({}, None)],
)  # fmt: skip
def test_samples_per_request(settings: dict[str, Any], n: int | None, tmp_path: Path):
    config = ExperimentConfig.model_validate(
        {"name": "x", "teacher": {"num_samples": 3, **settings}, "rationales": {"num_samples": 1}}
    )
    assert samples_per_request(config.teacher, SampleStore(str(tmp_path))) == n


def test_endpoints_are_remembered_beside_each_other(tmp_path: Path):
    store = SampleStore(str(tmp_path))
    jobs = [job_of(tmp_path, f"http://host{number}/v1") for number in range(2)]
    for job, honours in zip(jobs, (True, False), strict=True):
        remember(job.teacher, store, honours)
    assert [samples_per_request(job.teacher, store) for job in jobs] == [3, 1]
    remember(jobs[0].teacher, store, False)
    assert json.loads((tmp_path / MEMORY).read_text()) == {
        "http://host0/v1 m chat": False, "http://host1/v1 m chat": False,
    }  # fmt: skip


def test_where_the_endpoint_is_known_to_work_the_questions_are_to_blame(tmp_path: Path):
    refusal = (400, {}, '{"error": {"message": "no"}}')
    with loopback(lambda n, p: refusal) as server:
        assert job_of(tmp_path, server.base_url).probe(is_proven=True) == (1, 0)

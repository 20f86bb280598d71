"""Sampling on real Ray Data against a real server: concurrency, errors, resume after kill -9."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from qcrd.config import ExperimentConfig
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.requests import missing_requests
from qcrd.teacher.sample import SamplingResult, sample
from tests.teacher.loopback import Server, loopback

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]
TASK = get_task("arithmetic")


def config_of(server: Server, questions: int = 20, concurrency: int = 8, **teacher: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "name": "x",
            "task": {"generator": {"train_size": questions, "validation_size": 4, "test_size": 4}},
            "teacher": {
                "base_url": server.base_url, "model": "m", "num_samples": 3, "concurrency": concurrency, **teacher,
            },
            "rationales": {"num_samples": 3},
        }
    )  # fmt: skip


def run(config: ExperimentConfig, store: Path) -> SamplingResult:
    return sample(config, TASK, load_questions(TASK, config.task), store, lambda done, total, info: None)


def test_all_are_asked_at_the_configured_concurrency_and_only_once(tmp_path: Path):
    with loopback(delay=0.05) as server:
        config = config_of(server, questions=40)
        questions = load_questions(TASK, config.task)
        assert missing_requests(config, TASK, questions, tmp_path) == 120
        first = run(config, tmp_path)
        assert len(first.samples) == 120 and first.summary["errors"] == 0 and first.summary["asked"] == 120
        assert server.asked.total() == 120 and server.peak == 8
        assert first.summary["prompt_tokens"] == 840
        again = run(config, tmp_path)
        assert again.samples == first.samples and again.summary["asked"] == 0 and server.asked.total() == 120
        assert missing_requests(config, TASK, questions, tmp_path) == 0
        more = config_of(server, questions=40, num_samples=4)
        assert run(more, tmp_path).summary["asked"] == 40  # m and K share one store


def test_one_bad_row_is_an_error_row_and_the_others_are_answered(tmp_path: Path):
    bad = load_questions(TASK, config_of(Server(lambda n, p: None, 0)).task)
    text = next(q.text for q in bad if q.split == "train")
    with loopback(lambda n, p: (400, {}, '{"error": {"message": "no"}}') if text in p else None) as server:
        result = run(config_of(server), tmp_path)
    errors = [one for one in result.samples if one.error]
    assert len(errors) == 3 and {one.error for one in errors} == {"status 400: no"}
    assert len([one for one in result.samples if one.text]) == 57 and result.summary["errors"] == 3


def test_a_killed_actor_loses_no_reply_and_asks_little_twice(tmp_path: Path):
    with loopback(delay=0.1) as server:
        config = config_of(server, questions=60, concurrency=8)

        def kill() -> None:
            deadline = time.monotonic() + 60
            while server.asked.total() < 60 and time.monotonic() < deadline:
                time.sleep(0.02)
            (part,) = tmp_path.glob("part-*.jsonl")
            os.kill(int(part.name.split("-")[-2]), signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        result = run(config, tmp_path)
        thread.join()
        assert len(list(tmp_path.glob("part-*.jsonl"))) == 2  # the actor was replaced
        if any(one.error for one in result.samples):
            result = run(config, tmp_path)
        assert all(one.text and not one.error for one in result.samples) and len(result.samples) == 180
        assert server.asked.total() - 180 <= 3 * 8 + 32  # in flight, and the batches that were not reported

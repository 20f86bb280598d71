"""Sampling on real Ray Data against a real server: concurrency, errors, budget, batch mode, kill -9 of an actor."""

import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray._private.state import state

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.pipeline.stages.samples import sample_source
from qcrd.records import Sample, read_rows
from qcrd.tasks import get_task, load_questions
from qcrd.teacher import sample as sample_module
from qcrd.teacher.asking import Stopped
from qcrd.teacher.sample import sample
from qcrd.teacher.tokens import worst_case_prompt_tokens
from tests.teacher.loopback import Server, loopback
from tests.teacher.loopback_batches import BatchServer, loopback_batches

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]
TASK = get_task("arithmetic")
PRICE = (
    '[{"model": "m", "prompt_usd_per_million": 1000000, "completion_usd_per_million": 0, "batch_factor": null, '
    '"as_of": "2026-01-01", "source": "test"}]'
)


def config_of(
    server: Server | BatchServer, folder: Path, questions: int = 20, concurrency: int = 8, samples: int = 3,
    **teacher: object,
) -> ExperimentConfig:  # fmt: skip
    made = {"train_size": questions, "validation_size": 4, "test_size": 4}
    return ExperimentConfig.model_validate(
        {
            "name": "x",
            "output": str(folder),
            "task": {**made, "train_limit": None},
            "teacher": {
                "base_url": server.base_url, "model": "m", "num_samples": samples, "concurrency": concurrency,
                "samples_per_request": 1, **teacher,
            },
            "rationales": {"num_samples": samples},
        }
    )  # fmt: skip


def run(config: ExperimentConfig, **how: bool) -> tuple[list[Sample], dict[str, Any]]:
    out = Path(config.output) / "samples.parquet"
    questions = load_questions(TASK, config.task)
    summary = sample(sample_source(config), questions, out, lambda done, total, info: None, **how)
    return read_rows(out, Sample), summary


def test_all_are_asked_at_the_configured_concurrency_and_only_once(tmp_path: Path):
    def behave(number: int, prompt: str) -> None:
        """After the first call, which is made alone, nobody is answered before all slots are in use."""
        until = time.monotonic() + 100
        while server.asked.total() > 1 and server.peak < 8 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)  # for one too many to be seen

    with loopback(behave) as server:
        config = config_of(server, tmp_path, questions=40, actors=3)
        first, summary = run(config)
        assert len(first) == 120 and summary["errors"] == 0 and summary["asked"] == 120
        assert server.asked.total() == 120 and server.peak == 8  # 3 + 3 + 2 slots
        assert summary["prompt_tokens"] == 840
        assert [(row.question_id, row.index) for row in first[:4]] == [
            ("arithmetic-train-000000", 0), ("arithmetic-train-000000", 1), ("arithmetic-train-000000", 2),
            ("arithmetic-train-000001", 0),
        ]  # fmt: skip
        again, summary = run(config)
        assert again == first and summary["asked"] == 0 and server.asked.total() == 120
        assert run(config_of(server, tmp_path, questions=40, samples=4))[1]["asked"] == 40  # m and K share one store


def test_one_bad_row_is_an_error_row_and_is_asked_again_only_where_that_is_wanted(tmp_path: Path):
    broken = True
    text = next(q.text for q in load_questions(TASK, config_of(Server(lambda n, p: None, 0), tmp_path).task))

    def behave(number: int, prompt: str) -> tuple[int, dict[str, str], str] | None:
        return (400, {}, '{"error": {"message": "no"}}') if broken and text in prompt else None

    with loopback(behave) as server:
        config = config_of(server, tmp_path)
        rows, summary = run(config)
        errors = [row for row in rows if row.error]
        assert len(errors) == 3 and {(row.error, row.status, row.attempts) for row in errors} == {
            ("status 400: no", 400, 1)
        }
        assert summary["errors"] == summary["error status 400"] == 3 and summary["asked"] == 60
        before = server.asked.total()
        assert run(config)[1]["asked"] == 0 and server.asked.total() == before
        broken = False
        rows, summary = run(config, retry_errors=True)
        assert summary["asked"] == 3 and server.asked.total() == before + 3 and not any(row.error for row in rows)


def test_a_budget_stops_before_it_is_passed_and_what_was_answered_is_usable(tmp_path: Path):
    prices = tmp_path / "prices.json"
    prices.write_text(PRICE)  # a dollar a prompt token; the server counts 7 tokens
    with loopback() as server:
        questions = load_questions(TASK, config_of(server, tmp_path).task)
        reserved = max(worst_case_prompt_tokens(TASK.format_prompt(TASK.PROMPT.read_text(), q.text)) for q in questions)
        config = config_of(server, tmp_path, prices=str(prices), budget_usd=reserved + 7 * 20)
        with pytest.raises(Stopped, match=r"teacher\.budget_usd: "):
            run(config)
        paid = server.asked.total()
        assert paid >= 20 and 7 * paid <= reserved + 7 * 20
        assert not (tmp_path / "samples.parquet").exists()
        rows, summary = run(config, accept_missing=True)
        assert server.asked.total() == paid and summary["usd"] == 7 * paid
        assert sum(row.error == "not asked" for row in rows) == summary["errors"] == 60 - paid
        unlimited = config_of(server, tmp_path, prices=str(prices))
        assert run(unlimited)[1]["asked"] == 60 - paid and server.asked.total() == 60


def test_a_wrong_model_is_one_clear_error_and_costs_one_request(tmp_path: Path):
    body = '{"error": {"message": "no such model", "code": "model_not_found"}}'
    with loopback(lambda n, p: (404, {}, body)) as server:
        with pytest.raises(ConfigError, match=r"teacher\.model: 'm' is not known .*no such model"):
            run(config_of(server, tmp_path))
        assert server.asked.total() == 1


def test_a_dying_endpoint_stops_the_job(tmp_path: Path):
    def behave(number: int, prompt: str) -> tuple[int, dict[str, str], str] | None:
        return None if server.asked.total() < 20 else (401, {}, '{"error": {"message": "revoked"}}')

    with loopback(behave) as server:
        with pytest.raises(Stopped, match=r"the endpoint failed 10 calls in a row.*revoked"):
            run(config_of(server, tmp_path, questions=60))
        assert server.asked.total() < 60


def test_a_full_disk_stops_the_job_and_keeps_what_is_there(tmp_path: Path):
    """The limit on the size of a file stands in for the size of the disk: the write fails half way through a line."""

    def limit() -> None:
        while server.asked.total() < 30:
            time.sleep(0.01)
        for pid in writers_of(tmp_path):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (10_000, 10_000))

    with loopback(delay=0.05) as server:
        config = config_of(server, tmp_path, questions=60)
        thread = threading.Thread(target=limit, daemon=True)
        thread.start()
        with pytest.raises(Stopped, match=r"the sample store cannot be written: .*part-.*File too large"):
            run(config)
        thread.join()
        asked = server.asked.total()
        assert asked < 180
        rows, summary = run(config)
        assert all(row.text for row in rows) and server.asked.total() <= 180 + 8  # what was in flight was lost
        assert summary["asked"] == server.asked.total() - asked


def test_batch_mode_goes_all_the_way(tmp_path: Path):
    with loopback_batches() as server:
        config = config_of(server, tmp_path, mode="batch", batch={"poll_seconds": 0.05})
        rows, summary = run(config)
        assert len(rows) == 60 and all(row.text for row in rows) and summary["asked"] == 60
        assert server.paid.pop("online") == 1 and server.paid.total() == 59


def writers_of(folder: Path) -> set[int]:
    """Processes of actors, by the names of their parts."""
    return {int(part.name.split("-")[-2]) for part in (folder / "store").glob("part-*.jsonl")} - {os.getpid()}


def test_a_killed_actor_loses_no_reply_and_asks_little_twice(tmp_path: Path):
    with loopback(delay=0.1) as server:
        config = config_of(server, tmp_path, questions=60)

        def kill() -> None:
            while server.asked.total() < 60:
                time.sleep(0.02)
            os.kill(writers_of(tmp_path).pop(), signal.SIGKILL)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        rows, _ = run(config)
        thread.join()
        assert len(list((tmp_path / "store").glob("part-*.jsonl"))) == 3  # the probe, the dead actor, the new one
        assert all(row.text and not row.error for row in rows) and len(rows) == 180
        assert server.asked.total() - 180 <= 8  # what was in flight


def test_what_the_others_have_under_way_when_an_actor_dies_is_not_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their calls take longer than the driver waits for reports alone."""
    waited: list[float] = []
    let_finish = sample_module._let_finish

    def let_finish_timed(limits: Any, dead: str | None, seconds: float) -> None:
        started = time.monotonic()
        let_finish(limits, dead, seconds)
        waited.append((time.monotonic() - started) / seconds)

    monkeypatch.setattr(sample_module, "_let_finish", let_finish_timed)

    def kill() -> None:
        while server.asked.total() < 1:
            time.sleep(0.01)
        server.delay = 12.0  # the first call has been made; the next ones are slow
        while server.asked.total() < 5:
            time.sleep(0.01)
        server.delay = 0.0
        os.kill(writers_of(tmp_path).pop(), signal.SIGKILL)

    with loopback() as server:
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        rows, _ = run(config_of(server, tmp_path, questions=4, concurrency=4, actors=2, timeout_seconds=290))
        thread.join()
        assert len(rows) == 12 and all(row.text and not row.error for row in rows)
        assert server.asked.total() - 12 <= 2  # what the dead one had under way
    assert len(waited) == 1 and waited[0] < 0.5  # of 300 s; what the dead one had is not waited for, which is all of it


def test_ray_is_told_no_key(tmp_path: Path):
    """Ray's tables are what its dashboard shows: actors, jobs, nodes."""
    key = tmp_path / "key"
    key.write_text("sk-canary-77")
    key.chmod(0o600)
    tables: list[str] = []

    def look() -> None:
        while server.asked.total() < 30:
            time.sleep(0.02)
        tables.extend(str(table) for table in (state.actor_table(None), state.job_table(), state.node_table()))

    with loopback(delay=0.1) as server:
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        run(config_of(server, tmp_path, api_key_file=str(key)))
        thread.join()
        assert server.keys == {"Bearer sk-canary-77"}
    assert "SamplingActor" in tables[0] and not any("canary-77" in table for table in tables)

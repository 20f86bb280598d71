"""Batch mode against a real server on loopback: what goes up, what comes down, what a kill at any moment costs."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcrd.config import ConfigError, OpenAITeacherConfig
from qcrd.teacher.backends.base import Call, Failure, Reply, Result, TeacherError
from qcrd.teacher.batch.mode import BatchSummary, resume_batches, run_batches
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_format import KEY_TYPE, question_key, sample_key
from qcrd.teacher.store_writer import StoreWriter
from tests.teacher.loopback_batches import BatchServer, completion, loopback_batches

STOP = ["\nQ:"]
Calls = list[tuple[Call, list[bytes]]]


def make_calls(count: int = 3, n: int = 1) -> Calls:
    """Calls of `n` samples each for the questions 0 + 1, 1 + 2, …"""
    calls: Calls = []
    for i in range(count):
        keys = [sample_key(question_key("test", f"q{i}"), index) for index in range(n)]
        calls.append((Call(f"q{i}", tuple(range(n)), f"Q: {i} and {i + 1}?\nA:", "secret label", "", (i,) * n), keys))
    return calls


def keys_of(calls: Calls) -> np.ndarray:
    return np.array([key for _, keys in calls for key in keys], dtype=KEY_TYPE)


def settings(base_url: str, batch: dict[str, Any] | None = None, **changes: Any) -> OpenAITeacherConfig:
    return OpenAITeacherConfig.model_validate(
        {"mode": "batch", "model": "m", "base_url": base_url, "timeout_seconds": 0.4, "flush_seconds": 60,
         "batch": {"poll_seconds": 0.01, **(batch or {})}, **changes}
    )  # fmt: skip


async def one_start(config: OpenAITeacherConfig, place: str, calls: Calls) -> tuple[BatchSummary, BatchSummary]:
    """What a start does: finish what is in flight, then ask for what is missing."""
    store = SampleStore(place)
    with StoreWriter(place, config.flush_seconds) as writer:
        resumed = await resume_batches(config, store, writer, lambda done: None)
        index = store.index()
        keys = keys_of(calls)
        known = iter((index.answered(keys) | index.failed(keys)).tolist())
        lacking: Calls = []
        for call, of_call in calls:
            absent = [number for number in range(len(of_call)) if not next(known)]
            if absent:
                part = replace(call, indices=tuple(absent), seeds=(call.seeds[0],) * len(absent))
                lacking.append((part, [of_call[number] for number in absent]))
        return resumed, await run_batches(config, STOP, store, writer, lacking, lambda done: None)


def start(config: OpenAITeacherConfig, place: Path | str, calls: Calls) -> tuple[BatchSummary, BatchSummary]:
    return asyncio.run(one_start(config, str(place), calls))


def start_and_be_killed(config: OpenAITeacherConfig, place: Path, calls: Calls, server: BatchServer) -> None:
    """A start in a process of its own, killed when the server falls silent."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.teacher.test_batch"])
    process = context.Process(target=start, args=(config, place, calls))
    process.start()
    assert server.held.wait(20)
    process.kill()
    process.join()
    server.hold = None
    server.over.set()


def records(place: Path | str, calls: Calls) -> list[Result | None]:
    store = SampleStore(str(place))  # which the copies of a remote store live with
    return list(store.index().records(keys_of(calls)))


def expected(calls: Calls) -> list[Reply]:
    """What the server's replies are in the store."""
    return [
        Reply(
            f"We add {i} and {i + 1}. The answer is ( {i} + {i + 1} ). #{k}", "", "stop",
            0 if k else 7, 0 if k else 5 * len(keys), 1, True,
        )
        for i, (_, keys) in enumerate(calls) for k in range(len(keys))
    ]  # fmt: skip


def states(place: Path | str) -> list[dict[str, Any]]:
    store = SampleStore(str(place))
    return [json.loads(store.read_text(name) or "") for name in store.names("batch-", ".json")]


# -- what goes up and comes down ----------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("n", [1, 3])
def test_all_that_is_asked_comes_back_and_is_marked(api: str, n: int, tmp_path: Path):
    calls = make_calls(4, n)
    told: list[int] = []
    with loopback_batches(polls=2) as server:
        config = settings(server.base_url, api=api)
        with StoreWriter(tmp_path, 60) as writer:
            summary = asyncio.run(run_batches(config, STOP, SampleStore(tmp_path), writer, calls, told.append))
        body = json.loads(server.files["file-1"].splitlines()[0])["body"]
    assert records(tmp_path, calls) == expected(calls)
    assert summary == BatchSummary(submitted=1, replies=4 * n) and told == [0, 0, 4 * n]
    assert body["max_tokens"] == 256 and body["stop"] == STOP and body.get("n", 1) == n and body["model"] == "m"
    assert "secret label" not in server.files["file-1"]
    (state,) = states(tmp_path)
    assert state["state"] == "done" and state["batch"] == "batch_1" and state["requests"] == {}
    (batch,) = server.batches.values()
    assert batch["metadata"]["qcrd"] == state["digest"]


@pytest.mark.parametrize("limit", [{"max_requests": 2}, {"max_bytes": 600}])
def test_calls_are_cut_into_files_that_are_all_under_way_at_once(limit: dict[str, int], tmp_path: Path):
    calls = make_calls(5)
    with loopback_batches(polls=3) as server:
        summary = start(settings(server.base_url, limit), tmp_path, calls)[1]
        files = [server.files[f"file-{number}"] for number in (1, 2, 3)]
        assert server.asked["GET /batches/batch_3"] == 4  # the third was there when the first was waited for
    assert records(tmp_path, calls) == expected(calls) and summary.submitted == 3
    assert [len(file.splitlines()) for file in files] == [2, 2, 1] and max(map(len, files)) <= 600
    assert set(server.paid.values()) == {1} and len(states(tmp_path)) == 3


def test_a_request_that_fits_no_file_is_an_error(tmp_path: Path):
    with loopback_batches() as server, pytest.raises(ConfigError, match=r"teacher\.batch\.max_bytes: 100 is too small"):
        start(settings(server.base_url, {"max_bytes": 100}), tmp_path, make_calls(1))


def test_a_store_by_url_and_a_start_that_is_stopped():
    place, calls = f"memory://store-{uuid.uuid4().hex}", make_calls(3)

    async def stopped(config: OpenAITeacherConfig) -> None:
        task = asyncio.create_task(one_start(config, place, calls))
        await asyncio.to_thread(server.held.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with loopback_batches(hold=("GET", "/batches/batch_1", "after")) as server:
        config = settings(server.base_url, timeout_seconds=20)
        asyncio.run(stopped(config))
        server.over.set()
        resumed, run = start(config, place, calls)
    assert records(place, calls) == expected(calls)
    assert resumed == BatchSummary(resumed=1, replies=3) and run == BatchSummary()
    assert set(server.paid.values()) == {1} and [state["state"] for state in states(place)] == ["done"]


def test_keys_that_end_in_zero_as_numpy_gives_them(tmp_path: Path):
    (call, (key, *_)), *_ = make_calls(1)
    short = np.array([key[:31] + b"\0"], KEY_TYPE).tolist()[0]
    assert len(short) == 31
    calls: Calls = [(call, [short])]
    with loopback_batches() as server:
        start(settings(server.base_url), tmp_path, calls)
        assert start(settings(server.base_url), tmp_path, calls) == (BatchSummary(), BatchSummary())
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


# -- killed at any moment -----------------------------------------------------------------------------------------


def give_up(resumed: BatchSummary, run: BatchSummary) -> bool:
    return resumed.adopted == resumed.resumed == 0 and run.submitted == 1


def adopt(resumed: BatchSummary, run: BatchSummary) -> bool:
    return resumed.adopted == 1 and run == BatchSummary()


def go_on(resumed: BatchSummary, run: BatchSummary) -> bool:
    return resumed.resumed == 1 and run == BatchSummary()


@pytest.mark.parametrize(
    ("hold", "how"),
    [
        (("POST", "/files", "after"), give_up),  # sent up, no state yet
        (("POST", "/batches", "before"), give_up),  # asked for, and never made
        (("POST", "/batches", "after"), adopt),  # made, and its id never known
        (("GET", "/batches/batch_", "after"), go_on),  # waited for
        (("GET", "/files/file-2/content", "after"), go_on),  # ended, nothing kept
        (("GET", "/files/file-3/content", "after"), go_on),  # replies kept, and not yet marked so
    ],
)
def test_a_kill_neither_loses_nor_buys_twice(
    hold: tuple[str, str, str], how: Callable[[BatchSummary, BatchSummary], bool], tmp_path: Path
):
    calls = make_calls(4, 2)

    def result(body: dict[str, Any]) -> tuple[int, Any]:
        return completion(body) if "Q: 3" not in body["messages"][0]["content"] else (400, {"error": "too long"})

    with loopback_batches(hold=hold, result=result) as server:
        config = settings(server.base_url, timeout_seconds=20)
        start_and_be_killed(config, tmp_path, calls, server)
        for number in range(5):  # newer batches of others: ours is on the third page
            server.batches[f"other{number}"] = {"id": f"other{number}", "status": "completed", "input_file_id": "x"}
        resumed, run = start(settings(server.base_url), tmp_path, calls)
        assert start(config, tmp_path, calls) == (BatchSummary(), BatchSummary())
    assert how(resumed, run)
    if hold == ("POST", "/batches", "before"):
        assert "file-1" not in server.files  # the creation could not take effect any more
    assert records(tmp_path, calls) == [*expected(calls)[:6], *[Failure("status 400: too long", 400, 1)] * 2]
    assert set(server.paid.values()) == {1} and len(server.paid) == 4


def test_a_batch_that_is_under_way_is_not_sent_again(tmp_path: Path):
    calls = make_calls(2)

    async def both_at_once(config: OpenAITeacherConfig) -> list[BatchSummary]:
        store = SampleStore(tmp_path)
        with StoreWriter(tmp_path, 60) as writer:
            first = asyncio.create_task(run_batches(config, STOP, store, writer, calls, lambda done: None))
            while server.asked["GET /batches/batch_1"] == 0:
                await asyncio.sleep(0.01)
            second = run_batches(config, STOP, store, writer, calls, lambda done: None)
            return list(await asyncio.gather(first, second))

    with loopback_batches(polls=20) as server:
        first, second = asyncio.run(both_at_once(settings(server.base_url)))
    assert (first.submitted, second.resumed, second.submitted) == (1, 1, 0)
    assert {first.replies, second.replies} <= {0, 2} and first.unknown == second.unknown == 0
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


@pytest.mark.parametrize("unknown", ["metadata", "input_file_id"])
def test_a_batch_is_found_by_either_of_its_marks(unknown: str, tmp_path: Path):
    calls = make_calls(2)
    with loopback_batches(hold=("POST", "/batches", "after"), hidden=unknown) as server:
        start(settings(server.base_url), tmp_path, calls)
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


def test_an_answer_that_is_lost_is_looked_for_before_it_is_asked_again(tmp_path: Path):
    calls = make_calls(2)
    with loopback_batches(hold=("POST", "/batches", "after")) as server:
        summary = start(settings(server.base_url), tmp_path, calls)[1]  # the creation runs into the timeout
        assert server.asked["POST /batches"] == 1
    assert records(tmp_path, calls) == expected(calls) and summary.submitted == 1
    with loopback_batches(status=lambda m, path, n: 500 if (m, path, n) == ("POST", "/batches", 0) else None) as server:
        start(settings(server.base_url), tmp_path / "other", calls)
        assert server.asked["POST /batches"] == 2 and server.asked["GET /batches"] >= 2  # sought until it settled
    assert records(tmp_path / "other", calls) == expected(calls) and set(server.paid.values()) == {1}


def test_a_batch_that_was_refused_at_once_is_not_the_one_looked_for(tmp_path: Path):
    calls = make_calls(2)
    refuse = {"code": "x", "message": "not today"}
    with loopback_batches(hold=("POST", "/batches", "after"), polls=0, refuse=refuse) as server:
        start_and_be_killed(settings(server.base_url, timeout_seconds=20), tmp_path, calls, server)
        server.refuse = None
        resumed, run = start(settings(server.base_url), tmp_path, calls)
    assert resumed == BatchSummary(missing=2) and run.submitted == 1 and records(tmp_path, calls) == expected(calls)


def test_where_batches_cannot_be_listed_nothing_is_bought_again(tmp_path: Path):
    calls = make_calls(2)
    with loopback_batches(
        hold=("POST", "/batches", "after"), status=lambda m, path, n: 404 if (m, path) == ("GET", "/batches") else None
    ) as server:
        for _ in range(2):
            with pytest.raises(TeacherError, match="status 404"):
                start(settings(server.base_url), tmp_path, calls)
        assert server.asked["POST /batches"] == 1 and [state["state"] for state in states(tmp_path)] == ["submitting"]


def test_the_batch_of_another_endpoint_is_left_alone(tmp_path: Path):
    calls = make_calls(3)
    with loopback_batches(polls=10**6) as first, loopback_batches() as second:

        async def stopped() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one_start(settings(first.base_url), str(tmp_path), calls), 0.5)

        asyncio.run(stopped())
        (before,) = states(tmp_path)
        assert before["state"] == "in_flight" and before["base_url"] == first.base_url
        assert start(settings(second.base_url), tmp_path, calls)[1].replies == 3
        assert before in states(tmp_path) and len(states(tmp_path)) == 2
        first.batches["batch_1"]["left"] = 0
        resumed, run = start(settings(first.base_url), tmp_path, calls)
    assert resumed.replies == 3 and run == BatchSummary()
    assert first.paid == second.paid and set(first.paid.values()) == {1}


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_what_an_expired_batch_brought_is_kept_and_the_rest_is_asked_again(tmp_path: Path):
    calls = make_calls(5)
    with loopback_batches(expire_after=2) as server:
        summary = start(settings(server.base_url), tmp_path, calls)[1]
        assert (summary.replies, summary.missing, summary.errors) == (2, 3, {"batch_expired": 3})
        assert records(tmp_path, calls) == [*expected(calls)[:2], None, None, None]
        server.expire_after = None
        assert start(settings(server.base_url), tmp_path, calls)[1] == BatchSummary(submitted=1, replies=3)
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


def test_errors_of_single_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    answers = [
        (400, {"error": {"message": "bad sk-canary"}}),  # this request's own fault: a failure
        (400, {"error": {"code": "content_filter", "message": "no"}}),
        (429, {"error": {"message": "slow down"}}),  # may pass: missing
        (503, None),
        (404, {"error": {"message": "no such model"}}),  # would fail for any request: missing
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}),
    ]
    calls = make_calls(6, 2)
    with loopback_batches(result=lambda body: answers[body["seed"]]) as server:
        summary = start(settings(server.base_url), tmp_path, calls)[1]
    failures = [Failure("status 400: bad ***", 400, 1)] * 2 + [Failure("content filter: no", 400, 1)] * 2
    assert records(tmp_path, calls) == [*failures, *[None] * 8]
    assert (summary.failures, summary.missing, summary.replies) == (4, 8, 0)
    assert summary.errors == {"status 400": 1, "content filter": 1, "status 429": 2, "status 503": 1, "status 404": 1}
    assert not any(b"canary" in path.read_bytes() for path in tmp_path.iterdir())


def test_what_cannot_be_read_is_counted_and_missing(tmp_path: Path):
    def broken(lines: list[str]) -> list[str]:
        line = json.loads(lines[1])
        line["response"]["body"] = {"choices": [{"message": {"content": 3}}]}
        short = json.loads(lines[2])
        del short["response"]["body"]["choices"][1]
        stranger = {**json.loads(lines[0]), "custom_id": "who?"}
        return [lines[0][:30], json.dumps(line), json.dumps(short), json.dumps(stranger), "[]", "", lines[3], lines[3]]

    calls = make_calls(4, 2)
    with loopback_batches(output=broken) as server:
        summary = start(settings(server.base_url), tmp_path, calls)[1]
    want = expected(calls)
    assert records(tmp_path, calls) == [None, None, None, None, want[4], None, *want[6:]]
    assert summary == BatchSummary(
        submitted=1, replies=3, missing=5, malformed=3, unknown=2, errors=summary.errors,
        unpriced={keys[0].hex() for _, keys in calls[:2]},
    ) and summary.errors == {"malformed": 1}  # fmt: skip


DEEP = "[" * 100_000


def test_what_is_nested_too_deeply_or_has_odd_numbers_is_malformed(tmp_path: Path):
    def odd(lines: list[str]) -> list[str]:
        rows = [json.loads(line) for line in lines]
        rows[1]["response"]["status_code"] = -(2**70)
        rows[2]["response"]["status_code"] = True
        rows[3]["response"]["body"]["usage"] = {"prompt_tokens": 2**63, "completion_tokens": -5}
        return [DEEP, *map(json.dumps, rows)]

    calls = make_calls(4)
    with loopback_batches(output=odd) as server:
        summary = start(settings(server.base_url), tmp_path, calls)[1]
    want = expected(calls)
    uncounted = replace(want[3], prompt_tokens=None, completion_tokens=None)
    assert records(tmp_path, calls) == [want[0], None, None, uncounted]
    assert (summary.malformed, summary.missing, summary.errors) == (3, 2, {"malformed": 2})
    assert summary.unpriced == {keys[0].hex() for _, keys in calls[1:]}
    assert [state["state"] for state in states(tmp_path)] == ["done"]


def test_how_a_batch_stands_may_be_told_in_odd_ways(tmp_path: Path):
    answers = [
        DEEP.encode(), b'{"id": "\xff"}', b'{"id": "batch_1", "status": ["completed"]}',
        b'{"id": "batch_1", "status": "in_progress", "request_counts": [1]}',
        b'{"id": "batch_1", "status": "in_progress", "request_counts": {"completed": "1", "total": -1e400}}',
    ]  # fmt: skip

    def body(method: str, path: str, number: int) -> bytes | None:
        return answers[number] if (method, path) == ("GET", "/batches/batch_1") and number < len(answers) else None

    calls = make_calls(2)
    with loopback_batches(body=body) as server:
        start(settings(server.base_url), tmp_path, calls)
        assert server.asked["GET /batches/batch_1"] > len(answers)
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("errors", "told"),
    [("full", "full"), (5, "5"), ({"data": "no"}, "no"), ({"data": [None, {"code": "x"}]}, "None; x")],
)
def test_why_a_batch_was_refused_may_be_told_in_odd_ways(errors: Any, told: str, tmp_path: Path):
    state = json.dumps({"id": "batch_1", "status": "failed", "errors": errors}).encode()

    def body(method: str, path: str, number: int) -> bytes | None:
        return state if (method, path) == ("GET", "/batches/batch_1") else None

    with loopback_batches(body=body) as server, pytest.raises(TeacherError, match=f"batch_1 was refused: {told}$"):
        start(settings(server.base_url), tmp_path, make_calls(1))


@pytest.mark.parametrize(
    "listed",
    [pytest.param(DEEP, id="deep"), '{"data": 5}', '{"data": [5]}',
     '{"data": [{"id": "b", "metadata": "x"}], "has_more": false}'],
)  # fmt: skip
def test_a_list_of_batches_may_be_odd(listed: str, tmp_path: Path):
    """The answer to the creation is lost, so the batch is looked for."""
    calls = make_calls(2)

    def body(method: str, path: str, number: int) -> bytes | None:
        return listed.encode() if (method, path) == ("GET", "/batches") and number == 0 else None

    with loopback_batches(
        body=body, status=lambda m, path, n: 500 if (m, path, n) == ("POST", "/batches", 0) else None
    ) as server:
        start(settings(server.base_url), tmp_path, calls)
        assert server.asked["GET /batches"] > 1
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


def test_separators_of_unicode_do_not_tear_a_line(tmp_path: Path):
    def raw(lines: list[str]) -> list[str]:
        return [json.dumps(json.loads(line), ensure_ascii=False) for line in lines]

    text = "one\u2028two\x85three"
    body = {"choices": [{"message": {"content": text}}]}
    with loopback_batches(result=lambda _: (200, body), output=raw) as server:
        call, keys = make_calls(1)[0]
        calls = [(replace(call, prompt=f"Q: {text}"), keys)]
        start(settings(server.base_url), tmp_path, calls)
    assert records(tmp_path, calls) == [Reply(text, batch=True)]


def test_a_refused_batch_is_an_error_and_may_be_sent_anew(tmp_path: Path):
    calls = make_calls(2)
    with loopback_batches(refuse={"code": "model_not_found", "message": "m does not do batches", "line": 1}) as server:
        with pytest.raises(TeacherError, match=r"batch batch_1 was refused: m does not do batches \(line 1\)"):
            start(settings(server.base_url), tmp_path, calls)
        assert [state["state"] for state in states(tmp_path)] == ["failed"]
        server.refuse = None
        resumed, run = start(settings(server.base_url), tmp_path, calls)
    assert resumed == BatchSummary() and run.replies == 2 and records(tmp_path, calls) == expected(calls)


def test_what_the_endpoints_queue_has_no_room_for_waits(tmp_path: Path):
    calls = make_calls(4)
    with loopback_batches(room=1, polls=2) as server:
        summary = start(settings(server.base_url, {"max_requests": 1}), tmp_path, calls)[1]
        assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}
        assert summary.replies == 4 and {state["state"] for state in states(tmp_path)} == {"done"}
        server.room = 0
        with pytest.raises(TeacherError, match="queue full"):
            start(settings(server.base_url), tmp_path / "other", calls)


def test_a_start_after_one_that_found_the_queue_full_sends_anew(tmp_path: Path):
    calls = make_calls(2)

    async def stopped(config: OpenAITeacherConfig) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one_start(config, str(tmp_path), calls), 0.5)

    with loopback_batches(room=2) as server:
        server.batches["theirs"] = {"id": "theirs", "status": "in_progress"}
        config = settings(server.base_url, {"max_requests": 1, "poll_seconds": 20})
        asyncio.run(stopped(config))  # the first of two is under way
        server.batches["theirs"]["status"] = "completed"
        resumed, run = start(settings(server.base_url), tmp_path, calls)
    assert resumed.replies == 1 and resumed.missing == 1 and run == BatchSummary(submitted=1, replies=1)
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


def test_a_download_that_breaks_off_and_a_file_that_is_named_late(tmp_path: Path):
    calls = make_calls(20)
    with loopback_batches(cut=2, unnamed=2) as server:
        summary = start(settings(server.base_url), tmp_path, calls)[1]
    assert summary == BatchSummary(submitted=1, replies=20) and records(tmp_path, calls) == expected(calls)


def test_what_may_pass_is_waited_out_at_every_step(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def status(method: str, path: str, number: int) -> int | None:
        return (429, 500)[number] if number < 2 and (method, path) != ("POST", "/batches") else None

    calls = make_calls(2)
    with loopback_batches(status=status) as server:
        start(settings(server.base_url), tmp_path, calls)
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}
    for what in ("upload of qcrd-", "batch batch_1", "download of file-2"):
        assert f"{what}" in caplog.text and "status 429" in caplog.text


@pytest.mark.parametrize("path", ["POST /files", "POST /batches", "GET /batches/batch_1", "GET /files/file-2/content"])
@pytest.mark.parametrize("code", [401, 404])
def test_what_cannot_pass_is_an_error_without_the_key(
    path: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    calls = make_calls(2)
    with loopback_batches(status=lambda m, where, n: code if f"{m} {where}" == path else None) as server:
        with pytest.raises(TeacherError, match=rf"status {code}: no: Bearer \*\*\*"):
            start(settings(server.base_url), tmp_path, calls)
        assert not any(b"canary" in file.read_bytes() for file in tmp_path.iterdir())
        server.status = lambda m, where, n: None
        start(settings(server.base_url), tmp_path, calls)
    assert records(tmp_path, calls) == expected(calls) and set(server.paid.values()) == {1}


def test_nothing_in_flight_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with StoreWriter(tmp_path, 60) as writer:
        resumed = resume_batches(OpenAITeacherConfig(mode="batch"), SampleStore(tmp_path), writer, lambda done: None)
        assert asyncio.run(resumed) == BatchSummary()

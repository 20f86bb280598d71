"""The client against a real server on loopback: what it sends, what it makes of what comes back, and the key."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ConfigError, OpenAITeacherConfig, validated
from qcrd.teacher.backends.base import Answer, Call, Failure, RateHeaders, Reply, Result, TeacherError
from qcrd.teacher.backends.openai_endpoint import (
    OpenAITeacher,
    api_key,
    rate_headers,
    read_replies,
    request_body,
    retry_after,
    safe_reason,
    status_error,
)
from tests.teacher.loopback import BREAK, CUT, STALL, TRICKLE, Behaviour, Reaction, Server, always_answer, loopback
from tests.teacher.loopback import error as refusal

CALL = Call("q", (2,), "Q: 3 and 4?\nA:", "secret label", "", (11,))
THREE = Call("q", (0, 1, 2), "Q: 3 and 4?\nA:", "secret label", "", (11, 12, 13))
TEXT = "We add 3 and 4. The answer is ( 3 + 4 )."


def ask(
    behaviour: Behaviour = always_answer, call: Call = CALL, most_choices: int = 1, rate: dict[str, str] | None = None,
    **changes: Any,
) -> tuple[Answer | TeacherError, Server]:  # fmt: skip
    """One attempt."""
    with loopback(behaviour, most_choices=most_choices, rate=rate) as server:
        config = OpenAITeacherConfig.model_validate({"base_url": server.base_url, "model": "m", **changes})

        async def run() -> Answer | TeacherError:
            teacher = OpenAITeacher(config, ["\nQ:"])
            try:
                return await teacher.ask(call)
            except TeacherError as error:
                return error
            finally:
                await teacher.close()

        return asyncio.run(run()), server


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# -- what is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_reply_with_its_usage(api: str):
    found, server = ask(api=api, temperature=0.7)
    assert found == Answer([Reply(TEXT, "", "stop", 7, 5)])
    prompt = {"messages": [{"role": "user", "content": CALL.prompt}]} if api == "chat" else {"prompt": CALL.prompt}
    assert server.bodies == [
        {"model": "m", "temperature": 0.7, "top_p": 1.0, "max_tokens": 256, "seed": 11, "stop": ["\nQ:"], **prompt}
    ]
    assert server.keys == {"Bearer EMPTY"}


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_several_choices_of_one_call_have_its_usage_once(api: str):
    found, server = ask(call=THREE, most_choices=9, api=api)
    assert found == Answer(
        [
            Reply(TEXT, "", "stop", 7, 15), Reply(f"In way 2: {TEXT}", "", "stop", 0, 0),
            Reply(f"In way 3: {TEXT}", "", "stop", 0, 0),
        ]
    )  # fmt: skip
    (body,) = server.bodies
    assert body["n"] == 3 and body["seed"] == 11


def test_settings_of_the_request():
    config = OpenAITeacherConfig(
        model="m", max_tokens=9, max_tokens_field="max_completion_tokens", extra_body={"top_k": 40}
    )
    body = request_body(config, (), CALL)
    assert body["max_completion_tokens"] == 9 and body["top_k"] == 40
    assert not {"max_tokens", "stop", "n"} & set(body)
    assert request_body(OpenAITeacherConfig(extra_body={"seed": None, "temperature": 1}), (), CALL)["seed"] is None
    assert "secret label" not in json.dumps(request_body(OpenAITeacherConfig(), ("x",), THREE))


# -- what comes back ----------------------------------------------------------------------------------------------


DEEP = "[" * 100_000


def body_of(*choices: Any, usage: Any = None) -> str:
    return json.dumps({"choices": list(choices), "usage": usage})


def choice(text: str | None, reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"message": {"content": text, **message}, "finish_reason": reason}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (body_of(choice("a", reasoning_content="hm")), [Reply("a", "hm", "stop")]),
        (body_of(choice("a", reasoning="hm", reasoning_content=None)), [Reply("a", "hm", "stop")]),
        (body_of(choice("a", reasoning=[{"t": 1}])), [Reply("a", '[{"t": 1}]', "stop")]),
        (body_of(choice(None, "length", reasoning="so long")), [Reply("", "so long", "length")]),
        (body_of(choice("a", None)), [Reply("a", "", "")]),
        (body_of({"text": "a", "finish_reason": "length"}), [Reply("a", "", "length")]),
        (body_of(choice("a"), usage={"prompt_tokens": 3}), [Reply("a", "", "stop", 3, None)]),
        (body_of(choice("a"), usage={"prompt_tokens": True, "completion_tokens": "5"}), [Reply("a", "", "stop")]),
        (body_of(choice("a"), usage={"prompt_tokens": -1, "completion_tokens": 2**31}), [Reply("a", "", "stop")]),
        (body_of(choice("a"), usage={"prompt_tokens": 2**63, "completion_tokens": 1.0}), [Reply("a", "", "stop")]),
        (
            body_of(choice("a"), usage={"prompt_tokens": 0, "completion_tokens": 2**31 - 1}),
            [Reply("a", "", "stop", 0, 2**31 - 1)],
        ),
        (body_of(choice("a"), choice("b"), choice("c"), choice("d")), [Reply(t, "", "stop") for t in "abc"]),
        (body_of(choice("a"), "noise", {"message": {"content": 3}}), [Reply("a", "", "stop")]),
        (
            body_of(choice("part", "content_filter")),
            [Failure("content filter: the endpoint withheld the answer", 200, 1)],
        ),
        (body_of(choice(None, refusal="I cannot")), [Failure("content filter: I cannot", 200, 1)]),
        (
            body_of(choice("", "content_filter"), choice("a"), choice("b"), usage={"prompt_tokens": 3,
                    "completion_tokens": 4}),
            [
                Failure("content filter: the endpoint withheld the answer", 200, 1, 3, 4), Reply("a", "", "stop", 0, 0),
                Reply("b", "", "stop", 0, 0),
            ],
        ),
    ],
)  # fmt: skip
def test_replies_are_read(body: str, expected: list[Result]):
    assert read_replies(body, 3) == expected


@pytest.mark.parametrize(
    "body",
    ["not json", "", "[]", "{}", '{"choices": []}', '{"choices": null}', '{"choices": [{"message": {"content": 3}}]}',
     '{"choices": [{"text": null}]}', '{"choices": ["x"]}', pytest.param(DEEP, id="deep")],
)  # fmt: skip
def test_a_malformed_reply_may_have_been_paid_for_and_is_asked_again(body: str):
    found, _ = ask(lambda number, prompt: (200, {"x-ratelimit-remaining-requests": "3"}, body))
    assert isinstance(found, TeacherError) and str(found).startswith("malformed: ")
    assert (found.status, found.retryable, found.of_endpoint, found.billed) == (200, True, False, True)
    assert found.headers == RateHeaders(remaining_requests=3)


@pytest.mark.parametrize(
    ("status", "code", "retryable", "of_endpoint"),
    [
        (400, "", False, False), (422, "", False, False), (401, "invalid_api_key", False, True), (403, "", False, True),
        (404, "model_not_found", False, True), (408, "", True, True), (409, "", True, True), (429, "", True, True),
        (500, "", True, True), (502, "", True, True), (529, "", True, True), (429, "insufficient_quota", False, True),
        (429, "billing_hard_limit_reached", False, True), (400, "content_filter", False, False),
        (500, "content_policy_violation", False, False),
    ],
)  # fmt: skip
def test_what_a_status_means(status: int, code: str, retryable: bool, of_endpoint: bool):
    found, server = ask(lambda number, prompt: refusal(status, "not\nnow", code))
    assert isinstance(found, TeacherError) and server.asked.total() == 1  # the client itself never asks again
    assert (found.status, found.retryable, found.of_endpoint) == (status, retryable, of_endpoint)
    name = "content filter" if code.startswith("content") else f"status {status}"
    assert str(found) == f"{name}: not now" and not found.billed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": "busy"}', "busy"), ('{"error": {"message": "busy", "code": 7}}', "busy"), ("<html>", "<html>"),
        ('{"error": {}}', '{"error": {}}'), ('["x"]', '["x"]'), ("", ""),
        pytest.param(DEEP, DEEP, id="deep"),
    ],
)  # fmt: skip
def test_the_reason_of_a_refusal(body: str, message: str):
    assert str(status_error(500, body, {})) == f"status 500: {message}"


@pytest.mark.parametrize(
    ("reaction", "reason"),
    [
        (BREAK, "connection: "), (CUT, "connection: "), (STALL, "timeout: no answer within 0.2 s"),
        (TRICKLE, "timeout: no answer within 0.2 s"),
    ],
    ids=["break", "cut", "stall", "trickle"],
)  # fmt: skip
def test_what_breaks_off_may_have_been_paid_for(reaction: Reaction, reason: str):
    started = time.monotonic()
    found, server = ask(lambda number, prompt: reaction, timeout_seconds=0.2)
    assert isinstance(found, TeacherError) and str(found).startswith(reason) and time.monotonic() - started < 5
    assert (found.status, found.retryable, found.of_endpoint, found.billed) == (None, True, True, True)
    assert server.asked.total() == 1


def test_nobody_there():
    with loopback() as server:
        pass

    async def run() -> None:
        await OpenAITeacher(OpenAITeacherConfig(base_url=server.base_url), []).ask(CALL)

    with pytest.raises(TeacherError, match="connection: ") as caught:
        asyncio.run(run())
    assert caught.value.retryable and caught.value.of_endpoint


# -- headers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25), ({"retry-after-ms": "x", "retry-after": "3"}, 3.0),
        ({"retry-after": "soon"}, None), ({"retry-after": "-1"}, None), ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None), ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"retry-after": f"Mon, 01 Jan {'9' * 40} 00:00:00 GMT"}, None),
    ],
)  # fmt: skip
def test_retry_after(headers: dict[str, str], seconds: float | None):
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(100, abs=1.5)
    assert status_error(429, "", {"retry-after": date}).retry_after == pytest.approx(100, abs=1.5)


def test_rate_headers_of_an_answer_and_of_a_refusal():
    headers = {
        "x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "30000", "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-remaining-tokens": "29000.5", "x-ratelimit-reset-requests": "6m1.5s",
        "x-ratelimit-reset-tokens": "20ms",
    }  # fmt: skip
    expected = RateHeaders(500, 30000, 0, 29000.5, 361.5, 0.02)
    found, _ = ask(rate=headers)
    assert isinstance(found, Answer) and found.headers == expected
    found, _ = ask(lambda number, prompt: (429, headers, "{}"))
    assert isinstance(found, TeacherError) and found.headers == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("1h2m3s", 3723), ("1d", 86400), ("12", 12), ("0.5", 0.5), ("", None), ("x", None), ("1x", None),
     ("1s later", None), ("1.2.3s", None), (".5s", 0.5), ("2.m", 120)],
)  # fmt: skip
def test_the_time_of_a_reset(text: str, seconds: float | None):
    found = rate_headers({"x-ratelimit-reset-tokens": text, "x-ratelimit-limit-tokens": "1"})
    assert found == RateHeaders(limit_tokens=1, reset_tokens=seconds)
    assert rate_headers({"x-ratelimit-reset-tokens": "x"}) is None and rate_headers({}) is None


# -- the key ------------------------------------------------------------------------------------------------------

CANARY = "sk-canary-0123"


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_sent_and_never_told(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", f" {CANARY}\n")
    found, server = ask(lambda number, prompt: refusal(status, f"bad key '{CANARY}'"), api_key_env="MY_KEY")
    assert server.keys == {f"Bearer {CANARY}"}
    assert isinstance(found, TeacherError) and str(found) == f"status {status}: bad key '***'"
    assert CANARY not in repr(found)
    assert CANARY not in repr(OpenAITeacher(OpenAITeacherConfig(api_key_env="MY_KEY"), []))


def test_a_reason_is_one_short_line():
    assert safe_reason("a\n b\t" + "x" * 1000, CANARY) == "a b " + "x" * 296
    assert safe_reason("x" * 298 + CANARY, CANARY) == "x" * 298 + "**"  # not the key's first characters
    assert safe_reason("EMPTY", "EMPTY") == "EMPTY"


def test_no_key_is_refused_unless_the_endpoint_is_ones_own():
    with pytest.raises(ConfigError, match=r"^teacher.api_key_env: .* variable 'OPENAI_API_KEY' is not set"):
        OpenAITeacher(OpenAITeacherConfig(), [])
    assert api_key(OpenAITeacherConfig(base_url="http://localhost/v1")) == "EMPTY"


def key_file(folder: Path, content: str = f"{CANARY}\n", mode: int = 0o600) -> str:
    path = folder / "key"
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def test_a_key_file_is_read_and_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    _, server = ask(api_key_file=key_file(tmp_path))
    assert server.keys == {f"Bearer {CANARY}"}
    assert api_key(OpenAITeacherConfig(api_key_file=key_file(tmp_path, mode=0o400))) == CANARY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644, 0o601])
def test_a_key_file_that_others_can_use_is_refused(mode: int, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        api_key(OpenAITeacherConfig(api_key_file=key_file(tmp_path, mode=mode)))
    assert str(caught.value) == (
        f"teacher.api_key_file: '{tmp_path}/key' has mode {mode:o}; others can read it: chmod 600 it"
    )


def test_a_key_file_that_is_missing_is_named(tmp_path: Path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=rf"^teacher\.api_key_file: '{path}' does not exist"):
            api_key(OpenAITeacherConfig(api_key_file=str(path)))


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_key_file_is_named(content: str, tmp_path: Path):
    config = OpenAITeacherConfig(api_key_file=key_file(tmp_path, content))
    with pytest.raises(ConfigError, match=r"^teacher\.api_key_file: "):
        api_key(config)


@pytest.mark.parametrize("content", [f"{CANARY}\nsecond line", f"{CANARY}é", f"{CANARY}\x00"])
def test_what_cannot_be_a_key_is_refused_without_being_told(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match=r"^teacher\.api_key_file: ") as caught:
        api_key(OpenAITeacherConfig(api_key_file=key_file(tmp_path, content)))
    assert CANARY not in str(caught.value) and caught.value.__cause__ is None
    if "\0" not in content:
        monkeypatch.setenv("MY_KEY", content)
        with pytest.raises(ConfigError, match=r"^teacher\.api_key_env: ") as caught:
            api_key(OpenAITeacherConfig(api_key_env="MY_KEY"))
        assert CANARY not in str(caught.value)


def test_a_key_file_that_is_no_text_is_refused_without_being_told(tmp_path: Path):
    path = Path(key_file(tmp_path))
    path.write_bytes(CANARY.encode() + b"\xff")
    with pytest.raises(ConfigError, match=r"^teacher\.api_key_file: ") as caught:
        api_key(OpenAITeacherConfig(api_key_file=str(path)))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("url", ["https://me:hunter2@host/v1", "https://hunter2@host/v1"])
def test_a_url_with_a_password_is_refused_without_being_told(url: str):
    with pytest.raises(ConfigError, match=r"^teacher\.base_url: ") as caught:
        validated({"name": "x", "teacher": {"base_url": url}})
    assert "hunter2" not in str(caught.value)

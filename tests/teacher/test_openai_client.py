"""The client against a real server on loopback: what it sends, what it retries, what it never does."""

import asyncio
import json

import pytest

from qcrd.config import ConfigError, TeacherConfig
from qcrd.teacher.base import Reply, SampleRequest, TeacherError
from qcrd.teacher.openai_client import OpenAITeacher
from tests.teacher.loopback import Behaviour, Server, always_answer, loopback

REQUEST = SampleRequest("k", "q", 0, "Q: 3 and 4?\nA:", "3 and 4?", "secret label", "", 11)
OK = json.dumps({"choices": [{"message": {"content": "fine", "reasoning_content": "hm"}, "finish_reason": "stop"}]})


def ask(behaviour: Behaviour = always_answer, **changes: object) -> tuple[Reply | TeacherError, Server]:
    with loopback(behaviour) as server:
        config = TeacherConfig.model_validate(
            {"kind": "openai", "base_url": server.base_url, "model": "m", "max_attempts": 3, **changes}
        )

        async def run() -> Reply | TeacherError:
            teacher = OpenAITeacher(config, ["\nQ:"])
            try:
                return await teacher.ask(REQUEST)
            except TeacherError as error:
                return error
            finally:
                await teacher.close()

        return asyncio.run(run()), server


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_reply_with_its_usage(api: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    reply, server = ask(api=api, temperature=0.7)
    assert reply == Reply("We add 3 and 4. The answer is ( 3 + 4 ).", "", "stop", 7, 5, 1)
    (body,) = server.bodies
    assert body["temperature"] == 0.7 and body["max_tokens"] == 256 and body["top_p"] == 1
    assert body["stop"] == ["\nQ:"] and body["seed"] == 11 and body["model"] == "m"
    assert "secret label" not in json.dumps(body)
    assert server.keys == {"Bearer EMPTY"}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_asked_again(status: int):
    reply, server = ask(lambda n, _: (status, {"Retry-After": "0"}, '{"error": "busy"}') if n == 0 else None)
    assert isinstance(reply, Reply) and reply.attempts == 2 and server.asked.total() == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_cannot_pass_is_asked_once(status: int):
    error, server = ask(lambda n, _: (status, {}, '{"error": {"message": "no such thing"}}'))
    assert isinstance(error, TeacherError) and str(error) == f"status {status}: no such thing"
    assert server.asked.total() == 1


@pytest.mark.parametrize("body", ["not json", "{}", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}'])
def test_a_malformed_reply_is_asked_again_and_then_an_error(body: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qcrd.teacher.openai_client._BACKOFF", lambda state: 0.0)
    error, server = ask(lambda n, _: (200, {}, body))
    assert isinstance(error, TeacherError) and str(error).startswith("malformed") and error.attempts == 3
    assert server.asked.total() == 3
    reply, _ = ask(lambda n, _: (200, {}, body) if n == 0 else None)
    assert isinstance(reply, Reply) and reply.attempts == 2


def test_a_stalled_server_is_cut_by_the_timeout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qcrd.teacher.openai_client._BACKOFF", lambda state: 0.0)
    with loopback(delay=2.0) as server:
        config = TeacherConfig(kind="openai", base_url=server.base_url, timeout_seconds=0.2, max_attempts=2)
        with pytest.raises(TeacherError, match=r"timeout: no answer within 0\.2 s"):
            asyncio.run(OpenAITeacher(config, []).ask(REQUEST))


def test_reasoning_is_kept_apart_from_the_answer():
    reply, _ = ask(lambda n, _: (200, {}, OK))
    assert isinstance(reply, Reply) and (reply.text, reply.reasoning) == ("fine", "hm")
    assert reply.prompt_tokens is None


def test_the_key_comes_from_the_environment_and_is_never_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-canary")
    error, server = ask(
        lambda n, _: (401, {}, '{"error": {"message": "bad key sk-canary"}}'), api_key_env="MY_KEY"
    )
    assert server.keys == {"Bearer sk-canary"} and "canary" not in str(error)
    assert "canary" not in repr(OpenAITeacher(TeacherConfig(api_key_env="MY_KEY"), []))


def test_no_key_and_no_endpoint_of_ones_own_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"teacher.api_key_env: .*'OPENAI_API_KEY' is not set"):
        OpenAITeacher(TeacherConfig(), [])

"""A teacher behind any OpenAI-compatible endpoint: one attempt at a call, and what went wrong in one line.

The key is read from the environment or from a file that only its owner can read, and appears in no setting, log or
error. Knows nothing about tasks, parsing, Ray, retries, how many calls run at once or where replies are kept.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcrd.config import ConfigError, OpenAITeacherConfig
from qcrd.teacher.backends.base import (
    Answer,
    Backend,
    Call,
    Failure,
    RateHeaders,
    Reply,
    Result,
    TeacherError,
    as_count,
    language_model_identity,
)
from qcrd.teacher.prompts import Prompts

if TYPE_CHECKING:  # it takes a second to import, which a plan without an endpoint need not wait
    from openai import AsyncOpenAI

MAX_REASON = 300
_RETRIED_STATUS = frozenset({408, 409, 429})
_OF_ENDPOINT_STATUS = frozenset({401, 402, 403, 404})
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NO_KEY = "EMPTY"
OPENAI_URL = "https://api.openai.com/v1"
"""Given always, so that OPENAI_BASE_URL of somebody's shell does not send questions elsewhere."""


def api_key(config: OpenAITeacherConfig) -> str:
    """The key; "EMPTY" for one's own endpoint, which needs none. Raises `ConfigError`, without the key in it."""
    key, field = os.environ.get(config.api_key_env, "").strip(), "teacher.api_key_env"
    if config.api_key_file is not None:
        key, field = _key_of_file(Path(config.api_key_file)), "teacher.api_key_file"
    if key and not (key.isascii() and key.isprintable()):  # the HTTP library would print it in its complaint
        raise ConfigError(f"{field}: what stands there cannot be a key: it has odd characters")
    if key:
        return key
    if config.base_url is None:
        raise ConfigError(
            f"teacher.api_key_env: the environment variable {config.api_key_env!r} is not set; "
            "put the key there, or set teacher.base_url to an endpoint that needs none"
        )
    return NO_KEY


def _key_of_file(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"teacher.api_key_file: '{path}' does not exist; give a file of mode 600 that holds the key")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"teacher.api_key_file: '{path}' has mode {mode:o}; others can read it: chmod 600 it")
    key = path.read_text(encoding="utf-8", errors="replace").strip()
    if not key:
        raise ConfigError(f"teacher.api_key_file: '{path}' is empty; put the key there")
    return key


def make_client(config: OpenAITeacherConfig) -> AsyncOpenAI:
    """A client that makes each request once. Make it on the event loop that will use it."""
    import httpx2
    from openai import AsyncOpenAI, DefaultAioHttpClient

    # Its default transport looks at every idle connection for every request; with 64 that is a third of the time.
    transport = DefaultAioHttpClient(
        timeout=config.timeout_seconds, limits=httpx2.Limits(max_connections=config.concurrency + 1)
    )
    return AsyncOpenAI(
        api_key=api_key(config), base_url=config.base_url or OPENAI_URL, timeout=config.timeout_seconds, max_retries=0,
        http_client=transport,
    )  # fmt: skip


def request_body(config: OpenAITeacherConfig, stop: Sequence[str], call: Call) -> dict[str, Any]:
    """The JSON of a request, for the chat or the completions route."""
    body: dict[str, Any] = {
        "model": config.model,
        "temperature": config.temperature,
        "top_p": config.top_p,
        config.max_tokens_field: config.max_tokens,
        "seed": call.seeds[0],
    }
    if config.api == "completions":
        body["prompt"] = call.prompt
    else:
        body["messages"] = [{"role": "user", "content": call.prompt}]
    if len(call.indices) > 1:
        body["n"] = len(call.indices)
    if stop:
        body["stop"] = list(stop)
    return body | config.extra_body


def read_replies(text: str, most: int) -> list[Result]:
    """At most `most` replies of the body of a chat or text completion; a choice that was withheld is a `Failure`.

    Choices without text are left out. Raises `TeacherError` where none is left.
    """
    try:
        data = json.loads(text)
        choices = data.get("choices") if isinstance(data, dict) else None
        if not isinstance(choices, list):
            raise _malformed(f"no choices in {text}")
        results = [result for choice in choices[:most] if (result := _result(choice)) is not None]
    except (ValueError, RecursionError):  # the second: nested as deeply as no reply is
        raise _malformed(f"the body is not JSON: {text}") from None
    if not results:
        raise _malformed(f"no text in {text}")
    counts = data.get("usage")
    if isinstance(counts, dict):
        _charge(results, as_count(counts.get("prompt_tokens")), as_count(counts.get("completion_tokens")))
    return results


def _result(choice: Any) -> Result | None:
    if not isinstance(choice, dict):
        return None
    message = choice.get("message")
    fields: dict[str, Any] = message if isinstance(message, dict) else choice
    reason = str(choice.get("finish_reason") or "")
    if reason == "content_filter" or fields.get("refusal"):
        return Failure(f"content filter: {fields.get('refusal') or 'the endpoint withheld the answer'}", 200, 1)
    text = fields.get("content") if fields is message else fields.get("text")
    reasoning = fields.get("reasoning_content") or fields.get("reasoning") or ""
    # A reasoning model that ran out of tokens has no content; that is an answer, though an empty one.
    if not (isinstance(text, str) or (text is None and fields is message)):
        return None
    return Reply(text or "", reasoning if isinstance(reasoning, str) else json.dumps(reasoning), reason)


def _charge(results: list[Result], prompt: int | None, completion: int | None) -> None:
    """The counts of the whole call stand with its first result, and 0 with the others."""
    for row, result in enumerate(results):
        results[row] = replace(result, prompt_tokens=prompt, completion_tokens=completion)
        prompt, completion = (None if count is None else 0 for count in (prompt, completion))


def _unreached(reason: str) -> TeacherError:
    return TeacherError(reason, retryable=True, of_endpoint=True, billed=True)


def _malformed(what: str) -> TeacherError:
    return TeacherError(f"malformed: {what}", 200, retryable=True, billed=True)


class OpenAITeacher:
    """Asks a model over HTTP. Make it on the event loop that will use it."""

    def __init__(self, config: OpenAITeacherConfig, stop: Sequence[str]) -> None:
        self._config, self._stop = config, list(stop)
        self._key = api_key(config)
        self._client = make_client(config)
        self._path = "/completions" if config.api == "completions" else "/chat/completions"

    def __repr__(self) -> str:
        return f"OpenAITeacher(model={self._config.model!r}, base_url={self._config.base_url!r})"

    async def ask(self, call: Call) -> Answer:
        """One attempt. Raises `TeacherError`, whose text is one line and never holds the key."""
        try:
            return await self._attempt(call)
        except TeacherError as error:
            error.args = (safe_reason(str(error), self._key),)
            raise

    async def close(self) -> None:
        await self._client.close()

    async def _attempt(self, call: Call) -> Answer:
        import httpx2
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        seconds = self._config.timeout_seconds
        try:
            # The client's own timeout starts anew with every byte; this one bounds the whole attempt.
            async with asyncio.timeout(seconds):
                # Raw bodies: endpoints differ from OpenAI's schema in ways that the typed client lets through as None.
                body = request_body(self._config, self._stop, call)
                raw = await self._client.post(self._path, cast_to=httpx2.Response, body=body)
        except TimeoutError:
            raise _unreached(f"timeout: no answer within {seconds:g} s") from None
        except APIConnectionError as error:
            # The transport calls every connection that it cannot make, or that breaks, a timeout of connecting.
            broken = isinstance(error.__cause__, httpx2.ConnectTimeout) or not isinstance(error, APITimeoutError)
            told = f"connection: {error.__cause__ or error}" if broken else f"timeout: no answer within {seconds:g} s"
            raise _unreached(told) from None
        except APIStatusError as error:
            raise status_error(error.status_code, error.response.text, error.response.headers) from None
        headers = rate_headers(raw.headers)
        try:
            return Answer(read_replies(raw.text, len(call.indices)), headers)
        except TeacherError as error:
            error.headers = headers
            raise


def safe_reason(reason: str, key: str) -> str:
    """One line of at most `MAX_REASON` characters, without the key even where the endpoint repeats it."""
    line = " ".join(reason.split())
    if key != NO_KEY:
        line = line.replace(key, "***")
    return line[:MAX_REASON]


def status_error(status: int, body: str, headers: Mapping[str, str]) -> TeacherError:
    """What a refusal means."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    told = data.get("error") if isinstance(data, dict) else None
    fields: dict[str, Any] = told if isinstance(told, dict) else {}
    message = next((text for text in (fields.get("message"), told) if isinstance(text, str)), body)
    code = str(fields.get("code") or fields.get("type") or "")
    if "content_filter" in code or "content_policy" in code:
        return TeacherError(f"content filter: {message}", status)
    out_of_money = code in _NO_MONEY
    retryable = (status in _RETRIED_STATUS or status >= 500) and not out_of_money
    return TeacherError(
        f"status {status}: {message}", status, retryable=retryable,
        of_endpoint=retryable or out_of_money or status in _OF_ENDPOINT_STATUS,
        retry_after=retry_after(headers), headers=rate_headers(headers),
    )  # fmt: skip


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from the Retry-After headers (a number or a date); None where there are none."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):  # there is no such day
        return None


def rate_headers(headers: Mapping[str, str]) -> RateHeaders | None:
    """The x-ratelimit headers; None where there are none."""
    values: dict[str, float | None] = {}
    for what in ("requests", "tokens"):
        for name in ("limit", "remaining"):
            values[f"{name}_{what}"] = _number(headers.get(f"x-ratelimit-{name}-{what}"))
        values[f"reset_{what}"] = _duration(headers.get(f"x-ratelimit-reset-{what}"))
    return RateHeaders(**values) if any(value is not None for value in values.values()) else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _duration(text: str | None) -> float | None:
    """Seconds of "1s", "6m0s", "20ms", or of a bare number."""
    parts = _DURATION.findall(text or "")
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return _number(text)


def _check(config: OpenAITeacherConfig, prompts: Prompts) -> None:
    api_key(config)


def _samples_per_request(config: OpenAITeacherConfig) -> int | None:
    if config.num_samples == 1:
        return 1
    return None if config.samples_per_request == "auto" else config.samples_per_request


def _variables(config: OpenAITeacherConfig) -> dict[str, str]:
    if config.api_key_file is not None:
        return {}
    where = "OpenAI" if config.base_url is None else f"{config.base_url}, where it asks for one"
    return {config.api_key_env: f"the key for {where}"}


BACKEND = Backend(
    kind="openai",
    settings=OpenAITeacherConfig,
    costs="per_token",
    simulated=False,
    shown=("model", "temperature", "top_p", "max_tokens"),
    asked="samples to ask for (paid)",
    name=lambda config: f"{config.model} (openai)",
    identity=lambda config, stop: language_model_identity("openai", config, stop),
    check=_check,
    build=lambda config, stop, completions: OpenAITeacher(config, stop),
    samples_per_request=_samples_per_request,
    endpoint=lambda config: config,
    variables=_variables,
    key_file=lambda config: config.api_key_file,
)

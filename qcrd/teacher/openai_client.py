"""A teacher behind any OpenAI-compatible endpoint: one request, its retries, and what went wrong in one line.

The key is read from the environment by name and appears in no setting, log or error. Knows nothing about tasks,
parsing, Ray, how many requests run at once or where replies are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from qcrd.config import ConfigError, TeacherConfig
from qcrd.teacher.base import Reply, SampleRequest, TeacherError

MAX_REASON = 300
MAX_RETRY_AFTER_SECONDS = 120.0
_RETRIED_STATUS = frozenset({408, 409, 429})
_BACKOFF = wait_exponential_jitter(initial=0.5, max=30.0, jitter=0.5)


class RetryableError(Exception):
    """One attempt that failed in a way that may pass."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def api_key(config: TeacherConfig) -> str:
    """The key from the environment; "EMPTY" for one's own endpoint, which needs none. Raises `ConfigError`."""
    key = os.environ.get(config.api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):  # httpx would print it in its complaint
        raise ConfigError(f"teacher.api_key_env: the value of {config.api_key_env!r} cannot be a key: odd characters")
    if key:
        return key
    if config.base_url is None:
        raise ConfigError(
            f"teacher.api_key_env: the environment variable {config.api_key_env!r} is not set; "
            "put the key there, or set teacher.base_url to an endpoint that needs none"
        )
    return "EMPTY"


class OpenAITeacher:
    """Asks a model over HTTP. Make it on the event loop that will use it."""

    def __init__(self, config: TeacherConfig, stop: Sequence[str]) -> None:
        self._config = config
        self._stop = list(stop)
        self._key = api_key(config)
        self._client = AsyncOpenAI(
            api_key=self._key, base_url=config.base_url, timeout=config.timeout_seconds, max_retries=0
        )

    def __repr__(self) -> str:
        return f"OpenAITeacher(model={self._config.model!r}, base_url={self._config.base_url!r})"

    async def ask(self, request: SampleRequest) -> Reply:
        """One completion, after at most `teacher.max_attempts` attempts. Raises `TeacherError`."""
        attempt_number = 0
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(RetryableError),
                stop=stop_after_attempt(self._config.max_attempts),
                wait=_seconds_to_wait,
                reraise=True,
            ):
                with attempt:
                    attempt_number = attempt.retry_state.attempt_number
                    return _reply(await self._post(request), attempt_number)
        except RetryableError as error:
            raise TeacherError(self._safe(str(error)), attempt_number) from None
        except APIStatusError as error:
            reason = f"status {error.status_code}: {_message(error)}"
            raise TeacherError(self._safe(reason), attempt_number) from None
        raise AssertionError("unreachable: tenacity returns or raises")

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, request: SampleRequest) -> str:
        """The body of the endpoint's answer. Raises `RetryableError`, or `APIStatusError` for a refusal."""
        try:
            return await self._create(request)
        except APITimeoutError:
            raise RetryableError(f"timeout: no answer within {self._config.timeout_seconds:g} s") from None
        except APIConnectionError as error:
            raise RetryableError(f"connection: {error.__cause__ or error}") from None
        except APIStatusError as error:
            if error.status_code in _RETRIED_STATUS or error.status_code >= 500:
                reason = f"status {error.status_code}: {_message(error)}"
                raise RetryableError(reason, _retry_after(error)) from None
            raise

    async def _create(self, request: SampleRequest) -> str:
        config = self._config
        options: dict[str, Any] = {
            "model": config.model,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "seed": request.seed,
        }
        if self._stop:
            options["stop"] = self._stop
        # Raw bodies: endpoints differ from OpenAI's schema in ways that the typed client lets through as None.
        if config.api == "completions":
            raw = await self._client.completions.with_raw_response.create(prompt=request.prompt, **options)
        else:
            messages: Any = [{"role": "user", "content": request.prompt}]
            raw = await self._client.chat.completions.with_raw_response.create(messages=messages, **options)
        return raw.text

    def _safe(self, reason: str) -> str:
        """One line of at most `MAX_REASON` characters, without the key even where the endpoint repeats it."""
        line = " ".join(reason.split())
        if self._key != "EMPTY":
            line = line.replace(self._key, "***")
        return line[:MAX_REASON]


def _seconds_to_wait(state: RetryCallState) -> float:
    """What the endpoint asks for, else exponential backoff with jitter."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, RetryableError) and error.retry_after is not None:
        return error.retry_after
    return _BACKOFF(state)


def _retry_after(error: APIStatusError) -> float | None:
    """Seconds from the Retry-After headers, capped; None where there are none or they give a date."""
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if seconds >= 0:
            return min(seconds, MAX_RETRY_AFTER_SECONDS)
    return None


def _message(error: APIStatusError) -> str:
    """The endpoint's own words."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return body["message"]
    return error.response.text


def _reply(body: str, attempts: int) -> Reply:
    """Read the body of a chat or text completion. Raises `RetryableError` where it is not one."""
    try:
        data = json.loads(body)
    except ValueError:
        raise RetryableError(f"malformed: the body is not JSON: {body}") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise RetryableError(f"malformed: no choices in {body}")
    choice = choices[0]
    message = choice.get("message")
    fields = message if isinstance(message, dict) else choice
    text = fields.get("content") if fields is message else fields.get("text")
    reasoning = fields.get("reasoning_content") or fields.get("reasoning") or ""
    # A reasoning model that ran out of tokens has no content; that is an answer, though an empty one.
    if not (isinstance(text, str) or (text is None and fields is message)):
        raise RetryableError(f"malformed: no text in {body}")
    counts = data.get("usage")
    usage: dict[str, Any] = counts if isinstance(counts, dict) else {}
    return Reply(
        text=text or "",
        reasoning=reasoning if isinstance(reasoning, str) else json.dumps(reasoning),
        finish_reason=str(choice.get("finish_reason") or ""),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        attempts=attempts,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None

"""The files and batches of an OpenAI-compatible endpoint: each request made until it is answered.

What may pass (no connection, 408, 409, 429, 5xx) is asked again for as long as it takes, with a warning each time. All
else is a `TeacherError` in one line that says what was asked, without the key. To create a batch is the one request
that costs money: where its answer was lost, the batch is looked for before it is asked for again. Knows nothing about
samples, the store, or what is in the files.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import IO, Any, Literal, TypeVar

import httpx2
from openai import APIConnectionError, APIStatusError, omit
from openai.pagination import AsyncCursorPage
from openai.types import Batch, FileObject
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from qcrd.config import OpenAITeacherConfig
from qcrd.teacher.backends.base import TeacherError, as_count
from qcrd.teacher.backends.openai_endpoint import OPENAI_URL, api_key, make_client, safe_reason, status_error

logger = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 60.0
_PAGE = 100
_QUEUE_FULL = "token_limit_exceeded"
_T = TypeVar("_T")


class BatchEndpoint:
    """Make it on the event loop that will use it. Raises `ConfigError` where there is no key."""

    def __init__(self, config: OpenAITeacherConfig) -> None:
        self._key = api_key(config)
        self._client = make_client(config)
        self._poll_seconds = config.batch.poll_seconds
        # How long a creation may still take effect after its answer was given up: as long as we would have waited.
        self._settle_seconds = config.timeout_seconds
        self._backoff = wait_random_exponential(multiplier=min(1.0, self._poll_seconds), max=MAX_BACKOFF_SECONDS)
        self.route: Literal["/v1/completions", "/v1/chat/completions"] = (
            "/v1/completions" if config.api == "completions" else "/v1/chat/completions"
        )
        self.base_url = (config.base_url or OPENAI_URL).rstrip("/")

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, name: str, content: bytes) -> str:
        """Send up a file of requests; its id."""
        file = (name, content, "application/jsonl")

        async def attempt() -> str:
            found = await self._once(f"upload of {name}", lambda: self._client.files.create(file=file, purpose="batch"))
            if not (isinstance(found, FileObject) and "id" in found.model_fields_set and found.id):
                raise TeacherError(f"upload of {name}: malformed: the answer is no file", 200, retryable=True)
            return found.id

        return await self._patiently(attempt)

    async def create(self, file_id: str, digest: str, submission: str) -> str:
        """Ask for a batch of the requests in an uploaded file; its id. `submission` tells it from all others.

        An error that is `billed` leaves open whether there is a batch; after any other there is none.
        """
        what = f"creation of a batch of {file_id}"
        unsure = False

        async def request() -> Batch:
            return await self._client.batches.create(
                input_file_id=file_id, endpoint=self.route, completion_window="24h",
                metadata={"qcrd": digest, "qcrd_submission": submission},
            )  # fmt: skip

        async def attempt() -> str:
            nonlocal unsure
            if unsure:
                try:
                    found = await self.find(file_id, submission)
                except TeacherError as error:
                    error.billed = True
                    raise
                if found is not None:
                    return found
            unsure = True
            try:
                return _whole(await self._once(what, request), what).id
            except TeacherError as error:
                unsure = error.retryable and error.status != 429  # which says that nothing was done
                raise

        return await self._patiently(attempt)

    async def find(self, file_id: str, submission: str) -> str | None:
        """The id of a batch that was asked for some time before now. That there is none is said only after
        `teacher.timeout_seconds`."""
        wait_until = time.monotonic() + self._settle_seconds
        logger.warning("looking for a batch of %s: how its creation ended is not known", file_id)
        while (found := await self.find_now(file_id, submission)) is None:
            left = wait_until - time.monotonic()
            if left <= 0:
                return None
            await asyncio.sleep(min(self._poll_seconds, left))
        return found

    async def find_now(self, file_id: str, submission: str) -> str | None:
        """The same, looked for once, through all pages. Failed batches cost nothing and do not count."""
        after, seen = "", set[str]()
        while after not in seen:
            seen.add(after)
            page = await self._patiently(self._page, after)
            for batch in page.get("data") or []:
                after = str(batch.get("id"))
                # Proxies may give a file a name of their own, and some endpoints keep no metadata.
                marks = batch.get("metadata")
                of_submission = isinstance(marks, dict) and marks.get("qcrd_submission") == submission
                if (of_submission or batch.get("input_file_id") == file_id) and batch.get("status") != "failed":
                    return after
            if page.get("has_more") is False:
                break
        return None

    async def _page(self, after: str) -> dict[str, Any]:
        async def request() -> AsyncCursorPage[Batch]:
            return await self._client.batches.list(limit=_PAGE, after=after or omit)

        page = await self._once("list of batches", request)
        found = (page.data or []) if isinstance(page, AsyncCursorPage) else None
        if not (isinstance(found, list) and all(isinstance(batch, Batch) for batch in found)):
            raise TeacherError("list of batches: malformed: the answer is no list", 200, retryable=True)
        return page.model_dump(warnings=False)

    async def retrieve(self, batch_id: str) -> Batch:
        """How a batch stands."""

        async def attempt() -> Batch:
            what = f"batch {batch_id}"
            return _whole(await self._once(what, lambda: self._client.batches.retrieve(batch_id)), what)

        return await self._patiently(attempt)

    async def download(self, file_id: str, target: IO[bytes]) -> None:
        """Write the content of a file to `target`, from its beginning; it ends at the start."""

        async def request() -> None:
            target.seek(0)
            target.truncate()
            async with self._client.files.with_streaming_response.content(file_id) as response:
                async for chunk in response.iter_bytes():
                    target.write(chunk)
            target.seek(0)

        await self._patiently(self._once, f"download of {file_id}", request)

    async def delete(self, file_id: str) -> None:
        """Delete a file that no batch uses. An endpoint that will not is left alone."""
        try:
            await self._patiently(self._once, f"deletion of {file_id}", lambda: self._client.files.delete(file_id))
        except TeacherError as error:
            logger.info("%s", error)

    def safe(self, reason: str) -> str:
        """One line without the key."""
        return safe_reason(reason, self._key)

    async def _patiently(self, attempt: Callable[..., Awaitable[_T]], *arguments: object) -> _T:
        """Repeat an attempt while what it meets may pass."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, TeacherError) and error.retryable),
            wait=self._wait, before_sleep=_warn, reraise=True,
        )  # fmt: skip
        return await retrying(attempt, *arguments)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        told = error.retry_after if isinstance(error, TeacherError) else None
        return max(self._backoff(state), told or 0.0)

    async def _once(self, what: str, request: Callable[[], Awaitable[_T]]) -> _T:
        """One attempt. Raises `TeacherError`, and nothing else, where it fails."""
        try:
            return await request()
        except APIStatusError as error:
            told = status_error(error.status_code, error.response.text, error.response.headers)
            told.args = (self.safe(f"{what}: {told}"),)
            raise told from None
        except (APIConnectionError, httpx2.TransportError) as error:  # the second: cut in the middle of a download
            reason = self.safe(f"{what}: connection: {error.__cause__ or error!r}")
            raise TeacherError(reason, retryable=True, of_endpoint=True) from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise TeacherError(f"{what}: malformed: the answer is not JSON", 200, retryable=True) from None


def request_counts(batch: Batch) -> tuple[int, int, int]:
    """How many requests were completed, failed, and are there; endpoints may leave any of them out."""
    counts = batch.model_dump(warnings=False).get("request_counts")
    named = counts if isinstance(counts, dict) else {}
    return as_count(named.get("completed")) or 0, as_count(named.get("failed")) or 0, as_count(named.get("total")) or 0


def errors_of(batch: Batch) -> list[dict[str, Any]]:
    """What is wrong with a batch that was refused."""
    errors = batch.model_dump(warnings=False).get("errors")
    found = (errors.get("data") if isinstance(errors, dict) else errors) or []
    listed = found if isinstance(found, list) else [found]
    return [error if isinstance(error, dict) else {"message": str(error)} for error in listed]


def queue_was_full(batch: Batch) -> bool:
    """Whether a batch was refused only because too much else waits at the endpoint."""
    return any(error.get("code") == _QUEUE_FULL for error in errors_of(batch))


def _warn(state: RetryCallState) -> None:
    assert state.outcome is not None and state.next_action is not None
    logger.warning("%s; asked again in %.0f s", state.outcome.exception(), state.next_action.sleep)


def _whole(batch: object, what: str) -> Batch:
    """The client lets anything through; what has no id or status is no batch."""
    if not (
        isinstance(batch, Batch) and {"id", "status"} <= batch.model_fields_set
        and batch.id and isinstance(batch.status, str)
    ):  # fmt: skip
        raise TeacherError(f"{what}: malformed: the answer is no batch", 200, retryable=True)
    return batch

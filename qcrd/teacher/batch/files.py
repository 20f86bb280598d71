"""The files of batch mode: requests as JSON lines that go up, results as JSON lines that come down.

Knows nothing about the endpoint, the store, or what becomes of a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qcrd.config import ConfigError, OpenAITeacherConfig
from qcrd.teacher.backends.base import Call, Result, TeacherError, as_count
from qcrd.teacher.backends.openai_endpoint import read_replies, request_body, status_error


@dataclass(frozen=True)
class InputFile:
    """One file of requests. `requests`: custom_id → the keys of its samples, in hex."""

    content: bytes
    digest: str
    requests: dict[str, list[str]]


def input_files(
    config: OpenAITeacherConfig, stop: Sequence[str], route: str, calls: Iterable[tuple[Call, Sequence[bytes]]]
) -> Iterator[InputFile]:
    """Files of at most `batch.max_requests` requests and `batch.max_bytes` bytes."""
    lines: list[bytes] = []
    requests: dict[str, list[str]] = {}
    size = 0
    for call, keys in calls:
        custom_id = keys[0].hex()
        body = request_body(config, stop, call)
        request = {"custom_id": custom_id, "method": "POST", "url": route, "body": body}
        line = json.dumps(request, sort_keys=True).encode() + b"\n"  # ASCII, as not all take U+2028 for a letter
        if len(line) > config.batch.max_bytes:
            raise ConfigError(
                f"teacher.batch.max_bytes: {config.batch.max_bytes} is too small: "
                f"the request of question {call.question_id} has {len(line)} bytes"
            )
        if custom_id in requests:
            raise ValueError(f"question {call.question_id}: sample {call.indices[0]} is asked for twice")
        if len(lines) == config.batch.max_requests or size + len(line) > config.batch.max_bytes:
            yield _joined(lines, requests)
            lines, requests, size = [], {}, 0
        lines.append(line)
        requests[custom_id] = [key.hex() for key in keys]
        size += len(line)
    if lines:
        yield _joined(lines, requests)


def _joined(lines: Sequence[bytes], requests: dict[str, list[str]]) -> InputFile:
    content = b"".join(lines)
    return InputFile(content, hashlib.sha256(content).hexdigest(), requests)


def read_result(data: dict[str, Any], most: int) -> list[Result]:
    """At most `most` records of a line of results. Raises `TeacherError` where it has none."""
    try:
        response, error = data.get("response"), data.get("error")
        if not isinstance(response, dict):  # it was never asked: the batch ended first, for instance
            if not isinstance(error, dict):
                raise _malformed(f"neither response nor error in {data}")
            raise TeacherError(f"{error.get('code') or 'error'}: {error.get('message')}", retryable=True)
        status, body = as_count(response.get("status_code")), response.get("body")
        if status is None:
            raise _malformed(f"no status in {data}")
        if status != 200:
            raise status_error(status, json.dumps(body or {"error": error}), {})
        records = read_replies(json.dumps(body), most)
    except RecursionError:
        raise _malformed("nested too deeply") from None
    return [replace(record, batch=True) for record in records]


def _malformed(what: str) -> TeacherError:
    return TeacherError(f"malformed: {what}", retryable=True, billed=True)

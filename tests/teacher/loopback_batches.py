"""A small real server of files and batches on loopback, for tests. It counts how often each request was worked on,
which is what costs money.

A batch is worked on as soon as it is made; what is asked about it later only decides when that shows. `hold` names a
moment at which the server, having done its part, falls silent: the test kills the client then.
"""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.teacher.loopback import answer

Result = Callable[[dict[str, Any]], tuple[int, Any]]
"""A request's body → status and body of its response."""


def completion(body: dict[str, Any]) -> tuple[int, Any]:
    """What a healthy endpoint makes of a request."""
    chat = "messages" in body
    text = answer(body["messages"][-1]["content"] if chat else body["prompt"])
    texts = [f"{text} #{number}" for number in range(body.get("n", 1))]
    choices = [{**({"message": {"content": t}} if chat else {"text": t}), "finish_reason": "stop"} for t in texts]
    return 200, {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 5 * len(texts)}}


@dataclass
class BatchServer:
    """What the server does and what it saw."""

    result: Result = completion
    polls: int = 1
    """How often a batch is asked about before it has ended."""
    expire_after: int | None = None
    """Requests worked on before a batch expires."""
    refuse: dict[str, Any] | None = None
    """The error with which every batch fails its validation."""
    unnamed: int = 0
    """How often a batch is completed without a file being named yet."""
    cut: int = 0
    """How many downloads break off in the middle."""
    room: int | None = None
    """How many batches may be under way at once; others fail with token_limit_exceeded."""
    hidden: str = ""
    """A field that the endpoint does not give back."""
    output: Callable[[list[str]], list[str]] = list
    """The lines of an output file → those that are served."""
    status: Callable[[str, str, int], int | None] = lambda method, path, number: None
    """(method, path, how often it was asked before) → status of a refusal."""
    body: Callable[[str, str, int], bytes | None] = lambda method, path, number: None
    """(method, path, how often it was asked before) → what is served instead of the answer."""
    hold: tuple[str, str, str] | None = None
    """(method, part of the path, "before" or "after" the work): not answered."""

    base_url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    held: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    asked: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    files: dict[str, str] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: int = 0

    def add_file(self, content: str) -> str:
        self.uploads += 1
        name = f"file-{self.uploads}"
        self.files[name] = content
        return name

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        batch_id = f"batch_{len(self.batches) + 1}"
        batch: dict[str, Any] = {
            "id": batch_id, "object": "batch", "status": "validating", "created_at": 1, **body, "left": self.polls,
            "output": [], "errors_": [], "end": "completed",
        }  # fmt: skip
        self.batches[batch_id] = batch
        under_way = sum(other["status"] not in ("completed", "expired", "failed") for other in self.batches.values())
        if self.room is not None and under_way > self.room:
            batch |= {"end": "failed", "errors": {"data": [{"code": "token_limit_exceeded", "message": "queue full"}]}}
        elif self.refuse is not None:
            batch |= {"end": "failed", "errors": {"data": [self.refuse]}}
        else:
            self._work(batch)
        if self.polls == 0:
            self.show(batch)
        return batch

    def _work(self, batch: dict[str, Any]) -> None:
        for number, line in enumerate(self.files[batch["input_file_id"]].splitlines()):
            request = json.loads(line)
            custom_id = request["custom_id"]
            assert request["url"] == batch["endpoint"] and request["method"] == "POST"
            if self.expire_after is not None and number >= self.expire_after:
                batch["end"] = "expired"
                gone = {"code": "batch_expired", "message": "This request could not be executed in time."}
                batch["errors_"].append(json.dumps({"custom_id": custom_id, "response": None, "error": gone}))
                continue
            status, body = self.result(request["body"])
            self.paid[custom_id] += 1
            line = {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}
            batch["output" if status == 200 else "errors_"].append(json.dumps(line))

    def show(self, batch: dict[str, Any]) -> dict[str, Any]:
        """How a batch stands, asked once more."""
        if batch["left"] > 0:
            batch["left"] -= 1
            batch["status"] = "in_progress"
            return self.public(batch)
        batch["status"] = batch["end"]
        if batch["end"] == "failed" or "output_file_id" in batch:
            return self.public(batch)
        counts = {"completed": len(batch["output"]), "failed": len(batch["errors_"])}
        batch["request_counts"] = {**counts, "total": sum(counts.values())}
        if self.unnamed > 0:
            self.unnamed -= 1
            return self.public(batch)
        for lines, name in ((self.output(batch["output"]), "output_file_id"), (batch["errors_"], "error_file_id")):
            batch[name] = self.add_file("".join(f"{line}\n" for line in lines)) if lines else ""
        return self.public(batch)

    def public(self, batch: dict[str, Any]) -> dict[str, Any]:
        hidden = ("left", "output", "errors_", "end", self.hidden)
        return {key: value for key, value in batch.items() if key not in hidden}


def _handler(server: BatchServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are written apart; each answer would wait 40 ms

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def do_DELETE(self) -> None:
            self._serve("DELETE")

        def _serve(self, method: str) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.removeprefix("/v1").partition("?")
            with server.lock:
                number = server.asked[f"{method} {path}"]
                server.asked[f"{method} {path}"] += 1
                status, other = server.status(method, path, number), server.body(method, path, number)
                if self._is_held(method, path, "before"):
                    return
                text = (
                    json.dumps({"error": {"message": f"no: {self.headers['Authorization']}"}})
                    if status
                    else self._work(method, path, query, data)
                )
                if self._is_held(method, path, "after"):
                    return
            if text is None:
                status, text = 404, json.dumps({"error": {"message": "there is no such thing"}})
            body = text.encode() if other is None else other
            self.send_response(status or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if method == "GET" and path.endswith("/content") and server.cut > 0:
                server.cut -= 1
                body, self.close_connection = body[: len(body) // 2], True
            self.wfile.write(body)

        def _is_held(self, method: str, path: str, when: str) -> bool:
            if server.hold is None or server.over.is_set():
                return False
            if (method, when) != (server.hold[0], server.hold[2]) or server.hold[1] not in path:
                return False
            server.held.set()
            server.lock.release()
            server.over.wait(20)
            server.lock.acquire()
            self.close_connection = True
            return True

        def _work(self, method: str, path: str, query: str, data: bytes) -> str | None:
            match method, path.strip("/").split("/"):
                case "POST", ["files"]:
                    head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                    form = email.message_from_bytes(head + data, policy=email.policy.HTTP)
                    parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
                    assert parts["purpose"].get_content().strip() == "batch"
                    content = parts["file"].get_payload(decode=True)
                    assert isinstance(content, bytes)
                    return json.dumps({"id": server.add_file(content.decode())})
                case "GET", ["files", file_id, "content"]:
                    return server.files.get(file_id)
                case "DELETE", ["files", file_id]:
                    server.files.pop(file_id, None)
                    return json.dumps({"id": file_id, "deleted": True})
                case "POST", ["batches"]:
                    return json.dumps(server.public(server.create(json.loads(data))))
                case "POST", ["chat", "completions"]:  # the probe
                    server.paid["online"] += 1
                    return json.dumps(server.result(json.loads(data))[1])
                case "GET", ["batches"]:
                    return json.dumps(self._page(query))
                case "GET", ["batches", batch_id] if batch_id in server.batches:
                    return json.dumps(server.show(server.batches[batch_id]))
            return None

        @staticmethod
        def _page(query: str) -> dict[str, Any]:
            """Two batches, the newest first."""
            ids = list(reversed(server.batches))
            after = dict(part.split("=") for part in query.split("&")).get("after")
            start = ids.index(after) + 1 if after else 0
            page = [server.public(server.batches[batch_id]) for batch_id in ids[start : start + 2]]
            return {"object": "list", "data": page, "has_more": start + 2 < len(ids)}

    return Handler


@contextmanager
def loopback_batches(**behaviour: Any) -> Iterator[BatchServer]:
    """A running server."""
    server = BatchServer(**behaviour)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()

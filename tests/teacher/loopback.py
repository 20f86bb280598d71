"""A small real OpenAI-compatible HTTP server on loopback, for tests. It adds the first two numbers of a question."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reaction = tuple[int, dict[str, str], str]
"""Status, headers and body of an answer."""
Behaviour = Callable[[int, str], Reaction | None]
"""(how often this prompt and seed was asked before, prompt) → what comes back, or None for an answer."""

BREAK: Reaction = (0, {}, "break")
"""The connection is closed without an answer."""
CUT: Reaction = (0, {}, "cut")
"""The connection is closed in the middle of the answer."""
STALL: Reaction = (0, {}, "stall")
"""Nothing comes, and the connection stays."""
TRICKLE: Reaction = (0, {}, "trickle")
"""One byte of the answer comes every now and then."""


class Server:
    """What the server saw. `most_choices`: how many of the `n` choices that are asked for it gives; 0: it refuses `n`
    with status 400. `rate`: headers of each answer."""

    def __init__(
        self, behaviour: Behaviour, delay: float, most_choices: int = 1, rate: dict[str, str] | None = None
    ) -> None:
        self.behaviour, self.delay, self.most_choices, self.rate = behaviour, delay, most_choices, rate or {}
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[tuple[float, str]] = []
        """When each request came, and its prompt."""
        self.keys: set[str] = set()
        self.running = self.peak = 0
        self.base_url = ""


def answer(prompt: str) -> str:
    """A chain of thought that adds the first two numbers of the last question."""
    numbers = re.findall(r"\d+", prompt.rsplit("Q:", 1)[-1])[:2]
    left, right = [*numbers, "1", "2"][:2]
    return f"We add {left} and {right}. The answer is ( {left} + {right} )."


def error(status: int, message: str = "no", code: str = "", **headers: str) -> Reaction:
    """A refusal in OpenAI's form."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, json.dumps({"error": {"message": message, "code": code or None}})


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are written apart; each answer would wait 40 ms

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat = self.path.endswith("/chat/completions")
            prompt = body["messages"][-1]["content"] if chat else body["prompt"]
            with server.lock:
                number = server.asked[f"{body.get('seed')}{prompt}"]
                server.asked[f"{body.get('seed')}{prompt}"] += 1
                server.bodies.append(body)
                server.arrivals.append((time.monotonic(), prompt))
                server.keys.add(self.headers.get("Authorization", ""))
                server.running += 1
                server.peak = max(server.peak, server.running)
            server.over.wait(server.delay)
            other = server.behaviour(number, prompt)
            wished = body.get("n", 1)
            if other is None and wished > 1 and server.most_choices == 0:
                other = error(400, "n > 1 is not supported")
            healthy = (200, server.rate, self._completion(chat, prompt, min(wished, max(1, server.most_choices))))
            with server.lock:
                server.running -= 1
            with suppress(ConnectionError):  # the client may have gone
                self._send(other or healthy, healthy[2].encode())

        def _send(self, reaction: Reaction, healthy: bytes) -> None:
            status, headers, text = reaction
            data = healthy if status == 0 else text.encode()
            if reaction == STALL:
                server.over.wait(20)
            self.close_connection = status == 0
            if reaction in (BREAK, STALL):
                return
            self.send_response(status or 200)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if reaction == TRICKLE:
                for at in range(len(data)):
                    self.wfile.write(data[at : at + 1])
                    if server.over.wait(0.05):
                        return
            self.wfile.write(data[: len(data) // 2] if reaction == CUT else data)

        @staticmethod
        def _completion(chat: bool, prompt: str, choices: int) -> str:
            text = answer(prompt)
            texts = [text, *(f"In way {number}: {text}" for number in range(2, choices + 1))]
            replies = [{"message": {"role": "assistant", "content": t}} if chat else {"text": t} for t in texts]
            usage = {"prompt_tokens": 7, "completion_tokens": 5 * choices}
            found = [{**reply, "finish_reason": "stop", "index": at} for at, reply in enumerate(replies)]
            return json.dumps({"choices": found, "usage": usage})

    return Handler


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 refuses connections of many calls at once


def always_answer(number: int, prompt: str) -> None:
    """The behaviour of a healthy server."""


@contextmanager
def loopback(
    behaviour: Behaviour = always_answer, delay: float = 0.0, most_choices: int = 1, rate: dict[str, str] | None = None
) -> Iterator[Server]:
    """A running server."""
    server = Server(behaviour, delay, most_choices, rate)
    http = _HTTPServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()

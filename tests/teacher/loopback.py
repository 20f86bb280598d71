"""A small real OpenAI-compatible HTTP server on loopback, for tests. It adds the first two numbers of a question."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[int, str], tuple[int, dict[str, str], str] | None]
"""(how often this prompt and seed was asked before, prompt) → status, headers and body, or None for an answer."""


class Server:
    """What the server saw."""

    def __init__(self, behaviour: Behaviour, delay: float) -> None:
        self.behaviour, self.delay = behaviour, delay
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.running = self.peak = 0
        self.base_url = ""


def answer(prompt: str) -> str:
    """A chain of thought that adds the first two numbers of the last question."""
    numbers = re.findall(r"\d+", prompt.rsplit("Q:", 1)[-1])[:2]
    left, right = [*numbers, "1", "2"][:2]
    return f"We add {left} and {right}. The answer is ( {left} + {right} )."


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

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
                server.keys.add(self.headers.get("Authorization", ""))
                server.running += 1
                server.peak = max(server.peak, server.running)
            time.sleep(server.delay)
            other = server.behaviour(number, prompt)
            status, headers, text = other or (200, {}, self._completion(chat, answer(prompt)))
            with server.lock:
                server.running -= 1
            data = text.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        @staticmethod
        def _completion(chat: bool, text: str) -> str:
            reply = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            usage = {"prompt_tokens": 7, "completion_tokens": 5}
            return json.dumps({"choices": [{**reply, "finish_reason": "stop", "index": 0}], "usage": usage})

    return Handler


def always_answer(number: int, prompt: str) -> None:
    """The behaviour of a healthy server."""


@contextmanager
def loopback(behaviour: Behaviour = always_answer, delay: float = 0.0) -> Iterator[Server]:
    """A running server."""
    server = Server(behaviour, delay)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()

"""A simulated OpenAI-compatible endpoint, in a process of its own, for measuring the sampler.

No language model is asked. It answers each chat completion after a fixed delay with a short made-up chain of thought,
fails a given share of the requests, and logs each request with the times of its arrival and its answer. Run as
`python -m experiments.benchmarks.endpoint --port 0 …`; it prints its port as the first line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


@dataclass
class Log:
    """What the endpoint saw. `requests`: (identity of the sample, arrival, answer or None), seconds of time.time()."""

    requests: list[tuple[str, float, float | None]] = field(default_factory=list)
    running: int = 0
    peak: int = 0


def fault(draw: float, shares: dict[str, float]) -> str:
    """Which fault a uniform draw means; "" for none."""
    for name, share in shares.items():
        if draw < share:
            return name
        draw -= share
    return ""


def make_app(delay: float, stall: float, shares: dict[str, float], seed: int) -> web.Application:
    log, rng = Log(), random.Random(seed)

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        arrival = time.time()
        row = len(log.requests)
        identity = f"{body['seed']} {body['messages'][-1]['content'][-80:]}"
        log.requests.append((identity, arrival, None))
        log.running += 1
        log.peak = max(log.peak, log.running)
        kind = fault(rng.random(), shares)
        try:
            if kind != "429":  # who is refused is refused at once
                await asyncio.sleep(stall if kind == "timeout" else delay)
        finally:
            log.running -= 1
        if kind == "429":
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "1"})
        if kind == "500":
            return web.json_response({"error": {"message": "oops"}}, status=500)
        if kind == "malformed":
            return web.Response(text='{"choices": [', content_type="application/json")
        log.requests[row] = (identity, arrival, time.time())
        message = {"role": "assistant", "content": "We add 1 and 2. The answer is ( 1 + 2 )."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "choices": [choice], "usage": USAGE})

    async def report(_: web.Request) -> web.Response:
        return web.json_response({"requests": log.requests, "peak": log.peak})

    async def count(_: web.Request) -> web.Response:
        return web.json_response(len(log.requests))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/log", report)
    app.router.add_get("/count", count)
    return app


async def serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)  # who hangs up is not served on
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    addresses: list[Any] = runner.addresses
    print(addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds until an answer")
    parser.add_argument("--stall", type=float, default=60.0, help="seconds until the answer of a request that stalls")
    parser.add_argument("--faults", default="{}", help='shares as JSON, e.g. {"429": 0.02, "timeout": 0.01}')
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(serve(make_app(given.delay, given.stall, json.loads(given.faults), given.seed), given.port))


if __name__ == "__main__":
    main()

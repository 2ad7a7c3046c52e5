"""Client cost of a request: aiohttp, which asks remote models, beside httpx2.

Both ask a stub that answers at once, from 32 connections in one event loop, in turn. A request is a
chat completion with the log-probabilities of 20 tokens, whose JSON is not read here.

    python -m benchmarks.http_clients
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import httpx2

from benchmarks.gateway import own_command, process
from benchmarks.machine import about, free_port, save

REQUESTS, AT_ONCE, ROUNDS = 3_000, 32, 5
ASKED = {"model": "stub", "messages": [{"role": "user", "content": "is it? " * 40}]}
BODY = json.dumps({**ASKED, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}).encode()
HEADERS = {"Content-Type": "application/json"}

Ask = Callable[[], Awaitable[bytes]]


async def measured(ask: Ask) -> dict[str, float]:
    """Processor time of a request in this process, and requests a second."""
    left = iter(range(REQUESTS))

    async def one_after_another() -> None:
        for _ in left:
            await ask()

    began, spent = time.perf_counter(), _processor()
    await asyncio.gather(*[one_after_another() for _ in range(AT_ONCE)])
    spent, took = _processor() - spent, time.perf_counter() - began
    return {"cpu_us": 1e6 * spent / REQUESTS, "requests_per_second": REQUESTS / took}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def rounds(port: int) -> dict[str, list[dict[str, float]]]:
    """Both clients, in turn."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with (
        aiohttp.ClientSession() as theirs,
        httpx2.AsyncClient(timeout=None, limits=limits) as other,
    ):

        async def by_aiohttp() -> bytes:
            async with theirs.post(url, data=BODY, headers=HEADERS) as answer:
                return await answer.read()

        async def by_httpx2() -> bytes:
            return (await other.post(url, content=BODY, headers=HEADERS)).content

        asks = {"aiohttp": by_aiohttp, "httpx2": by_httpx2}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in asks}
        for ask in asks.values():
            await measured(ask)
        for _ in range(ROUNDS):
            for name, ask in asks.items():
                found[name].append(await measured(ask))
    return found


def main() -> None:
    """Measure, print and write the result file."""
    port = free_port()
    with process(own_command("--stub", str(port)), port):
        found = asyncio.run(rounds(port))
    figures: dict[str, Any] = {
        name: {key: round(statistics.median(one[key] for one in each), 1) for key in each[0]}
        for name, each in found.items()
    }
    times = figures["httpx2"]["cpu_us"] / figures["aiohttp"]["cpu_us"]
    print(json.dumps(figures, indent=1), f"\nhttpx2 takes {times:.2f} times the processor time")
    result = {"figures": figures, "cpu_of_httpx2_over_aiohttp": round(times, 2)}
    save("http_clients", {**about(0), "requests": REQUESTS, "at_once": AT_ONCE, **result})


if __name__ == "__main__":
    main()

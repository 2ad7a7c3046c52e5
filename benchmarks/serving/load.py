"""Load on a server from a separate process: as fast as possible by wrk, or at a given rate."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Target:
    """Prepared bodies, ``0.body``, ``1.body``, ... of a folder, posted to a URL."""

    url: str
    folder: str
    count: int
    content_type: str
    headers: Mapping[str, str]


def as_fast_as_possible(target: Target, clients: int, seconds: int) -> dict[str, float]:
    """Closed loop: each client asks again when it has its answer. By wrk, one thread."""
    options = ["-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "20s", "-s", str(SCRIPT)]
    extra = [word for pair in target.headers.items() for word in pair]
    arguments = [target.folder, str(target.count), target.content_type, *extra]
    before = children_seconds()
    done = subprocess.run(
        ["wrk", *options, target.url, "--", *arguments], capture_output=True, text=True, check=True
    )
    spent = children_seconds() - before
    found = json.loads(done.stdout.splitlines()[-1])
    if found["failed"] or not found["requests"]:
        raise RuntimeError(f"{target.url}: {found['failed']} of {found['requests']} failed")
    return {
        "images_per_second": round(1e6 * found["requests"] / found["microseconds"], 1),
        "p50_milliseconds": found["p50_us"] / 1e3,
        "p99_milliseconds": found["p99_us"] / 1e3,
        "wrk_core_milliseconds": round(1e3 * spent / found["requests"], 3),
    }


def children_seconds() -> float:
    """Processor time of all child processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def at_rate(target: Target, rate: float, seconds: float, clients: int = 64) -> dict[str, float]:
    """Open loop: requests come at random times, `rate` a second, whether or not answers do.

    A latency counts from the time when the request was due, so that waiting for a free connection
    counts too.
    """
    words = json.dumps([asdict(target), rate, seconds, clients])
    done = subprocess.run(
        [sys.executable, __file__, words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


async def _at_rate(target: Target, rate: float, seconds: float, clients: int) -> list[float]:
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    place = urlsplit(target.url)
    head = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    bodies = [Path(target.folder, f"{n}.body").read_bytes() for n in range(target.count)]
    requests = [
        (
            f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n{head}"
            f"Content-Type: {target.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        + body
        for body in bodies
    ]
    waiting: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        while (entry := await waiting.get()) is not None:
            when, request = entry
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200 " not in answer.split(b"\r\n", 1)[0]:
                raise RuntimeError(answer.decode())
            length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - when)
        writer.close()

    running = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(0.2)
    began = time.perf_counter()
    for number, moment in enumerate(due):
        if (left := began + moment - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        waiting.put_nowait((began + moment, requests[number % target.count]))
    for _ in running:
        waiting.put_nowait(None)
    await asyncio.gather(*running)
    return latencies


def _report(latencies: Sequence[float], rate: float) -> dict[str, float]:
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "rate": round(rate, 1),
        "p50_milliseconds": round(1e3 * float(p50), 2),
        "p99_milliseconds": round(1e3 * float(p99), 2),
    }


if __name__ == "__main__":
    about, wanted, duration, connections = json.loads(sys.argv[1])
    found = asyncio.run(_at_rate(Target(**about), wanted, duration, connections))
    print(json.dumps(_report(found, wanted)))

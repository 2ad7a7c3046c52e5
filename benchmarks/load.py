"""Bounded load on a server of the Open Inference Protocol on this machine."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ebjr.protocol import LENGTH_HEADER, InferRequest, write_request

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Measured:
    """Result of a load: seconds of each request, seconds of the run, and failures."""

    latencies: np.ndarray
    seconds: float
    failed: int

    def as_dict(self, rows: int) -> dict[str, float]:
        """Requests and rows a second, and the latencies in milliseconds."""
        rate = len(self.latencies) / self.seconds
        p50, p99 = 1e3 * np.quantile(self.latencies, [0.5, 0.99])
        return {
            "requests_per_second": round(rate, 2),
            "rows_per_second": round(rate * rows, 1),
            "p50_milliseconds": round(float(p50), 2),
            "p99_milliseconds": round(float(p99), 2),
            "failed": self.failed,
        }


def requests(name: str, inputs: np.ndarray, rows: int) -> list[bytes]:
    """Return whole HTTP requests, binary tensors of some rows each."""
    found = []
    for start in range(0, len(inputs) - rows + 1, rows):
        body, length = write_request(
            InferRequest({name: inputs[start : start + rows]}, binary=True)
        )
        head = (
            f"POST /v2/models/joint/infer HTTP/1.1\r\nHost: {HOST}\r\n"
            "Content-Type: application/octet-stream\r\n"
            f"Content-Length: {len(body)}\r\n{LENGTH_HEADER}: {length}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


def closed(port: int, asked: Sequence[bytes], clients: int, seconds: float) -> Measured:
    """Measure `clients` clients, each of which asks again as soon as it has its answer."""

    async def client(number: int, until: float, latencies: list[float]) -> int:
        failed, line = 0, _Line(port)
        turn = number
        while (began := time.perf_counter()) < until:
            failed += await line.ask(asked[turn % len(asked)]) != 200
            latencies.append(time.perf_counter() - began)
            turn += 1
        line.close()
        return failed

    async def all_clients() -> Measured:
        latencies: list[float] = []
        began = time.perf_counter()
        failed = await asyncio.gather(
            *(client(number, began + seconds, latencies) for number in range(clients))
        )
        return Measured(np.array(latencies), time.perf_counter() - began, sum(failed))

    return asyncio.run(all_clients())


def opened(port: int, asked: Sequence[bytes], times: np.ndarray) -> Measured:
    """Requests at given times, in seconds from now, whether or not others are answered."""

    async def one(number: int, at: float, began: float, idle: list[_Line]) -> tuple[float, bool]:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        line = idle.pop() if idle else _Line(port)
        status = await line.ask(asked[number % len(asked)])
        idle.append(line)
        return time.perf_counter() - began - at, status != 200

    async def all_requests() -> Measured:
        idle: list[_Line] = []
        began = time.perf_counter() + 0.1
        told = await asyncio.gather(
            *(one(number, at, began, idle) for number, at in enumerate(times.tolist()))
        )
        seconds = time.perf_counter() - began
        for line in idle:
            line.close()
        return Measured(np.array([t for t, _ in told]), seconds, sum(bad for _, bad in told))

    gc.disable()  # a pause of these clients is none of the server's
    try:
        return asyncio.run(all_requests())
    finally:
        gc.enable()


class _Line:
    """A kept connection, made anew where the server has closed it between two requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the answer."""
        kept = self._writer is not None
        try:
            return await self._ask(request)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if not kept or getattr(error, "partial", b""):
                raise
            self.close()
            return await self._ask(request)

    async def _ask(self, request: bytes) -> int:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        self._writer.write(request)
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if found:
            await self._reader.readexactly(int(rest.split(b"\r\n")[0]))
        else:  # chunked
            while size := int(await self._reader.readline(), 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readline()
        return int(head.split()[1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

"""Lanes: threads beside the event loop for work that must neither block it nor the models.

Decoding, resizing and decompressing release the interpreter, so a lane's work and the models'
compete for the processor alone.
"""

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ebjr.threads import shared_cores

Found = TypeVar("Found")

LARGE_BYTES = 128 * 2**10  # larger bodies take milliseconds: a thread parses them
LARGE_PIXELS = 2**19  # more take tens of milliseconds to decode and resize
NICENESS = 5  # of large work: a third of the share of a model's thread


class Lane:
    """Threads that do one client's work after another's, however much each has queued."""

    def __init__(self, name: str, workers: int = 1, niceness: int = 0) -> None:
        begin = partial(_yield_to_others, niceness)
        self._threads = ThreadPoolExecutor(workers, f"ebjr-{name}", begin)
        self._lines: dict[Any, deque[Callable[[], None]]] = {}  # by client; the first is next
        self._lock = threading.Lock()

    def put(self, client: Any, work: Callable[[], None]) -> None:
        """Queue work of a client."""
        with self._lock:
            self._lines.setdefault(client, deque()).append(work)
        self._threads.submit(self._next)

    async def run(self, client: Any, function: Callable[..., Found], *given: Any) -> Found:
        """Call a function in the client's turn; not at all if this is canceled before."""
        future: Future[Found] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*given))
            except Exception as error:
                future.set_exception(error)

        self.put(client, work)
        return await asyncio.wrap_future(future)

    def _next(self) -> None:
        with self._lock:
            client, line = next(iter(self._lines.items()))
            work = line.popleft()
            del self._lines[client]
            if line:  # to the end of the round
                self._lines[client] = line
        work()

    def stop(self) -> None:
        """Drop the work that has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Lanes:
    """A server's two lanes, so that small work does not wait for large work."""

    def __init__(self) -> None:
        self.small = Lane("small")
        self.large = Lane("large", shared_cores(2), NICENESS)

    def stop(self) -> None:
        """Drop the work that has not begun."""
        self.small.stop()
        self.large.stop()


async def aside(size: int, function: Callable[..., Found], *arguments: Any) -> Found:
    """Call a function on `size` bytes: in a thread if they are many.

    It is no lane's thread: parsing holds the interpreter, and must not do so at leisure.
    """
    if size <= LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _yield_to_others(niceness: int) -> None:
    """Let other threads go before this one, where a thread has a niceness of its own."""
    if niceness and sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

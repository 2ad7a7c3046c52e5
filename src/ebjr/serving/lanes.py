"""Lanes: threads beside the event loop for work that must neither block it nor the models.

Decoding, resizing and decompressing release the interpreter, so a lane's work and the models'
compete for the processor alone.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from ebjr.serving.turns import Lines, path_of
from ebjr.threads import shared_cores

Found = TypeVar("Found")

LARGE_BYTES = 128 * 2**10  # larger bodies take milliseconds: a thread parses them
LARGE_PIXELS = 2**19  # more take tens of milliseconds to decode and resize
NICENESS = 5  # of large work: a third of the share of a model's thread


@dataclass(frozen=True)
class Work:
    """Work that is done as a whole."""

    do: Callable[[], None]
    count: int = 1
    open: bool = True

    def cut(self, start: int, stop: int | None) -> Self:
        """Return itself: there is one."""
        return self


class Lane:
    """Threads that do the clients' work in turns, however much each has queued."""

    def __init__(self, name: str, workers: int = 1, niceness: int = 0) -> None:
        begin = partial(_yield_to_others, niceness)
        self._threads = ThreadPoolExecutor(workers, f"ebjr-{name}", begin)
        self._lines = Lines[Work]()
        self._lock = threading.Lock()

    def put(self, client: Any, work: Callable[[], None]) -> None:
        """Queue work of a client."""
        with self._lock:
            self._lines.put(Work(work), *path_of(client))
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
        taken: list[Work] = []
        with self._lock:
            self._lines.take(1, taken)
        taken[0].do()

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

    It is no lane's thread: parsing holds the interpreter, so it must not run at low priority.
    """
    if size <= LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _yield_to_others(niceness: int) -> None:
    """Let other threads go before this one, where a thread has a niceness of its own."""
    if niceness and sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

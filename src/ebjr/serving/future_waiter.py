"""Futures of threads, awaited in an event loop: however many are done at once, it is woken once."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from typing import Any

from ebjr.serving.deadlines import Deadlines


class FutureWaiter:
    """Lets one event loop wait for the futures of a pipeline's threads.

    `asyncio.wrap_future` wakes the loop for each future, with a system call each time. Here the
    first of a batch does, and the loop finds the others when it comes.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._letters: deque[asyncio.Future[None]] = deque()
        self._rung = False

    async def until_done(self, future: concurrent.futures.Future[Any], within: float) -> None:
        """Wait for a thread's future; TimeoutError after `within` seconds.

        Cancelling this wait does not cancel the future.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def deliver(_: Any) -> None:
            self._letters.append(waiter)
            if not self._rung and not loop.is_closed():  # two may ring: once more than needed
                self._rung = True
                loop.call_soon_threadsafe(self._read)

        future.add_done_callback(deliver)
        wait = self._deadlines.begin(within, lambda: _give_up(waiter))
        try:
            await waiter
        finally:
            self._deadlines.end(wait)

    def _read(self) -> None:
        self._rung = False  # before looking: who leaves a letter after the last look rings again
        while self._letters:
            waiter = self._letters.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())

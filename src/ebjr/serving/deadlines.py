"""Waits in an event loop: their deadlines, with one timer for all, and futures of threads.

A timer of the loop's own costs more than all else that a short wait does, and hardly any rings.
However many futures are done at once, the loop is woken once.
"""

import asyncio
import concurrent.futures
import math
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any


class Deadlines:
    """Calls a function for each wait of one event loop that takes too long."""

    def __init__(self) -> None:
        self._waits: dict[int, tuple[float, Callable[[], Any]]] = {}
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._rings = math.inf  # when the timer does

    def begin(self, seconds: float, otherwise: Callable[[], Any]) -> int:
        """Wait so long at most, else `otherwise` is called: the wait's number."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        number = next(self._numbers)
        self._waits[number] = until, otherwise
        if until < self._rings:
            self._set(loop, until)
        return number

    def end(self, number: int) -> None:
        """A wait is over; also where it has been for long."""
        self._waits.pop(number, None)

    def _set(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = until
        self._timer = loop.call_at(until, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer, self._rings = None, math.inf
        due = [number for number, (until, _) in self._waits.items() if until <= now]
        for number in due:
            self._waits.pop(number)[1]()
        if self._waits:
            self._set(loop, min(until for until, _ in self._waits.values()))


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

        def give_up() -> None:
            if not waiter.done():
                waiter.set_exception(TimeoutError())

        future.add_done_callback(deliver)
        wait = self._deadlines.begin(within, give_up)
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

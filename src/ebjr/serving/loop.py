"""Waits in an event loop: their deadlines, with one timer for all, and calls from threads.

A timer of the loop's own costs more than all else that a short wait does, and hardly any rings.
However many calls come at once, the loop is woken once.
"""

import asyncio
import logging
import math
import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

log = logging.getLogger("ebjr.serving")


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
            if (wait := self._waits.pop(number, None)) is not None:
                loop.call_soon(wait[1])  # one that fails costs the others nothing
        if self._waits:
            self._set(loop, min(until for until, _ in self._waits.values()))


class Bell:
    """Calls that threads hand to an event loop, which is woken once for many of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: Callable[[], Any]
        self._calls: deque[Callable[[], Any]] = deque()
        self._rung = False

    def here(self) -> None:
        """Hand the calls to the loop that runs this."""
        if self._loop is None:
            self._loop = loop = asyncio.get_running_loop()
            self._wake = partial(loop.call_soon_threadsafe, self.read)
            if hasattr(os, "eventfd"):  # whose call does not keep the interpreter from the others
                event = os.eventfd(0, os.EFD_NONBLOCK)
                weakref.finalize(self, os.close, event)
                loop.add_reader(event, self._woken, event)
                self._wake = partial(os.eventfd_write, event, 1)

    def mute(self) -> None:
        """In the loop's own thread, which will `read` before long: nobody need wake it."""
        self.here()
        self._rung = True

    def post(self, call: Callable[[], Any]) -> None:
        """Keep a call for the loop until somebody rings."""
        self._calls.append(call)

    def ring(self) -> None:
        """Wake the loop if there are calls for it."""
        loop = self._loop
        if self._calls and not self._rung and loop is not None and not loop.is_closed():
            self._rung = True  # two may ring: once more than needed
            self._wake()

    def _woken(self, event: int) -> None:
        os.eventfd_read(event)
        self.read()

    def read(self) -> None:
        """Do what was handed in."""
        self._rung = False  # before looking: who posts after the last look rings again
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:  # the others are done all the same
                log.exception("a call from a thread has failed")

"""Deadlines of many waits, with one timer for all.

A timer of the loop's own costs more than all else that a short wait does, and hardly any rings.
"""

from __future__ import annotations

import asyncio
import math
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

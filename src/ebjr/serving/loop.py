"""Calls from threads to an event loop."""

import asyncio
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

log = logging.getLogger("ebjr.serving")


class Bell:
    """Calls from threads to an event loop, which is woken once for many of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: Callable[[], Any]
        self._calls: deque[Callable[[], Any]] = deque()
        self._rung = False

    def mute(self) -> None:
        """Skip wake-ups for now: the loop's own thread calls this, and will soon `read`."""
        self._rung = True
        if self._loop is None:
            self._loop = loop = asyncio.get_running_loop()
            self._wake = partial(loop.call_soon_threadsafe, self.read)
            if hasattr(os, "eventfd"):  # its write releases the interpreter for other threads
                event = os.eventfd(0, os.EFD_NONBLOCK)
                weakref.finalize(self, os.close, event)
                loop.add_reader(event, self._woken, event)
                self._wake = partial(os.eventfd_write, event, 1)

    def post(self, call: Callable[[], Any]) -> None:
        """Queue a call until the next `ring`."""
        self._calls.append(call)

    def ring(self) -> None:
        """Wake the loop if calls are queued."""
        loop = self._loop
        if self._calls and not self._rung and loop is not None and not loop.is_closed():
            self._rung = True  # a race here wakes the loop twice, which is harmless
            self._wake()

    def _woken(self, event: int) -> None:
        os.eventfd_read(event)
        self.read()

    def read(self) -> None:
        """Run the queued calls."""
        self._rung = False  # before the loop: a call posted after the last check rings again
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:  # the other calls go on
                log.exception("a call from a thread failed")

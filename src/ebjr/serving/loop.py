"""Calls that threads hand to an event loop."""

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
    """Calls that threads hand to an event loop, which is woken once for many of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: Callable[[], Any]
        self._calls: deque[Callable[[], Any]] = deque()
        self._rung = False

    def mute(self) -> None:
        """In the loop's own thread, which will `read` before long: nobody need wake it."""
        self._rung = True
        if self._loop is None:
            self._loop = loop = asyncio.get_running_loop()
            self._wake = partial(loop.call_soon_threadsafe, self.read)
            if hasattr(os, "eventfd"):  # whose call does not keep the interpreter from the others
                event = os.eventfd(0, os.EFD_NONBLOCK)
                weakref.finalize(self, os.close, event)
                loop.add_reader(event, self._woken, event)
                self._wake = partial(os.eventfd_write, event, 1)

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

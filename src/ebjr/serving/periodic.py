"""A thread that does a server's chores, again and again, until it is stopped."""

import logging
import threading
from collections.abc import Callable

from ebjr.threads import background

log = logging.getLogger("ebjr.serving")


class Periodic:
    """Does chores in turn, again and again; one that fails is logged, and done again next time.

    `seconds` is from the end of one round to the next, and to the first unless it is `at_once`.
    """

    def __init__(self, seconds: float, *chores: Callable[[], None], at_once: bool = False) -> None:
        self._seconds, self._chores, self._at_once = seconds, chores, at_once
        self._stopping = threading.Event()
        self._thread = background("periodic", self._run)
        self._failing: dict[Callable[[], None], str] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the round that has begun."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def do(self, chore: Callable[[], None]) -> None:
        """Do a chore once; if it fails, that is logged, and no error."""
        try:
            chore()
            self._failing.pop(chore, None)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if said != self._failing.get(chore):  # once, not for as long as a disk is full
                words = "a chore of the server has failed and will be tried again"
                log.exception(words, extra={"kind": chore})
            self._failing[chore] = said

    def _run(self) -> None:
        wait = 0.0 if self._at_once else self._seconds
        while not self._stopping.wait(wait):
            wait = self._seconds
            for chore in self._chores:
                self.do(chore)

"""A thread that repeats a server's chores until it is stopped."""

import logging
import threading
from collections.abc import Callable

from ebjr.threads import background

log = logging.getLogger("ebjr.serving")


class Periodic:
    """Runs chores in turn, again and again; a failed chore is logged and retried next time.

    `seconds` pass between two rounds, and before the first unless `at_once` is set.
    """

    def __init__(self, seconds: float, *chores: Callable[[], None], at_once: bool = False) -> None:
        self._seconds, self._chores, self._at_once = seconds, chores, at_once
        self._stopping = threading.Event()
        self._thread = background("periodic", self._run)
        self._failing: dict[Callable[[], None], str] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the current round."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def do(self, chore: Callable[[], None]) -> None:
        """Run a chore once; a failure is logged, not raised."""
        try:
            chore()
            self._failing.pop(chore, None)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if said != self._failing.get(chore):  # log once, not as long as a disk is full
                words = "a background task failed and will be retried"
                log.exception(words, extra={"kind": chore})
            self._failing[chore] = said

    def _run(self) -> None:
        wait = 0.0 if self._at_once else self._seconds
        while not self._stopping.wait(wait):
            wait = self._seconds
            for chore in self._chores:
                self.do(chore)

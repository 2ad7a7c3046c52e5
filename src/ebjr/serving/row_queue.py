"""Rows that wait for a model: requests put theirs in, and a worker takes batches of them out."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a request, its `ticket`."""

    ticket: Any
    rows: Any  # their numbers, an array or a range
    since: float = field(default_factory=time.perf_counter, kw_only=True)  # when they began to wait

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def form(self) -> Any:
        """What rows of one batch have in common, as `form_of` says it."""
        return self.ticket.form

    @property
    def answered(self) -> bool:
        """Whether nobody waits for them any more."""
        return bool(self.ticket.future.done())

    def cut(self, start: int, stop: int | None) -> Self:
        """Some of its rows."""
        return replace(self, rows=self.rows[start:stop])


P = TypeVar("P", bound=Part)


class RowQueue(Generic[P]):
    """Parts that wait for a model, counted in rows, the first in first.

    `take` waits up to `max_wait_seconds` for more rows, where they arrive fast enough to fill a
    batch by then; else it takes what there is.
    """

    def __init__(
        self,
        limit: float = float("inf"),
        max_wait_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.rows = 0
        self.closed = False
        self._parts: deque[P] = deque()
        self._lock = threading.Lock()  # taken by itself it costs a third of the condition
        self._changed = threading.Condition(self._lock)
        self._wait = max_wait_seconds
        self._clock = clock
        self._gap, self._size = float("inf"), 1.0  # seconds between parts and their rows, smoothed
        self._last = clock()

    def put(self, part: P, *, bounded: bool) -> bool:
        """Add a part; False where it is over the limit or the queue is closed."""
        count = len(part)
        with self._lock:
            if bounded and self._full(count):
                self._drop_answered()
            if self.closed or (bounded and self._full(count)):
                return False
            self._arrived(count)
            self._parts.append(part)
            self.rows += count
            self._changed.notify()
            return True

    def _arrived(self, count: int) -> None:
        now = self._clock()
        gap, self._last = now - self._last, now
        known = self._gap < float("inf")
        self._gap = 0.9 * self._gap + 0.1 * gap if known else gap
        self._size = 0.9 * self._size + 0.1 * count if known else count

    def full(self, count: int) -> bool:
        """Whether so many rows more are over the limit; what nobody waits for does not count."""
        if not self._full(count):  # the common case, and a moment later it may be another one
            return False
        with self._changed:
            self._drop_answered()
            return self._full(count)

    def _full(self, count: int) -> bool:
        return self.rows > 0 and self.rows + count > self.limit

    def _drop_answered(self) -> None:
        """Forget what nobody waits for: cancelled, hurried or failed."""
        self._parts = deque(part for part in self._parts if not part.answered)
        self.rows = sum(map(len, self._parts))

    def take(self, most: int, otherwise: Callable[[], bool] = lambda: False) -> list[P]:
        """Up to `most` rows; none once the queue is closed and empty, or has better to do.

        Nor where nobody waits any more for the rows that were taken. `otherwise` is asked while
        the queue is empty, and again after each `poke`.
        """
        with self._lock:
            while not self._parts and not self.closed:
                if otherwise():
                    return []
                self._changed.wait()
            self._wait_for_more(most)
            taken: list[P] = []
            room = most
            while self._parts and room:
                part = self._parts.popleft()
                self.rows -= len(part)
                if part.answered:  # cancelled, hurried or failed: nobody waits for it
                    continue
                if len(part) > room:
                    rest = part.cut(room, None)
                    self._parts.appendleft(rest)
                    self.rows += len(rest)
                    part = part.cut(0, room)
                taken.append(part)
                room -= len(part)
            if self._parts:  # for another worker
                self._changed.notify()
            return taken

    def _wait_for_more(self, most: int) -> None:
        if not self._wait or self._gap / self._size * (most - self.rows) > self._wait:
            return
        until = self._clock() + self._wait
        while self.rows < most and not self.closed and (left := until - self._clock()) > 0:
            self._changed.wait(left)

    def poke(self) -> None:
        """Ask whoever waits for rows whether it has better to do."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more; what waits is still given out."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    @property
    def drained(self) -> bool:
        """Whether it is closed and empty."""
        with self._lock:
            return self.closed and not self._parts


def form_of(inputs: Any) -> Any:
    """What the rows of one batch have in common: the shape of a row and its type."""
    return getattr(inputs, "shape", ())[1:], getattr(inputs, "dtype", None)


def alike(parts: Sequence[P]) -> list[list[P]]:
    """Parts whose rows can be one batch: arrays of the same shape and type, or lists."""
    groups: dict[Any, list[P]] = {}
    for part in parts:
        groups.setdefault(part.form, []).append(part)
    return list(groups.values())


def spans(parts: Sequence[P]) -> Iterator[tuple[P, slice]]:
    """Each part, and where its rows are in the batch of all."""
    end = 0
    for part in parts:
        start, end = end, end + len(part)
        yield part, slice(start, end)

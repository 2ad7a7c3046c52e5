"""Whose turn it is: the address that has had least lately, and its connections one by one.

Clients that ask for little are answered at once, and the others share the rest. A machine gets no
more by opening more connections: those behind one address, such as a proxy's, share its turns.

`Lines` do not lock: the caller does.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from heapq import nlargest
from operator import itemgetter
from typing import Generic, Protocol, Self, TypeVar


class Portion(Protocol):
    """Rows of one request."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def open(self) -> bool:
        """Whether its caller still waits for it."""

    def cut(self, start: int, stop: int | None) -> Self:
        """Return a slice of the rows."""


Item = TypeVar("Item", bound=Portion)

FADING_SECONDS = 10.0  # in which usage fades to a third
MOST_FADINGS, MOST_ADDRESSES = 100.0, 4096  # after which the light ones are forgotten


def path_of(client: Hashable) -> tuple[Hashable, Hashable]:
    """Return a client's address and connection; anything but a pair is an address."""
    return client if isinstance(client, tuple) and len(client) == 2 else (client, None)


class Usage:
    """What each address has had lately, in seconds of work that fade, for comparisons alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._of: dict[Hashable, float] = {}
        self._clock, self._since = clock, clock()
        self._lock = threading.Lock()

    def __getitem__(self, address: Hashable) -> float:
        return self._of.get(address, 0.0)

    def share(self, seconds: float, rows: Iterable[tuple[Hashable, int]]) -> None:
        """Count a batch for the addresses of its rows."""
        had = Counter[Hashable]()
        for address, count in rows:
            had[address] += count
        for address, count in had.items():
            self.add(address, seconds * count / had.total())

    def add(self, address: Hashable, seconds: float) -> None:
        """Count work for an address: later work counts more, instead of earlier work less."""
        with self._lock:
            now = (self._clock() - self._since) / FADING_SECONDS
            if now > MOST_FADINGS or len(self._of) > MOST_ADDRESSES:
                self._since = self._clock()
                most = nlargest(MOST_ADDRESSES // 2, self._of.items(), key=itemgetter(1))
                self._of = {one: had * math.exp(-now) for one, had in most}
                now = 0.0
            self._of[address] = self[address] + seconds * math.exp(now)


class Line(Generic[Item]):
    """The items of one connection, first in, first out; `rows` is the sum of their rows."""

    __slots__ = ("items", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.items: deque[Item] = deque()

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def put(self, item: Item, *path: Hashable) -> None:
        """Add an item."""
        self.items.append(item)
        self.rows += item.count

    def take(self, most: int, taken: list[Item]) -> int:
        """Take up to `most` rows, and drop what nobody waits for; return how many more fit."""
        while self.items and most:
            item = self.items.popleft()
            if item.open and item.count > most:
                self.items.appendleft(item.cut(most, None))
                item = item.cut(0, most)
            self.rows -= item.count
            if item.open:
                taken.append(item)
                most -= item.count
        return most

    def take_first(self, fits: Callable[[Item], bool], taken: list[Item]) -> None:
        """Take the first items for as long as they fit."""
        while self.items and fits(self.items[0]):
            taken.append(self.items.popleft())
            self.rows -= taken[-1].count


class Lines(Generic[Item]):
    """Lines by address: first those with least `usage`. Without it, they take turns."""

    __slots__ = ("lines", "rows", "usage")

    def __init__(self, usage: Usage | None = None) -> None:
        self.rows, self.usage = 0, usage
        self.lines: dict[Hashable, Lines[Item] | Line[Item]] = {}

    def __iter__(self) -> Iterator[Item]:
        return (item for line in self.lines.values() for item in line)

    def put(self, item: Item, *path: Hashable) -> None:
        """Add an item to the line at a path, such as an address and a connection."""
        key, *more = path
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Lines() if more else Line()
        line.put(item, *more)
        self.rows += item.count

    def take(self, most: int, taken: list[Item]) -> int:
        """Take up to `most` rows, shared equally by the lines; return how many more fit."""
        while most and self.lines:
            share = max(1, most // len(self.lines))
            for key in self._order():
                line, fit = self.lines.pop(key), min(share, most)
                self.rows -= line.rows
                most -= fit - line.take(fit, taken)
                self.rows += line.rows
                if line.rows:  # to the end of the round
                    self.lines[key] = line
                if not most:
                    break
        return most

    def _order(self) -> list[Hashable]:
        if self.usage is not None:
            return sorted(self.lines, key=self.usage.__getitem__)
        first, *others = self.lines  # the line whose turn it is, then the shortest
        return [first, *sorted(others, key=lambda key: self.lines[key].rows)]

    def least(self) -> float:
        """Return the least usage of an address in line; infinity if there is none."""
        if self.usage is None:
            return math.inf
        return min(map(self.usage.__getitem__, self.lines), default=math.inf)

    def take_first(self, fits: Callable[[Item], bool], taken: list[Item]) -> None:
        """Take the first items of each line for as long as they fit."""
        for key, line in [*self.lines.items()]:
            self.rows -= line.rows
            line.take_first(fits, taken)
            self.rows += line.rows
            if not line.rows:
                del self.lines[key]

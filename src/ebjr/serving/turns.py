"""Clients that take turns: the addresses first, then the connections of each address.

So a machine gets no more by opening more connections, and behind one address, as of a proxy, its
connections are equal.

Nothing here locks: the caller does.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, Self, TypeVar


class Portion(Protocol):
    """Rows of one request: their number, and whether its caller still waits."""

    count: int

    @property
    def open(self) -> bool:
        """Whether its caller still waits for it."""

    def cut(self, start: int, stop: int | None) -> Self:
        """Return a slice of the rows."""


Item = TypeVar("Item", bound=Portion)


def path_of(client: Hashable) -> tuple[Hashable, Hashable]:
    """Return a client's address and connection; anything but a pair is an address."""
    return client if isinstance(client, tuple) and len(client) == 2 else (client, None)


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
    """Lines by address, or by connection, that take turns; the first is next."""

    __slots__ = ("lines", "rows")

    def __init__(self) -> None:
        self.rows = 0
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
            # the line whose turn it is goes first, then the shortest
            first, *others = self.lines
            others.sort(key=lambda key: self.lines[key].rows)
            for key in (first, *others):
                line, fit = self.lines.pop(key), min(share, most)
                self.rows -= line.rows
                most -= fit - line.take(fit, taken)
                self.rows += line.rows
                if line.rows:  # to the end of the round
                    self.lines[key] = line
                if not most:
                    break
        return most

    def take_first(self, fits: Callable[[Item], bool], taken: list[Item]) -> None:
        """Take the first items of each line for as long as they fit."""
        for key, line in [*self.lines.items()]:
            self.rows -= line.rows
            line.take_first(fits, taken)
            self.rows += line.rows
            if not line.rows:
                del self.lines[key]

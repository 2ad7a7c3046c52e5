"""Rows of many requests, batched again for each model: those that arrive, and those deferred.

Nothing here locks: the caller holds the engine's lock.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ebjr.arrays import Batch, join_rows, put_rows, take_rows
from ebjr.serving.turns import Lines, Usage, path_of

if TYPE_CHECKING:
    from ebjr.serving.engine import Ticket


FEW = 3  # queued rows that make a later model's batch worthwhile
PATIENCE = 0.004  # seconds that fewer deferred rows wait for others
YIELD_SECONDS = 5.0  # age of a request at which its rows stop yielding to lower priorities


class Said(NamedTuple):
    """The models' answers to n rows, as columns of n; `output` is a list if answers are lists.

    `degraded`, `stage`, `features` and `spent` are those of `ebjr.model.Answer`; the last two may
    be None.
    """

    output: Batch
    degraded: Any
    stage: Any
    features: Any = None
    spent: Any = None


class Part:
    """Some rows of a ticket, (k,); for a later model, with what the earlier models `said`."""

    __slots__ = ("count", "rows", "said", "since", "ticket")

    def __init__(self, ticket: "Ticket", rows: Any, said: Any = None) -> None:
        self.ticket, self.rows, self.said = ticket, rows, said
        self.count = len(rows)
        self.since = time.perf_counter()  # when the rows were queued

    @property
    def open(self) -> bool:
        """Whether a caller still waits for the answer."""
        return self.ticket.open

    @property
    def inputs(self) -> Batch:
        """The rows' inputs, as the request sent them."""
        inputs, rows = self.ticket.inputs, self.rows
        return inputs if self.count == self.ticket.rows else take_rows(inputs, index_of(rows))

    def cut(self, start: int, stop: int | None) -> "Part":
        """Return a slice of the rows, as old as the whole."""
        said = self.said and some(self.said, slice(start, stop))
        found = Part(self.ticket, self.rows[start:stop], said)
        found.since = self.since
        return found


class RowQueue:
    """Parts queued for a model, counted in rows; clients take turns, see `turns`.

    Rows of priority 2 and above yield to lower numbers until their request is `YIELD_SECONDS` old.
    With `wait` above 0, a batch is not `ready` for that many seconds if more rows arrive fast
    enough to fill it by then.
    """

    def __init__(
        self,
        wait: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
        usage: Usage | None = None,
    ) -> None:
        self.rows, self._usage = 0, usage or Usage()
        self._first = Lines[Part](self._usage)
        self._later: dict[int, Lines[Part]] = {}  # by priority, 2 and above
        self._wait, self._clock = wait, clock
        self._gap, self._size = math.inf, 1.0  # seconds between parts, rows in each; smoothed
        self._last = clock()

    def put(self, part: Part) -> None:
        """Add a part to its client's line."""
        lines, priority = self._first, part.ticket.priority
        if priority > 1:
            lines = self._later.setdefault(priority, Lines[Part](self._usage))
        lines.put(part, *path_of(part.ticket.client))
        self.rows += part.count
        if self._wait:
            now = self._clock()
            gap, self._last = now - self._last, now
            known = self._gap < math.inf
            self._gap = 0.9 * self._gap + 0.1 * gap if known else gap
            self._size = 0.9 * self._size + 0.1 * part.count

    def take(self, most: int) -> list[Part]:
        """Take up to `most` rows of open requests, by priority, then equally by client."""
        if self._later:
            return self._take_by_priority(most)
        if self.rows <= most:  # the common case
            lines, self._first, self.rows = self._first, Lines[Part](self._usage), 0
            return [part for part in lines if part.open]
        taken: list[Part] = []
        self._first.take(most, taken)
        self.rows = self._first.rows
        return taken

    def _take_by_priority(self, most: int) -> list[Part]:
        self._age()
        taken: list[Part] = []
        for lines in (self._first, *self._yielding()):
            most = lines.take(most, taken)
        self._later = {own: lines for own, lines in self._later.items() if lines.rows}
        self.rows = self._first.rows + sum(lines.rows for lines in self._later.values())
        return taken

    def _yielding(self) -> list[Lines[Part]]:
        """Return the lines that yield, in the order of their priority."""
        return [self._later[priority] for priority in sorted(self._later)]

    def _age(self) -> None:
        """Move rows that have yielded long enough to the first lines."""
        since = self._clock() - YIELD_SECONDS
        for lines in self._yielding():
            old: list[Part] = []
            lines.take_first(lambda part: part.ticket.since < since, old)
            for part in old:
                self._first.put(part, *path_of(part.ticket.client))

    def age(self) -> float:
        """Return the seconds that the next part has waited."""
        lines = self._first
        if not lines.rows and self._later:
            lines = self._yielding()[0]
        part = next(iter(lines), None)
        return 0.0 if part is None else self._clock() - part.since

    def is_worthwhile(self) -> bool:
        """Whether a later model should be asked while earlier models have work."""
        return self.rows >= FEW or self.age() > PATIENCE

    def least(self) -> float:
        """Return the least usage of an address whose rows do not yield."""
        return self._first.least()

    def ready(self, most: int) -> bool:
        """Whether a batch of at most `most` rows should start now."""
        if not self._wait or self.rows >= most or not self.rows:
            return self.rows > 0
        soon = self._gap / self._size * (most - self.rows) <= self._wait
        return not soon or self.age() >= self._wait

    def holds(self) -> float:
        """Return the seconds until a batch is ready at the latest; infinity if ready or empty."""
        left = self._wait - self.age()
        return left if self.rows and left > 0 else math.inf


def index_of(rows: Any) -> Any:
    """Return an index for NumPy: a slice for a range, which takes a view and copies nothing."""
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


def form_of(inputs: Any) -> Any:
    """Return what the rows of one batch share: the shape of a row, and the type."""
    return getattr(inputs, "shape", ())[1:], getattr(inputs, "dtype", None)


def alike(parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts into batches: arrays of one row shape and type, or lists."""
    groups: dict[Any, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.ticket.form, []).append(part)
    return list(groups.values())


def spans(parts: Sequence[Part]) -> Iterator[tuple[Part, slice]]:
    """Yield each part with the slice of the batch that holds its rows."""
    end = 0
    for part in parts:
        start, end = end, end + part.count
        yield part, slice(start, end)


def pick(parts: Sequence[Part], yes: np.ndarray, said: Said | None = None) -> list[Part]:
    """Return parts of the marked rows, with what is `said` of the batch, or each part's own."""
    found = []
    for part, own in spans(parts):
        if len(rows := np.flatnonzero(yes[own])):
            words = some(part.said, rows) if said is None else some(said, rows + own.start)
            found.append(Part(part.ticket, np.asarray(part.rows)[rows], words))
    return found


def some(said: Said, rows: Any) -> Said:
    """Return the columns at some rows."""
    return Said._make([None if column is None else take_rows(column, rows) for column in said])


def join(parts: Sequence[Part]) -> Said:
    """Join what was said of all parts into one."""
    if len(parts) == 1:
        return parts[0].said
    columns = zip(*[part.said for part in parts], strict=True)
    return Said._make([_joined(column, parts) for column in columns])


def _joined(column: Sequence[Any], parts: Sequence[Part]) -> Any:
    like = next((one for one in column if one is not None), None)
    if like is None:
        return None
    both = zip(column, parts, strict=True)  # a model that reports spending may skip a batch
    return join_rows(
        [np.zeros((p.count, *like.shape[1:])) if one is None else one for one, p in both]
    )


def put(known: Said | None, size: int, rows: Any, said: Said) -> Said:
    """Write what was said of some rows into what is `known` of `size` rows."""
    columns = Said(None, None, None) if known is None else known
    return Said._make([_put(own, size, rows, new) for own, new in zip(columns, said, strict=True)])


def _put(known: Any, size: int, rows: Any, new: Any) -> Any:
    if new is None:
        return known
    if known is None and isinstance(new, list | tuple):
        known = [new[0]] * size
    elif known is None:
        known = np.zeros((size, *new.shape[1:]), new.dtype)
    if isinstance(known, list) or np.result_type(known, new) != known.dtype:
        return put_rows(known, np.asarray(rows), new)
    known[index_of(rows)] = new
    return known

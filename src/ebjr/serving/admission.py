"""Admission: what all requests at work hold, in one place, and what a client's share of it is.

A request holds bytes (its body, its arrays, the pixels that its images are decoded to), rows, and
the seconds that the models are expected to spend on them, from before they are there until it has
been answered. What exceeds a limit by itself is never taken; what exceeds it with what is held is
refused until there is room. While more than half of a limit is held, no client holds more than an
equal share of it; and a quarter more is kept for small requests of clients that hold nothing.
"""

import threading
from collections.abc import Hashable, Sequence
from typing import Self

from ebjr.errors import Overloaded, TooLarge

SPARE = 1.25  # of each limit is the most that is ever held
SMALL = 1 / 64  # of a limit: what a client that holds nothing may have of the rest

NOTHING = (0.0, 0.0, 0.0)
SECONDS = "seconds of the models' work"
_CALLED = ("bytes of requests", "rows", SECONDS)


class Admission:
    """How many bytes, rows and seconds may be held, by all clients together.

    Bytes are memory, of which a server has one: those of `beside`, of another model, count too.
    """

    def __init__(
        self, *, bytes: float, rows: float, seconds: float, beside: "Admission | None" = None
    ) -> None:
        self.limits = (bytes, rows, seconds)
        self.held = list(NOTHING)
        self.open = 0  # holds that have not ended
        self._of: dict[Hashable, list[float]] = {}  # each client that holds anything
        self._all: list[float] = [0.0] if beside is None else beside._all  # bytes
        self._lock: threading.Lock = threading.Lock() if beside is None else beside._lock

    def hold(self, client: Hashable) -> "Hold":
        """What one request of a client holds: nothing yet."""
        with self._lock:
            self.open += 1
        return Hold(self, client)

    @property
    def rows(self) -> float:
        """How many are held."""
        return self.held[1]

    def take(self, hold: "Hold", more: Sequence[float]) -> None:
        """Hold more, all of it or nothing; less, where that is below 0.

        TooLarge: it exceeds a limit by itself. Overloaded: it does so with what is held.
        """
        with self._lock:
            if hold.over:  # and somebody is still at work for it
                return
            own = self._of.get(hold.client) or list(NOTHING)
            for place, amount in enumerate(more):
                held = self.held[place] if place else self._all[0]
                if amount > 0 and held + amount > self.limits[place] / 2:
                    self._check(place, held, own, amount)
            self._of[hold.client] = own
            self._all[0] += more[0]
            for place, amount in enumerate(more):
                self.held[place] += amount
                own[place] += amount
                hold.mine[place] += amount

    def give(self, hold: "Hold") -> None:
        """Let go of all that a request holds, for good."""
        with self._lock:
            if hold.over:
                return
            hold.over = True
            self.open -= 1
            if (own := self._of.get(hold.client)) is None:
                return
            self._all[0] -= hold.mine[0]
            for place, amount in enumerate(hold.mine):
                self.held[place] -= amount
                own[place] -= amount
            if own[1] <= 0 and own[0] <= 0:
                del self._of[hold.client]
            if not self._of:  # sums of fractions are not exact
                self.held = list(NOTHING)

    def _check(self, place: int, held: float, own: Sequence[float], more: float) -> None:
        limit, mine, what = self.limits[place], own[place], _CALLED[place]
        if more > limit and what is not SECONDS:  # those are an estimate
            raise TooLarge(
                f"a request may hold {limit:,.0f} {what}, and this one has {more:,.0f}: send it in "
                "parts"
            )
        small = not mine and more <= SMALL * limit and held + more <= SPARE * limit
        if not held or small:
            return
        others = sum(1 for other in self._of.values() if other[place] and other is not own)
        if held + more > limit or mine + more > limit / (others + 1):
            raise Overloaded(
                f"{held:,.0f} {what} are at work already, {mine:,.0f} of them of this client, and "
                f"{limit:,.0f} is the most of all: try again in a second",
                1.0,
            )


class Hold:
    """What one request holds, until `end`."""

    __slots__ = ("_admission", "client", "mine", "over")

    def __init__(self, admission: Admission, client: Hashable) -> None:
        self._admission, self.client = admission, client
        self.mine = list(NOTHING)
        self.over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def add(self, bytes: float = 0.0, rows: float = 0.0, seconds: float = 0.0) -> None:
        """Hold more, as `Admission.take` does."""
        self._admission.take(self, (bytes, rows, seconds))

    def move(self, admission: Admission) -> None:
        """Hold all of it there from now on: it is known only now which model is asked."""
        if admission is not self._admission:
            mine = self.mine
            self._admission.give(self)
            there = admission.hold(self.client)
            self._admission, self.mine, self.over = admission, there.mine, False
            admission.take(self, mine)

    def end(self) -> None:
        """Hold nothing more."""
        self._admission.give(self)

"""Admission: the memory, rows and model seconds that requests hold, and each client's share.

From before it is read until it is answered, a request holds bytes (its body, arrays and decoded
pixels), rows, and the seconds that the models are expected to spend. A request above a limit by
itself is refused for good; one that does not fit beside the others is refused until there is room.
While more than half of a limit is held, each client may hold an equal share at most. A reserve, a
quarter above each limit, is kept for small requests from clients that hold nothing.
"""

import threading
from collections.abc import Hashable, Sequence
from typing import Self

from ebjr.errors import Overloaded, TooLarge

SPARE = 1.25  # the most ever held, as a multiple of each limit
SMALL = 1 / 64  # of a limit: the most that a client new to the queue takes from the reserve

NOTHING = (0.0, 0.0, 0.0)
SECONDS = "seconds of the models' work"
_CALLED = ("bytes of requests", "rows", SECONDS)


class Admission:
    """Limits on the bytes, rows and seconds that all clients hold together.

    Memory is shared by the whole server: bytes held in `beside`, another model's admission, count.
    """

    def __init__(
        self, *, bytes: float, rows: float, seconds: float, beside: "Admission | None" = None
    ) -> None:
        self.limits = (bytes, rows, seconds)
        self.held = list(NOTHING)
        self.open = 0  # holds in progress
        self._of: dict[Hashable, list[float]] = {}  # amounts of each client that holds any
        # bytes of all models: now, and the most since `ebbed` was last true
        self._all: list[float] = [0.0, 0.0] if beside is None else beside._all
        self._lock: threading.Lock = threading.Lock() if beside is None else beside._lock

    def hold(self, client: Hashable) -> "Hold":
        """Return a new hold for one request of a client, empty at first."""
        with self._lock:
            self.open += 1
        return Hold(self, client)

    @property
    def rows(self) -> float:
        """Rows held."""
        return self.held[1]

    def take(self, hold: "Hold", more: Sequence[float]) -> None:
        """Add amounts to a hold, all or none; a negative amount releases.

        TooLarge if the hold would be above a limit by itself; Overloaded if `more` does not fit
        beside what is held, or exceeds the client's share.
        """
        with self._lock:
            if hold.over:  # a decoder may still be at work for an ended request
                return
            own = self._of.get(hold.client) or list(NOTHING)
            for place, amount in enumerate(more):
                held = self.held[place] if place else self._all[0]
                if amount > 0 and held + amount > self.limits[place] / 2:
                    self._check(place, held, own, amount, hold.mine)
            self._of[hold.client] = own
            self._all[0] += more[0]
            self._all[1] = max(self._all)
            for place, amount in enumerate(more):
                self.held[place] += amount
                own[place] += amount
                hold.mine[place] += amount

    def ebbed(self, much: float) -> bool:
        """Whether at least `much` bytes were held since this was last true, and few are now."""
        with self._lock:
            now, most = self._all
            if most < much or now > much / 16:
                return False
            self._all[1] = now
            return True

    def give(self, hold: "Hold") -> None:
        """Release all that a request holds, and end its hold."""
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
            if not self._of:  # sums of fractions drift: start again at exactly 0
                self.held = list(NOTHING)

    def _check(
        self, place: int, held: float, own: Sequence[float], more: float, of_it: Sequence[float]
    ) -> None:
        limit, mine, what = self.limits[place], own[place], _CALLED[place]
        whole = of_it[place] + more
        if whole > limit and what is not SECONDS:  # seconds are only an estimate
            parts = what == "rows" or of_it[1] > 1
            raise TooLarge(
                f"a request may hold {limit:,.0f} {what}, and this one needs {whole:,.0f}: send "
                f"{'it in parts' if parts else 'a smaller one'}"
            )
        small = not mine and more <= SMALL * limit and held + more <= SPARE * limit
        if not held or small:
            return
        others = sum(1 for other in self._of.values() if other[place] and other is not own)
        if held + more > limit or mine + more > limit / (others + 1):
            raise Overloaded(
                f"requests in progress hold {held:,.0f} {what}, {mine:,.0f} of them this client's; "
                f"the limit is {limit:,.0f}: try again in a second",
                1.0,
            )


class Hold:
    """The amounts that one request holds until `end`."""

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
        """Move the hold to another admission, once the request's model is known."""
        if admission is not self._admission:
            mine = self.mine
            self._admission.give(self)
            there = admission.hold(self.client)
            self._admission, self.mine, self.over = admission, there.mine, False
            admission.take(self, mine)

    def end(self) -> None:
        """Release everything."""
        self._admission.give(self)

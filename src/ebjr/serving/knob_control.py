"""Who holds the knob: a hand, or the autopilot. ``/v1/router`` asks here, over any protocol."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ebjr.serving.autopilot import Autopilot, Hold
from ebjr.serving.events import Observers
from ebjr.serving.knob import Knob
from ebjr.serving.served import KNOBS

WISHES = (
    'the knob takes JSON like {"threshold": 0.5}, {"deferral_rate": 0.2}, '
    '{"operating_point": "match-teacher"} or {"hold": "p99=50ms"}'
)


class KnobControl:
    """Who has the knob: the autopilot, until a hand moves it.

    A hand always wins: setting a threshold, a deferral rate or an operating point switches the
    autopilot off. A new target switches it on, or moves its target. `silence` is the autopilot's.
    """

    def __init__(self, knob: Knob, observers: Observers, silence: Callable[[], str | None]) -> None:
        self.knob = knob
        self.pilot: Autopilot | None = None
        self._observers, self._silence = observers, silence
        self._lock = threading.Lock()

    def ask(self, wish: Any, *, who: str, request: str | None = None) -> None:
        """Do what ``PUT /v1/router`` says; see `WISHES`.

        A hold of None, alone, switches the autopilot off. ValueError: the wish cannot be met.
        """
        if wish == {"hold": None}:
            wish = {"threshold": self.knob.threshold}
        names = set(wish) if isinstance(wish, dict) else set()
        if "hold" in names and names <= {"hold", "between"} and wish["hold"] is not None:
            self.hold(wish["hold"], wish.get("between"), who=who, request=request)
        elif len(names) == 1 and names <= set(KNOBS):
            self._by_hand(wish, who, request)
        else:
            raise ValueError(WISHES)

    def _by_hand(self, wish: Mapping[str, Any], who: str, request: str | None) -> None:
        threshold = self.knob.served.chosen(wish)
        assert threshold is not None
        ((name, value),) = wish.items()
        with self._lock:
            note = "" if self.pilot is None else "; the autopilot is off"
            why = f"asked for {name} {value}{note}"
            self.knob.move(threshold, who=who, why=why, request=request)
            self._take(None)

    def hold(
        self,
        target: str | Hold,
        between: Sequence[float | str] | None = None,
        *,
        who: str,
        request: str | None = None,
    ) -> None:
        """Switch the autopilot on, or give it another target; ValueError if that is impossible."""
        pilot = Autopilot(
            target if isinstance(target, Hold) else Hold.of(target),
            self.knob,
            between=between,
            silence=self._silence,
        )
        with self._lock:
            pilot.begin(who, request)
            self._take(pilot)

    def look(self) -> None:
        """Let the autopilot look, if there is one; OSError: the audit log cannot be written."""
        with self._lock:
            if self.pilot is not None:
                self.pilot.look()

    def state(self) -> dict[str, Any]:
        """What ``GET /v1/router`` says."""
        pilot = self.pilot
        return {**self.knob.state(), "autopilot": None if pilot is None else pilot.state()}

    def _take(self, pilot: Autopilot | None) -> None:
        if self.pilot is not None:
            self._observers.remove(self.pilot)
        if pilot is not None:
            self._observers.add(pilot)
        self.pilot = pilot

"""Who holds the knob: a person or the autopilot.

The route ``/v1/router`` is in `ebjr.serving.app`; it ends here.
"""

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
    """Moves the knob by hand, or lets the autopilot move it.

    A hand always wins: setting a threshold, a deferral rate or an operating point switches the
    autopilot off. A new target switches it on, or replaces its target. `silence` is passed to
    `Autopilot`.
    """

    def __init__(self, knob: Knob, observers: Observers, silence: Callable[[], str | None]) -> None:
        self.knob = knob
        self.pilot: Autopilot | None = None
        self._observers, self._silence = observers, silence
        self._lock = threading.Lock()

    def ask(self, wish: Any, *, who: str, request: str | None = None) -> None:
        """Do what ``PUT /v1/router`` asks, see `WISHES`; a `hold` of None stops the autopilot.

        ValueError if `wish` is malformed, out of range, or impossible for this calibration.
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
        """Switch the autopilot on, or give it a new target; ValueError if it cannot hold that."""
        hold = target if isinstance(target, Hold) else Hold.of(target)
        with self._lock:
            self._begin(hold, between, who, request)

    def follow(self, threshold: float, *, who: str, why: str) -> None:
        """Follow another calibration: its threshold, or a held target between its own bounds.

        ValueError if it does not allow the autopilot's target or bounds.
        """
        with self._lock:
            if self.pilot is None:
                self.knob.move(threshold, who=who, why=why)
            else:
                self._begin(self.pilot.hold, self.pilot.between, who)

    def look(self) -> None:
        """Run the autopilot, if it is on; OSError if the audit log cannot be written."""
        with self._lock:
            if self.pilot is not None:
                self.pilot.look()

    def state(self) -> dict[str, Any]:
        """Return the content of ``GET /v1/router``."""
        pilot = self.pilot
        return {**self.knob.state(), "autopilot": None if pilot is None else pilot.state()}

    def _begin(
        self,
        hold: Hold,
        between: Sequence[float | str] | None,
        who: str,
        request: str | None = None,
    ) -> None:
        pilot = Autopilot(hold, self.knob, between=between, silence=self._silence)
        pilot.begin(who, request)
        self._take(pilot)

    def _take(self, pilot: Autopilot | None) -> None:
        if self.pilot is not None:
            self._observers.remove(self.pilot)
        if pilot is not None:
            self._observers.add(pilot)
        self.pilot = pilot

"""Windows: the live risk judged window by window, and whether recalibrating would pay."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from ebjr.betting import read_count, resuming
from ebjr.monitor import SETTINGS, DriftMonitor, RiskMonitor
from ebjr.stats import same_length

STATE_FILE, STATE_FORMAT = "monitor.json", "ebjr-live-monitor-1"
"""A server's file of monitor states, see `serving.live_monitor`, and its format."""


@dataclass(frozen=True)
class Window:
    """A run of live rows, judged by itself; it ended at `ended`, a time from the caller.

    `audited` of its rows were audited, and `lower` and `upper` bound its mean risk.
    """

    ended: str
    rows: int
    audited: int
    deferred: int
    risk: float
    lower: float
    upper: float
    status: str


class RiskWindows:
    """Judges the live risk window by window, each with its own `RiskMonitor`.

    A window shows what an average over all time hides: a promise that was broken and is kept again,
    or one that is kept with room to spare. The k-th window has the level ``alpha / (k (k + 1))``.
    The levels add up to `alpha`, which is the probability of ever calling a window broken while the
    promise is kept. A window ends with its `audits`-th audited row. Ending at a random row is
    allowed, because a monitor may be read after every row.

    - `tolerance`, `alpha`, and further arguments `how`: As in `RiskMonitor`.
    - `audits`: Audited rows per window; None is enough to tell half of the tolerance from nothing:
      50 over the tolerance, from 500 to 20,000.

    Examples
    --------
    >>> windows = RiskWindows(0.1)
    >>> for loss in (np.zeros(500), np.tile([1.0, 0.0], 250), np.zeros(200)):
    ...     windows.update(loss, "noon")
    >>> [window.status for window in windows.past]
    ['kept', 'broken']
    """

    FORMAT = "ebjr-risk-windows-1"
    MOST = 100  # windows that are kept

    def __init__(
        self,
        tolerance: float,
        alpha: float = 0.05,
        *,
        audits: int | None = None,
        **how: Any,
    ) -> None:
        self._how = how
        wanted = 50 / max(tolerance, 1e-9)
        self.audits = int(min(max(wanted, 500), 20_000)) if audits is None else audits
        self.tolerance, self.alpha = float(tolerance), alpha
        self.past: list[Window] = []
        self.broken = 0  # windows ever
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        level = self.alpha / (self._number * (self._number + 1))
        self._monitor = RiskMonitor(self.tolerance, level, **self._how)
        self._audited = self._deferred = 0

    def update(self, loss: Any, now: str, audited: Any = None, deferred: Any = None) -> None:
        """Add the next rows, like `RiskMonitor.update`, at a time.

        `deferred`, (n,) bool, marks deferred rows; by default none.
        """
        given = np.asarray(loss)
        known = np.ones(len(given), bool) if audited is None else np.asarray(audited)
        asked = np.zeros(len(given), bool) if deferred is None else np.asarray(deferred)
        same_length(loss=given, audited=known, deferred=asked)
        while len(given):
            need = self.audits - self._audited
            end = int(np.searchsorted(np.cumsum(known), need)) + 1
            self._monitor.update(given[:end], known[:end])
            self._audited += int(known[:end].sum())
            self._deferred += int(asked[:end].sum())
            given, known, asked = given[end:], known[end:], asked[end:]
            if self._audited == self.audits:
                self._close(now)

    def _close(self, now: str) -> None:
        names = ("rows", "risk", "lower", "upper", "status")
        figures = {name: getattr(self._monitor, name) for name in names}
        self.past.append(Window(now, audited=self._audited, deferred=self._deferred, **figures))
        self.past = self.past[-self.MOST :]
        self.broken += self.past[-1].status == "broken"
        self._begin()

    def state(self) -> dict[str, Any]:
        """Return everything needed to resume, for JSON."""
        same = {name: getattr(self, f"_{name}") for name in _COUNTED}
        return {
            "format": self.FORMAT,
            "audits": self.audits,
            "alpha": self.alpha,
            "broken": self.broken,
            "past": [asdict(window) for window in self.past],
            "monitor": self._monitor.state(),
            **same,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Make windows that resume exactly where those that returned `state` stopped."""
        with resuming():
            if state["format"] != cls.FORMAT:
                raise ValueError(f"the format is {state['format']!r}, not {cls.FORMAT!r}")
            monitor = RiskMonitor.from_state(state["monitor"])
            settings = {name: getattr(monitor, name) for name in SETTINGS}
            audits = read_count(state["audits"], "audits")
            windows = cls(**{**settings, "alpha": state["alpha"]}, audits=audits)
            windows.past = [Window(**window) for window in state["past"]]
            windows.broken, windows._monitor = read_count(state["broken"], "broken"), monitor
            for name in _COUNTED:
                setattr(windows, f"_{name}", read_count(state[name], name))
            return windows


_COUNTED = ("number", "audited", "deferred")

_ROOM, _WORTH = 0.5, 0.01


def foremost(*risks: RiskMonitor | None) -> RiskMonitor | None:
    """Return the first monitor whose promise was broken, else the first."""
    watched = [one for one in risks if one is not None]
    return next((one for one in watched if one.status == "broken"), next(iter(watched), None))


def why_recalibrate(
    risk: RiskMonitor | None, windows: RiskWindows | None, drift: DriftMonitor | None
) -> dict[str, str]:
    """Return why choosing the threshold again would pay, in words by kind; {} if it would not.

    ``"broken"``: the promise was broken. ``"room"``: the last window shows that it is kept with
    half of its tolerance to spare, while rows are deferred that need not be. ``"rate"``: the
    deferral rate differs from calibration. Each is wrong as rarely as its monitor's alpha says.
    """
    found = {}
    last = windows.past[-1] if windows is not None and windows.past else None
    if risk is not None and risk.status == "broken":
        found["broken"] = f"the promise was broken by row {risk.alarm:,}"
    elif windows is not None and windows.broken:
        found["broken"] = f"the promise was broken in {windows.broken} of its windows"
    elif last is not None and windows is not None:
        spare = last.upper <= _ROOM * windows.tolerance
        if spare and last.deferred >= _WORTH * last.rows:
            share = last.deferred / last.rows
            found["room"] = (
                f"the promise is kept with room: at most {last.upper:.4g} of {windows.tolerance:g} "
                f"in the last window, where {share:.1%} were deferred"
            )
    if drift is not None and drift.alarms["deferral_rate"] is not None:
        found["rate"] = (
            f"the deferral rate is {drift.deferral_rate:.4g}, but was {drift.calibrated_rate:.4g}"
        )
    return found

"""Autopilot: holds a latency, a deferral rate, or a budget of FLOPs or dollars by moving the knob.

It steers by the deferral rate: the calibrated quantiles turn a rate into a threshold, so a step
means the same for every score. It measures only what the current threshold has decided: a move
empties the window, and rows with their own threshold do not count. It moves only when a measurement
is beyond chance; `Search` describes how it comes to rest. The dollars of a row are calibrated at
first, and later measured from what the models report, because deferred rows may be longer. Rows
without a student's answer are deferred at any threshold, so they do not count; if they are too many
the autopilot pauses.
"""

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ebjr.protocol import is_number
from ebjr.serving.engine import stages_of
from ebjr.serving.events import Answered, Asked, Expired, Observer, Scored
from ebjr.serving.knob import Knob
from ebjr.serving.served import Served
from ebjr.serving.spending import ALLOWED, BESIDE

SIGMAS = 3.0  # standard errors beyond which a measurement is more than chance
FEWEST = 50  # rows or requests that a conclusion needs
MOST_ROWS = 20_000  # a window above this is halved, so that old rows fade
SLACK = 0.05  # relative tolerance around a rate
log = logging.getLogger("ebjr.serving")

_HOLDS = "p99=50ms, deferral_rate=0.2, flops=50M or dollars=0.0004"
_TIMES = {"us": 1e6, "ms": 1e3, "s": 1.0}  # units in a second
_SIZES = {"": 1.0, "K": 1e-3, "M": 1e-6, "G": 1e-9, "T": 1e-12}
_COSTS = {"flops": _SIZES, "dollars": {"": 1.0}}  # of a row, each with its units in one


@dataclass(frozen=True)
class Hold:
    """The autopilot's target: `quantity` at `target` (a share, a row's cost, or seconds).

    `quantity` is ``"deferral_rate"``, ``"flops"``, ``"dollars"``, or a percentile of request
    latency such as ``"p99"``.
    """

    quantity: str
    target: float

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse a text such as ``p99=50ms``; ValueError if `text` names no target."""
        quantity, _, figure = str(text).strip().partition("=")
        units = _TIMES if quantity.startswith("p") else _COSTS.get(quantity, {"": 1.0})
        found = re.fullmatch(r"(\d+\.?\d*(?:e[+-]?\d+)?)\s*([A-Za-z]*)", figure.strip())
        known = quantity in ("deferral_rate", *_COSTS) or re.fullmatch(r"p\d\d(\.\d+)?", quantity)
        if not known or found is None or found[2] not in units:
            raise ValueError(f"the autopilot holds {_HOLDS}, not {text!r:.60}")
        target = float(found[1]) / units[found[2]]
        if not (0 < target < 1 if quantity == "deferral_rate" else 0 < target < math.inf):
            limits = "between 0 and 1" if quantity == "deferral_rate" else "above 0"
            raise ValueError(f"{quantity} can be held at a number {limits}, not at {target:g}")
        return cls(quantity, target)

    @property
    def percentile(self) -> float | None:
        """The percentile of request latency, from 0 to 1; None for other quantities."""
        return float(self.quantity[1:]) / 100 if self.quantity.startswith("p") else None

    def figure(self, value: float) -> str:
        """Format a value of the quantity, with its unit."""
        return f"{value:.4g}" if self.percentile is None else f"{1e3 * value:.4g}ms"

    def __str__(self) -> str:
        return f"{self.quantity}={self.figure(self.target)}"


class Search:
    """Finds the rate at which a rising, otherwise unknown response meets its target, and rests.

    Each step goes towards the target. The first is as large as the error. A later step is half the
    last one if the error changed its sign, else 1.5 times as large, so any slope is met and an
    overshoot is corrected within two steps. A third step in one direction means that the response
    itself has moved, and is three times as large. If the response jumps over the target, as with
    many equal scores, the search ends below the jump and rests until the error there changes.
    """

    def __init__(self, rate: float, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.rate = min(max(rate, low), high)
        self._least, self._most = (high - low) / 1024, (high - low) / 4
        self._size = 0.0
        self._side = 0  # direction of the last step; 0 at a new start
        self._alike = 0  # earlier steps in the same direction
        self._rest: tuple[float, float] | None = None  # the error at rest, and its noise

    def step(self, error: float, noise: float) -> float:
        """Return the next rate; `error` is above 0 if the response is low, 0 within `noise`."""
        if self._rest is not None:
            if abs(error - self._rest[0]) <= noise + self._rest[1]:
                return self.rate
            self._rest, self._side = None, 0
        if abs(error) <= noise:
            return self.rate
        side = 1 if error > 0 else -1
        if self._side == -side and self._size <= 2 * self._least and side > 0:
            self._rest = error, noise
            return self.rate
        self._alike = self._alike + 1 if side == self._side else 0
        growth = 0.5 if self._alike == 0 else 1.5 if self._alike == 1 else 3.0
        size = growth * self._size if self._side else abs(error)
        self._size = min(max(size, self._least), self._most)
        before = self.rate
        self.rate = min(max(before + side * self._size, self.low), self.high)
        self._side = side if self.rate != before else 0
        return self.rate

    @property
    def at_bound(self) -> bool:
        """Whether the rate is at one of its bounds."""
        return self.rate in (self.low, self.high)


class Autopilot(Observer):
    """Moves a knob between two bounds, calibrated deferral rates, to hold a target.

    The default bounds are the lowest and highest operating points of ``joint.toml``, with room on
    both sides of a rate to hold. While `silence` returns a reason (too many rows lack an answer),
    the knob stays where it is. ValueError if the calibration does not allow `hold` or `between`.
    """

    def __init__(
        self,
        hold: Hold,
        knob: Knob,
        *,
        between: Sequence[float | str] | None = None,
        silence: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.hold, self.between, self._knob, self._silence = hold, between, knob, silence
        self.still: str | None = None  # why the autopilot pauses
        served = knob.served
        served.threshold_at(0.5)  # raises a clear error if the calibration knows no scores
        self._costs = _costs_of(hold, served)
        self._paid = np.zeros(4)  # rows, dollars of earlier models; rows, dollars of the last
        self._last = stages_of(served.joint)[-1]
        self._goal = _rate_of(hold, self._costs)
        low, high = _bounds(served, self._goal) if between is None else _between(between, served)
        if self._goal is not None and not low <= self._goal <= high:
            raise ValueError(
                f"{hold} is a deferral rate of {self._goal:.4g}, outside the bounds {low:g} to "
                f"{high:g}: set other bounds with --between"
            )
        start = served.rate_at(knob.threshold) if self._goal is None else self._goal
        assert start is not None
        self.search = Search(start, low, high)
        self.measured: float | None = None
        self._lock = threading.Lock()
        self._empty()
        self.handlers = {
            Scored: self._scored,
            Answered: self._answered,
            Expired: self._expired,
            Asked: self._asked,
        }

    def _empty(self) -> None:
        self._since = time.perf_counter()
        self._rows = self._deferred = self._silent = 0.0
        self._seconds: deque[float] = deque(maxlen=MOST_ROWS)

    def _scored(self, event: Scored) -> None:
        """Count the rows that the current threshold has decided."""
        answered, own = ~np.isnan(event.score), event.threshold == self._knob.threshold
        with self._lock:
            self._rows += int((own & answered).sum())
            self._deferred += int((event.deferred & own & answered).sum())
            self._silent += int((own & ~answered).sum())
            self._paid[0] += int(answered.sum())

    def _asked(self, event: Asked) -> None:
        """Add up dollars at any threshold: a row's price does not depend on it."""
        if event.spent is None or event.stage in BESIDE:
            return
        dollars = np.asarray(event.spent, np.float64)[:, 2]
        if event.silent is not None:
            dollars = dollars[~event.silent]
        dollars = dollars[~np.isnan(dollars)]
        with self._lock:
            if event.stage == self._last:
                self._paid[2:] += len(dollars), dollars.sum()
            else:
                self._paid[1] += dollars.sum()

    def _answered(self, event: Answered) -> None:
        """Take the latencies of requests that arrived after the last move."""
        with self._lock:
            self._seconds.extend(event.seconds[event.since >= self._since].tolist())

    def _expired(self, event: Expired) -> None:
        """Count a request that timed out, unless its timeout was shorter than the target."""
        if event.seconds >= self.hold.target:
            since = np.array([event.ticket.since])
            self._answered(Answered(since, np.array([event.seconds])))

    def begin(self, who: str, request: str | None = None) -> None:
        """Move the knob to the start of the search; OSError if the audit log cannot be written."""
        low, high = self.search.low, self.search.high
        self._move(
            f"{who} asked to hold {self.hold} between the rates {low:.4g} and {high:.4g}", request
        )

    def look(self) -> None:
        """Measure the effect of the last move, and move again if needed; may raise OSError."""
        already, self.still = self.still, self._silence()
        about = {"figures": self._knob.served.about}
        if self.still is not None:
            if already is None:
                log.warning("the autopilot pauses: %s", self.still, extra=about)
            with self._lock:
                self._empty()
            return
        if already is not None:
            log.warning("the autopilot resumes", extra=about)
        found = self._time_error() if self.hold.percentile is not None else self._rate_error()
        if found is None:
            return
        error, noise, seen = found
        before = self.search.rate
        if self.search.step(error, noise) == before:
            return
        try:
            self._move(f"{self.hold.quantity} was {seen}, and the target is {self.hold}")
        except OSError:
            self.search.rate = before  # the knob has not moved
            raise

    def state(self) -> dict[str, Any]:
        """Return the autopilot's part of ``GET /v1/router``."""
        return {
            "hold": str(self.hold),
            "measured": self.measured,
            "between": [self.search.low, self.search.high],
            "deferral_rate": self.search.rate,
            "at_bound": self.search.at_bound,
            "still": self.still,
        }

    def _move(self, why: str, request: str | None = None) -> None:
        threshold = self._knob.served.threshold_at(self.search.rate)
        self._knob.move(threshold, who="autopilot", why=why, request=request)
        with self._lock:
            self._empty()

    def _rate_error(self) -> tuple[float, float, str] | None:
        with self._lock:
            n, deferred = self._rows, self._deferred
            if n > MOST_ROWS:
                self._rows, self._deferred = n / 2, deferred / 2
        if n < FEWEST:
            return None
        assert self._goal is not None
        rate = deferred / n
        self.measured, goal = rate, self._goal
        if self._costs is not None:
            student, teacher = self._paid_costs(*self._costs)
            self.measured = student + rate * teacher
            goal = min(max((self.hold.target - student) / teacher, 0.0), 1.0)
        if self.hold.quantity == "dollars":  # a budget is a maximum: keep the slack below it
            goal /= 1 + SLACK
        chance = SIGMAS * math.sqrt(goal * (1 - goal) / n) + 1 / n
        seen = f"{self.hold.figure(self.measured)} over {n:.0f} rows"
        return goal - rate, max(0.005, SLACK * goal) + chance, seen

    def _paid_costs(self, student: float, teacher: float) -> tuple[float, float]:
        """Return a row's cost, and a deferred row's extra cost: measured where possible."""
        if self.hold.quantity != "dollars":
            return student, teacher
        with self._lock:
            rows, before, asked, last = self._paid.tolist()
            if rows > MOST_ROWS:
                self._paid /= 2
        if rows >= FEWEST and before:
            student = before / rows
        return student, last / asked if asked >= FEWEST and last else teacher

    def _time_error(self) -> tuple[float, float, str] | None:
        """Compare a latency with its target, which is met from 80 to 100 %; errors are logarithms.

        A percentile is known only up to its order statistics: the error is that of the nearer end.
        The latency beyond the slowest request is unknown, so moving up takes more requests.
        """
        with self._lock:
            seconds = np.sort(np.array(self._seconds))
            silent = self._silent > ALLOWED * (self._rows + self._silent)
        n, share = len(seconds), self.hold.percentile
        assert share is not None
        if n < FEWEST or silent:
            return None
        reach = SIGMAS * math.sqrt(n * share * (1 - share))
        ranked = [*seconds.tolist(), math.inf]
        places = np.clip([n * share - reach, n * share, n * share + reach], 0, n)
        least, self.measured, most = (ranked[math.floor(place)] for place in places)
        target = self.hold.target
        error = 0.0
        if least > target:
            error = math.log(target / least)
        elif most < 0.8 * target:
            error = math.log(0.8 * target / most)
        span = self.search.high - self.search.low
        seen = f"{self.hold.figure(self.measured)} over {n} requests"
        return 0.1 * span * error, 0.0, seen


def _costs_of(hold: Hold, served: Served) -> tuple[float, float] | None:
    """Return the costs of student and teacher in the held quantity; None if it is no cost."""
    if hold.quantity not in _COSTS:
        return None
    student, teacher = (getattr(cost, hold.quantity) for cost in served.costs)
    if hold.quantity == "dollars":
        student = student or 0.0  # a local model has no price
    if student is None or not teacher:
        words = {"flops": "FLOPs"}.get(hold.quantity, hold.quantity)
        raise ValueError(
            f"{hold.quantity} can be held if joint.toml has the {words} of both models: calibrate "
            "again with their costs"
        )
    return student, teacher


def _rate_of(hold: Hold, costs: tuple[float, float] | None) -> float | None:
    """Return the deferral rate that a target means; None for a latency."""
    if costs is None:
        return hold.target if hold.quantity == "deferral_rate" else None
    student, teacher = costs
    rate = (hold.target - student) / teacher
    if not 0 < rate < 1:
        raise ValueError(
            f"{hold.quantity} can be held between {student:.4g}, the student alone, and "
            f"{student + teacher:.4g}, the teacher asked for every row, not at {hold.target:.4g}"
        )
    return rate


def _bounds(served: Served, goal: float | None) -> tuple[float, float]:
    """Return the lowest and highest operating points, with room on both sides of a goal."""
    points = [*served.operating_points.values(), served.joint.router.threshold]
    rates = [rate for rate in map(served.rate_at, points) if rate is not None]
    low, high = min(rates), max(rates)
    if goal is not None:
        low, high = min(low, goal / 2), max(high, (1 + goal) / 2)
    return (low, high) if low < high else (0.0, high or 1.0)


def _between(between: Sequence[float | str], served: Served) -> tuple[float, float]:
    if not isinstance(between, list | tuple) or len(between) != 2:
        raise ValueError(f"between takes two deferral rates, like 0.05,0.5, not {between!r:.60}")
    low, high = (_bound(value, served) for value in between)
    if not 0 <= low < high <= 1:
        raise ValueError(f"between takes two rising deferral rates, not {low:g} and {high:g}")
    return low, high


def _bound(value: float | str, served: Served) -> float:
    if not isinstance(value, str) and not is_number(value):
        raise ValueError(f"a bound is a deferral rate or an operating point, not {value!r:.60}")
    try:
        return float(value)
    except ValueError:
        rate = served.rate_at(served.point(str(value)))
        assert rate is not None
        return rate

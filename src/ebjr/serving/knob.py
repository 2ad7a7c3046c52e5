"""The knob: the threshold in force, who moved it and why, and whether the promise covers it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any, Literal

from ebjr.router import check_threshold
from ebjr.serving.journal import Journal
from ebjr.serving.served import KNOBS, Served, json_number

Promise = Literal["in force", "suspended"]

WISHES = (
    'the knob takes JSON like {"threshold": 0.5}, {"deferral_rate": 0.2}, '
    '{"operating_point": "match-teacher"} or {"hold": "p99=50ms"}'
)

log = logging.getLogger("ebjr.serving")


class Knob:
    """The threshold of a served model, moved by hands and by the autopilot.

    A move is written down before it is made: one that cannot be written down is not made. It is
    one assignment, and takes effect at the student's next batch.

    Parameters
    ----------
    served
        What is served: its router holds the threshold.
    journal
        Where moves are written down; None keeps them in the log alone.

    Examples
    --------
    >>> from ebjr import JointClassifier, Router
    >>> joint = JointClassifier(abs, abs, Router("max_logit", 2.0))
    >>> knob = Knob(Served(joint))
    >>> knob.move(3.0, who="127.0.0.1", why="more of the teacher")
    >>> knob.threshold, joint.router.threshold
    (3.0, 3.0)
    """

    def __init__(self, served: Served, journal: Journal | None = None) -> None:
        self.served = served
        self.moves = Counter(hand=0, autopilot=0)
        self._router = served.joint.router
        self._journal = journal
        self._lock = threading.Lock()
        self._write("server", None, self.threshold, "the server has started", None)

    @property
    def threshold(self) -> float:
        """The threshold in force."""
        return self._router.threshold

    def promise(self, threshold: float) -> Promise | None:
        """Whether what was certified covers a threshold; None where nothing was certified."""
        certificate = self.served.certificate
        if certificate is None:
            return None
        return "in force" if certificate.covers(threshold) else "suspended"

    def move(self, threshold: float, *, who: str, why: str, request: str | None = None) -> None:
        """Move the threshold.

        Parameters
        ----------
        threshold
            Where to.
        who, why
            For the audit log: an address or ``"autopilot"``, and the reason in words.
        request
            The id of the request that asked for it.

        Raises
        ------
        ValueError
            No router takes such a threshold.
        OSError
            The audit log cannot be written; the threshold stays where it is.
        """
        after = check_threshold(threshold)
        with self._lock:
            before = self.threshold
            self._write(who, before, after, why, request)
            self._router.threshold = after
            self.moves["autopilot" if who == "autopilot" else "hand"] += 1
        log.info("the knob was moved from %g to %g by %s: %s", before, after, who, why)
        self._tell(self.promise(before), self.promise(after), after)

    def ask(self, wish: Any, *, who: str, request: str | None = None, note: str = "") -> None:
        """Move the threshold as ``PUT /v1/router`` says.

        Parameters
        ----------
        wish
            One of `KNOBS` and its value, as a mapping.
        who, request
            As of `move`.
        note
            To be added to why.

        Raises
        ------
        ValueError
            It is nothing that a knob can do.
        OSError
            The audit log cannot be written.
        """
        if not isinstance(wish, dict) or len(wish) != 1 or not set(wish) <= set(KNOBS):
            raise ValueError(WISHES)
        threshold = self.served.chosen(wish)
        assert threshold is not None
        ((name, value),) = wish.items()
        self.move(threshold, who=who, why=f"asked for {name} {value}{note}", request=request)

    def state(self) -> dict[str, Any]:
        """What ``GET /v1/router`` says."""
        served, threshold = self.served, self.threshold
        certificate = served.certificate
        return {
            "score": str(self._router.score),
            "threshold": json_number(threshold),
            "deferral_rate": served.rate_at(threshold),
            "operating_points": {
                name: json_number(value) for name, value in served.operating_points.items()
            },
            "calibration": served.calibration_id,
            "promise": None
            if certificate is None
            else {
                "state": self.promise(threshold),
                "statement": certificate.statement,
                "threshold": json_number(certificate.threshold),
            },
        }

    def _write(
        self, who: str, before: float | None, after: float, why: str, request: str | None
    ) -> None:
        if self._journal is None:
            return
        entry = {
            "who": who,
            "from": None if before is None else json_number(before),
            "to": json_number(after),
            "why": why,
            "request": request,
        }
        known = {key: value for key, value in entry.items() if value is not None}
        self._journal.write({**known, "promise": self.promise(after) or "none"})

    def _tell(self, before: Promise | None, after: Promise | None, threshold: float) -> None:
        if before == after:
            return
        certificate = self.served.certificate
        assert certificate is not None
        if after == "suspended":
            log.warning(
                "the promise is suspended: the threshold %g is outside what was certified, %g",
                threshold,
                certificate.threshold,
            )
        else:
            log.warning("the promise is in force again: the threshold is %g", threshold)

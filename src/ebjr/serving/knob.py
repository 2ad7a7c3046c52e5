"""The knob: the current threshold, who moved it and why, and whether the promise covers it.

`/v1/router` and the autopilot reach it through `ebjr.serving.knob_control`.
"""

import logging
import threading
from collections import Counter
from typing import Any, Literal

from ebjr.files import json_number
from ebjr.router import check_threshold
from ebjr.serving.journal import Journal
from ebjr.serving.served import Served

Promise = Literal["in force", "suspended"]

log = logging.getLogger("ebjr.serving")


class Knob:
    """The threshold of a served model, moved by hand and by the autopilot.

    Each move is journaled before it takes effect, at the student's next batch; if the journal
    cannot be written, the knob does not move. `after` is the knob that this one replaces after a
    reload.
    """

    def __init__(
        self, served: Served, journal: Journal | None = None, after: "Knob | None" = None
    ) -> None:
        self.served = served
        self.moves: Counter[str] = Counter(hand=0, autopilot=0) if after is None else after.moves
        self._router = served.joint.router
        self._journal = journal
        self._lock = threading.Lock()
        if after is None:
            self._write("server", None, self.threshold, "the server has started", None)
        else:
            self._write("joint.toml", after.threshold, self.threshold, "it was read again", None)

    @property
    def threshold(self) -> float:
        """The current threshold."""
        return self._router.threshold

    def promise(self, threshold: float) -> Promise | None:
        """Whether the certificate covers a threshold; None without a certificate."""
        certificate = self.served.certificate
        if certificate is None:
            return None
        return "in force" if certificate.covers(threshold) else "suspended"

    def move(self, threshold: float, *, who: str, why: str, request: str | None = None) -> None:
        """Move the threshold; an OSError of the journal leaves it unmoved.

        `who` is an address or ``"autopilot"``, `request` the id of the request that asks.
        """
        after = check_threshold(threshold)
        with self._lock:
            before = self.threshold
            self._write(who, before, after, why, request)  # first: an unrecorded move is none
            self._router.threshold = after
            self.moves["autopilot" if who == "autopilot" else "hand"] += 1
        about = {"figures": self.served.about}
        log.info("the knob was moved from %g to %g by %s: %s", before, after, who, why, extra=about)
        self._tell(self.promise(before), self.promise(after), after)

    def state(self) -> dict[str, Any]:
        """Return the content of ``GET /v1/router``."""
        served, threshold = self.served, self.threshold
        certificate = served.certificate
        promise = certificate and {
            "state": self.promise(threshold),
            "statement": certificate.statement,
            "threshold": certificate.threshold,
        }
        return json_number(
            {
                "score": str(self._router.score),
                "threshold": threshold,
                "deferral_rate": served.rate_at(threshold),
                "operating_points": dict(served.operating_points),
                "calibration": served.calibration_id,
                "promise": promise,
            }
        )

    def _write(
        self, who: str, before: float | None, after: float, why: str, request: str | None
    ) -> None:
        if self._journal is None:
            return
        about = {"who": who, "from": before, "to": after}
        entry = {**self.served.about, **about, "why": why, "request": request}
        known = {key: value for key, value in entry.items() if value is not None}
        self._journal.write(json_number({**known, "promise": self.promise(after) or "none"}))

    def _tell(self, before: Promise | None, after: Promise | None, threshold: float) -> None:
        if before == after:
            return
        about = {"figures": self.served.about}
        if after == "in force":
            log.warning(
                "the promise is in force again: the threshold is %g", threshold, extra=about
            )
            return
        certificate = self.served.certificate
        assert certificate is not None
        words = "the promise is suspended: the certificate does not cover threshold %g, but %g"
        log.warning(words, threshold, certificate.threshold, extra=about)

"""The live monitor: is the promise kept by what is served now, and are the scores still the same?

Two tests of `ebjr.monitor`, fed with what a pipeline tells. *Drift* takes every score. *The
promise* takes kept answers that chance drew and the teacher was asked about when nothing else was
to be done. No labels come by in a server, so that what is watched is disagreement: the share of
rows that the student keeps and the teacher contradicts. Where the certificate itself was made
without labels, that is the very promise; elsewhere it is compared with what it was on the held-out
half of the calibration, up to the chance of those rows. Rows count where their threshold is one
that the promise covers: what else is served was promised nothing. Where answers are no labels
(numbers, the boxes of an image) nothing contradicts anything, and only the scores are watched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize  # noqa: F401  # a monitor's first bound would wait for it

from ebjr.files import write_whole
from ebjr.monitor import DriftMonitor, RiskMonitor
from ebjr.serving.events import Audited, Observer, Scored
from ebjr.serving.served import Served, json_number
from ebjr.stats import clopper_pearson

MOST_SCORES = 20_000
"""The monitor leaves out scores beyond this many between two looks, whatever they are."""

SAVE_SECONDS = 60.0

_FILE = "monitor.json"
_FORMAT = "ebjr-live-monitor-1"

log = logging.getLogger("ebjr.serving")


Monitor = RiskMonitor | DriftMonitor

DRIFT_FIGURES = ("rows", "shift", "deferral_rate", "calibrated_rate", "alarms")
RISK_FIGURES = ("rows", "risk", "lower", "upper", "tolerance")


class Watch(NamedTuple):
    """A promise that is watched: its monitor, from which threshold on, and what it is in words."""

    monitor: RiskMonitor
    threshold: float
    about: str

    def status(self) -> dict[str, Any]:
        """What is known, for JSON."""
        return {**_status(self.monitor, (*RISK_FIGURES, "alarm")), "about": self.about}


class LiveMonitor(Observer):
    """What the monitors of a server are fed with, and what they say.

    With an `audit_rate` of 0 no disagreement is watched. `folder` keeps the state over restarts.
    Each monitor ever raises a false alarm with probability `alpha` at most.

    Examples
    --------
    >>> from ebjr import JointClassifier, Router
    >>> served = Served(JointClassifier(abs, abs, Router("max_logit", 2.0)))
    >>> LiveMonitor(served).status()["drift"]
    'not watched: joint.toml does not know the scores; calibrate again'
    """

    def __init__(
        self,
        served: Served,
        *,
        audit_rate: float = 0.0,
        folder: str | os.PathLike[str] | None = None,
        alpha: float = 0.05,
    ) -> None:
        self.audits = self.contradicted = 0
        self._drift = _drift_of(served, alpha)
        self._disagreement = _disagreement_of(served, audit_rate, alpha)
        self._rate = _rate_of(served, alpha)
        self._lock = threading.Lock()
        self.handlers = {Scored: self._scored, Audited: self._audit}
        self._scores: list[np.ndarray] = []
        self._audited: list[Audited] = []
        self._decided: list[tuple[np.ndarray, np.ndarray]] = []
        self._known = 0  # scores that wait for a look
        self._alarmed: set[str] = set()
        self._file = None if folder is None else Path(folder) / _FILE
        self._saved = time.monotonic()
        if self._file is not None:
            if not self._file.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {folder} for the monitor's state")
            self._key = self._fingerprint(served)
            self._resume()

    def _scored(self, event: Scored) -> None:
        """Take scores, for the next look."""
        with self._lock:
            if self._known < MOST_SCORES:
                self._known += len(event.score)
                self._scores.append(event.score)
                if self._rate is not None:
                    self._decided.append((event.threshold, event.deferred))

    def _audit(self, audited: Audited) -> None:
        """Take an audit, for the next look."""
        with self._lock:
            self._audited.append(audited)

    def look(self) -> None:
        """Feed the monitors, tell alarms, and save the state now and then, as `save` does."""
        with self._lock:
            scores, self._scores, self._known = self._scores, [], 0
            audited, self._audited = self._audited, []
            decided, self._decided = self._decided, []
        if scores and isinstance(self._drift, DriftMonitor):
            self._drift.update(np.concatenate(scores))
        if decided and self._rate is not None:
            threshold, deferred = (np.concatenate(column) for column in zip(*decided, strict=True))
            self._rate.monitor.update(deferred[threshold <= self._rate.threshold])
        if audited:
            self._take(audited)
        self._tell()
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the state, if there is a place for it; OSError: it cannot be written."""
        self._saved = time.monotonic()
        if self._file is None:
            return
        with write_whole(self._file) as file:
            json.dump(
                {
                    "format": _FORMAT,
                    "of": self._key,
                    "audits": self.audits,
                    "contradicted": self.contradicted,
                    "monitors": {name: m.state() for name, m in self._monitors().items()},
                },
                file,
                allow_nan=False,
            )

    def status(self) -> dict[str, Any]:
        """What is known, for JSON: each monitor's figures and sentence, or why there is none."""
        drift, about = self._drift, self._disagreement
        found: dict[str, Any] = {
            "audits": {"rows": self.audits, "contradicted": self.contradicted},
            "drift": drift if isinstance(drift, str) else _status(drift, DRIFT_FIGURES),
            "disagreement": about if isinstance(about, str) else about.status(),
        }
        if self._rate is not None:
            found["deferral_rate"] = self._rate.status()
        return json_number(found)

    def readings(self) -> dict[str, dict[str, float]]:
        """For the metrics: by figure and then by monitor."""
        every = self._monitors()
        found: dict[str, dict[str, float]] = {figure: {} for figure in (*RISK_FIGURES, "shift")}
        for name, monitor in every.items():
            own = ("rows", "shift") if isinstance(monitor, DriftMonitor) else RISK_FIGURES
            for figure in own:
                found[figure][name] = float(getattr(monitor, figure))
        return {**found, "alarm": {name: float(_alarmed(m)) for name, m in every.items()}}

    def _take(self, audited: list[Audited]) -> None:
        drawn = sum(int(one.drawn.sum()) for one in audited)
        self.audits += drawn
        self.contradicted += sum(int(one.contradicted.sum()) for one in audited)
        if not isinstance(self._disagreement, Watch):
            return
        covered = [one.threshold >= self._disagreement.threshold for one in audited]
        loss = [one.contradicted[own] for one, own in zip(audited, covered, strict=True)]
        known = [one.drawn[own] for one, own in zip(audited, covered, strict=True)]
        self._disagreement.monitor.update(np.concatenate(loss), np.concatenate(known))

    def _tell(self) -> None:
        for name, monitor in self._monitors().items():
            if _alarmed(monitor) and name not in self._alarmed:
                self._alarmed.add(name)
                log.error("the monitor of %s: %s", name, monitor.statement)

    def _monitors(self) -> dict[str, Monitor]:
        watches = {"disagreement": self._disagreement, "rate": self._rate}
        drift = {"drift": self._drift} if isinstance(self._drift, DriftMonitor) else {}
        return {
            **drift,
            **{name: one.monitor for name, one in watches.items() if isinstance(one, Watch)},
        }

    def _fingerprint(self, served: Served) -> str:
        """Of what is watched: only the same goes on with a state."""
        fresh = {name: monitor.state() for name, monitor in self._monitors().items()}
        about = [served.calibration_id, str(served.joint.router.score), fresh]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def _resume(self) -> None:
        assert self._file is not None
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            if kept["format"] != _FORMAT or kept["of"] != self._key:
                raise ValueError("it is of another calibration")
            states = kept["monitors"]
            taken = {
                name: type(monitor).from_state(states[name])
                for name, monitor in self._monitors().items()
            }
            counts = int(kept["audits"]), int(kept["contradicted"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            aside = self._file.with_suffix(".json.old")
            self._file.replace(aside)
            log.warning("the monitor begins anew, and %s is set aside: %s", self._file, error)
            return
        self.audits, self.contradicted = counts
        self._adopt(taken)

    def _adopt(self, taken: Mapping[str, Any]) -> None:
        self._drift = taken.get("drift", self._drift)
        if isinstance(self._disagreement, Watch):
            self._disagreement = self._disagreement._replace(monitor=taken["disagreement"])
        if self._rate is not None:
            self._rate = self._rate._replace(monitor=taken["rate"])


def _drift_of(served: Served, alpha: float) -> DriftMonitor | str:
    reference = served.calibration.get("drift")
    if reference is None:
        return "not watched: joint.toml does not know the scores; calibrate again"
    return DriftMonitor.of_reference(reference, alpha)


def _disagreement_of(served: Served, audit_rate: float, alpha: float) -> Watch | str:
    if not served.joint.kind.has_labels:
        return (
            f"not watched: the answers of {served.joint.task} are no labels, which agree or "
            "contradict each other; the scores say whether inputs are still those of calibration"
        )
    if not audit_rate:
        return "not watched: no kept answers are audited; serve with --audit-rate 0.01"
    certificate = served.certificate
    if certificate is not None and not certificate.labeled and certificate.promise != "rate":
        alone = certificate.promise == "harm" or served.joint.blend == 0
        if alone and certificate.tolerance >= 0:
            monitor = RiskMonitor(certificate.tolerance, alpha, audit_probability=audit_rate)
            return Watch(monitor, certificate.threshold, certificate.statement)
    known = served.calibration.get("disagreement")
    if known is None:
        return "not watched: joint.toml knows no disagreement; calibrate again"
    hits, n = int(known["kept_and_contradicted"]), int(known["rows"])
    _, most = clopper_pearson(hits, n, alpha)
    if most >= 1:
        return "not watched: on the calibration's other half the teacher contradicts every row"
    about = (
        f"on the calibration's other half {hits} of {n} rows were kept and contradicted by the "
        f"teacher, which is at most {most:.4g} with probability {1 - alpha / 2:g}"
    )
    monitor = RiskMonitor(most, alpha / 2, audit_probability=audit_rate)
    return Watch(monitor, float(known["threshold"]), about)


def _rate_of(served: Served, alpha: float) -> Watch | None:
    certificate = served.certificate
    if certificate is None or certificate.promise != "rate":
        return None
    monitor = RiskMonitor(certificate.tolerance, alpha, promise="rate")
    return Watch(monitor, certificate.threshold, certificate.statement)


def _alarmed(monitor: Monitor) -> bool:
    return monitor.status in ("broken", "drifted")


def _status(monitor: Monitor, figures: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(monitor, name) for name in ("status", "statement", *figures)}

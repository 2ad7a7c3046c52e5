"""The live monitor: is the promise still kept, and are the scores still those of calibration?

It feeds two tests of `ebjr.monitor` with the engine's events. *Drift* takes every score. *The
promise* takes kept rows that were drawn at random and sent to the teacher when the engine was idle.
A server has no labels, so it watches disagreement: the share of rows that the student keeps and the
teacher contradicts. A certificate made without labels promises exactly this; for other certificates
the share is compared with that of the calibration's held-out half, up to chance. A row counts if
the promise covers its threshold. Answers that are not labels (numbers, boxes) have no disagreement,
so only their scores are watched. The promise is judged over all time and by window; both together
say when recalibrating would pay.
"""

import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize  # noqa: F401  # else the first bound would wait for the import

from ebjr.files import json_number, read_text, write_whole
from ebjr.monitor import DriftMonitor, RiskMonitor
from ebjr.serving.events import Audited, Observer, Scored
from ebjr.serving.served import Served
from ebjr.stats import clopper_pearson
from ebjr.windows import STATE_FILE, STATE_FORMAT, RiskWindows, foremost, why_recalibrate

MOST_SCORES = 20_000  # between two looks; further scores are dropped unseen, which is fair
SAVE_SECONDS = 60.0
ALPHA = 0.05  # probability that a monitor ever raises a false alarm
MOST_WINDOWS = 10  # windows in the status

log = logging.getLogger("ebjr.serving")


Monitor = RiskMonitor | DriftMonitor

DRIFT_FIGURES = ("rows", "shift", "deferral_rate", "calibrated_rate", "alarms")
RISK_FIGURES = ("rows", "risk", "lower", "upper", "tolerance", "alarm")


class Watch(NamedTuple):
    """A monitor, the lowest threshold of rows that it counts, and its promise in words."""

    monitor: Monitor
    threshold: float = -math.inf
    about: str | None = None

    @property
    def figures(self) -> Sequence[str]:
        """The figures that the monitor reports."""
        return RISK_FIGURES if isinstance(self.monitor, RiskMonitor) else DRIFT_FIGURES

    @property
    def alarmed(self) -> bool:
        """Whether the alarm has gone off."""
        return self.monitor.status in ("broken", "drifted")

    def status(self) -> dict[str, Any]:
        """Return status, statement and figures, for JSON."""
        names = ("status", "statement", *self.figures)
        known = {name: getattr(self.monitor, name) for name in names}
        return known if self.about is None else {**known, "about": self.about}


class LiveMonitor(Observer):
    """The monitors of one served model, fed with events.

    With `audit_rate` 0, disagreement is not watched. `folder` keeps the state over restarts.
    """

    def __init__(
        self,
        served: Served,
        *,
        audit_rate: float = 0.0,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.audits = self.contradicted = 0
        self._audit_rate = audit_rate
        self._lock = threading.Lock()
        self.handlers = {Scored: self._scored, Audited: self._audit}
        self._file = None if folder is None else Path(folder) / STATE_FILE
        if self._file is not None and not self._file.parent.is_dir():
            raise FileNotFoundError(f"the folder {folder} for the monitor's state does not exist")
        self.begin(served)

    def begin(self, served: Served) -> None:
        """Watch the promises of a model's calibration from now on."""
        found = {
            "drift": _drift_of(served),
            "disagreement": _disagreement_of(served, self._audit_rate),
            "rate": _rate_of(served),
        }
        self._extra = {"figures": served.about}
        self._watches = {name: one for name, one in found.items() if isinstance(one, Watch)}
        self._unwatched = {name: why for name, why in found.items() if isinstance(why, str)}
        self.windows = _windows_of(self._watches.get("disagreement"), self._audit_rate)
        self._calibration = served.calibration_id
        self._told: set[str] = set()  # reasons to recalibrate that were logged
        self._scores: list[Scored] = []
        self._audited: list[Audited] = []
        self._known = 0  # queued scores
        self._alarmed: set[str] = set()
        self._saved = time.monotonic()
        if self._file is not None:
            # a saved state continues only with the same calibration, score and tests
            about = [served.calibration_id, str(served.joint.router.score), self._states()]
            known = json.dumps(about, sort_keys=True).encode()
            self._key = hashlib.sha256(known).hexdigest()[:16]
            self._resume()

    def _scored(self, event: Scored) -> None:
        with self._lock:
            if self._known < MOST_SCORES:
                self._known += len(event.score)
                self._scores.append(event)

    def _audit(self, audited: Audited) -> None:
        with self._lock:
            self._audited.append(audited)

    def look(self) -> None:
        """Feed the monitors, log alarms, and save the state every `SAVE_SECONDS`."""
        with self._lock:
            scored, self._scores, self._known = self._scores, [], 0
            audited, self._audited = self._audited, []
        if scored:
            score, deferred, threshold = map(np.concatenate, zip(*scored, strict=True))
            if (drift := self._watches.get("drift")) is not None:
                drift.monitor.update(score)
            if (rate := self._watches.get("rate")) is not None:
                rate.monitor.update(deferred[threshold <= rate.threshold])
        if audited:
            self._take(audited)
        for name, watch in self._watches.items():
            if watch.alarmed and name not in self._alarmed:
                self._alarmed.add(name)
                log.error("the monitor of %s: %s", name, watch.monitor.statement, extra=self._extra)
        for kind, words in self.why_recalibrate().items():
            if kind not in self._told:
                self._told.add(kind)
                log.warning("it would pay to recalibrate: %s", words, extra=self._extra)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the state to `folder`, if given; OSError if it cannot be written."""
        self._saved = time.monotonic()
        if (place := self._file) is None:
            return
        counts = {"audits": self.audits, "contradicted": self.contradicted}
        windows = None if self.windows is None else self.windows.state()
        about = {"format": STATE_FORMAT, "of": self._key, "calibration": self._calibration}
        state = {**about, **counts, "monitors": self._states(), "windows": windows}
        with write_whole(place) as file:
            json.dump(state, file, allow_nan=False)

    def yield_state(self) -> None:
        """Stop writing the state: another monitor has taken it over."""
        self._file = None

    def status(self) -> dict[str, Any]:
        """Return each monitor's figures and sentence, or why there is none, for JSON."""
        watched = {name: watch.status() for name, watch in self._watches.items()}
        if "rate" in watched:
            watched["deferral_rate"] = watched.pop("rate")
        if self.windows is not None:
            last = self.windows.past[-MOST_WINDOWS:]
            watched["disagreement"]["windows"] = [asdict(window) for window in last]
        audits = {"rows": self.audits, "contradicted": self.contradicted}
        why = {"recalibrate": list(self.why_recalibrate().values())}
        return json_number({"audits": audits, **self._unwatched, **watched, **why})

    def why_recalibrate(self) -> dict[str, str]:
        """Return the reasons to choose the threshold again, by kind."""
        watched: dict[str, Any] = {name: watch.monitor for name, watch in self._watches.items()}
        risk = foremost(watched.get("rate"), watched.get("disagreement"))
        return why_recalibrate(risk, self.windows, watched.get("drift"))

    def readings(self) -> dict[str, dict[str, float]]:
        """Return the values of the metrics, by figure, then by monitor."""
        found = {
            figure: {
                name: float(getattr(watch.monitor, figure))
                for name, watch in self._watches.items()
                if figure in watch.figures
            }
            for figure in ("rows", "risk", "lower", "upper", "tolerance", "shift")
        } | {"alarm": {name: float(watch.alarmed) for name, watch in self._watches.items()}}
        if self.windows is not None and self.windows.past:
            last = self.windows.past[-1]
            for figure in ("rows", "risk", "lower", "upper"):
                found[figure]["window"] = float(getattr(last, figure))
            found["alarm"]["window"] = float(self.windows.broken > 0)
        return found

    def _take(self, audited: list[Audited]) -> None:
        threshold, deferred, drawn, contradicted = map(np.concatenate, zip(*audited, strict=True))
        self.audits += int(drawn.sum())
        self.contradicted += int(contradicted.sum())
        if (watch := self._watches.get("disagreement")) is not None:
            covered = threshold >= watch.threshold
            assert isinstance(watch.monitor, RiskMonitor)
            watch.monitor.update(contradicted[covered], drawn[covered])
            assert self.windows is not None
            now = datetime.now(UTC).isoformat(timespec="seconds")
            own = contradicted[covered], now, drawn[covered], deferred[covered]
            self.windows.update(*own)

    def _states(self) -> dict[str, Any]:
        return {name: watch.monitor.state() for name, watch in self._watches.items()}

    def _resume(self) -> None:
        assert self._file is not None
        try:
            kept = json.loads(read_text(self._file))
            if kept["format"] != STATE_FORMAT or kept["of"] != self._key:
                raise ValueError("it belongs to another calibration")
            states = kept["monitors"]
            taken = {
                name: watch._replace(monitor=type(watch.monitor).from_state(states[name]))
                for name, watch in self._watches.items()
            }
            counts = int(kept["audits"]), int(kept["contradicted"])
            if self.windows is not None and kept.get("windows") is not None:
                self.windows = RiskWindows.from_state(kept["windows"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            aside = self._file.with_suffix(".json.old")
            self._file.replace(aside)
            words = "the monitor starts again; %s was set aside as .json.old: %s"
            log.warning(words, self._file, error, extra=self._extra)
            return
        self.audits, self.contradicted = counts
        self._watches = taken


def _drift_of(served: Served) -> Watch | str:
    reference = served.calibration.get("drift")
    if reference is None:
        return "not watched: joint.toml has no reference scores; calibrate again"
    return Watch(DriftMonitor.of_reference(reference, ALPHA))


def _disagreement_of(served: Served, audit_rate: float) -> Watch | str:
    if not served.joint.kind.has_labels:
        return (
            f"not watched: answers of {served.joint.task} are not labels, which agree or "
            "contradict each other; drift of the scores is watched instead"
        )
    if not audit_rate:
        return "not watched: no kept rows are audited; serve with --audit-rate 0.01"
    certificate = served.certificate
    if certificate is not None and not certificate.labeled and certificate.promise != "rate":
        alone = certificate.promise == "harm" or served.joint.blend == 0
        if alone and certificate.tolerance >= 0:
            monitor = RiskMonitor(certificate.tolerance, ALPHA, audit_probability=audit_rate)
            return Watch(monitor, certificate.threshold, certificate.statement)
    known = served.calibration.get("disagreement")
    if known is None:
        return "not watched: joint.toml has no rate of disagreement; calibrate again"
    hits, n = int(known["kept_and_contradicted"]), int(known["rows"])
    _, most = clopper_pearson(hits, n, ALPHA)
    if most >= 1:
        return "not watched: the teacher contradicts every row of the calibration's held-out half"
    about = (
        f"on the calibration's held-out half the teacher contradicted {hits} of {n} rows that were "
        f"kept, which is at most {most:.4g} with probability {1 - ALPHA / 2:g}"
    )
    monitor = RiskMonitor(most, ALPHA / 2, audit_probability=audit_rate)
    return Watch(monitor, float(known["threshold"]), about)


def _windows_of(watch: Watch | None, audit_rate: float) -> RiskWindows | None:
    """Return windows of the same promise, at the same level."""
    if watch is None:
        return None
    assert isinstance(watch.monitor, RiskMonitor)
    own = watch.monitor
    return RiskWindows(own.tolerance, own.alpha, audit_probability=audit_rate)


def _rate_of(served: Served) -> Watch | None:
    certificate = served.certificate
    if certificate is None or certificate.promise != "rate":
        return None
    monitor = RiskMonitor(certificate.tolerance, ALPHA, promise="rate")
    return Watch(monitor, certificate.threshold, certificate.statement)

"""The last minute of a model, in constant memory: rates, latency percentiles, scores.

Everything is counted in slots of one second, which are reused.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ebjr.router import deferral_key
from ebjr.serving.events import Answered, Batched, Degraded, Failed, Observer, Scored

PERCENTILES = (50, 95, 99)
COUNTS = ("rows", "deferred", "degraded", "requests", "refused", "failures")

_FIRST = 1e-5  # seconds
_PER_OCTAVE = 8  # limits the error of a percentile to 4.5 %
_BINS = 24 * _PER_OCTAVE  # up to 168 s
_EDGES = _FIRST * 2 ** (np.arange(1, _BINS) / _PER_OCTAVE)


class Recent(Observer):
    """Counts of the last seconds; many threads write and read them.

    Scores are counted between the rising `score_edges` (k + 1,); scores beyond fall into the outer
    bins. `stages` are the models' names; `timed` are the request, and each model's wait and batch.
    """

    def __init__(
        self,
        score_edges: Sequence[float] = (),
        stages: Sequence[str] = ("student", "teacher"),
        *,
        seconds: int = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.timed = ("request", *(of for name in stages for of in (f"{name}_wait", name)))
        self._stages = stages
        self._clock = clock
        self._began = clock()
        self._now = 0  # the current second
        self._lock = threading.Lock()
        self._counts = np.zeros((seconds, len(COUNTS) + len(stages)), np.int64)
        self._times = np.zeros((seconds, len(self.timed), _BINS), np.int64)
        self.count_between(score_edges)
        self.handlers = {
            Batched: self._batched,
            Scored: self._scored,
            Answered: self._answered,
            Degraded: lambda event: self._count("degraded", event.rows),
            Failed: lambda _event: self._count("failures"),
        }

    def count_between(self, score_edges: Sequence[float]) -> None:
        """Count scores in these bins from now on."""
        with self._lock:
            self.score_edges = np.asarray(score_edges, np.float64)
            self._scores = np.zeros((self.seconds, max(len(score_edges) - 1, 0)), np.int64)

    def _batched(self, batch: Batched) -> None:
        self._time(batch.stage, np.array([batch.seconds]))
        self._time(f"{batch.stage}_wait", np.array(batch.waited))

    def _scored(self, event: Scored) -> None:
        """Count rows and their scores; NaN falls into the lowest bin, because it is deferred."""
        with self._lock:  # whole: another calibration has other bins
            slot = self._slot()
            self._counts[slot, 0] += len(event.score)
            self._counts[slot, 1] += int(np.count_nonzero(event.deferred))
            if self._scores.size:
                self._scores[slot] += self._places(event.score)

    def refused(self) -> None:
        """Count a request that was answered with an error."""
        self._count("refused")

    def _answered(self, event: Answered) -> None:
        self._count("requests", len(event.seconds))
        self._time("request", event.seconds)
        with self._lock:
            self._counts[self._slot(), len(COUNTS) :] += event.rows_by(self._stages)

    def counts(self, seconds: int | None = None) -> dict[str, int]:
        """Return `COUNTS` and the rows by model of the last seconds; None: of all kept seconds."""
        with self._lock:
            found = self._counts[self._last(seconds)].sum(axis=0)
        return dict(zip((*COUNTS, *self._stages), found.tolist(), strict=True))

    def covered(self, seconds: int | None = None) -> float:
        """Return how many of the last seconds have passed since the start, in fractions."""
        most = self.seconds if seconds is None else seconds
        alive = self._clock() - self._began
        return min(alive, most - 1 + alive % 1)

    def per_second(self, name: str) -> list[int]:
        """Return one of `COUNTS` for each full second, the oldest first."""
        with self._lock:
            slots = self._last(None)[:-1]
            return self._counts[slots, COUNTS.index(name)].tolist()

    def scores(self) -> np.ndarray:
        """Return the rows in each bin of scores, (k,)."""
        with self._lock:
            self._slot()
            return self._scores.sum(axis=0)

    def percentile(self, what: str, percent: float, seconds: int | None = None) -> float | None:
        """Return a percentile of one of `timed`, at most 4.5 % off; None without data."""
        with self._lock:
            counts = self._times[self._last(seconds), self.timed.index(what)].sum(axis=0)
        total = int(counts.sum())
        if not total:
            return None
        rank = max(math.ceil(percent / 100 * total), 1)
        place = int(np.searchsorted(np.cumsum(counts), rank))
        return float(_FIRST * 2 ** ((place + 0.5) / _PER_OCTAVE))  # the bin's geometric middle

    def as_dict(self, seconds: int = 10) -> dict[str, Any]:
        """Return the last `seconds`, and each kept second, for the page."""
        counts, covered = self.counts(seconds), self.covered(seconds)
        latency = {
            what: {f"p{p}": self.percentile(what, p, seconds) for p in PERCENTILES}
            for what in self.timed
        }
        return {
            "seconds": round(covered, 3),
            "stages": {stage: counts.pop(stage) for stage in self._stages},
            **counts,
            "deferral_rate": counts["deferred"] / counts["rows"] if counts["rows"] else None,
            "rows_per_second": counts["rows"] / covered if covered else 0.0,
            "requests_per_second": counts["requests"] / covered if covered else 0.0,
            "latency": latency,
            "minute": {name: self.per_second(name) for name in ("rows", "deferred")},
            "scores": self.scores().tolist(),
        }

    def _count(self, name: str, more: int = 1) -> None:
        with self._lock:
            self._counts[self._slot(), COUNTS.index(name)] += more

    def _places(self, score: np.ndarray) -> np.ndarray:
        if np.isnan(score.min(initial=np.inf)):
            score = deferral_key(score)
        found = np.searchsorted(self.score_edges[1:-1], score, side="right")
        return np.bincount(found, minlength=self._scores.shape[1])

    def _time(self, what: str, seconds: np.ndarray) -> None:
        counts = np.bincount(_EDGES.searchsorted(seconds, side="right"), minlength=_BINS)
        with self._lock:
            self._times[self._slot(), self.timed.index(what)] += counts

    def _slot(self) -> int:
        """Return the slot of the current second; a slot that begins is emptied."""
        now = int(self._clock() - self._began)
        if now != self._now:
            first = max(self._now, now - self.seconds) + 1
            passed = [second % self.seconds for second in range(first, now + 1)]
            for table in (self._counts, self._times, self._scores):
                table[passed] = 0
            self._now = now
        return now % self.seconds

    def _last(self, seconds: int | None) -> list[int]:
        """Return the slots of the last seconds since the start, the oldest first."""
        self._slot()
        most = self.seconds if seconds is None else min(seconds, self.seconds)
        first = max(self._now - most + 1, 0)
        return [second % self.seconds for second in range(first, self._now + 1)]

"""95 % intervals of a figure, over the test set *and* the splits.

A figure of the table is a mean over splits of one test set. Another test set, cut in another way,
would have given another figure: an interval resamples both halves of every split, chooses the
threshold anew on the first and judges it on the second. Score and blend stay those of the split. So
an interval is of one split, as a user has one, and wider than the mean's own would be.

On resampled examples the thresholds of a curve are those of the examples, each as often as it was
drawn: a resample is a row of weights, and the quality at every threshold a running sum of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ebjr import OperatingPoint, Outcomes, TradeOffCurve
from ebjr.blend import Blend

RESAMPLES = 2000
"""Of all splits together."""

PART = 32
"""Resamples at once: their sums then stay in the processor's cache."""

LEVEL = 0.95
SLACK = 1e-9


class Half(NamedTuple):
    """Examples by score, the lowest first.

    `kept`, `deferred` and `teacher` are (n,): the quality of the student's answer, of the one after
    deferring, and of the teacher's, or of whom else the joint model is compared with. `curve` is
    theirs, and `count`, (k,), how many examples each of its thresholds defers.
    """

    kept: np.ndarray
    deferred: np.ndarray
    teacher: np.ndarray
    curve: TradeOffCurve
    count: np.ndarray

    @classmethod
    def of(
        cls,
        outcomes: Outcomes,
        score: Any,
        blend: float | Blend = 0.0,
        beside: np.ndarray | None = None,
    ) -> Half:
        """From outcomes, by a score and with a blend; `beside` (n,): whom to compare with."""
        curve = TradeOffCurve.of(outcomes, score, blend)
        rows = (outcomes.student_quality, outcomes.deferred_quality(blend))
        sides = (*rows, outcomes.teacher_quality if beside is None else beside)
        count = np.rint(curve.deferral_rate * len(outcomes)).astype(int)
        return cls(*(side[curve.order] for side in sides), curve, count)

    def quality(self, times: np.ndarray) -> np.ndarray:
        """Sums of quality, (resamples, k), at every threshold.

        `times`, (resamples, n), is how often each example was drawn.
        """
        return self._sums(times, self.kept, self.deferred)

    def _sums(self, times: np.ndarray, kept: np.ndarray, deferred: np.ndarray) -> np.ndarray:
        """(resamples, k): sums over examples, each kept or deferred, at every threshold."""
        changed = running(times * (deferred - kept))
        if len(self.count) < changed.shape[1]:  # else each example has a threshold of its own
            changed = changed[:, self.count]
        changed += (times @ kept)[:, None]
        return changed

    def chosen(
        self, times: np.ndarray, over: float, capped: bool = False, margin: float = 0.0
    ) -> np.ndarray:
        """The threshold of each resample, (resamples,): NaN where none is as good as is asked.

        The lowest whose quality is `over` the teacher's, and exceeds that by a `margin` in standard
        errors, or comes nearest to it; `capped` takes the best there is where `over` is out of
        reach.
        """
        parts = (times[start : start + PART] for start in range(0, len(times), PART))
        return np.concatenate([self._chosen(part, over, capped, margin) for part in parts])

    def _chosen(self, times: np.ndarray, over: float, capped: bool, margin: float) -> np.ndarray:
        quality, n = self.quality(times), len(self.kept)
        wanted = times @ self.teacher + n * over
        if capped:
            wanted = np.minimum(wanted, quality.max(axis=1))
        reached = quality >= (wanted - SLACK * n)[:, None]
        first = reached.argmax(axis=1)
        if margin:
            above = np.maximum(quality - wanted[:, None], 0.0) / n
            error = self._errors(times)
            surplus = np.divide(above, error, out=np.full(above.shape, np.inf), where=error > SLACK)
            enough = reached & (surplus >= margin)
            nearest = np.where(reached, surplus, -1.0).argmax(axis=1)
            first = np.where(enough.any(axis=1), enough.argmax(axis=1), nearest)
        return np.where(reached.any(axis=1), self.thresholds(first), np.nan)

    def _errors(self, times: np.ndarray) -> np.ndarray:
        """(resamples, k): of the mean difference to the teacher at each threshold."""
        kept, deferred, n = self.kept - self.teacher, self.deferred - self.teacher, len(self.kept)
        means = [
            self._sums(times, one, other)
            for one, other in ((kept, deferred), (kept**2, deferred**2))
        ]
        return np.sqrt(np.maximum(means[1] / n - (means[0] / n) ** 2, 0.0) / n)

    def within(self, times: np.ndarray, rate: float) -> np.ndarray:
        """The threshold of each resample, (resamples,), of the best quality within a rate."""
        allowed = running(times)[:, self.count] <= rate * len(self.kept) * (1 + SLACK)
        quality = np.where(allowed, self.quality(times), -np.inf)
        return self.thresholds(quality.argmax(axis=1))

    def thresholds(self, rows: np.ndarray) -> np.ndarray:
        """Return the cost of rows of the curve, as an operating point has it."""
        each, place = np.unique(rows, return_inverse=True)
        return np.array([self.curve.threshold_of(int(row)) for row in each])[place]

    def judged(self, times: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each resample's deferral rate and quality over the teacher's, as shares."""
        count = self.count[np.searchsorted(self.curve.threshold, threshold, side="left")]
        gain, n = self.deferred - self.kept, len(self.kept)
        deferred = [row[:first] for row, first in zip(times, count, strict=True)]
        gained = np.array([row @ gain[: len(row)] for row in deferred])
        over = times @ self.kept + gained - times @ self.teacher
        return np.array([row.sum() for row in deferred]) / n, over / n


def running(values: np.ndarray) -> np.ndarray:
    """(resamples, n + 1): sums of the first 0, 1, ... columns."""
    sums = np.zeros((len(values), values.shape[1] + 1), values.dtype)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def times_drawn(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, n): how often each of n examples is drawn, n draws with replacement."""
    rows = rng.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    times = np.bincount(rows.ravel(), minlength=resamples * n).reshape(resamples, n)
    return times.astype(np.float64)  # once, because every product would


class Draws(NamedTuple):
    """Return each resample's deferral rate and points over the teacher, (resamples,).

    Resamples on which no threshold is good enough are left out.
    """

    rate: np.ndarray
    points: np.ndarray


def draws(
    halves: Iterable[tuple[Half, Half]],
    splits: int,
    over: float = 0.0,
    capped: bool = False,
    margin: float = 0.0,
    resamples: int | None = None,
) -> Draws:
    """Resample both halves of each split, choose on the first and judge on the second.

    Parameters
    ----------
    halves
        Of each split: what is chosen on, and what is judged on.
    over, capped, margin
        As `Half.chosen` has them: what is asked for over the teacher's quality, as a share.
    resamples
        Of all `splits` together; `RESAMPLES` by default.
    """
    rng, found = np.random.default_rng(0), []
    for first, second in halves:
        each = -(-(resamples or RESAMPLES) // splits)
        threshold = first.chosen(times_drawn(len(first.kept), each, rng), over, capped, margin)
        times = times_drawn(len(second.kept), each, rng)
        here = np.isfinite(threshold) | (threshold == np.inf)
        found.append(np.array(second.judged(times[here], threshold[here])))
    rate, gain = np.concatenate(found, axis=1)
    return Draws(rate, 100 * gain)


def halves_of(
    outcomes: Outcomes, splits: int, scores: Sequence[Any], blends: Sequence[float | Blend]
) -> Iterable[tuple[Half, Half]]:
    """Both halves of each split, by its score and blend."""
    for seed in range(splits):
        parts = outcomes.split(0.5, seed)
        yield tuple(Half.of(part, scores[seed], blends[seed]) for part in parts)  # type: ignore[misc]


def of_points(
    halves: Sequence[tuple[Outcomes, Outcomes, OperatingPoint]], over: float = 0.0
) -> Draws:
    """The same, of points that were chosen on the first half of their split."""
    pairs = (
        tuple(Half.of(part, point.router.score, point.blend) for part in (first, second))
        for first, second, point in halves
    )
    return draws(pairs, len(halves), over)  # type: ignore[arg-type]


def fixed(
    halves: Sequence[tuple[Outcomes, OperatingPoint]], beside: Sequence[np.ndarray] | None = None
) -> Draws:
    """Resamples of the half that is judged alone: thresholds stay those of each split.

    For what cannot be fitted anew on every resample. `beside`, (n,) each: whom to compare with, in
    place of the teacher. Draws of equal calls are of the same examples.
    """
    rng, found = np.random.default_rng(0), []
    for number, (outcomes, point) in enumerate(halves):
        rows = None if beside is None else beside[number]
        half = Half.of(outcomes, point.router.score, point.blend, rows)
        times = times_drawn(len(outcomes), -(-RESAMPLES // len(halves)), rng)
        found.append(np.array(half.judged(times, np.full(len(times), point.threshold))))
    rate, gain = np.concatenate(found, axis=1)
    return Draws(rate, 100 * gain)


def ratio(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """The interval of how often the first costs of examples, (n,), hold the second, by split."""
    rng, found = np.random.default_rng(0), []
    for dear, cheap in pairs:
        times = times_drawn(len(dear), -(-RESAMPLES // len(pairs)), rng)
        found.append((times @ dear) / (times @ cheap))
    return interval(np.concatenate(found))


def interval(values: np.ndarray, digits: int = 3) -> list[float]:
    """The middle 95 % of values: [low, high].

    Examples
    --------
    >>> interval(np.linspace(0, 100, 1001))
    [2.5, 97.5]
    """
    ends = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [round(float(end), digits) for end in ends]


def factor(found: Draws, student: float, teacher: float) -> dict[str, list[float]]:
    """The intervals of the table: times cheaper than the teacher, and points over it.

    `student` and `teacher` are what an example costs, in one unit.
    """
    return {
        "interval": interval(teacher / (student + found.rate * teacher)),
        "points_interval": interval(found.points, 2),
    }

"""Budget: a threshold for one batch without labels, and a promise about just these rows.

The student has scored all rows of a batch. The teacher is asked about a uniform sample of them,
without replacement; every row below a threshold is deferred; and sampled rows are answered by the
teacher, too. A promise is about the answers to this finite batch, not about a population that it
is drawn from, which is cheaper and what is meant. It counts *bad* rows, which are answered by the
student and not as the teacher would:

- agreement: at least ``at_least`` of all rows are answered as the teacher answers them;
- recall: of the rows that the teacher calls positive, at least so many are answered so;
- precision: of the rows that are answered positive, the teacher calls at least so many positive;
- accuracy, where a uniform sample has labels: at least so many of all answers are right.

*Proof.* Let the rows that are bad if kept stand in a line, the highest score first: every threshold
keeps a beginning of it, K of them, of which X are in the sample. Nothing but the sample is random.

Agreement and recall: the share is of R rows, all of them or those that the teacher calls positive,
of which s are in the sample; given s these are a uniform sample of the R. With the rows whose
teacher's answer was known before, which count as right, m bad rows are allowed. Sampled rows are
answered by the teacher, so a threshold is broken if K - X > m. The threshold taken is the lowest
with X <= c. Say that a broken threshold has X <= c. Look at the first m + 1 + c of the line. If the
threshold keeps at most these, the unsampled among them are at least its own, m + 1, so that at most
c of them are sampled; if it keeps more, at most X <= c of them are. Either way a hypergeometric
count, of s drawn from R rows with m + 1 + c bad ones, is at most c. The critical count c is the
largest for which that has probability at most delta, for every R that is possible. No correction
for the number of thresholds is due, as in `ebjr.calibration.guarantee`.

Precision: T rows of those that the student calls positive are so for the teacher; a threshold is
broken if K > m(T), the sampled bad rows, which are mended, being counted as well. To end at or
below the first broken threshold, the test there must pass, where T + m + 1 rows, m + 1 of them bad,
are kept or right. Given how many of these are in the sample, the bad among them are hypergeometric.

Precision where answers are turned: rows below the threshold that nobody is asked about are answered
negative, so that not all T rows count. A part of the calls, thrown away as evidence, chooses the
threshold; N rows that nobody was asked about are above it. Of these n are drawn, and X of them are
bad. With r rows known to be right, the promise is broken if ``K - X > m(X)``, where m(X) is what is
allowed of ``N - X + r`` rows. The test is that of agreement for as many rows. As X + m(X) does not
fall as X rises, every X that passes wrongly is at most the largest that does, x, and so many are as
unlikely as the test says, because then K is at least ``x + m(x) + 1``.

Accuracy: the teacher can be wrong, so that X may fall again as the threshold does. The walk from
all-teacher downwards ends before the first threshold with X > c, and the row at which it must have
passed wrongly is fixed, as above; where already all-teacher has X > c, nothing is promised. A
sampled row that is kept is answered by the student, as K counts it.

Boxes: an image has several. A promise is that the sum of ``bad - (1 - at_least) counted`` over all
images is at most 0, each image counting for at most a number of boxes fixed beforehand; it is bet
on without replacement, see `_bets_pass`, at each threshold in turn.

How many rows are sampled depends on the number of rows, the promise, delta and what was known
before, never on which of them are bad, so that the proof covers it: it is what costs least on
average over `Belief`, which is about pairs in general, and no assumption of the proof. For recall
rows are drawn until enough of them are positive: which positives these are is as random as before.
A budget without a promise is split beforehand as well: the lowest scores are asked about at once,
and what is left is sampled above them. There is then one threshold, and the largest promise that it
passes holds.

Sources: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then Test", 2021; Bates, Angelopoulos,
Lei, Malik & Jordan, "Distribution-free, risk-controlling prediction sets", Journal of the ACM 2021;
Waudby-Smith & Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from scipy.special import gammaincinv

from ebjr.calibration.guarantee import bisect, log_capital
from ebjr.stats import critical_count, hypergeometric_cdf

PROMISES = ("agreement", "accuracy", "precision", "recall")
"""What can be promised about a batch."""


@dataclass(frozen=True)
class Sample:
    """The sampled rows of a batch, the highest score first, and what else is known of the batch.

    Attributes
    ----------
    bad
        (n,): whether a row is bad if the student answers it; of images, how many boxes.
    counted
        (n,): whether the promise's share is of this row; of precision, whether it is right.
    population
        How many rows the sample is of.
    known
        How many counted rows are answered by the teacher whatever the threshold.
    deferred_bad
        (n,): the same if the teacher answers; of accuracy alone.
    deferred_counted, boxes, order
        Of images: `counted` where the teacher answers; the most boxes that one counts for; and
        (n,) where in the sample the first drawn row stands, the second, and so on.
    """

    promise: str
    bad: np.ndarray
    counted: np.ndarray
    population: int
    known: int = 0
    deferred_bad: np.ndarray | None = None
    deferred_counted: np.ndarray | None = None
    boxes: float | None = None
    order: np.ndarray | None = None

    def passed(self, at_least: float, delta: float) -> np.ndarray:
        """(n + 1,): whether the test passes where so many of the sampled rows are kept."""
        if self.boxes is not None:
            return _bets_pass(self, at_least, delta, range(len(self.bad) + 1))
        found = np.concatenate(([0], np.cumsum(self.bad)))
        if self.deferred_bad is not None:
            found += int(self.deferred_bad.sum()) - np.concatenate(
                ([0], np.cumsum(self.deferred_bad))
            )
        return found <= self.critical(at_least, delta)

    def critical(self, at_least: float, delta: float) -> int:
        """The largest number of bad rows in the sample that is evidence enough; -1: none is."""
        return critical_bad(
            self.promise,
            at_least,
            delta,
            drawn=len(self.bad),
            counted=int(self.counted.sum()),
            population=self.population,
            known=self.known,
        )

    def kept(self, at_least: float, delta: float) -> int:
        """How many of the sampled rows may be kept, from the highest score; -1 if not even 0."""
        passed = self.passed(at_least, delta)
        return len(passed) - 1 if passed.all() else int(np.argmin(passed)) - 1

    def best(self, delta: float) -> float:
        """The largest promise that holds where all rows are kept; 0 if there is none."""

        def passes(missing: float) -> bool:
            if self.boxes is not None:
                return bool(_bets_pass(self, 1 - missing, delta, [len(self.bad)])[-1])
            return bool(self.passed(1 - missing, delta)[-1])

        return max(0.0, 1 - bisect(passes, 0.0, 1.0, 1e-4))

    def observed(self, kept: int) -> float:
        """The share in the sample that is good where so many of its rows are kept; 1 of none."""
        bad, counted = float(self.bad[: max(kept, 0)].sum()), float(self.counted.sum())
        if self.promise == "precision" and self.boxes is None:
            counted += bad
        if self.deferred_bad is not None:
            bad += float(self.deferred_bad[max(kept, 0) :].sum())
        return 1 - bad / max(counted, 1)


def critical_bad(
    promise: str,
    at_least: float,
    delta: float,
    *,
    drawn: int,
    population: int,
    counted: int = 0,
    known: int = 0,
) -> int:
    """The largest number of bad rows, among `drawn` of `population`, at which a promise passes.

    The module's docstring has the proof. The promise's share is of `counted` of the rows drawn, of
    agreement and accuracy all, and `known` such rows more are good whatever the threshold. -1: no
    number is evidence.

    Examples
    --------
    >>> critical_bad("agreement", 0.97, 0.1, drawn=400, population=10_000)
    7
    """
    sizes = np.arange(counted, population - drawn + counted + 1)  # rows that may count in all
    if promise in ("agreement", "accuracy"):
        sizes, counted = np.array([population]), drawn
    of_right = promise == "precision"  # bad rows come on top of those that count
    per = (1 - at_least) / at_least if of_right else 1 - at_least
    allowed = np.floor(per * (sizes + known) + 1e-9)
    most = counted  # as many bad rows are in the sample, or all of them could be
    if of_right:
        can_break = sizes + allowed + 1 <= population
        sizes, allowed = sizes[can_break], allowed[can_break]
        most = min([drawn, *allowed.astype(int)])
    last = np.append(allowed[1:] != allowed[:-1], True)[: len(sizes)]  # of each, most good rows
    sizes, allowed = sizes[last], allowed[last]

    def chance(count: int) -> float:
        mended = count if promise in ("agreement", "recall") else 0
        bad = allowed + 1 + mended
        total, seen = (sizes + bad, counted + count) if of_right else (sizes, counted)
        possible = (bad <= total) & (seen <= total)
        if not possible.any():
            return 0.0
        reached = hypergeometric_cdf(count, total[possible], bad[possible], seen)
        return float(reached.max())

    return _largest(lambda count: chance(count) <= delta, most)


def shows_precision(
    at_least: float, delta: float, *, bad: int, drawn: int, population: int, known: int
) -> bool:
    """Whether `bad` of `drawn` rows show the precision of `population` rows answered positive.

    `known` rows more are answered so, and are right. What is below the threshold is turned.
    """
    how = {"drawn": drawn, "population": population, "known": known - bad}
    return bad <= critical_bad("agreement", at_least, delta, **how)


_CANDIDATES, _FEWEST, _SAFE = 24, 20, 1.0


def promising_cut(
    keys: np.ndarray, tried: np.ndarray, bad: np.ndarray, at_least: float, delta: float, calls: int
) -> float:
    """Below which key to turn rows, so that `calls` rows above it are likely to show precision.

    `keys` (n,) are those of the rows that nobody was asked about, `tried` (m,) those of a pilot and
    `bad` (m,) what came of it. It is the lowest key at which as many bad rows as are expected, and
    a standard deviation more, pass; if there is none, that of the best odds.
    """
    if not len(keys):
        return math.inf
    keys = np.append(np.sort(keys)[::-1], -math.inf)
    places = np.geomspace(min(_FEWEST, len(keys) - 1), len(keys) - 1, _CANDIDATES)
    best = (-math.inf, math.inf)
    for cut in keys[np.unique(np.rint(places).astype(int))[::-1]].tolist():
        above, seen = int((keys > cut).sum()), int((tried > cut).sum())
        drawn = min(calls, above)
        how = {"drawn": drawn, "population": above, "known": len(bad) - int(bad.sum())}
        passes = critical_bad("agreement", at_least, delta, **how)
        likely = drawn * (float(bad[tried > cut].sum()) + 0.5) / (seen + 1)
        odds = (passes + 0.5 - likely) / math.sqrt(likely * (1 + drawn / (seen + 1)) + 1e-9)
        if odds >= _SAFE:
            return float(cut)
        best = max(best, (odds, cut))
    return best[1]


def _largest(passes: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that passes, if all below it do; -1 if none does."""
    low, step = -1, 1
    while low + step <= most and passes(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def _bets_pass(sample: Sample, at_least: float, delta: float, counts: Sequence[int]) -> np.ndarray:
    """(n + 1,): whether the capital of bets against a broken promise of boxes reaches 1/delta.

    That is where so many images are kept as `counts` says, in turn until one fails.

    Each image's figure is a share of the range that it can have. Before the i-th of n images, drawn
    without replacement, a mean of `tolerance` leaves ``tolerance - sum / N`` for the rest, which is
    what the next is at least on average where the promise is broken.
    """
    assert sample.deferred_counted is not None
    most = sample.boxes or 1.0
    slack = (1 - at_least) * most
    reach = at_least * most + slack

    def share(bad: np.ndarray, counted: np.ndarray) -> np.ndarray:
        figure = bad - (1 - at_least) * np.minimum(counted, most)
        return (np.minimum(figure, at_least * most) + slack) / reach

    n, size, tolerance = len(sample.bad), sample.population, slack / reach
    kept = share(sample.bad, sample.counted)
    deferred = share(np.zeros(n), sample.deferred_counted)
    need, passed = -math.log(delta), np.zeros(n + 1, bool)
    # for any spread of what images have: to the most that leaves capital
    bets = np.geomspace(math.sqrt(4 * need / n), max(0.99 / (1 - tolerance), 1.0), 12)[:, None]
    for count in counts:
        loss = np.where(np.arange(n) < count, kept, deferred)[sample.order]
        before = np.concatenate(([0.0], np.cumsum(loss)[:-1]))
        mean = np.maximum((size * tolerance - before) / (size - np.arange(n)), 0.0)
        stake = np.minimum(bets, 0.99 / np.maximum(1 - mean, 1e-9))  # capital stays positive
        growth = np.log1p(stake * (mean - loss))
        passed[count] = float(log_capital(growth.sum(axis=1)[:, None])[0]) >= need
        if not passed[count]:
            break
    return passed


# --- how many rows to sample


@dataclass(frozen=True)
class Belief:
    """What pairs are like: a share of bad rows, and how fast they thin out as the score rises.

    At the place u, from 0 at the lowest score to 1, a row is bad with probability
    ``rate decay exp(-decay u) / (1 - exp(-decay))``. Only the size of a sample depends on it.
    """

    rate: np.ndarray
    decay: np.ndarray
    weight: np.ndarray

    def seen(self, place: np.ndarray, bad: np.ndarray) -> Belief:
        """The belief after rows (n,) at their places, whose answers were known before."""
        if not len(place):
            return self
        steep, most = self.decay[:, None], 1 - 1e-6
        chance = self.rate[:, None] * steep * np.exp(-steep * place) / -np.expm1(-steep)
        chance = np.minimum(chance, most)
        log = np.log(self.weight) + np.where(bad, np.log(chance), np.log1p(-chance)).sum(axis=1)
        weight = np.exp(log - log.max())
        return replace(self, weight=weight / weight.sum())

    def left(self, place: np.ndarray) -> np.ndarray:
        """The share of bad rows, of all rows, above a place, by case."""
        return self.rate * (np.exp(-self.decay * place) - np.exp(-self.decay)) / self._whole

    def place(self, share: np.ndarray) -> np.ndarray:
        """Above which place a share of all rows is bad, by case."""
        reached = share * self._whole / self.rate + np.exp(-self.decay)
        return np.clip(-np.log(np.minimum(reached, 1.0)) / self.decay, 0.0, 1.0)

    @property
    def _whole(self) -> np.ndarray:
        return -np.expm1(-self.decay)


@cache
def usual_pairs() -> Belief:
    """All that is known of a pair before the first answer: next to nothing."""
    rate, decay = np.meshgrid(np.geomspace(1e-3, 0.8, 24), np.geomspace(0.5, 48, 12))
    weight = np.full(rate.size, 1 / rate.size)
    return Belief(rate.ravel(), decay.ravel(), weight)


_QUANTILES = (np.arange(8)[:, None] + 0.5) / 8


@dataclass(frozen=True)
class Plan:
    """What a sample is to be chosen for.

    Attributes
    ----------
    population, deferrable
        How many rows the sample is of, and how many of them a threshold may defer.
    counted
        The share of them that are likely to count.
    known
        How many counted rows are known already.
    """

    promise: str
    delta: float
    population: int
    deferrable: int
    counted: float = 1.0
    known: int = 0
    belief: Belief = field(default_factory=usual_pairs)

    def sample_size(self, at_least: float, most: int | None = None) -> int | None:
        """How many rows to sample, at most `most`, to ask the fewest; None: no number."""
        found = [(self._asked(n, at_least), n) for n in self._sizes(most)]
        cost, n = min(found, default=(math.inf, 0))
        return n if math.isfinite(cost) else None

    def least_sample(self, at_least: float) -> int | None:
        """The fewest rows of which a sample without a bad one is evidence; None: not even all."""
        enough = [n for n in self._sizes(None) if self._critical(n, at_least).max() >= 0]
        return min(enough, default=None)

    def most(self, calls: int) -> float:
        """What a sample of that size without a bad row would promise, about."""
        missing = bisect(lambda one: self._critical(calls, 1 - one).max() >= 0, 0.0, 1.0, 1e-3)
        return max(0.0, 1 - missing)

    def split(self, calls: int) -> int:
        """How many of `calls` to spend on the lowest scores, the rest being sampled above them."""
        bounds = []
        sampled = self._sizes(calls)
        for n in sampled:
            first = min(calls - n, self.deferrable)
            rest = self.population - first
            share = self.belief.left(np.array(first / max(self.deferrable, 1)))
            hits = n * share * self.population / max(rest, 1)
            upper = gammaincinv(hits + 1, 1 - self.delta) / n * rest
            bounds.append(float((self.belief.weight * np.minimum(upper, rest)).sum()))
        return max(0, calls - sampled[int(np.argmin(bounds))])

    def _sizes(self, most: int | None) -> list[int]:
        top = min(self.population, self.population if most is None else most)
        grid = np.geomspace(min(8, top), top, 32) if top > 0 else np.zeros(0)
        return sorted({int(size) for size in np.rint(grid)})

    def likely_counted(self, n: int) -> np.ndarray:
        """(cases,): how many of n sampled rows count; of precision the fewest that are likely."""
        rate = self.belief.rate
        if self.promise != "precision":
            return np.full(len(rate), round(n * self.counted))
        right = 1 - rate
        fewest = n * right - 1.64 * np.sqrt(n * rate * right)
        return np.maximum(fewest, 0).astype(int)

    def _critical(self, n: int, at_least: float) -> np.ndarray:
        """(cases,): how many of n sampled rows may be bad: exact of agreement, else about."""
        counted = self.likely_counted(n)
        if self.promise == "agreement":
            how = {"drawn": n, "population": self.population, "known": self.known}
            exact = _critical_cached(self.promise, at_least, self.delta, **how)
            return np.full(len(counted), exact)
        each, case = np.unique(counted, return_inverse=True)
        return np.array([_binomial(int(one), 1 - at_least, self.delta) for one in each])[case]

    def _asked(self, n: int, at_least: float) -> float:
        """How many rows are asked in all if n are sampled, on average over the belief."""
        critical = self._critical(n, at_least)
        if (critical < 0).all():
            return math.inf
        arrivals = gammaincinv(np.maximum(critical, 0) + 1, _QUANTILES) / max(n * self.counted, 1)
        place = np.where(critical < 0, 1.0, self.belief.place(arrivals))
        more = place * self.deferrable * (1 - n / self.population)
        return n + float((self.belief.weight * more).sum(axis=1).mean())


_critical_cached, _binomial = cache(critical_bad), cache(critical_count)

"""Budget: a threshold for one unlabeled batch, and a promise about exactly these rows.

The student has scored all rows of a batch. The teacher is asked about a uniform sample of them,
without replacement; rows below a threshold are deferred; and the teacher answers sampled rows too.
A promise is about the answers to this finite batch, not about a population behind it, which is what
users mean and is cheaper. It counts *bad* rows: the student answers them, and not as the teacher
would.

- agreement: at least ``at_least`` of all rows are answered as the teacher answers them;
- recall: at least this share of the rows that the teacher calls positive are answered so;
- precision: the teacher calls positive at least this share of the rows that are answered positive;
- accuracy, if a uniform sample has labels: at least this share of all answers are right.

*Proof.* Put the rows that are bad if kept in a line, the highest score first. Every threshold keeps
a beginning of it, K of them, and X of these are in the sample. Only the sample is random.

Agreement and recall: the share is of R rows, either all of them or those that the teacher calls
positive, of which s are in the sample; given s, these are a uniform sample of the R. Together with
rows whose teacher's answer was known before, which count as right, m bad rows are allowed. The
teacher answers sampled rows, so a threshold is broken if K - X > m. The chosen threshold is the
lowest with X <= c. Suppose that a broken threshold has X <= c, and look at the first m + 1 + c of
the line. If the threshold keeps at most these, the unsampled among them are at least its own m + 1,
so at most c of them are sampled; if it keeps more, at most X <= c of them are. Either way a
hypergeometric count, of s drawn from R rows with m + 1 + c bad ones, is at most c. The critical
count c is the largest for which that has probability at most delta, for every possible R. As in
`ebjr.calibration.guarantee`, the number of thresholds needs no correction.

Precision: the teacher calls T of the student's positive rows positive. A threshold is broken if
K > m(T), counting the sampled bad rows too, although they are mended. To end at or below the first
broken threshold, the test there must pass, where T + m + 1 rows, m + 1 of them bad, are kept or
right. Given how many of these are in the sample, the bad among them are hypergeometric.

Precision with turned answers: rows below the threshold that the teacher is not asked about are
answered negative, so that not all T rows count. Some of the calls choose the threshold and are not
evidence; N rows above it are not asked about. Of these n are drawn, and X of them are bad. With r
rows known to be right, the promise is broken if ``K - X > m(X)``, where m(X) is what is allowed of
``N - X + r`` rows. The test is that of agreement for that many rows. X + m(X) does not fall as X
rises, so every X that passes wrongly is at most the largest that does, x, and seeing that many is
as unlikely as the test says, because then K is at least ``x + m(x) + 1``.

Accuracy: the teacher can be wrong, so X can fall again as the threshold falls. The walk from
all-teacher downwards ends before the first threshold with X > c, and the row at which it must have
passed wrongly is fixed, as above. If all-teacher already has X > c, nothing is promised. The
student answers a sampled row that is kept, as K counts it.

Boxes: an image has several. A promise is that the sum of ``bad - (1 - at_least) counted`` over all
images is at most 0, where each image counts for at most a number of boxes fixed beforehand. It is
tested by bets without replacement, see `_bets_pass`, at each threshold in turn.

The size of the sample depends on the number of rows, the promise, delta and what was known before,
never on which rows are bad, so the proof covers it. It is the size that costs least on average over
`Belief`, which describes pairs in general and is not an assumption of the proof. For recall, rows
are drawn until enough are positive: which positives these are is as random as before. A budget
without a promise is split beforehand too: the lowest scores are asked about at once, and the rest
is sampled above them. There is then one threshold, and the largest promise that passes there holds.

Sources: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then Test", 2021; Bates, Angelopoulos,
Lei, Malik & Jordan, "Distribution-free, risk-controlling prediction sets", Journal of the ACM 2021;
Waudby-Smith & Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
from scipy.special import gammaincinv

from ebjr.calibration.guarantee import bisect, log_capital
from ebjr.stats import critical_count, hypergeometric_cdf

PROMISES = ("agreement", "accuracy", "precision", "recall")
"""The promises that can be made about a batch."""


@dataclass(frozen=True)
class Sample:
    """The sampled rows of a batch, the highest score first, and what else is known of the batch.

    Attributes
    ----------
    bad
        (n,): whether a row is bad if the student answers it; for images, how many boxes.
    counted
        (n,): whether the promise's share is of this row; for precision, whether it is right.
    population
        The number of rows that the sample was drawn from.
    known
        The number of counted rows that the teacher answers at every threshold.
    deferred_bad
        (n,): `bad` if the teacher answers; for accuracy only.
    deferred_counted, boxes, order
        For images: `counted` if the teacher answers; the most boxes that an image counts for; and
        (n,) the place in the sample of the first drawn row, the second, and so on.
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
        """Return, (n + 1,), whether the test passes when this many sampled rows are kept."""
        if self.boxes is not None:
            return _bets_pass(self, at_least, delta, range(len(self.bad) + 1))
        found = np.concatenate(([0], np.cumsum(self.bad)))
        if self.deferred_bad is not None:
            found += int(self.deferred_bad.sum()) - np.concatenate(
                ([0], np.cumsum(self.deferred_bad))
            )
        return found <= self.critical(at_least, delta)

    def critical(self, at_least: float, delta: float) -> int:
        """Return the largest number of bad rows in the sample that passes; -1 if none does."""
        return _critical_cached(
            self.promise,
            at_least,
            delta,
            drawn=len(self.bad),
            counted=int(self.counted.sum()),
            population=self.population,
            known=self.known,
        )

    def kept(self, at_least: float, delta: float) -> int:
        """Return how many sampled rows may be kept, highest score first; -1 if not even 0."""
        passed = self.passed(at_least, delta)
        return len(passed) - 1 if passed.all() else int(np.argmin(passed)) - 1

    def best(self, delta: float) -> float:
        """Return the largest promise that holds if all rows are kept; 0 if there is none."""

        def passes(missing: float) -> bool:
            if self.boxes is not None:
                return bool(_bets_pass(self, 1 - missing, delta, [len(self.bad)])[-1])
            return bool(self.passed(1 - missing, delta)[-1])

        return max(0.0, 1 - bisect(passes, 0.0, 1.0, 1e-4))

    def observed(self, kept: int) -> float:
        """Return the good share in the sample if this many of its rows are kept; 1 of none."""
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
    """Return the largest number of bad rows, among `drawn` of `population`, that passes.

    The module's docstring has the proof. The promise's share is of `counted` of the drawn rows (for
    agreement and accuracy of all), and `known` more such rows are good at every threshold. -1: no
    number passes.

    Examples
    --------
    >>> critical_bad("agreement", 0.97, 0.1, drawn=400, population=10_000)
    7
    """
    sizes = np.arange(counted, population - drawn + counted + 1)  # possible numbers of counted rows
    if promise in ("agreement", "accuracy"):
        sizes, counted = np.array([population]), drawn
    of_right = promise == "precision"  # bad rows are not among those that count
    per = (1 - at_least) / at_least if of_right else 1 - at_least
    allowed = np.floor(per * (sizes + known) + 1e-9)
    most = counted  # the sample has no more, or all of them could be bad
    if of_right:
        can_break = sizes + allowed + 1 <= population
        sizes, allowed = sizes[can_break], allowed[can_break]
        most = min([drawn, *allowed.astype(int)])
    # for each allowance, the most good rows
    last = np.append(allowed[1:] != allowed[:-1], True)[: len(sizes)]
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

    `known` more rows are answered so, and are right. Rows below the threshold are turned.
    """
    how = {"drawn": drawn, "population": population, "known": known - bad}
    return bad <= _critical_cached("agreement", at_least, delta, **how)


_CANDIDATES, _FEWEST, _SAFE = 24, 20, 1.0


def promising_cut(
    keys: np.ndarray, tried: np.ndarray, bad: np.ndarray, at_least: float, delta: float, calls: int
) -> float:
    """Return the key below which to turn rows, so that `calls` rows above likely show precision.

    `keys` (n,) are those of rows not asked about, `tried` (m,) those of a pilot and `bad` (m,) its
    results. The cut is the lowest key at which the expected number of bad rows plus a standard
    deviation passes; if there is none, the one with the best odds.
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
        passes = _critical_cached("agreement", at_least, delta, **how)
        likely = drawn * (float(bad[tried > cut].sum()) + 0.5) / (seen + 1)
        odds = (passes + 0.5 - likely) / math.sqrt(likely * (1 + drawn / (seen + 1)) + 1e-9)
        if odds >= _SAFE:
            return float(cut)
        best = max(best, (odds, cut))
    return best[1]


def _largest(passes: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that passes with all below it; -1 if none does."""
    low, step = -1, 1
    while low + step <= most and passes(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def _bets_pass(sample: Sample, at_least: float, delta: float, counts: Sequence[int]) -> np.ndarray:
    """Return, (n + 1,), whether bets against a broken promise of boxes reach a capital of 1/delta.

    Element k is for k kept images; `counts` lists the k to test, in turn until one fails.

    Each image's figure is a share of its possible range. Before the i-th of n images, drawn without
    replacement, a mean of `tolerance` leaves ``tolerance - sum / N`` for the rest, which is at most
    the mean of the next image if the promise is broken.
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
    # bets for any spread of figures, up to the largest that leaves capital
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


# --- the size of a sample


@dataclass(frozen=True, eq=False)  # hashed by identity: plans are equal if they share a belief
class Belief:
    """A prior over pairs: the share of bad rows, and how fast it falls as the score rises.

    At the place u, from 0 at the lowest score to 1, a row is bad with probability
    ``rate decay exp(-decay u) / (1 - exp(-decay))``. Only the size of a sample depends on it.
    """

    rate: np.ndarray
    decay: np.ndarray
    weight: np.ndarray

    def seen(self, place: np.ndarray, bad: np.ndarray) -> Belief:
        """Return the belief updated by rows (n,) at their places whose answers are known."""
        if not len(place):
            return self
        steep, most = self.decay[:, None], 1 - 1e-6
        chance = self.rate[:, None] * steep * np.exp(-steep * place) / -np.expm1(-steep)
        chance = np.minimum(chance, most)
        log = np.log(self.weight) + np.where(bad, np.log(chance), np.log1p(-chance)).sum(axis=1)
        weight = np.exp(log - log.max())
        return replace(self, weight=weight / weight.sum())

    def left(self, place: np.ndarray) -> np.ndarray:
        """Return the bad rows above a place, as a share of all rows, by case."""
        return self.rate * (np.exp(-self.decay * place) - np.exp(-self.decay)) / self._whole

    def place(self, share: np.ndarray) -> np.ndarray:
        """Return the place above which this share of all rows is bad, by case."""
        reached = share * self._whole / self.rate + np.exp(-self.decay)
        return np.clip(-np.log(np.minimum(reached, 1.0)) / self.decay, 0.0, 1.0)

    @property
    def _whole(self) -> np.ndarray:
        return -np.expm1(-self.decay)


@cache
def usual_pairs() -> Belief:
    """Return the belief before the first answer: nearly uninformed."""
    rate, decay = np.meshgrid(np.geomspace(1e-3, 0.8, 24), np.geomspace(0.5, 48, 12))
    weight = np.full(rate.size, 1 / rate.size)
    return Belief(rate.ravel(), decay.ravel(), weight)


_QUANTILES = (np.arange(8)[:, None] + 0.5) / 8


@dataclass(frozen=True)
class Plan:
    """The facts that determine the size of a sample.

    Attributes
    ----------
    population, deferrable
        The number of rows to draw from, and how many of them a threshold may defer.
    counted
        The share of them that is likely to count.
    known
        The number of counted rows that are known already.
    """

    promise: str
    delta: float
    population: int
    deferrable: int
    counted: float = 1.0
    known: int = 0
    belief: Belief = field(default_factory=usual_pairs)

    def sample_size(self, at_least: float, most: int | None = None) -> int | None:
        """Return the sample size, at most `most`, that asks the fewest rows; None if none works."""
        return _sample_size(self, at_least, most)

    def least_sample(self, at_least: float) -> int | None:
        """Return the smallest sample that passes without a bad row; None if none does."""
        enough = [n for n in self._sizes(None) if self._critical(n, at_least).max() >= 0]
        return min(enough, default=None)

    def most(self, calls: int) -> float:
        """Return about what a sample of this size would promise without a bad row."""
        missing = bisect(lambda one: self._critical(calls, 1 - one).max() >= 0, 0.0, 1.0, 1e-3)
        return max(0.0, 1 - missing)

    def split(self, calls: int) -> int:
        """Return how many of `calls` to spend on the lowest scores; the rest are sampled above."""
        return _split(self, calls)

    def _sizes(self, most: int | None) -> list[int]:
        top = min(self.population, self.population if most is None else most)
        grid = np.geomspace(min(8, top), top, 32) if top > 0 else np.zeros(0)
        return sorted({int(size) for size in np.rint(grid)})

    def likely_counted(self, n: int) -> np.ndarray:
        """Return how many of n sampled rows count, by case; for precision the fewest likely."""
        rate = self.belief.rate
        if self.promise != "precision":
            return np.full(len(rate), round(n * self.counted))
        right = 1 - rate
        fewest = n * right - 1.64 * np.sqrt(n * rate * right)
        return np.maximum(fewest, 0).astype(int)

    def _critical(self, n: int, at_least: float) -> np.ndarray:
        """Return how many of n sampled rows may be bad, by case; exact for agreement only."""
        counted = self.likely_counted(n)
        if self.promise == "agreement":
            how = {"drawn": n, "population": self.population, "known": self.known}
            exact = _critical_cached(self.promise, at_least, self.delta, **how)
            return np.full(len(counted), exact)
        each, case = np.unique(counted, return_inverse=True)
        return np.array([_binomial(int(one), 1 - at_least, self.delta) for one in each])[case]

    def _asked(self, n: int, at_least: float) -> float:
        """Return how many rows are asked in total if n are sampled, on average over the belief."""
        critical = self._critical(n, at_least)
        if (critical < 0).all():
            return math.inf
        each, case = np.unique(np.maximum(critical, 0), return_inverse=True)  # few differ
        arrivals = gammaincinv(each + 1, _QUANTILES)[:, case] / max(n * self.counted, 1)
        place = np.where(critical < 0, 1.0, self.belief.place(arrivals))
        more = place * self.deferrable * (1 - n / self.population)
        return n + float((self.belief.weight * more).sum(axis=1).mean())


@lru_cache(maxsize=64)
def _sample_size(plan: Plan, at_least: float, most: int | None) -> int | None:
    found = [(plan._asked(n, at_least), n) for n in plan._sizes(most)]
    cost, n = min(found, default=(math.inf, 0))
    return n if math.isfinite(cost) else None


@lru_cache(maxsize=64)
def _split(plan: Plan, calls: int) -> int:
    bounds = []
    sampled = plan._sizes(calls)
    for n in sampled:
        first = min(calls - n, plan.deferrable)
        rest = plan.population - first
        share = plan.belief.left(np.array(first / max(plan.deferrable, 1)))
        hits = n * share * plan.population / max(rest, 1)
        upper = gammaincinv(hits + 1, 1 - plan.delta) / n * rest
        bounds.append(float((plan.belief.weight * np.minimum(upper, rest)).sum()))
    return max(0, calls - sampled[int(np.argmin(bounds))])


# bounded: a long run makes one promise per window, each about other numbers of rows
_critical_cached = lru_cache(maxsize=2**14)(critical_bad)
_binomial = lru_cache(maxsize=2**14)(critical_count)

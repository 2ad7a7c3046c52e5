"""Guarantee: a threshold whose promise holds beyond the examples that chose it.

Thresholds are tested one after the other, starting at all-teacher, until the first test fails:
fixed-sequence testing (Learn then Test), which needs no correction for the number of tests. The
thresholds are the calibration scores themselves, and the promise still fails with probability at
most `delta`:

*Proof.* Let R(t) be the true risk at threshold t, and call t broken if R(t) > `tolerance`. A test
at a t fixed in advance passes a broken t with probability at most `delta`. Let T be the supremum of
the broken thresholds.

If T is broken, the kept examples at T are those at the next calibration score g >= T, ties
included, so the tests at T and at row g are the same. A walk that ends at or below T has passed g,
which happens with probability at most `delta`.

If T is not broken, take broken t1 < t2 < ... rising to T. Ending at a broken threshold means ending
at or below one of them. That is a union of growing events, each of probability at most `delta` by
the first case, so its probability is at most `delta` too.

A walk that ends above T keeps the promise. The first row, ``inf``, needs no test if its risk is 0
by definition. For `rate` the walk goes upwards, and the proof is mirrored.

The promise and the task choose the test, never the data:

- losses of 0 and 1 (harm, risk and rate of classifiers): the exact binomial tail, one critical
  count for all thresholds;
- losses of -1, 0 and 1 (excess of classifiers): the exact unconditional test on gains and losses,
  with a critical count of losses that grows with the gains, see `_constant`;
- any loss of at most 1 (other tasks): betting, see `log_capital`.

The proof takes the examples as independent draws. An exchangeable stream is a mixture of such
draws, so the promise holds for it too.

In `benchmarks/guarantee.py` Hoeffding-Bentkus certifies far less than betting, and betting less
than the exact tests. The smaller of two p-values is not a p-value, so only one test is used.

Sources: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then Test: Calibrating predictive
algorithms to achieve risk control", 2021 (Annals of Applied Statistics 2025); Waudby-Smith &
Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024; Lloyd & Moldovan,
"Exact one-sided confidence limits for the difference between two correlated proportions",
Statistics in Medicine 2007.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtri

from ebjr.betting import refuted_mean
from ebjr.curve import TradeOffCurve, score_values
from ebjr.errors import CalibrationError, check_choice
from ebjr.metric import METRICS, Metric
from ebjr.router import is_deferred
from ebjr.stats import Interval, binomial_cdf, clopper_pearson, critical_count

PROMISES = {
    "harm": "the share of inputs that the student keeps and gets wrong where the teacher is right",
    "excess": "the joint model's loss minus the teacher's",
    "risk": "the joint model's loss",
    "rate": "the deferral rate",
}
"""By promise: what is bounded by the tolerance."""

_MOST_EXAMPLES = 10**9


@dataclass(frozen=True)
class Certificate:
    """A threshold and its promise.

    Attributes
    ----------
    promise, tolerance, delta
        `promise` is at most `tolerance` with probability at least ``1 - delta``.
    n
        The number of examples behind it.
    row, threshold, deferral_rate
        The row of the curve, and its figures.
    observed
        The mean of the promised loss on the examples, at that row.
    bound
        The smallest tolerance that this row alone would have passed, which shows how much room is
        left. The promise is about `tolerance`, which was fixed in advance.
    naive_deferral_rate
        The deferral rate of a pick without a guarantee: the first row whose `observed` is within
        the tolerance.
    test
        ``"exact binomial"``, ``"exact trinomial"`` or ``"betting"``.
    labeled
        Whether the examples had labels; if not, the teacher's own answers are taken for right.
    loss_bound, clipped
        The value at which losses were cut off, in the unit of a row's loss (for RMSE a squared
        error), and how many of the `n` losses were, at that row; None if they are at most 1 anyway.
    metric
        The metric behind the losses. For ``"rmse"`` tolerance, observed and bound are roots of mean
        losses.

    Examples
    --------
    >>> figures = {"row": 7, "threshold": 0.9, "deferral_rate": 0.4, "observed": 0.006}
    >>> figures |= {"bound": 0.0099, "naive_deferral_rate": 0.3, "test": "exact binomial"}
    >>> certificate = Certificate("rate", tolerance=0.5, delta=0.1, n=2000, **figures)
    >>> certificate.price
    0.1
    >>> certificate.statement
    'With probability at least 0.9 over the draw of the 2,000 calibration examples, the deferral
    rate is at most 0.5, if the inputs in use are exchangeable with the calibration examples.'
    >>> certificate.covers(0.85), certificate.covers(0.95)
    (True, False)
    """

    promise: str
    tolerance: float
    delta: float
    n: int
    row: int
    threshold: float
    deferral_rate: float
    observed: float
    bound: float
    naive_deferral_rate: float
    test: str
    labeled: bool = True
    loss_bound: float | None = None
    metric: str = "accuracy"
    clipped: int | None = None

    @property
    def price(self) -> float:
        """The deferral rate beyond the naive pick's: the price of the guarantee."""
        return round(self.deferral_rate - self.naive_deferral_rate, 12)

    @property
    def statement(self) -> str:
        """The promise in one sentence."""
        right = "" if self.labeled else ", the teacher's own answers being taken for right"
        if self.loss_bound is not None:
            known = METRICS.get(self.metric)  # a user's metric may not be imported here
            of = f"{self.loss_bound:g} of {known.rows_title if known else self.metric}"
            cut = "" if self.clipped is None else f"; {self.clipped:,} were cut off there"
            right += f" ({self.metric}, each loss counting for at most {of}{cut})"
        elif self.promise != "rate" and not METRICS[self.metric].binary:
            right += f" (the error of an input being 1 - {METRICS[self.metric].title})"
        return (
            f"With probability at least {1 - self.delta:.6g} over the draw of the {self.n:,} "
            f"calibration examples, {self._promised} is at most {self.tolerance:g}"
            f"{right}, if the inputs in use are exchangeable with the calibration examples."
        )

    def covers(self, threshold: float) -> bool:
        """Whether the promise holds at another threshold too.

        The walk passed every threshold on its way: all higher ones, or for `rate` all lower ones.
        """
        rate = self.promise == "rate"
        return threshold <= self.threshold if rate else threshold >= self.threshold

    @property
    def _promised(self) -> str:
        if self.promise == "harm" and not METRICS[self.metric].binary:
            return "the loss of kept answers beyond the teacher's, over all inputs,"
        return PROMISES[self.promise]

    def as_dict(self) -> dict[str, Any]:
        """Every figure, with `price` and `statement`, for JSON and TOML."""
        figures = {**asdict(self), "price": self.price, "statement": self.statement}
        return {name: value for name, value in figures.items() if value is not None}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Certificate:
        """Read what `as_dict` returned."""
        return cls(**{k: v for k, v in figures.items() if k not in ("price", "statement")})


def certify(
    curve: TradeOffCurve,
    promise: str = "harm",
    *,
    tolerance: float,
    delta: float = 0.1,
    loss_bound: float | None = None,
) -> Certificate:
    """Walk down the thresholds as far as the promise can be certified.

    Choose score and blend without the curve's examples: the proof covers the choice of the
    threshold alone. The certificate is for the row that defers least. For ``"rate"``, where every
    row that defers less is certified too, it is for the best of these in quality.

    Parameters
    ----------
    promise
        ``"harm"``: the share of inputs where the student is kept and wrong and the teacher right;
        ``"excess"``: the joint loss, with the blend, minus the teacher's; ``"risk"``: the joint
        loss; ``"rate"``: the deferral rate. A loss is one minus the quality.
    tolerance
        In [0, 1), for excess in (-1, 1); with `loss_bound` in the metric's unit.
    loss_bound
        For losses without a bound: larger losses are cut off here, in the unit of a row's loss, for
        RMSE a squared error. Fix it without these examples.

    Raises
    ------
    ValueError
        `promise` is unknown, or `tolerance` or `delta` is out of range.
    CalibrationError
        No row that keeps an input passes. The message names the smallest tolerance that would pass,
        and about how many examples `tolerance` needs.
    """
    scale = _scale(curve, promise, loss_bound)
    aim = _Aim(promise, scale.share(tolerance), float(delta))
    losses, row = _walked(curve, aim, scale)
    if row is None:
        raise CalibrationError(_refusal(losses, curve, aim, scale))
    if promise == "rate":  # rows that defer less keep it too
        row = int(curve.quality[: row + 1].argmax())
    mean = losses.mean
    within = np.flatnonzero(mean <= aim.tolerance + 1e-12)  # means are not exact in binary
    naive, asked = row, np.zeros(losses.n, bool)
    asked[curve.order[: losses.cut[row]]] = True
    if len(within):
        naive = within[curve.quality[within].argmax() if promise == "rate" else 0]
    return Certificate(
        promise=promise,
        tolerance=float(tolerance),
        delta=aim.delta,
        n=losses.n,
        row=row,
        threshold=curve.threshold_of(row),
        deferral_rate=float(curve.deferral_rate[row]),
        observed=scale.figure(float(mean[row])),
        bound=min(scale.figure(_smallest(losses.at(row), aim)), float(tolerance)),
        naive_deferral_rate=float(curve.deferral_rate[naive]),
        test=losses.test,
        labeled=curve.outcomes.labeled,
        loss_bound=scale.bound,
        metric=curve.outcomes.metric,
        clipped=_clipped(curve, promise, scale.bound, asked),
    )


def certified_row(
    curve: TradeOffCurve,
    promise: str = "harm",
    *,
    tolerance: float,
    delta: float = 0.1,
    loss_bound: float | None = None,
) -> int | None:
    """Return the furthest certified row; None where `certify` would raise CalibrationError."""
    scale = _scale(curve, promise, loss_bound)
    return _walked(curve, _Aim(promise, scale.share(tolerance), float(delta)), scale)[1]


@dataclass(frozen=True)
class _Aim:
    """What is tested: that `promise` is at most `tolerance`, a share of the largest loss."""

    promise: str
    tolerance: float
    delta: float

    def at(self, tolerance: float) -> _Aim:
        """Return the same aim at another tolerance."""
        return replace(self, tolerance=tolerance)


@dataclass(frozen=True)
class _Scale:
    """The scale between losses in the metric's unit and the tests' shares of `bound`."""

    bound: float | None = None  # losses are at most 1
    root: bool = False  # figures are roots of mean losses

    def share(self, figure: float) -> float:
        """Return a tolerance as a share of the bound."""
        return (figure**2 if self.root else figure) / (self.bound or 1.0)

    def figure(self, share: float) -> float:
        """Return a mean of shares in the metric's unit."""
        mean = share * (self.bound or 1.0)
        return math.sqrt(max(mean, 0.0)) if self.root else mean


def _scale(curve: TradeOffCurve, promise: str, loss_bound: float | None) -> _Scale:
    """Return the scale of a promise's losses; ValueError if they have no bound."""
    measure = curve.outcomes.measure
    if (measure.percent and measure.certifiable) or promise == "rate":
        if loss_bound is not None:
            raise ValueError(
                f"loss_bound is for losses without a bound, not for {promise} of {measure.name}: "
                "remove it"
            )
        return _Scale()
    if not measure.certifiable:
        *others, last = [
            metric.name for metric in curve.outcomes.kind.metrics if metric.certifiable
        ]
        words = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(
            f"{measure.name} is not a mean over examples, so nothing can be promised of it: use "
            f"the metric {words}"
        )
    if measure.root and promise != "risk":
        raise ValueError(
            f"{promise} of {measure.name} is a difference of roots, not a mean over examples, so "
            "it cannot be promised: use the metric mse or mae, or the goal 'accuracy'"
        )
    if loss_bound is None:
        raise ValueError(
            f"the {measure.rows_title} of a row has no bound, and a guarantee needs one: give "
            f"loss_bound, the largest loss that counts, as {measure.rows_title}, chosen without "
            "these examples"
        )
    if not (math.isfinite(loss_bound) and loss_bound > 0):
        raise ValueError(f"loss_bound must be a positive number, not {loss_bound:g}")
    return _Scale(float(loss_bound), measure.root)


# --- the promised loss of each example, if it is kept and if it is deferred


@dataclass(frozen=True)
class _Losses:
    """Each example's loss, at most 1, in the order in which examples are deferred."""

    kept: np.ndarray  # (n,)
    deferred: np.ndarray  # (n,)
    cut: np.ndarray  # (k,): how many examples each row of the curve defers
    test: str  # chosen by the possible values of losses, not by their observed values

    @property
    def n(self) -> int:
        return len(self.kept)

    @property
    def mean(self) -> np.ndarray:
        """(k,): the observed risk at every row."""
        return self.sums(lambda loss: loss) / self.n

    def at(self, row: int) -> _Losses:
        """Return the same losses with one row only."""
        return replace(self, cut=self.cut[[row]])

    def sums(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(k,): sums over all examples of a function of their loss, at every row."""
        kept, deferred = of(self.kept), of(self.deferred)
        if len(self.cut) == 1:
            return np.array([deferred[: self.cut[0]].sum() + kept[self.cut[0] :].sum()])
        return kept.sum() + np.concatenate(([0], np.cumsum(deferred - kept)))[self.cut]


def _losses(curve: TradeOffCurve, promise: str, bound: float | None = None) -> _Losses:
    """Return the losses of a promise, in the order of the score."""
    outcomes = curve.outcomes
    if len(curve) == 1:
        raise CalibrationError(
            f"score {curve.score} keeps none of the {len(outcomes)} examples at any threshold; "
            "use another score"
        )
    kept, deferred = _both(curve, promise, bound)
    return _Losses(
        kept=kept[curve.order],
        deferred=deferred[curve.order],
        cut=np.rint(curve.deferral_rate * len(outcomes)).astype(np.int64),
        test=_test_of(outcomes.measure, promise),
    )


def _test_of(measure: Metric, promise: str) -> str:
    """Return a promise's test: exact if its losses are whole numbers."""
    if not (measure.binary or promise == "rate"):
        return "betting"
    return "exact trinomial" if promise == "excess" else "exact binomial"


def _both(
    curve: TradeOffCurve, promise: str, bound: float | None, clip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return each example's loss, (n,), if it is kept, and if it is deferred.

    Losses are shares of `bound`, and at most 1 with `clip`.
    """
    outcomes = curve.outcomes
    if promise == "rate":
        return np.zeros(len(outcomes)), np.ones(len(outcomes))

    def loss(quality: np.ndarray) -> np.ndarray:
        if bound is None:
            return 1 - quality
        return (np.minimum(-quality, bound) if clip else -quality) / bound

    student, teacher = loss(outcomes.student_quality), loss(outcomes.teacher_quality)
    if promise == "harm":
        return np.maximum(student - teacher, 0), np.zeros_like(student)
    deferred = loss(outcomes.deferred_quality(curve.blend))
    if promise == "risk":
        return student, deferred
    return student - teacher, deferred - teacher


def _clipped(
    curve: TradeOffCurve, promise: str, bound: float | None, asked: np.ndarray
) -> int | None:
    """Count the losses that the bound changes if the rows `asked`, (n,) bool, are deferred."""
    if bound is None:
        return None
    cut, free = (
        np.where(asked, deferred, kept)
        for kept, deferred in (_both(curve, promise, bound, clip) for clip in (True, False))
    )
    return int(np.count_nonzero(cut != free))


def check_promise(promise: str, delta: float) -> None:
    """Raise ValueError if `promise` is not one of `PROMISES` or `delta` is not in (0, 1)."""
    check_choice("promise", promise, PROMISES)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, both excluded, not {delta:g}")


def _walked(curve: TradeOffCurve, aim: _Aim, scale: _Scale) -> tuple[_Losses, int | None]:
    """Return the losses, and the row before the first failure; None if that row keeps nothing."""
    check_promise(aim.promise, aim.delta)
    low = -1 if aim.promise == "excess" else 0
    if not (low <= aim.tolerance < 1 and aim.tolerance > -1):
        limits = "above -1" if low else "at least 0"
        share = "" if scale.bound is None else ", as a share of loss_bound,"
        raise ValueError(
            f"tolerance of {aim.promise}{share} must be {limits} and below 1, not {aim.tolerance:g}"
        )
    losses = _losses(curve, aim.promise, scale.bound)
    passed = _passes(losses, aim)
    if aim.promise == "rate":
        steps = int(np.argmin(passed)) if not passed.all() else len(passed)
        return losses, steps - 1 if steps else None
    # no test: the risk of all-teacher is 0 by definition, where a test could still fail
    passed[-1] |= _trivial(curve, aim)
    failures = np.flatnonzero(~passed)
    row = int(failures[-1]) + 1 if len(failures) else 0
    return losses, row if row < len(passed) - 1 else None


def _trivial(curve: TradeOffCurve, aim: _Aim) -> bool:
    """Whether all-teacher keeps the promise for any data."""
    no_excess = aim.promise == "excess" and curve.blend == 0 and aim.tolerance >= 0
    return aim.promise == "harm" or no_excess


def _passes(losses: _Losses, aim: _Aim) -> np.ndarray:
    """(k,): whether each row's own test passes."""
    return _decide(losses.test, _statistic(losses, losses.n, aim), losses.n, aim)


def _statistic(losses: _Losses, n: int, aim: _Aim) -> np.ndarray:
    """Return the sums over examples, (j, k), on which the test of n examples decides."""
    if losses.test == "betting":
        bets = _bets(n, aim.tolerance, aim.delta)
        # logarithms of each bet's growth of capital
        logs = (lambda loss, bet=bet: np.log1p(bet * (aim.tolerance - loss)) for bet in bets)
        return np.stack([losses.sums(of) for of in logs])
    lost = losses.sums(lambda loss: (loss > 0).astype(np.int64))
    if losses.test == "exact binomial":
        return lost[None]
    return np.stack([lost, losses.sums(lambda loss: (loss < 0).astype(np.int64))])


def _decide(test: str, statistic: np.ndarray, n: int, aim: _Aim) -> np.ndarray:
    """(k,): whether the statistic (j, k) of n examples passes."""
    if test == "betting":
        return log_capital(statistic) >= -math.log(aim.delta)
    if test == "exact binomial":
        return statistic[0] <= critical_count(n, aim.tolerance, aim.delta)
    constant = _constant(n, aim.tolerance, aim.delta)
    return statistic[0] <= _critical_losses(statistic[1], n, aim.tolerance, constant)


# --- a threshold that was fixed beforehand


@dataclass(frozen=True)
class LossesAt:
    """The losses of a promise at one threshold, on examples that did not choose it.

    `loss`, (n,), is a share of the largest loss that counts, from `least` to 1, and `clipped` how
    many losses were cut off there, if any can be. A single threshold needs one test and no walk;
    the tests are those of `certify`, in both directions.
    """

    loss: np.ndarray
    least: float
    test: str
    scale: _Scale
    clipped: int | None = None

    @classmethod
    def of(
        cls, curve: TradeOffCurve, promise: str, threshold: float, loss_bound: float | None = None
    ) -> LossesAt:
        """Return the losses at a threshold of a curve; arguments and errors as in `certify`."""
        scale = _scale(curve, promise, loss_bound)
        kept, deferred = _both(curve, promise, scale.bound)
        asked = is_deferred(score_values(curve.score, curve.outcomes), threshold)
        test = _test_of(curve.outcomes.measure, promise)
        least = -1.0 if promise == "excess" else 0.0
        clipped = _clipped(curve, promise, scale.bound, asked)
        return cls(np.where(asked, deferred, kept), least, test, scale, clipped)

    def take(self, rows: np.ndarray) -> LossesAt:
        """The losses of some rows."""
        return replace(self, loss=self.loss[rows])

    def refutes(self, tolerance: float, alpha: float) -> bool:
        """Whether the examples refute a mean of at most `tolerance`, at level `alpha`.

        A mean of at least m is a mean of at most -m of the negated losses, which `certify` tests.
        """
        share = self.scale.share(tolerance)
        if self.test != "exact trinomial" or share >= 1:
            return bool(self._ends(alpha)[0] > share)
        mirrored = _Losses(-self.loss, -self.loss, np.array([0]), self.test)
        return bool(_passes(mirrored, _Aim("excess", -share, alpha))[0])

    def interval(self, alpha: float, quick: bool = False) -> Interval:
        """Return the mean in the metric's unit; each end is wrong with probability `alpha` at most.

        `quick` uses betting instead of the exact test of excess, which takes up to a second.
        """
        exact = self.test == "exact trinomial" and not quick
        ends = self._exact_ends(alpha) if exact else self._ends(alpha)
        return Interval(*map(self.scale.figure, (float(self.loss.mean()), *ends)))

    def _ends(self, alpha: float) -> tuple[float, float]:
        if self.test == "exact binomial":
            return clopper_pearson(int((self.loss > 0).sum()), len(self.loss), 2 * alpha)
        value, count = np.unique(self.loss, return_counts=True)
        low = self.least + refuted_mean(value - self.least, count, alpha)
        return low, 1 - refuted_mean(1 - value, count, alpha)

    def _exact_ends(self, alpha: float) -> tuple[float, float]:
        low, high = (
            _smallest(
                _Losses(losses, losses, np.array([0]), self.test),
                _Aim("excess", float(np.clip(losses.mean(), -0.9, 0.9)), alpha),
            )
            for losses in (-self.loss, self.loss)
        )
        return -low, high


# --- losses of -1, 0 and 1


def _critical_losses(gains: np.ndarray, n: int, tolerance: float, constant: float) -> np.ndarray:
    """Return the most losses that pass beside these gains; below 0 if none pass.

    If the mean is the tolerance, ``gains + n tolerance`` losses are expected, and the difference
    has variance ``2 gains + n tolerance (1 - tolerance)``. The floor under the variance keeps the
    count from falling as the gains grow, which the proof of `_size` needs.
    """
    variance = np.maximum(2 * gains + n * tolerance * (1 - tolerance), constant**2)
    # 1e-9: a count whose own margin is the constant must pass despite rounding
    return np.floor(gains + n * tolerance - constant * np.sqrt(variance) + 1e-9)


def _margin(losses: float, gains: float, n: float, tolerance: float) -> float:
    """Return the largest constant with which these losses and gains pass."""
    room = gains + n * tolerance - losses
    variance = 2 * gains + n * tolerance * (1 - tolerance)
    if room <= 0:
        return -math.inf
    return math.sqrt(room) if room >= variance else room / math.sqrt(variance)


@lru_cache(maxsize=1024)
def _constant(n: int, tolerance: float, delta: float) -> float:
    """Return the constant at which a broken promise passes with probability `delta` at most.

    The test is exact and unconditional: the probability is computed, and its supremum taken over
    the unknown share of gains. The constant is a little above the normal quantile of delta; without
    gains the critical count is the binomial test's.
    """
    constant = -float(ndtri(delta)) + _step(n) - _FINEST
    gains = _Gains.of(n, tolerance, delta)
    while constant < 50:
        size = _size(n, tolerance, constant, gains)
        over = size > delta
        if not over.any():
            return constant
        gains = gains.take(over)  # the others pass at every higher constant
        rise = ndtri(min(float(size.max()), 1 - 1e-9)) - ndtri(delta)
        constant += min(max(float(rise), 0.002), 0.5)
    return math.inf


_FINEST = 0.05


def _step(n: int) -> float:
    """Return the spacing of gains in standard errors: coarser, and so stricter, for large n."""
    return max(_FINEST, math.sqrt(n) / 4000)


@dataclass(frozen=True)
class _Gains:
    """Intervals that cover every share of gains for which the mean is the tolerance.

    Counts of gains are in blocks: `last`, (k, blocks), is the largest count of each, and `chance`,
    (k, blocks), the probability of each at the upper end of the interval.
    """

    low: np.ndarray  # (k,)
    high: np.ndarray  # (k,)
    last: np.ndarray
    chance: np.ndarray
    total: np.ndarray  # (k,): the probability of all blocks

    @classmethod
    def of(cls, n: int, tolerance: float, delta: float, part: slice = slice(None)) -> _Gains:
        """Return a part of the intervals of n examples."""
        start = math.sqrt(abs(tolerance))
        pieces = max(1, math.ceil((1 - start) * math.sqrt(n) / _step(n)))
        # a loss has about this squared as variance, so equal pieces are equal standard errors
        spread = np.linspace(start, 1, pieces + 1)
        share = np.maximum((spread**2 - tolerance) / 2, 0)
        low, high = share[:-1][part], share[1:][part]
        places = np.arange(-5.0, max(6.0, 3 - float(ndtri(delta))), 2 * _step(n))
        gain = high[:, None]
        root = np.sqrt(n * gain) + places * np.sqrt(1 - gain) / 2
        last = np.minimum(np.floor(np.maximum(root, 0) ** 2), n)
        reached = binomial_cdf(last, n, gain)
        chance = np.diff(reached, axis=1, prepend=0)
        return cls(low, high, last, chance, reached[:, -1])

    def take(self, rows: np.ndarray) -> _Gains:
        """Return some of the intervals."""
        return _Gains(*(getattr(self, each.name)[rows] for each in fields(self)))


def _size(n: int, tolerance: float, constant: float, gains: _Gains) -> np.ndarray:
    """Bound, for each interval of the share of gains, how often a broken promise passes.

    The passing outcomes are closed under fewer losses and more gains. So among distributions whose
    mean is at least the tolerance, passing is likeliest where the mean equals it; and within an
    interval at most as likely as with the gains of its upper end and the losses of its lower end.
    Gains are summed in blocks, each at the critical count of its upper end. Fewer trials are left
    there, so that this bounds the block. Only the incomplete beta function's rounding (1e-12) is
    neglected.
    """
    loss = np.clip((gains.low + tolerance) / (1 - gains.high), 0, 1)
    most = _critical_losses(gains.last, n, tolerance, constant)
    passing, some = np.zeros(most.shape), np.nonzero(gains.chance)  # few gains: empty blocks
    within = binomial_cdf(most[some], n - gains.last[some], loss[some[0]])
    passing[some] = gains.chance[some] * within
    return np.asarray(np.sum(passing, axis=1) + 1 - gains.total)


# --- any loss of at most 1


def _bets(n: int, tolerance: float, delta: float) -> np.ndarray:
    """Return bets fixed before any data: the best ones for variances from the tolerance to 1/2.

    At the edge of passing the best bet is ``sqrt(2 log(1/delta) / (n variance))``. Powers of two
    between the extremes are off by a factor of 1.4 at most.
    """
    need = -math.log(delta)
    most = 0.99 / (1 - tolerance)  # capital stays positive
    low = min(math.sqrt(4 * need / n), most)
    high = min(math.sqrt(2 * need / (n * max(abs(tolerance), need / n))), most)
    return np.geomspace(low, max(low, high), 1 + math.ceil(math.log2(max(high / low, 1)) - 1e-9))


def log_capital(logs: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean capital of several bets, (k,), from each bet's (j, k).

    Capital starts at 1 and is multiplied by ``1 + bet (tolerance - loss)`` at every example. It is
    nonnegative, and if the promise is broken its mean is at most 1 in any order of the examples; so
    is the mean over bets. By Markov's inequality it reaches 1/delta with probability at most delta.
    """
    return np.logaddexp.reduce(logs, axis=0) - math.log(len(logs))


# --- what could be certified instead


def _smallest(row: _Losses, aim: _Aim) -> float:
    """Return the smallest tolerance at which a row's own test passes; 1 if there is none."""
    n, floor = row.n, float(row.mean[0])
    if row.test != "exact trinomial":
        return bisect(lambda t: bool(_passes(row, aim.at(t))[0]), floor, 1.0)
    lost, gained = (int(count) for count in _statistic(row, n, aim)[:, 0])
    guess = _constant(n, aim.tolerance, aim.delta)  # it hardly changes with the tolerance
    found = bisect(lambda t: _margin(lost, gained, n, t) >= guess, floor, 1.0)
    stride = max(found - floor, 1 / n) / 50
    while found < 1 and not _trinomial_passes(lost, gained, n, aim.at(found)):
        found += stride
    return min(found, 1.0)


def _trinomial_passes(lost: int, gained: int, n: int, aim: _Aim) -> bool:
    """Whether one p-value is at most delta, without a search for the constant."""
    constant = _margin(lost, gained, n, aim.tolerance)
    if constant <= 0:
        return False
    # a failure is mostly seen in every eighth interval
    parts = (slice(start, None, 8) for start in range(8))
    every = (_Gains.of(n, aim.tolerance, aim.delta, part) for part in parts)
    return all((_size(n, aim.tolerance, constant, gains) <= aim.delta).all() for gains in every)


def bisect(passes: Callable[[float], bool], low: float, high: float, within: float = 1e-4) -> float:
    """Return the edge above which `passes` is true, from above; `high` is assumed to pass."""
    while high - low > within * max(abs(high), 1e-4):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _refusal(losses: _Losses, curve: TradeOffCurve, aim: _Aim, scale: _Scale) -> str:
    """Say that nothing passes, the smallest tolerance that would, and the examples needed."""
    last = len(curve) - 1
    first = 0 if aim.promise == "rate" else last - 1
    rows = [first]
    if aim.promise != "rate" and not _trivial(curve, aim.at(max(aim.tolerance, 0.0))):
        # the walk starts at all-teacher, which must pass too
        rows.append(last)
    smallest = max(_smallest(losses.at(row), aim) for row in rows)
    asked = f"{scale.figure(aim.tolerance):g}"
    text = (
        f"no threshold keeps {aim.promise} at most {asked} with probability "
        f"{1 - aim.delta:.6g} on {losses.n:,} examples; "
    )
    possible = _round_up(max(smallest, aim.tolerance))
    # the exact test's constant depends on the tolerance, so a rounded tolerance may fail
    while possible < 1 and not all(_passes(losses.at(row), aim.at(possible))[0] for row in rows):
        possible = _round_up(possible + max(0.001 * abs(possible), 1e-6))
    if possible >= 1:
        return text + f"no tolerance below {scale.figure(1):g} can be certified: use more examples"
    least = f"{scale.figure(possible):.6g}"
    text += f"the smallest tolerance that can be certified is {least}, and {asked} "
    needed = _examples(losses, rows, aim)
    if needed is None:
        return text + "cannot be certified with any number of examples like these"
    return text + f"needs about {needed:,} examples"


def _examples(losses: _Losses, rows: list[int], aim: _Aim) -> int | None:
    """Return about how many examples like these would pass; None if no number would."""
    n, first = losses.n, rows[0]
    # counts grow in proportion, except that a first step of one example stays one example
    alone = first != 0 and losses.cut[-1] - losses.cut[first] == 1

    def enough(m: float) -> bool:
        size = math.ceil(m)
        all_teacher = _statistic(losses.at(len(losses.cut) - 1), size, aim)
        for row in rows:
            own = _statistic(losses.at(row), size, aim)
            scaled = own * (size / n)
            if alone and row == first:
                scaled = all_teacher * (size / n) + own - all_teacher
            if not _would_pass(losses.test, scaled[:, 0], size, n, aim):
                return False
        return True

    high = float(n)
    while not enough(high):
        high *= 2
        if high > _MOST_EXAMPLES:
            return None
    return int(_round_up(bisect(enough, high / 2, high, 0.01)))


def _would_pass(test: str, scaled: np.ndarray, size: int, n: int, aim: _Aim) -> bool:
    """`_decide` on fractional counts, with the constant of n, which hardly changes with n."""
    if test == "exact trinomial":
        constant = _constant(n, aim.tolerance, aim.delta)
        return _margin(scaled[0], scaled[1], size, aim.tolerance) >= constant
    return bool(_decide(test, scaled[:, None], size, aim)[0])


def _round_up(value: float) -> float:
    """Round up to two significant digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.6g}")

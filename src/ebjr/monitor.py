"""Monitor: is the promise of a calibrated threshold still kept?

`RiskMonitor` watches the risk itself, from labels or from kept answers that the teacher audits at
random. `DriftMonitor` needs no labels: it watches whether live scores, and the deferral rate, are
still those of calibration. Both are sequential tests: they may be looked at after every row and
for as long as one likes, and still raise a false alarm with probability at most `alpha` in all.

The tests are bets against the promise, see `ebjr.betting`.

Sources: Podkopaev & Ramdas, "Tracking the risk of a deployed model and detecting harmful
distribution shifts", ICLR 2022; Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random
World", chapter 8, 2022.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ebjr.betting import (
    ODDS_SHARES,
    Bets,
    SequentialTest,
    blocks,
    odds_growth,
    read_count,
    read_numbers,
    refuted_mean,
    resuming,
)
from ebjr.errors import check_choice
from ebjr.files import json_number
from ebjr.router import check_threshold, deferral_key, is_deferred
from ebjr.stats import clopper_pearson, same_length

LOSS_VALUES = {
    "harm": (0.0, 1.0),
    "excess": (-1.0, 0.0, 1.0),
    "risk": tuple(np.linspace(0.0, 1.0, 33).tolist()),
    "rate": (0.0, 1.0),
}
"""By promise: the values of a loss on which rows are counted; the ends are its range."""

_RATE_ODDS = np.geomspace(0.03, 30.0, 8)
_SIZES = np.array([0.05, 0.2, 0.8])
_GROUPS = 32
_ONE = 2**32
_CHUNK = 2**20  # so many fractions of 32 bits add up exactly in a double


def harm(
    student_prediction: Any, teacher_prediction: Any, deferred: Any, targets: Any = None
) -> np.ndarray:
    """Where the student kept the answer, was wrong, and the teacher was right: 1, else 0.

    Predictions and targets are (n,) labels, `deferred` (n,) bool. Without targets the teacher's
    answer is taken for the truth; in deferred rows it is not looked at. The result, (n,), is the
    loss of `RiskMonitor` under the promise ``"harm"``. ValueError: the lengths differ.

    Examples
    --------
    >>> harm([0, 0, 1], [1, 1, 1], [False, True, False])
    array([1., 0., 0.])
    """
    student, teacher, asked = same_length(
        student=student_prediction, teacher=teacher_prediction, deferred=deferred
    )
    truth = teacher if targets is None else same_length(student=student, targets=targets)[1]
    return (~asked.astype(bool) & (student != truth) & (teacher == truth)).astype(np.float64)


def excess(joint_prediction: Any, teacher_prediction: Any, targets: Any) -> np.ndarray:
    """Error of the joint model minus error of the teacher: -1, 0 or 1 for each row.

    The arguments are (n,) labels. The result, (n,), is the loss of `RiskMonitor` under the promise
    ``"excess"``. ValueError: the lengths differ.

    Examples
    --------
    >>> excess([0, 1, 1], [1, 0, 1], [1, 1, 1])
    array([ 1., -1.,  0.])
    """
    joint, teacher, truth = same_length(
        joint=joint_prediction, teacher=teacher_prediction, targets=targets
    )
    return (joint != truth).astype(np.float64) - (teacher != truth)


def draw_audits(
    deferred: Any, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are audited: kept ones at random, deferred ones always.

    The teacher has answered a deferred row already, so that looking at it costs nothing. `deferred`
    is (n,) bool, and `probability` that of asking the teacher about a kept row. The result is what
    `RiskMonitor.update` takes: which rows are audited, (n,) bool, and the probability with which
    each of them was to be, (n,). ValueError: `probability` is outside (0, 1].

    Examples
    --------
    >>> draw_audits([True, False, False], 0.2, np.random.default_rng(0))
    (array([ True, False,  True]), array([1. , 0.2, 0.2]))
    """
    asked = np.asarray(deferred, dtype=bool)
    chance = np.where(asked, 1.0, _share("audit probability", probability, top=True))
    return rng.random(len(asked)) < chance, chance


class RiskMonitor(SequentialTest):
    """Watches the live risk, and alarms when it exceeds its tolerance.

    The promise is that the expected loss of each row, given all before it, is at most `tolerance`.
    While it is kept, `status` ever becomes ``"broken"`` with probability at most `alpha`, over all
    time. `lower` and `upper` bound the average of these expected losses so far, each at all times
    with probability ``1 - alpha``, also while the risk changes. ValueError: a number is out of
    range, or `promise` is unknown.

    - `tolerance`: The promise, in the loss's unit: 0.01 is a harm of 1 % of all inputs.
    - `alpha`: The probability of ever raising a false alarm, between 0 and 1.
    - `promise`: ``"harm"``: a loss of 0 or 1. ``"excess"``: -1, 0 or 1 (anything between is
      allowed). ``"risk"``: any loss between 0 and 1. ``"rate"``: 1 where a row was deferred, else
      0. The same words as a `Certificate`'s, whose promise and tolerance can be given here.
    - `audit_probability`: The least probability with which the loss of a row becomes known, in (0,
      1]. 1: every row has a label, or the teacher's answer.

    Notes
    -----
    The monitor sees every row; one whose loss did not become known counts as 0, one audited with
    probability q as ``loss / q``: the mean is that of all rows. With losses y between a and b, a
    bet of size c multiplies its money by ``(1 + c (y - a)) / (1 + c (m - a))``, of mean 1 or less
    while the mean of y is at most m. The bounds are the m at which the money of bets from the
    first row reaches ``1 / alpha``. They hold for the average of changing means since, by the
    inequality of arithmetic and geometric means, ``prod (1 + c (m_i - a))`` is at most the power
    of its value at the average m. In between the counted values a loss is split between its two
    neighbors; the logarithm being concave, that can only lower the money.

    Examples
    --------
    >>> monitor = RiskMonitor(tolerance=0.01)
    >>> monitor.update(np.zeros(1000))
    'kept'
    >>> monitor.update(np.tile([1.0, 0.0, 0.0, 0.0], 100))
    'broken'
    >>> monitor.alarm
    1037
    """

    FORMAT = "ebjr-risk-monitor-1"

    def __init__(
        self,
        tolerance: float,
        alpha: float = 0.05,
        *,
        promise: str = "harm",
        audit_probability: float = 1.0,
    ) -> None:
        check_choice("promise", promise, LOSS_VALUES)
        self.promise = promise
        self._grid = np.array(LOSS_VALUES[promise])
        self._low, self._high = float(self._grid[0]), float(self._grid[-1])
        self.tolerance = float(tolerance)
        if not self._low <= self.tolerance < self._high:
            raise ValueError(
                f"the tolerance of {promise} must be at least {self._low:g} and below "
                f"{self._high:g}, not {tolerance}"
            )
        self.alpha = _share("alpha", alpha)
        self.audit_probability = _share("audit_probability", audit_probability, top=True)
        self._limit = self.tolerance * self.audit_probability
        self._bets = Bets(ODDS_SHARES, self.alpha)
        self._mass = [0] * len(self._grid)

    def update(self, loss: Any, audited: Any = None, probability: Any = None) -> str:
        """Take in the next rows, in the order in which they were served, and return `status`.

        All are (n,). `loss` is that of every row served, and is looked at where `audited`, bool,
        says that it is known; left out, that is everywhere, which takes an `audit_probability` of
        1. `probability` is that with which each row was to be audited, at least
        `audit_probability`, which it is when left out; 1 for rows whose loss is known anyway and
        need not be 0. ValueError: the lengths differ, or a known loss or a probability is out of
        range.
        """
        value = self._weighted(loss, audited, probability)
        for rows in blocks(self._bets.rows, len(value)):
            self._bets.bet(*self._growth(value[rows]))
        for start in range(0, len(value), _CHUNK):
            self._count(value[start : start + _CHUNK])
        return self.status

    def _weighted(self, loss: Any, audited: Any, probability: Any) -> np.ndarray:
        """(n,): ``audit_probability * loss / probability``, 0 where the loss is not known."""
        given = _vector("loss", loss)
        if audited is None and self.audit_probability < 1:
            raise ValueError(
                f"with an audit probability of {self.audit_probability:g}, say which rows were "
                "audited"
            )
        known = np.ones(len(given), bool) if audited is None else np.asarray(audited)
        if known.dtype != bool:
            raise ValueError(f"audited must be bool, not {known.dtype}")
        same_length(loss=given, audited=known)
        value = np.where(known, given, 0.0)
        bad = np.flatnonzero(~((value >= self._low) & (value <= self._high)))
        if len(bad):
            raise ValueError(
                f"{self.promise} must lie between {self._low:g} and {self._high:g} in audited "
                f"rows, but it is {value[bad[0]]:g} in row {bad[0]}"
            )
        if probability is None:
            return value
        chance = same_length(loss=given, probability=_vector("probability", probability))[1]
        if not ((chance >= self.audit_probability) & (chance <= 1)).all():
            raise ValueError(
                f"every probability must lie between {self.audit_probability:g}, the least that "
                "was announced, and 1"
            )
        return value * (self.audit_probability / chance)

    def _growth(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distinct, which = np.unique(value, return_inverse=True)
        growth = odds_growth(distinct - self._low, self._limit - self._low)
        return growth[:, which], value > self._limit

    def _count(self, value: np.ndarray) -> None:
        """Add rows to the counts, in units of 2^-32 rows, so that sums are exact in any order."""
        place = (value - self._low) * ((len(self._grid) - 1) / (self._high - self._low))
        below = np.floor(place).astype(np.int64)
        part = np.floor((place - below) * _ONE)
        size = len(self._grid) + 1
        rows = np.bincount(below, minlength=size)
        moved = np.bincount(below, weights=part, minlength=size).astype(np.int64)
        gained = (rows * _ONE - moved + np.roll(moved, 1)).tolist()
        self._mass = [mass + more for mass, more in zip(self._mass, gained, strict=False)]

    @property
    def risk(self) -> float:
        """The average loss so far, each audited row weighted for those that were not; or NaN."""
        if not self.rows:
            return math.nan
        total = sum(mass / _ONE * value for mass, value in zip(self._mass, self._grid, strict=True))
        return float(total / self.rows / self.audit_probability)

    @property
    def lower(self) -> float:
        """The risk so far is at least this, at all times with probability ``1 - alpha``."""
        found = self._low + self._bound(self._grid - self._low)
        return min(max(found / self.audit_probability, self._low), self._high)

    @property
    def upper(self) -> float:
        """The risk so far is at most this, at all times with probability ``1 - alpha``."""
        fractional = any(mass % _ONE for mass in self._mass)
        rounding = (self._grid[1] - self._low) / _ONE if fractional else 0.0
        found = self._high - self._bound(self._high - self._grid) + rounding
        return min(max(found / self.audit_probability, self._low), self._high)

    def _bound(self, value: np.ndarray) -> float:
        """The largest mean of `value`, which is that of `_grid` changed, that the bets refute."""
        return refuted_mean(value, np.array(self._mass, np.float64) / _ONE, self.alpha)

    @property
    def alarm(self) -> int | None:
        """After how many rows the alarm went off; None if it has not."""
        return self._bets.alarm

    @property
    def evidence(self) -> float:
        """The most that 1 of capital ever became, as log10; the alarm is at ``-log10(alpha)``."""
        return self._bets.evidence

    @property
    def status(self) -> str:
        """``"broken"`` once the alarm went off, ``"kept"`` while `upper` is within, or "undecided".

        What is kept is the average so far; what is broken has been broken at some time, and stays
        so: calibrate again and start a new monitor.
        """
        if self.alarm is not None:
            return "broken"
        return "kept" if self.upper <= self.tolerance else "undecided"

    @property
    def statement(self) -> str:
        """What is known, in one sentence."""
        if not self.rows:
            return "Undecided: nothing has been seen yet."
        name = {"excess": "excess risk", "rate": "deferral rate"}.get(self.promise, self.promise)
        if self.status == "broken":
            return (
                f"Broken: by row {self.alarm:,} the {name} had exceeded its tolerance of "
                f"{self.tolerance:g} (ever a false alarm with probability at most "
                f"{self.alpha:g}); its average over {self.rows:,} rows is {self.risk:.4g}, at "
                f"least {self.lower:.4g}."
            )
        sure = f"with probability {1 - self.alpha:g} at all times"
        if self.status == "kept":
            return (
                f"Kept: the average {name} over {self.rows:,} rows is at most {self.upper:.4g}, "
                f"{sure}, and the tolerance is {self.tolerance:g}."
            )
        return (
            f"Undecided: the average {name} over {self.rows:,} rows is {self.risk:.4g}, at least "
            f"{self.lower:.4g} and at most {self.upper:.4g} (each {sure}), and the tolerance is "
            f"{self.tolerance:g}."
        )

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later, for JSON."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        counts = {"mass": list(self._mass), "bets": self._bets.state()}
        return {"format": self.FORMAT, **settings, **counts}

    @classmethod
    def _build(cls, state: Mapping[str, Any]) -> Self:
        monitor = cls(**{name: state[name] for name in SETTINGS})
        monitor._bets.resume(state["bets"])
        mass = [read_count(value, "mass") for value in state["mass"]]
        if len(mass) != len(monitor._grid) or sum(mass) != monitor.rows * _ONE:
            raise ValueError("its counts do not add up to its rows")
        monitor._mass = mass
        return monitor


SETTINGS = ("promise", "tolerance", "alpha", "audit_probability")
"""What a `RiskMonitor` is made with."""


class DriftMonitor(SequentialTest):
    """Watches, without labels, whether live scores are still those of calibration.

    Two tests share `alpha`. *Scores*: live scores are exchangeable with those of calibration.
    *Deferral rate*, where a threshold is given: the live rate is that of calibration within
    `rate_tolerance`. While both hold, `status` ever becomes ``"drifted"`` with probability at most
    `alpha`. ``"steady"`` means that no drift has been shown, not that there is none. ValueError:
    fewer than 20 scores, or a number out of range.

    - `scores`: (N,): of the calibration examples, or better of others that nothing was fitted on: a
      score trained on these very rows looks different on new ones. NaN counts as ``-inf``. Only 31
      quantiles of them are stored.
    - `alpha`: The probability of ever raising a false alarm, between 0 and 1.
    - `threshold`: In the score's unit; rows under it are deferred. None: no test of the deferral
      rate.
    - `rate_tolerance`: How far the deferral rate may move before it matters, from 0 to below 1.
    - `seed`: For breaking ties.

    Notes
    -----
    *Finite calibration data.* N calibration scores cut the line into N + 1 gaps. If calibration
    and live scores are exchangeable, and ties are broken at random, the rank of each new score
    among all before it is uniform; so it falls into a gap that holds c live scores already with
    probability exactly ``(1 + c) / (N + 1 + t)`` after t live rows (Polya's urn), whatever the
    scores' distribution. Gaps are joined to 32 groups by ranks fixed beforehand, so that the
    probabilities add up. A group is the interval that it fills on [0, 1] under these
    probabilities, and a bet multiplies its money by the mean over that interval of
    ``1 + e P(u)``, with a shifted Legendre polynomial P of degree 1, 2 or 3 (location, spread,
    skewness), at most 1 in size and of mean 0: the game is exactly fair. Ranking against the
    calibration scores alone, as if their quantiles were the true ones, would not be: it raises a
    false alarm sooner or later with certainty.

    *Deferral rate.* The calibrated rate is known up to a Clopper-Pearson interval, which fails
    with probability ``alpha / 4``; widened by the tolerance, it is what the bets play against, at
    ``alpha / 4``; the scores' test has ``alpha / 2``. The exact test of the scores finds any
    difference in the end, a harmless one too; `shift` and `deferral_rate` say how large it is.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> monitor = DriftMonitor(rng.normal(size=2000), threshold=-1.0)
    >>> monitor.update(rng.normal(size=3000))
    'steady'
    >>> monitor.update(rng.normal(-1.0, size=500))
    'drifted'
    """

    FORMAT = "ebjr-drift-monitor-1"

    def __init__(
        self,
        scores: Any,
        alpha: float = 0.05,
        *,
        threshold: float | None = None,
        rate_tolerance: float = 0.05,
        seed: int = 0,
    ) -> None:
        known = isinstance(scores, _Reference)
        reference = scores if known else _Reference.of(scores, threshold, seed)
        self.alpha = _share("alpha", alpha)
        self.threshold = reference.threshold
        self.rate_tolerance = float(rate_tolerance)
        if not 0 <= self.rate_tolerance < 1:
            raise ValueError(f"rate_tolerance must lie in [0, 1), not {rate_tolerance}")
        self.calibration_rows = reference.n
        self.seed = seed
        self._reference, self._gaps = reference, reference.gaps
        self._seen = np.zeros(len(self._gaps), np.int64)
        self._deferred = 0
        own = self.alpha if self.threshold is None else self.alpha / 2
        self._bets = Bets(np.ones(6 * len(_SIZES)), own)
        self._rate_bets = Bets(np.ones(2 * len(_RATE_ODDS)), self.alpha / 4)
        least, most = clopper_pearson(reference.deferred, reference.n, self.alpha / 4)
        most, least = most + self.rate_tolerance, least - self.rate_tolerance
        self._rate_growth = np.vstack(
            [
                odds_growth(np.array([0.0, 1.0]), min(most, 1.0), _RATE_ODDS),
                odds_growth(np.array([1.0, 0.0]), min(1.0 - least, 1.0), _RATE_ODDS),
            ]
        )

    def update(self, scores: Any) -> str:
        """Take in the scores (n,) of the next rows, in the order served, and return `status`.

        A NaN counts as ``-inf``: the router defers it. ValueError: `scores` are not one number for
        each row.
        """
        values = deferral_key(_vector("scores", scores))
        for start in range(0, len(values), _CHUNK):
            self._play(values[start : start + _CHUNK])
        return self.status

    def _play(self, values: np.ndarray) -> None:
        group = self._group(values)
        deferred = None if self.threshold is None else is_deferred(values, self.threshold) * 1
        for rows in blocks(self._bets.rows, len(values)):
            self._bets.bet(self._growth(group[rows]))
            if deferred is not None:
                self._rate_bets.bet(self._rate_growth[:, deferred[rows]])
        self._deferred += 0 if deferred is None else int(deferred.sum())

    def _group(self, values: np.ndarray) -> np.ndarray:
        """(n,): how many edges lie below each score, ties broken at random but reproducibly."""
        edges, ties = self._reference.edges, self._reference.ties
        group = np.searchsorted(edges, values, side="left")
        tied = np.flatnonzero(np.searchsorted(edges, values, side="right") > group)
        if len(tied):
            source = np.random.PCG64([self.seed, 1]).advance(self._bets.rows)
            tie = np.random.Generator(source).random(len(values))[tied]
            same = edges == values[tied, None]
            group[tied] += (same & (ties < tie[:, None])).sum(axis=1)
        return group

    def _growth(self, group: np.ndarray) -> np.ndarray:
        """(bets, rows): logarithms of what each bet is multiplied by, under Polya's urn."""
        place, row = np.arange(len(self._gaps))[:, None], np.arange(len(group))
        after = np.cumsum(np.column_stack([self._seen + self._gaps, group == place]), axis=1)
        before, self._seen = after[:, :-1], after[:, -1] - self._gaps
        own, below = before[group, row], (before * (place < group)).sum(axis=0)
        total = self.calibration_rows + 1 + self._bets.rows + row
        mean = _mean_legendre(2 * below / total - 1, 2 * (below + own) / total - 1)
        bet = (_SIZES[:, None, None] * mean).reshape(-1, len(group))
        return np.log1p(np.concatenate([bet, -bet]))

    @property
    def reference(self) -> dict[str, Any]:
        """The quantiles of the calibration scores, for a file: `of_reference` begins anew with it.

        Examples
        --------
        >>> monitor = DriftMonitor(np.arange(100.0), threshold=20.0)
        >>> DriftMonitor.of_reference(monitor.reference).state() == monitor.state()
        True
        """
        return self._reference.as_dict()

    @classmethod
    def of_reference(cls, reference: Mapping[str, Any], alpha: float = 0.05) -> Self:
        """A new monitor with another one's `reference`.

        ValueError: the reference is incomplete or damaged, or a number is out of range.
        """
        with resuming():
            return cls(_Reference.read(reference), alpha)

    @property
    def shift(self) -> float:
        """The largest difference of the shares of live and of calibration scores under a score.

        Taken over all live rows so far, at the quantiles that are stored; 0 to 1, or NaN.
        """
        if not self.rows:
            return math.nan
        live = np.cumsum(self._seen)[:-1] / self.rows
        return float(np.abs(live - self._reference.ranks / self.calibration_rows).max())

    @property
    def deferral_rate(self) -> float:
        """Of the live rows so far; NaN without a threshold or rows."""
        return math.nan if self.threshold is None or not self.rows else self._deferred / self.rows

    @property
    def calibrated_rate(self) -> float:
        """The deferral rate of the calibration scores; NaN without a threshold."""
        none = self.threshold is None
        return math.nan if none else self._reference.deferred / self.calibration_rows

    @property
    def alarms(self) -> dict[str, int | None]:
        """For each test, after how many rows its alarm went off; None if it has not."""
        return {"scores": self._bets.alarm, "deferral_rate": self._rate_bets.alarm}

    @property
    def evidence(self) -> dict[str, float]:
        """For each test, the most that 1 of capital ever became, as log10."""
        return {"scores": self._bets.evidence, "deferral_rate": self._rate_bets.evidence}

    @property
    def status(self) -> str:
        """``"drifted"`` once an alarm went off, and from then on; ``"steady"`` before."""
        return "steady" if all(row is None for row in self.alarms.values()) else "drifted"

    @property
    def statement(self) -> str:
        """What is known, in one sentence."""
        if not self.rows:
            return "Steady: nothing has been seen yet."
        size = f"over {self.rows:,} rows the largest shift of a share of scores is {self.shift:.4g}"
        if self.threshold is not None:
            at_first = f"({self.calibrated_rate:.4g} at calibration)"
            size += f" and the deferral rate {self.deferral_rate:.4g} {at_first}"
        rang = [
            f"the {name.replace('_', ' ')} by row {row:,}"
            for name, row in self.alarms.items()
            if row is not None
        ]
        if not rang:
            return f"Steady: no drift has been shown; {size}."
        return (
            f"Drifted: {' and '.join(rang)} (ever a false alarm with probability at most "
            f"{self.alpha:g}); {size}; calibrate again."
        )

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later, for JSON."""
        reference = self._reference
        return {
            "format": self.FORMAT,
            "alpha": self.alpha,
            "rate_tolerance": self.rate_tolerance,
            "seed": self.seed,
            **reference.as_dict(),
            "edges": json_number(reference.edges.tolist()),
            "threshold": json_number(self.threshold),
            "calibration_deferred": reference.deferred,
            "seen": self._seen.tolist(),
            "deferred": self._deferred,
            "bets": self._bets.state(),
            "rate_bets": self._rate_bets.state(),
        }

    @classmethod
    def _build(cls, state: Mapping[str, Any]) -> Self:
        reference = _Reference.read({**state, "deferred": state["calibration_deferred"]})
        seed = read_count(state["seed"], "seed")
        tolerance = state["rate_tolerance"]
        monitor = cls(reference, state["alpha"], rate_tolerance=tolerance, seed=seed)
        monitor._seen = np.array([read_count(value, "seen") for value in state["seen"]], np.int64)
        monitor._deferred = read_count(state["deferred"], "deferred")
        monitor._bets.resume(state["bets"])
        monitor._rate_bets.resume(state["rate_bets"])
        rate_rows = 0 if monitor.threshold is None else monitor.rows
        _check_counts(
            len(monitor._seen) == len(monitor._gaps)
            and int(monitor._seen.sum()) == monitor.rows
            and monitor._rate_bets.rows == rate_rows
            and monitor._deferred <= rate_rows
        )
        return monitor


@dataclass(frozen=True, eq=False)
class _Reference:
    """Calibration scores as a monitor of drift needs them: how many, quantiles, who deferred."""

    n: int
    edges: np.ndarray  # (k,): the quantiles, in ascending order
    ties: np.ndarray  # (k,): what breaks ties with them
    ranks: np.ndarray  # (k,): theirs among all, from 1
    threshold: float | None = None
    deferred: int = 0

    @classmethod
    def of(cls, scores: Any, threshold: float | None, seed: int) -> Self:
        values = deferral_key(_vector("scores", scores))
        n = len(values)
        if n < 20:
            raise ValueError(f"drift needs at least 20 calibration scores, not {n}")
        tie = np.random.default_rng([seed, 0]).random(n)
        groups = min(_GROUPS, n + 1)
        ranks = np.round(np.arange(1, groups) * (n + 1) / groups).astype(np.int64)
        chosen = np.lexsort((tie, values))[ranks - 1]
        limit = None if threshold is None else check_threshold(threshold)
        deferred = 0 if limit is None else int(is_deferred(values, limit).sum())
        return cls(n, values[chosen], tie[chosen], ranks, limit, deferred)

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> Self:
        """What `as_dict` wrote, if it fits together."""
        edges = np.array([float(edge) for edge in figures["edges"]])
        threshold = figures.get("threshold")
        found = cls(
            n=read_count(figures["n"], "n"),
            edges=edges,
            ties=read_numbers(figures["ties"], len(edges), "ties"),
            ranks=np.array([read_count(rank, "ranks") for rank in figures["ranks"]], np.int64),
            threshold=None if threshold is None else check_threshold(float(threshold)),
            deferred=0 if threshold is None else read_count(figures["deferred"], "deferred"),
        )
        _check_counts(
            len(found.ranks) == len(edges) > 0
            and bool((found.gaps > 0).all())
            and bool((edges[:-1] <= edges[1:]).all())
            and found.deferred <= found.n
        )
        return found

    @property
    def gaps(self) -> np.ndarray:
        """(k + 1,): how many gaps between neighboring scores each group of them joins."""
        return np.diff(self.ranks, prepend=0, append=self.n + 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        columns = {name: getattr(self, name).tolist() for name in ("edges", "ties", "ranks")}
        figures = {"n": self.n, **columns}
        if self.threshold is None:
            return figures
        return {**figures, "threshold": self.threshold, "deferred": self.deferred}


def _check_counts(fit: bool) -> None:
    if not fit:
        raise ValueError("its counts do not fit together")


def _mean_legendre(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(3, n): means of the Legendre polynomials of degree 1 to 3 between points of [-1, 1]."""
    # from the power sums of the ends, not from a difference, so that narrow intervals are exact
    first = (left + right) / 2
    second = (left * left + left * right + right * right) / 3
    third = first * (left * left + right * right) / 2
    return np.stack([first, (3 * second - 1) / 2, (5 * third - 3 * first) / 2])


def _share(name: str, value: float, top: bool = False) -> float:
    """A number between 0 and 1, 0 excluded, and 1 unless `top`."""
    number = float(value)
    if not 0 < number < 1 and not (top and number == 1):
        raise ValueError(f"{name} must lie between 0 and 1{' or be 1' if top else ''}, not {value}")
    return number


def _vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
        raise ValueError(
            f"{name} must be one real number for each row, not {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.float64)

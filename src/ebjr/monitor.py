"""Monitor: is the promise of a calibrated threshold still kept?

`RiskMonitor` watches the risk, from labels or from kept answers that the teacher audits at random.
`DriftMonitor` needs no labels: it checks whether live scores and the deferral rate are still those
of calibration. Both are sequential tests: you can look after every row, for as long as you like,
and a false alarm is raised with probability at most `alpha` in total.

The tests are bets against the promise, see `ebjr.betting`.

Sources: Podkopaev & Ramdas, "Tracking the risk of a deployed model and detecting harmful
distribution shifts", ICLR 2022; Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random
World", chapter 8, 2022.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
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
from ebjr.stats import clopper_pearson, same_labels, same_length

LOSS_VALUES = {
    "harm": (0.0, 1.0),
    "excess": (-1.0, 0.0, 1.0),
    "risk": tuple(np.linspace(0.0, 1.0, 33).tolist()),
    "rate": (0.0, 1.0),
}
"""By promise: the values of a loss at which rows are counted; the ends are its range."""

_RATE_ODDS = np.geomspace(0.03, 30.0, 8)
_SIZES = np.array([0.05, 0.2, 0.8])
_GROUPS = 32
_ONE = 2**32
_CHUNK = 2**20  # a double adds up this many 32-bit fractions exactly


def harm(
    student_prediction: Any, teacher_prediction: Any, deferred: Any, targets: Any = None
) -> np.ndarray:
    """Return 1 where a kept answer was wrong and the teacher's right, else 0.

    Predictions and targets are labels, (n,), and `deferred` is bool, (n,). Without targets the
    teacher's answer is the truth; deferred rows do not read it. The result, (n,), is the loss of
    `RiskMonitor` for the promise ``"harm"``.

    Raises
    ------
    ValueError
        The lengths differ, or some are names and others numbers.

    Examples
    --------
    >>> harm([0, 0, 1], [1, 1, 1], [False, True, False])
    array([1., 0., 0.])
    """
    student, teacher, truth = same_labels(
        student=student_prediction,
        teacher=teacher_prediction,
        targets=teacher_prediction if targets is None else targets,
    )
    asked = same_length(student=student, deferred=deferred)[1]
    return (~asked.astype(bool) & (student != truth) & (teacher == truth)).astype(np.float64)


def excess(joint_prediction: Any, teacher_prediction: Any, targets: Any) -> np.ndarray:
    """Return the joint model's error minus the teacher's: -1, 0 or 1 per row.

    Arguments are labels, (n,). The result, (n,), is the loss of `RiskMonitor` for the promise
    ``"excess"``.

    Raises
    ------
    ValueError
        The lengths differ, or some are names and others numbers.

    Examples
    --------
    >>> excess([0, 1, 1], [1, 0, 1], [1, 1, 1])
    array([ 1., -1.,  0.])
    """
    joint, teacher, truth = same_labels(
        joint=joint_prediction, teacher=teacher_prediction, targets=targets
    )
    return (joint != truth).astype(np.float64) - (teacher != truth)


def draw_audits(
    deferred: Any, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to audit: kept rows at random, deferred ones always.

    The teacher has answered deferred rows already, so auditing them is free. `deferred` is bool,
    (n,), and `probability` the chance that a kept row is audited. The result goes to
    `RiskMonitor.update`: the audited rows, (n,) bool, and each row's probability, (n,).

    Raises
    ------
    ValueError
        `probability` is outside (0, 1].

    Examples
    --------
    >>> draw_audits([True, False, False], 0.2, np.random.default_rng(0))
    (array([ True, False,  True]), array([1. , 0.2, 0.2]))
    """
    asked = np.asarray(deferred, dtype=bool)
    chance = np.where(asked, 1.0, _share("audit probability", probability, top=True))
    return rng.random(len(asked)) < chance, chance


class RiskMonitor(SequentialTest):
    """Watches the live risk, and raises an alarm when it exceeds its tolerance.

    The promise is that each row's expected loss, given all rows before it, is at most `tolerance`.
    While that holds, `status` becomes ``"broken"`` with probability at most `alpha`, over all time.
    `lower` and `upper` bound the average of these expected losses so far, each at all times with
    probability ``1 - alpha``, even if the risk changes.

    - `tolerance`: The promise, in the loss's unit: 0.01 is a harm of 1 % of all inputs.
    - `alpha`: The probability of ever raising a false alarm, between 0 and 1.
    - `promise`: ``"harm"``: a loss of 0 or 1. ``"excess"``: -1 to 1. ``"risk"``: 0 to 1.
      ``"rate"``: 1 for a deferred row, else 0. They are a `Certificate`'s promises, whose tolerance
      can be given here too.
    - `audit_probability`: The least probability with which a row's loss becomes known, in (0, 1].
      1: every row has a label, or the teacher's answer.

    Raises
    ------
    ValueError
        A number is out of range, or `promise` is unknown.

    Notes
    -----
    The monitor sees every row. A row whose loss is unknown counts as 0, and a row audited with
    probability q as ``loss / q``, so that the mean is that of all rows. For losses y between a and
    b, a bet of size c multiplies its money by ``(1 + c (y - a)) / (1 + c (m - a))``, whose mean is
    at most 1 while the mean of y is at most m. The bounds are the m at which the money of bets
    from the first row reaches ``1 / alpha``. They hold for the average of changing means: by the
    inequality of arithmetic and geometric means, ``prod (1 + c (m_i - a))`` is at most the power of
    its value at the average m. A loss between two counted values is split between them; the
    logarithm is concave, so this can only lower the money.

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
        """Add the next rows, in the order they were served, and return `status`.

        All are (n,). `loss` is read where `audited`, bool, says that it is known; without
        `audited` it must be known everywhere, with an `audit_probability` of 1. `probability` is
        each row's chance to be audited, at least `audit_probability`, its default; 1 for rows whose
        loss is known anyway and may be nonzero.

        Raises
        ------
        ValueError
            The lengths differ, or a known loss or a probability is out of range.
        """
        value = self._weighted(loss, audited, probability)
        for rows in blocks(self._bets.rows, len(value)):
            self._bets.bet(*self._growth(value[rows]))
        for start in range(0, len(value), _CHUNK):
            self._count(value[start : start + _CHUNK])
        return self.status

    def _weighted(self, loss: Any, audited: Any, probability: Any) -> np.ndarray:
        """Return ``audit_probability * loss / probability``, (n,), and 0 for unknown losses."""
        given = _vector("loss", loss)
        if audited is None and self.audit_probability < 1:
            raise ValueError(
                f"with audit_probability {self.audit_probability:g}, `audited` must be given"
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
                f"probability must lie between {self.audit_probability:g} (audit_probability) and 1"
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
        """The average loss so far, with audited rows weighted for the others; NaN without rows."""
        if not self.rows:
            return math.nan
        total = sum(mass / _ONE * value for mass, value in zip(self._mass, self._grid, strict=True))
        return float(total / self.rows / self.audit_probability)

    @property
    def lower(self) -> float:
        """A lower bound of the risk so far, at all times with probability ``1 - alpha``."""
        found = self._low + self._bound(self._grid - self._low)
        return min(max(found / self.audit_probability, self._low), self._high)

    @property
    def upper(self) -> float:
        """An upper bound of the risk so far, at all times with probability ``1 - alpha``."""
        fractional = any(mass % _ONE for mass in self._mass)
        rounding = (self._grid[1] - self._low) / _ONE if fractional else 0.0
        found = self._high - self._bound(self._high - self._grid) + rounding
        return min(max(found / self.audit_probability, self._low), self._high)

    def _bound(self, value: np.ndarray) -> float:
        """Return the largest mean of `value`, a transform of `_grid`, that the bets refute."""
        return _refuted_mean(tuple(value.tolist()), tuple(self._mass), self.alpha)

    @property
    def alarm(self) -> int | None:
        """The row at which the alarm was raised, or None."""
        return self._bets.alarm

    @property
    def evidence(self) -> float:
        """The largest capital that 1 ever became, as log10; the alarm is at ``-log10(alpha)``."""
        return self._bets.evidence

    @property
    def status(self) -> str:
        """``"broken"`` after an alarm, ``"kept"`` while `upper` is within the tolerance, or
        ``"undecided"``.

        A broken promise stays broken: calibrate again and start a new monitor.
        """
        if self.alarm is not None:
            return "broken"
        return "kept" if self.upper <= self.tolerance else "undecided"

    @property
    def statement(self) -> str:
        """What is known, in one sentence."""
        if not self.rows:
            return "Undecided: no rows yet."
        name = {"excess": "excess risk", "rate": "deferral rate"}.get(self.promise, self.promise)
        if self.status == "broken":
            return (
                f"Broken: by row {self.alarm:,} the {name} had exceeded its tolerance of "
                f"{self.tolerance:g} (a false alarm with probability at most "
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
        """Return everything needed to resume, for JSON."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        counts = {"mass": list(self._mass), "bets": self._bets.state()}
        return {"format": self.FORMAT, **settings, **counts}

    @classmethod
    def _build(cls, state: Mapping[str, Any]) -> Self:
        monitor = cls(**{name: state[name] for name in SETTINGS})
        monitor._bets.resume(state["bets"])
        mass = [read_count(value, "mass") for value in state["mass"]]
        if len(mass) != len(monitor._grid) or sum(mass) != monitor.rows * _ONE:
            raise ValueError("the counts do not add up to the rows")
        monitor._mass = mass
        return monitor


@lru_cache(maxsize=8)  # a status and a statement read the same bound again
def _refuted_mean(value: tuple[float, ...], mass: tuple[int, ...], alpha: float) -> float:
    return refuted_mean(np.array(value), np.array(mass, np.float64) / _ONE, alpha)


SETTINGS = ("promise", "tolerance", "alpha", "audit_probability")
"""The arguments of a `RiskMonitor`."""


class DriftMonitor(SequentialTest):
    """Watches, without labels, whether live scores are still those of calibration.

    Two tests share `alpha`. *Scores*: live scores are exchangeable with those of calibration.
    *Deferral rate*, if there is a threshold: the live rate is that of calibration, within
    `rate_tolerance`. While both hold, `status` becomes ``"drifted"`` with probability at most
    `alpha`. ``"steady"`` means that no drift was shown, not that there is none.

    - `scores`: (N,), best of examples on which nothing was fitted: a score looks different on rows
      that trained it. NaN counts as ``-inf``. Only 31 quantiles are stored.
    - `alpha`: The probability of ever raising a false alarm, between 0 and 1.
    - `threshold`: In the score's unit; rows under it are deferred. None: no test of the deferral
      rate.
    - `rate_tolerance`: How far the deferral rate may move before it matters, in [0, 1).
    - `seed`: For breaking ties.

    Raises
    ------
    ValueError
        `scores` has fewer than 20 scores, or a number is out of range.

    Notes
    -----
    *Finite calibration data.* N calibration scores cut the line into N + 1 gaps. If calibration and
    live scores are exchangeable, and ties are broken at random, each new score's rank among all
    before it is uniform. So after t live rows it falls into a gap that already holds c live scores
    with probability exactly ``(1 + c) / (N + 1 + t)`` (Polya's urn), for any distribution. Gaps are
    joined to 32 groups by ranks fixed in advance, so that the probabilities add up. A group is the
    interval that it fills on [0, 1] under these probabilities. A bet multiplies its money by the
    mean over that interval of ``1 + e P(u)``, with a shifted Legendre polynomial P of degree 1, 2
    or 3 (location, spread, skewness), at most 1 in size and of mean 0: the game is exactly fair.
    Ranking against the calibration scores alone, as if their quantiles were the true ones, would be
    unfair and sooner or later raise a false alarm with certainty.

    *Deferral rate.* The calibrated rate is known up to a Clopper-Pearson interval, which fails with
    probability ``alpha / 4``. The bets play against that interval, widened by the tolerance, at
    ``alpha / 4``; the test of scores has ``alpha / 2``. That exact test finds any difference in the
    end, even a harmless one; `shift` and `deferral_rate` say how large it is.

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
        """Add the scores (n,) of the next rows, in the order served, and return `status`.

        NaN counts as ``-inf``, because the router defers it.

        Raises
        ------
        ValueError
            `scores` is not one number per row.
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
        """Return how many edges, (n,), lie below each score, with ties broken reproducibly."""
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
        """Return the log growth of each bet, (bets, rows), under Polya's urn."""
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
        """The quantiles of the calibration scores, for a file that `of_reference` reads.

        Examples
        --------
        >>> monitor = DriftMonitor(np.arange(100.0), threshold=20.0)
        >>> DriftMonitor.of_reference(monitor.reference).state() == monitor.state()
        True
        """
        return self._reference.as_dict()

    @classmethod
    def of_reference(cls, reference: Mapping[str, Any], alpha: float = 0.05) -> Self:
        """Make a new monitor from another one's `reference`.

        Raises
        ------
        ValueError
            `reference` is incomplete or damaged, or a number is out of range.
        """
        with resuming():
            return cls(_Reference.read(reference), alpha)

    @property
    def shift(self) -> float:
        """The largest difference between live and calibration scores in the share under a score.

        Over all live rows so far, at the stored quantiles; 0 to 1, or NaN without rows.
        """
        if not self.rows:
            return math.nan
        live = np.cumsum(self._seen)[:-1] / self.rows
        return float(np.abs(live - self._reference.ranks / self.calibration_rows).max())

    @property
    def deferral_rate(self) -> float:
        """The deferral rate of the live rows; NaN without a threshold or rows."""
        return math.nan if self.threshold is None or not self.rows else self._deferred / self.rows

    @property
    def calibrated_rate(self) -> float:
        """The deferral rate of the calibration scores; NaN without a threshold."""
        none = self.threshold is None
        return math.nan if none else self._reference.deferred / self.calibration_rows

    @property
    def alarms(self) -> dict[str, int | None]:
        """By test: the row at which its alarm was raised, or None."""
        return {"scores": self._bets.alarm, "deferral_rate": self._rate_bets.alarm}

    @property
    def evidence(self) -> dict[str, float]:
        """By test: the largest capital that 1 ever became, as log10."""
        return {"scores": self._bets.evidence, "deferral_rate": self._rate_bets.evidence}

    @property
    def status(self) -> str:
        """``"drifted"`` after an alarm, for good; ``"steady"`` before."""
        return "steady" if all(row is None for row in self.alarms.values()) else "drifted"

    @property
    def statement(self) -> str:
        """What is known, in one sentence."""
        if not self.rows:
            return "Steady: no rows yet."
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
            f"Drifted: {' and '.join(rang)} (a false alarm with probability at most "
            f"{self.alpha:g}); {size}; calibrate again."
        )

    def state(self) -> dict[str, Any]:
        """Return everything needed to resume, for JSON."""
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
    """What a drift monitor stores of calibration scores: their number, quantiles and deferrals."""

    n: int
    edges: np.ndarray  # (k,): the quantiles, in ascending order
    ties: np.ndarray  # (k,): their random tie breakers
    ranks: np.ndarray  # (k,): their ranks among all, from 1
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
        """Read what `as_dict` returned, if it is consistent."""
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
        """How many gaps between neighboring scores each group joins, (k + 1,)."""
        return np.diff(self.ranks, prepend=0, append=self.n + 1)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        columns = {name: getattr(self, name).tolist() for name in ("edges", "ties", "ranks")}
        figures = {"n": self.n, **columns}
        if self.threshold is None:
            return figures
        return {**figures, "threshold": self.threshold, "deferred": self.deferred}


def _check_counts(fit: bool) -> None:
    if not fit:
        raise ValueError("the counts do not fit together")


def _mean_legendre(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return means, (3, n), of the Legendre polynomials of degree 1 to 3 between two points."""
    # power sums of the ends, not a difference of integrals: narrow intervals stay exact
    first = (left + right) / 2
    second = (left * left + left * right + right * right) / 3
    third = first * (left * left + right * right) / 2
    return np.stack([first, (3 * second - 1) / 2, (5 * third - 3 * first) / 2])


def _share(name: str, value: float, top: bool = False) -> float:
    """Return a number in (0, 1), or in (0, 1] with `top`; ValueError for others."""
    number = float(value)
    if not 0 < number < 1 and not (top and number == 1):
        raise ValueError(f"{name} must lie between 0 and 1{' or be 1' if top else ''}, not {value}")
    return number


def _vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
        raise ValueError(
            f"{name} must be one real number per row, not {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.float64)

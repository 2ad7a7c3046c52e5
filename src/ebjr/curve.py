"""TradeOffCurve: the joint model's quality and cost at every threshold, exactly, in one sort."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ebjr.blend import Blend, as_blend, blend_text
from ebjr.costs import (
    SAVED,
    UNITS,
    Cost,
    alone_cost,
    break_even_rate,
    common_unit,
    half_known,
    is_comparable,
    joint_cost,
)
from ebjr.errors import check_choice
from ebjr.router import Router, check_threshold, deferral_key
from ebjr.scores import Score, as_score

if TYPE_CHECKING:
    from ebjr.arrays import Array
    from ebjr.metric import Whole
    from ebjr.outcomes import Outcomes
    from ebjr.tasks.detection.scale import CommonScale

MOST_ROWS = 101  # deferral rates at most for a metric that is not a mean of rows

T = TypeVar("T")

FIGURES = (
    *("threshold", "score", "blend", "deferral_rate", "metric", "quality", "student_quality"),
    *("teacher_quality", "n", "cost", "student_cost", "teacher_cost", "unit", "break_even"),
    *("pays", "saving", "certified", "rescale", "margin"),
)
"""The figures of `OperatingPoint.as_dict`, which ``joint.toml`` may hold."""


@dataclass(frozen=True)
class OperatingPoint:
    """One row of a curve: a threshold, and the joint model's figures there.

    Parameters
    ----------
    threshold
        In the score's unit.
    score, blend
        The score, and the student's weight in a deferred answer.
    deferral_rate
        The fraction of rows that the teacher answers.
    quality
        The joint model's, higher is better: accuracy, for regression minus the loss, or R2, for
        detection AP or F1.
    student_quality, teacher_quality
        Each model's alone, on the same examples.
    student_cost, teacher_cost
        Per example, if known.
    n
        The number of examples behind the figures.
    metric
        The metric of the qualities, see `ebjr.metric`.
    certified
        The promise beyond these examples, a `Certificate`, or None.
    rescale
        Detection: the common scale of both detectors' scores.
    margin
        The standard errors by which the point exceeds its goal; None if the goal limits no quality.

    Examples
    --------
    >>> point = OperatingPoint(0.5, "softmax", 0.0, 0.1, 0.94, 0.92, 0.94, Cost(1.0), Cost(9.0), 10)
    >>> point.cost.flops, point.pays
    (1.9, True)
    """

    threshold: float
    score: str
    blend: float | Blend
    deferral_rate: float
    quality: float
    student_quality: float
    teacher_quality: float
    student_cost: Cost
    teacher_cost: Cost
    n: int
    certified: Any = None
    score_function: Score | None = None
    metric: str = "accuracy"
    rescale: "CommonScale | None" = None
    margin: float | None = None

    @property
    def router(self) -> Router:
        """A new router with this score and threshold, which knows what else the point needs."""
        router = Router(self.score_function or self.score, self.threshold)
        router.chosen_with = self._chosen_with
        return router

    @property
    def _chosen_with(self) -> dict[str, Any]:
        return {"blend": self.blend, "rescale": self.rescale}

    def curve(self, outcomes: "Outcomes") -> "TradeOffCurve":
        """Return the curve of this score and blend on any outcomes."""
        table = outcomes.with_scale(self.rescale)
        return TradeOffCurve.of(table, self.router.score, self.blend, keep=[self.threshold])

    @property
    def cost(self) -> Cost:
        """The joint model's cost per example (section 3.1)."""
        return joint_cost(self.student_cost, self.teacher_cost, self.deferral_rate)

    @property
    def alone_cost(self) -> Cost:
        """The teacher's cost per example, with the student's if the teacher continues from it."""
        return alone_cost(self.student_cost, self.teacher_cost)

    @property
    def unit(self) -> str | None:
        """The unit in which costs are compared, one of `costs.UNITS`; None if none is known."""
        return common_unit(self.student_cost, self.teacher_cost)

    @property
    def break_even(self) -> float | None:
        """The deferral rate above which the teacher alone is cheaper."""
        if self.unit is None:
            return None
        return break_even_rate(self.student_cost, self.teacher_cost, self.unit)

    @property
    def pays(self) -> bool | None:
        """Whether the joint model is cheaper than the teacher alone; None if unknown."""
        return None if self.break_even is None else self.deferral_rate < self.break_even

    @property
    def saving(self) -> float | None:
        """How many times cheaper it is than the teacher alone; below 1 it is more expensive."""
        return self.saving_in(self.unit)

    def saving_in(self, unit: str | None) -> float | None:
        """Return `saving` in a unit of `costs.UNITS`; None if not both models' costs are known."""
        if unit is None or not is_comparable(self.student_cost, self.teacher_cost, unit):
            return None
        own = getattr(self.cost, unit)
        return getattr(self.alone_cost, unit) / own if own else math.inf

    @property
    def joules_saved(self) -> float | None:
        """The share of the teacher's joules that is saved (table 2); None if unknown."""
        own, whole = self.cost.joules, self.alone_cost.joules
        return None if own is None or not whole else 1 - own / whole

    @property
    def verdict(self) -> str:
        """A sentence on whether the pair pays here, in which unit, and the break-even."""
        unknown = half_known(self.student_cost, self.teacher_cost)
        if self.unit is None or self.break_even is None:
            more = f": {unknown}" if unknown else ""
            return (
                f"Whether the pair pays is unknown, because the models' costs are not known{more}."
            )
        if self.break_even <= 0:
            times = f"{1 - self.break_even:.2f} times "
            dear = f"{'' if times == '1.00 times ' else times}as much as the teacher"
            return f"The student costs {dear}: this pair cannot pay."
        limit = f"the teacher alone is cheaper above a deferral rate of {self.break_even:.1%}"
        limit += f"; {unknown}" if unknown else ""
        if self.pays:
            return (
                f"Deferring {self.deferral_rate:.1%} takes {self.saving:.2f} times "
                f"{SAVED[self.unit]} than the teacher alone ({limit})."
            )
        return (
            f"This pair does not pay here: {limit}, and this point defers {self.deferral_rate:.1%}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return every known figure, for JSON and TOML."""
        figures = {name: getattr(self, name) for name in FIGURES}
        figures["blend"] = blend_text(self.blend)
        known = {name: value for name, value in figures.items() if value is not None}
        return {n: v.as_dict() if hasattr(v, "as_dict") else v for n, v in known.items()}


@dataclass(frozen=True, eq=False)
class TradeOffCurve:
    """Quality and cost at every distinct threshold, from all-student to all-teacher.

    Row k keeps the rows with ``score >= threshold[k]``. The first row keeps every row that a
    threshold can keep; the last, at ``inf``, defers all. NaN and ``-inf`` scores are always
    deferred. Scores that differ only by rounding (`ROUNDING`) count as one, because another batch
    size, a server or an exported file may order them differently. For the same reason an operating
    point's threshold lies a rounding below the lowest score it keeps. For a metric that is not a
    mean of rows, like COCO's mAP, thresholds are thinned to `MOST_ROWS`, evenly in deferral rate:
    each row of the curve is exact, and so is `at` for any threshold.

    Attributes
    ----------
    threshold, deferral_rate, quality
        (k,), thresholds strictly ascending; quality is the accuracy for classification, minus the
        loss (RMSE, MAE) or R2 for regression: higher is better.
    score, blend
        The score, and the student's weight in a deferred answer.
    outcomes
        The outcomes behind the curve.
    order
        (n,): their rows by score, in the order in which they are deferred.
    below
        (k,): the highest score deferred at each threshold; ``-inf`` if none is.
    thinned
        All thresholds, if the curve has only some of them; else None.
    noise
        The raw output's rounding, if all scores lie within it and count as one; else 0.

    Examples
    --------
    >>> from ebjr import Outcomes
    >>> outcomes = Outcomes(student=[[2.0, 0.0], [1.0, 0.0]], teacher=[[9.0, 0.0], [0.0, 9.0]],
    ...                     targets=[0, 1])
    >>> curve = TradeOffCurve.of(outcomes, score="max_logit")
    >>> curve.threshold, curve.deferral_rate, curve.quality
    (array([ 1.,  2., inf]), array([0. , 0.5, 1. ]), array([0.5, 1. , 1. ]))
    """

    threshold: np.ndarray
    deferral_rate: np.ndarray
    quality: np.ndarray
    score: Score
    blend: float | Blend
    outcomes: "Outcomes"
    order: np.ndarray
    below: np.ndarray
    thinned: np.ndarray | None = None
    noise: float = 0.0

    @classmethod
    def of(
        cls,
        outcomes: "Outcomes",
        score: "str | Callable[..., Array] | Score | np.ndarray" = "energy",
        blend: float | Blend = 0.0,
        keep: Sequence[float] = (),
    ) -> "TradeOffCurve":
        """Make the curve of one score in one sort: O(n log n) time, O(n) memory.

        Parameters
        ----------
        outcomes
            Both models' answers to n examples.
        score
            A score, or its values (n,).
        blend
            The student's weight in a deferred answer.
        keep
            Thresholds that stay on a thinned curve.

        Raises
        ------
        ValueError
            `score` is unknown, of another task, of another length or ``+inf`` in a row; or `blend`
            is not a weight.
        """
        blend = as_blend(blend)
        if isinstance(score, np.ndarray):
            given = score
            score = Score("values", lambda output: given)
        score = as_score(score)
        part = () if outcomes.measure.whole is None else (tuple(keep),)
        name = "curve", blend, *part
        return _kept(outcomes, score, name, lambda: cls._of(outcomes, score, blend, keep))

    @classmethod
    def _of(
        cls, outcomes: "Outcomes", score: Score, blend: float | Blend, keep: Sequence[float]
    ) -> "TradeOffCurve":
        values = score_values(score, outcomes)
        if np.isposinf(values).any():
            raise ValueError(
                f"score {score} is +inf in {int(np.isposinf(values).sum())} rows: scores must be "
                "finite, or -inf or NaN to defer always"
            )
        order = np.argsort(deferral_key(values))
        noise = _noise(values, outcomes)
        threshold, below, count = _cuts(values[order], noise)
        whole, thinned = outcomes.whole(blend), None
        if whole is None:
            kept, deferred = outcomes.student_quality, outcomes.deferred_quality(blend)
            quality = outcomes.measure.quality(mean_at(kept[order], deferred[order], count))
        else:
            rows = _thinned(threshold, count, keep)
            thinned = threshold if len(rows) < len(threshold) else None
            threshold, below, count = threshold[rows], below[rows], count[rows]
            quality = _wholes(whole, order, count)
        rate = count / len(outcomes)
        return cls(threshold, rate, quality, score, blend, outcomes, order, below, thinned, noise)

    def __len__(self) -> int:
        return len(self.threshold)

    @property
    def unit(self) -> str | None:
        """The unit of `cost`, one of `costs.UNITS`; None if costs are unknown."""
        return common_unit(self.outcomes.student_cost, self.outcomes.teacher_cost)

    @property
    def cost(self) -> np.ndarray:
        """Cost per example, (k,), in `unit`; in calls of the teacher if no cost is known."""
        if self.unit is None:
            return self.deferral_rate
        return self.cost_in(self.unit)

    def cost_in(self, unit: str) -> np.ndarray:
        """Return the cost per example, (k,), in one of `costs.UNITS`.

        Raises
        ------
        ValueError
            `unit` is unknown, or not known for both models, or the joules of one are measured and
            the other's estimated.
        """
        check_choice("unit", unit, UNITS)
        student = getattr(self.outcomes.student_cost, unit)
        teacher = getattr(self.outcomes.teacher_cost, unit)
        if student is None or teacher is None:
            raise ValueError(
                f"the outcomes do not say what both models cost in {unit}: record them with "
                f"student_cost=Cost({unit}=...) and teacher_cost=Cost({unit}=...)"
            )
        if not is_comparable(self.outcomes.student_cost, self.outcomes.teacher_cost, unit):
            kinds = [self.outcomes.student_cost.joules_are, self.outcomes.teacher_cost.joules_are]
            said = " and ".join(kind or "of no known kind" for kind in kinds)
            raise ValueError(
                f"the joules of student and teacher are {said} and cannot be mixed: record both "
                "models in one run"
            )
        return student + self.deferral_rate * teacher

    @property
    def area(self) -> float:
        """Mean row quality over all deferral rates from 0 to 1.

        A score that always defers some rows has a least rate. Below it the line goes straight to
        the student alone, as if some of those rows, drawn at random, were kept; otherwise the score
        would get credit for a rate that it cannot go below. For RMSE the area is minus the mean
        squared error, because means of rows add up and roots do not.
        """
        mean = self.outcomes.measure.mean(self.quality)
        student = self.outcomes.student_quality.mean()
        below = (student + mean[0]) / 2 * self.deferral_rate[0]
        return float(np.trapezoid(mean, self.deferral_rate)) + float(below)

    def at(
        self,
        *,
        threshold: float | None = None,
        deferral_rate: float | None = None,
        index: int | None = None,
    ) -> OperatingPoint:
        """Return the operating point at a threshold, at most at a deferral rate, or of a row.

        Parameters
        ----------
        threshold
            Any number above ``-inf``: the figures are those of ``score >= threshold``.
        deferral_rate
            Between 0 and 1: the row that defers most, up to this rate.
        index
            A row of the curve.

        Raises
        ------
        ValueError
            Not exactly one of `threshold`, `deferral_rate` and `index` is given, one is out of
            range, or every row defers more than `deferral_rate`.

        Examples
        --------
        >>> from ebjr import Outcomes
        >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
        >>> TradeOffCurve.of(outcomes, "max_logit").at(threshold=1.5).deferral_rate
        0.5
        """
        if sum(value is not None for value in (threshold, deferral_rate, index)) != 1:
            raise ValueError("give exactly one of threshold, deferral_rate and index")
        if threshold is not None:
            threshold = check_threshold(threshold)
            index = int(np.searchsorted(self.threshold, threshold, side="left"))
            if self.thinned is not None:
                own = self.thinned[np.searchsorted(self.thinned, threshold, side="left")]
                # a thinned curve lacks the row of this threshold
                if own != self.threshold[index]:
                    whole = TradeOffCurve.of(self.outcomes, self.score, self.blend, [threshold])
                    return whole.at(threshold=threshold)
        elif deferral_rate is not None:
            index = self._row_at_rate(deferral_rate)
        assert index is not None
        if not -len(self) <= index < len(self):
            raise ValueError(f"index must lie in 0..{len(self) - 1}, not {index}")
        point = OperatingPoint(
            threshold=self.threshold_of(index),
            score=str(self.score),
            blend=self.blend,
            deferral_rate=float(self.deferral_rate[index]),
            quality=float(self.quality[index]),
            student_quality=self.outcomes.quality("student"),
            teacher_quality=self.outcomes.quality("teacher"),
            student_cost=self.outcomes.student_cost,
            teacher_cost=self.outcomes.teacher_cost,
            n=len(self.outcomes),
            score_function=self.score,
            metric=self.outcomes.metric,
            rescale=self.outcomes.rescale,
        )
        return point if threshold is None else replace(point, threshold=threshold)

    def threshold_of(self, index: int) -> float:
        """Return a row's threshold, lowered so that rounding cannot defer a score that it keeps."""
        lowest, below = float(self.threshold[index]), float(self.below[index])
        if not math.isfinite(lowest):
            return lowest
        rounding = max(float(_rounding(self.threshold[:-1], lowest)), self.noise)
        return lowest - min(rounding, lowest - below) / 2  # never down to the next score below

    def _row_at_rate(self, rate: float) -> int:
        if not 0 <= rate <= 1:
            raise ValueError(f"deferral_rate must lie between 0 and 1, not {rate}")
        index = int(np.searchsorted(self.deferral_rate, rate, side="right")) - 1
        if index < 0:
            raise ValueError(
                f"no threshold defers only {rate}: score {self.score} always defers "
                f"{self.deferral_rate[0]:.4f} of the rows"
            )
        return index


def oracle(outcomes: "Outcomes", blend: float | Blend = 0.0) -> np.ndarray:
    """The score that knows the answers, (n,): rows that gain most from the teacher come first.

    No score can do better; for a metric that is not a mean of rows, hardly any can, because gains
    are then known to first order. Ties are broken by position, so that its curve has every rate.

    Examples
    --------
    >>> from ebjr import Outcomes
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> TradeOffCurve.of(outcomes, oracle(outcomes)).quality
    array([0.5, 1. , 1. ])
    """
    gain = outcomes.deferred_quality(blend) - outcomes.student_quality
    return np.argsort(np.argsort(-gain, kind="stable")).astype(np.float64)


MOST_KEPT = 2_000_000
"""Scores and curves of at most this many rows are cached with the outcomes, 50 bytes a row each."""

ROUNDING = 2.0**-20
"""The rounding of scores, relative to their size and spread: 8 steps of single precision."""

_CHAIN = 64
"""Scores within roundings of each other that span more roundings than this are dense, not ties."""


def _rounding(scores: np.ndarray, of: Any) -> Any:
    """Return the rounding of scores `of`, from the 5 to 95 % spread of ascending `scores`."""
    low, high = scores[[len(scores) // 20, len(scores) - 1 - len(scores) // 20]]
    # halves, so that the difference cannot overflow
    return np.maximum(ROUNDING * np.abs(of), 2 * ROUNDING * (high / 2 - low / 2))


def _noise(values: np.ndarray, outcomes: "Outcomes") -> float:
    """Return the rounding of logits if no scores differ by more, as `energy`'s often do not."""
    finite = values[np.isfinite(values)]
    if not outcomes.kind.output_kinds or not len(finite):
        return 0.0
    noise = ROUNDING * outcomes.largest_output
    return noise if finite.max() / 2 - finite.min() / 2 <= noise / 2 else 0.0


def _cuts(score: np.ndarray, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each threshold's lowest kept score, highest deferred score, and deferred count."""
    n = len(score)
    always = int(np.count_nonzero(deferral_key(score) == -np.inf))  # at every threshold
    ascending = score[always:]
    # threshold[k] defers the rows before `first[k]`: ties move together
    first = np.flatnonzero(np.diff(ascending, prepend=-np.inf) > 0)
    if len(first):
        # if all scores lie within the raw output's rounding, their order means nothing
        first = first[:1] if noise else first[_apart(ascending[first])]
    cuts = np.append(first, n - always)
    below = np.append(-np.inf, ascending[cuts[1:] - 1])
    return np.append(ascending[first], np.inf), below, always + cuts


@np.errstate(over="ignore")
def _apart(distinct: np.ndarray) -> np.ndarray:
    """Return which ascending scores differ by more than rounding from those before them."""
    least = _rounding(distinct, distinct)
    apart = np.diff(distinct, prepend=-np.inf) > least
    starts = np.flatnonzero(apart)
    ends = np.append(starts[1:], len(distinct)) - 1
    # a long run of small steps is a dense score: as ties its rows would all move at once
    dense = distinct[ends] - distinct[starts] > _CHAIN * least[ends]
    return apart | np.repeat(dense, np.diff(np.append(starts, len(distinct))))


def area_influence(score: np.ndarray, kept: np.ndarray, deferred: np.ndarray) -> np.ndarray:
    """Return each row's part, (n,), in the area under a deferral curve: their mean is the area.

    A row above a share u of the rows is kept at a share u of the deferral rates, so the area is the
    mean of ``deferred + u (kept - deferred)``, with ties counting half. The second term, which sums
    to zero, is the row's effect on the others' ranks (the Hajek projection), which the standard
    error needs. Rows that are always deferred count as a tie below all others, so that a score
    gains nothing by deferring many of them.
    """
    n = len(score)
    key = deferral_key(score)
    order = np.argsort(key)
    ranked = key[order]
    change = kept - deferred
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # groups of equal scores
    size = np.diff(first, append=n)
    total = np.add.reduceat(change[order], first)
    above = np.cumsum(total[::-1])[::-1] - total / 2
    share, raised = np.empty(n), np.empty(n)
    share[order] = np.repeat((first + size / 2) / n, size)
    raised[order] = np.repeat(above / n, size)
    return deferred + share * change + raised - raised.mean()


def mean_at(kept: np.ndarray, deferred: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the mean quality, (k,), if the first `count` rows are deferred."""
    # sums from both ends, not of differences: a loss of 0 must come out as 0
    before = np.concatenate(([0.0], np.cumsum(deferred)))
    after = np.concatenate((np.cumsum(kept[::-1])[::-1], [0.0]))
    return (before[count] + after[count]) / len(kept)


def _thinned(threshold: np.ndarray, count: np.ndarray, keep: Sequence[float]) -> np.ndarray:
    """Return at most `MOST_ROWS` rows, evenly in deferral rate, and the rows to keep."""
    if len(count) <= MOST_ROWS:
        return np.arange(len(count))
    even = np.searchsorted(count, np.linspace(count[0], count[-1], MOST_ROWS))
    return np.unique(np.concatenate([even, np.searchsorted(threshold, keep)]).astype(int))


def _wholes(whole: "Whole", order: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the quality, (k,), if the first `count` rows of an order are deferred."""
    place = np.argsort(order)
    return np.array([whole(place < number) for number in count.tolist()])


def score_values(score: Score, outcomes: "Outcomes") -> np.ndarray:
    """Return the score, (n,), of the student's raw output; ValueError if it is of another task."""
    outcomes.kind.check_score(score)
    return _kept(outcomes, score, ("score",), lambda: np.asarray(score(outcomes.student), float))


def _kept(outcomes: "Outcomes", score: Score, name: tuple[Any, ...], make: Callable[[], T]) -> T:
    """Return what `make` returns, cached with the outcomes if the name identifies the score."""
    if not score.named or len(outcomes) > MOST_KEPT:
        return make()
    return cast(T, outcomes._once((*name, str(score)), make))

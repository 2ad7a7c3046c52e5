"""Significance: is a difference more than chance, and how good is a score?

Tests and intervals for one operating point, and the figures that rank scores. All hold for
examples drawn independently from one population.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import beta, binomtest, chi2, rankdata

from ebjr.arrays import Array, put_rows, take_rows
from ebjr.blend import Blend
from ebjr.costs import joint_cost
from ebjr.curve import OperatingPoint, TradeOffCurve, oracle
from ebjr.metric import METRICS, Metric, Whole
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, as_score

FEW = 25
"""With fewer discordant pairs than this, McNemar's test is exact unless told otherwise."""


@dataclass(frozen=True)
class McNemar:
    """Two models on the same examples: on how many is just one of them right?

    Attributes
    ----------
    first_only, second_only
        The discordant pairs: examples on which only the first, or only the second, is right.
    n
        All examples.
    odds_ratio
        ``first_only / second_only``; ``inf`` where the second is 0, NaN where both are.
    odds_interval
        Its exact 95 % confidence interval.
    statistic
        ``max(|first_only - second_only| - 1, 0)^2 / (first_only + second_only)``.
    p_exact
        From the binomial distribution of the discordant pairs, two-sided.
    p_chi_square
        From the statistic, which has one degree of freedom.
    exact
        Which of the two `p_value` is.
    names
        What the verdict calls the two.

    Examples
    --------
    >>> mcnemar([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1]).verdict
    'The first is right on 3 of 6 examples where the second is wrong, and wrong on 0 where it is
    right: chance alone may explain this (p = 0.25, exact).'
    """

    first_only: int
    second_only: int
    n: int
    odds_ratio: float
    odds_interval: tuple[float, float]
    statistic: float
    p_exact: float
    p_chi_square: float
    exact: bool
    names: tuple[str, str] = ("the first", "the second")

    @property
    def p_value(self) -> float:
        """How likely a difference this large is where the two are equally good."""
        return self.p_exact if self.exact else self.p_chi_square

    @property
    def better(self) -> str | None:
        """Which of the two is better by more than chance explains, at 5 %; None: neither shown."""
        if self.p_value >= 0.05:
            return None
        return self.names[0] if self.first_only > self.second_only else self.names[1]

    @property
    def odds(self) -> Interval:
        """The odds ratio with its interval."""
        return Interval(self.odds_ratio, *self.odds_interval)

    @property
    def verdict(self) -> str:
        """One sentence."""
        first, second = self.names
        judged = "chance alone may explain this"
        if self.better is not None:
            judged = f"{self.better} is better, by more than chance explains"
        how = "exact" if self.exact else "chi-square"
        return (
            f"{first[:1].upper()}{first[1:]} is right on {self.first_only:,} of {self.n:,} "
            f"examples where {second} is wrong, and wrong on {self.second_only:,} where it is "
            f"right: {judged} (p = {self.p_value:.2g}, {how})."
        )

    @property
    def details(self) -> str:
        """Odds ratio and both p-values, in one sentence; nothing where the two never differ."""
        if math.isnan(self.odds_ratio):
            return ""
        ratio, low, high = (f"{x:.2f}" for x in (self.odds_ratio, *self.odds_interval))
        return (
            f"Odds ratio {ratio} (95 % interval {low} to {high}); exact p = {self.p_exact:.2g}, "
            f"chi-square p = {self.p_chi_square:.2g}."
        )

    @property
    def cells(self) -> dict[str, str]:
        """A row of a table, by column."""
        return {
            "only joint": f"{self.first_only:,}",
            "only other": f"{self.second_only:,}",
            "odds ratio (95 %)": (
                f"{self.odds.estimate:.2f} ({self.odds.low:.2f} to {self.odds.high:.2f})"
            ),
            "p exact": f"{self.p_exact:.2g}",
            "p chi²": f"{self.p_chi_square:.2g}",
        }

    def as_dict(self) -> dict[str, Any]:
        """Every figure, with `p_value`, `better` and `verdict`, for JSON."""
        more = {"p_value": self.p_value, "better": self.better, "verdict": self.verdict}
        return {**asdict(self), **more}


def mcnemar(
    first_correct: Any,
    second_correct: Any,
    exact: bool | None = None,
    names: tuple[str, str] = ("the first", "the second"),
) -> McNemar:
    """McNemar's test: are two models equally often right on the same examples?

    Parameters
    ----------
    first_correct, second_correct
        (n,) bool, or 0 and 1: where each of them is right.
    exact
        Take the binomial p-value or the chi-square one, with continuity correction. None: the
        binomial one below 25 discordant pairs. Both are in the result.
    names
        What the verdict calls the two.

    Raises
    ------
    ValueError
        Different lengths, no examples, or something else than right and wrong.

    Notes
    -----
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 1947; correction by Edwards, 1948. The odds ratio's interval is
    Clopper and Pearson's for the share of the first among the discordant pairs.

    Examples
    --------
    >>> test = mcnemar(np.arange(100) < 90, np.arange(100) < 60)
    >>> test.first_only, test.second_only, test.exact, round(test.statistic, 2)
    (30, 0, False, 28.03)
    """
    first, second = _right("first_correct", first_correct), _right("second_correct", second_correct)
    if len(first) != len(second):
        raise ValueError(
            f"both must be about the same examples, but one has {len(first)} and the other "
            f"{len(second)}"
        )
    if not len(first):
        raise ValueError("there are no examples")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c) if b + c else 0.0
    return McNemar(
        first_only=b,
        second_only=c,
        n=len(first),
        odds_ratio=_odds(b, c),
        odds_interval=_odds_interval(b, c),
        statistic=statistic,
        p_exact=float(binomtest(b, b + c).pvalue) if b + c else 1.0,
        p_chi_square=float(chi2.sf(statistic, 1)),
        exact=b + c < FEW if exact is None else exact,
        names=names,
    )


def compare(
    joint_prediction: Any,
    other_prediction: Any,
    targets: Any,
    names: tuple[str, str] = ("the joint model", "the other model"),
) -> McNemar:
    """McNemar's test of the joint model against any other saved predictions.

    Parameters
    ----------
    joint_prediction, other_prediction, targets
        (n,) labels of the same examples in the same order.
    names
        What the verdict calls the two.

    Raises
    ------
    ValueError
        They do not have the same length, or there are no examples.

    Examples
    --------
    >>> compare([0, 1, 1], [0, 1, 0], [0, 1, 1]).first_only
    1
    """
    columns = [np.asarray(column) for column in (joint_prediction, other_prediction, targets)]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise ValueError(
            f"joint_prediction, other_prediction and targets must be (n,) alike, not {shapes}"
        )
    joint, other, truth = columns
    return mcnemar(joint == truth, other == truth, names=names)


@dataclass(frozen=True)
class LossDifference:
    """Two models on the same examples: how far are their losses apart?

    Attributes
    ----------
    metric
        Its name.
    difference
        The first one's figure minus the second one's, with its 95 % interval.
    p_value
        Two-sided, from the same resamples: how likely a difference this large is where the two are
        equally good.
    n
        All examples.
    names
        What the verdict calls the two.

    Examples
    --------
    >>> rows = -np.arange(40.0)
    >>> loss_difference(rows, rows - 1, "mae").verdict
    'On 40 examples the first has 1 (95 % interval 1 to 1) less MAE than the second: the first is
    better, by more than chance explains (p = 0.001).'
    """

    metric: str
    difference: Interval
    p_value: float
    n: int
    names: tuple[str, str] = ("the first", "the second")

    @property
    def better(self) -> str | None:
        """Which of the two is better by more than chance explains, at 5 %; None: neither shown."""
        if self.p_value >= 0.05:
            return None
        measure = METRICS[self.metric]
        return self.names[0] if measure.figure(self.difference.estimate) > 0 else self.names[1]

    @property
    def verdict(self) -> str:
        """One sentence."""
        here, scale = self.difference, 100 if METRICS[self.metric].percent else 1
        title = METRICS[self.metric].title
        points = " points" if scale == 100 else ""
        words = "less" if here.estimate < 0 else "more"
        low, high = sorted((scale * abs(here.low), scale * abs(here.high)))
        span = f"{low:.3g} to {high:.3g}"
        if here.low < 0 < here.high:
            span = f"{scale * abs(here.low):.3g} less to {scale * here.high:.3g} more"
        judged = "chance alone may explain this"
        if self.better is not None:
            judged = f"{self.better} is better, by more than chance explains"
        return (
            f"On {self.n:,} examples {self.names[0]} has {scale * abs(here.estimate):.3g}{points} "
            f"(95 % interval {span}) {words} {title} than {self.names[1]}: {judged} "
            f"(p = {self.p_value:.2g})."
        )

    @property
    def details(self) -> str:
        """Nothing that the verdict does not say."""
        return ""

    @property
    def cells(self) -> dict[str, str]:
        """A row of a table, by column."""
        difference, measure = self.difference, METRICS[self.metric]
        scale = 100 if measure.percent else 1
        here, low, high = (
            scale * value for value in (difference.estimate, difference.low, difference.high)
        )
        return {
            f"{measure.title}{', points' if measure.percent else ''} (95 %)": (
                f"{here:+.3g} ({low:+.3g} to {high:+.3g})"
            ),
            "p": f"{self.p_value:.2g}",
        }

    def as_dict(self) -> dict[str, Any]:
        """Every figure, with `better` and `verdict`, for JSON."""
        return {**asdict(self), "better": self.better, "verdict": self.verdict}


Comparison = McNemar | LossDifference
"""What tells two models apart: by their right answers, or by their losses."""


def loss_difference(
    first_rows: Any,
    second_rows: Any,
    metric: str,
    names: tuple[str, str] = ("the first", "the second"),
    n_resamples: int = 2000,
    seed: int = 0,
) -> LossDifference:
    """Paired bootstrap: are two models equally good on the same examples?

    Parameters
    ----------
    first_rows, second_rows
        (n,): row qualities of both, as `Metric.rows` gives them.
    metric
        Its name.
    names
        What the verdict calls the two.
    n_resamples, seed
        Of the bootstrap; the p-value is at least ``2 / (n_resamples + 1)``.

    Raises
    ------
    ValueError
        Different lengths, or no examples.

    Notes
    -----
    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 16.

    Examples
    --------
    >>> loss_difference([-1.0, -2.0], [-1.0, -2.0], "mae").p_value
    1.0
    """
    columns = np.column_stack([np.asarray(first_rows, float), np.asarray(second_rows, float)])
    if not len(columns):
        raise ValueError("there are no examples")
    measure = METRICS[metric]

    def difference(means: np.ndarray) -> np.ndarray:
        first, second = measure.quality(means).T
        return np.asarray(measure.figure(first - second))

    drawn = difference(_resampled_means(columns, n_resamples, np.random.default_rng(seed)))
    here = float(difference(columns.mean(axis=0)[None])[0])
    return _difference(metric, here, drawn, len(columns), names)


def _difference(
    metric: str, here: float, drawn: np.ndarray, n: int, names: tuple[str, str]
) -> LossDifference:
    """A difference of two figures, judged by the same difference on resamples, `drawn`."""
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    p_value = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return LossDifference(metric, Interval(here, low, high), p_value, n, names)


def compare_answers(
    outcomes: Outcomes,
    joint: Any,
    other: Any,
    names: tuple[str, str] = ("the joint model", "the other model"),
) -> Comparison:
    """The joint model's answers against any others', by the test that the metric asks for.

    Parameters
    ----------
    outcomes
        The examples, their targets and metric.
    joint, other
        (n,) answers: labels, predictions, or lists of n `Detections`.
    names
        What the verdict calls the two.

    Raises
    ------
    ValueError
        They do not have the length of the outcomes.

    Examples
    --------
    >>> table = Outcomes([3.0, 3.0], [2.0, 4.0], [0.0, 4.0], task="regression")
    >>> compare_answers(table, [2.0, 4.0], [3.0, 3.0]).names
    ('the joint model', 'the other model')
    """
    if outcomes.measure.binary:
        return compare(joint, other, outcomes.targets, names=names)
    if outcomes.kind.takes_scale:
        return _compare_judged(outcomes, joint, other, names)
    columns = [np.asarray(column, dtype=np.float64) for column in (joint, other)]
    if any(column.shape != outcomes.targets.shape for column in columns):
        shapes = " and ".join(str(column.shape) for column in columns)
        raise ValueError(f"both must hold {len(outcomes)} predictions, not {shapes}")
    assert outcomes.measure.rows is not None
    one, two = (outcomes.measure.rows(column, outcomes.targets) for column in columns)
    return loss_difference(one, two, outcomes.metric, names)


def _compare_judged(
    outcomes: Outcomes, joint: Any, other: Any, names: tuple[str, str]
) -> LossDifference:
    """The answers of detectors, by the rows of the metric or by the whole of it."""
    measure = outcomes.measure
    one, two = (outcomes.kind.judged(found, outcomes.targets) for found in (joint, other))
    if measure.rows is not None:
        first, second = (measure.rows(judged, outcomes.targets) for judged in (one, two))
        return loss_difference(first, second, outcomes.metric, names)
    assert measure.whole is not None
    whole, n = measure.whole(one, two, outcomes.targets), len(outcomes)
    none, every = np.zeros(n, bool), np.ones(n, bool)
    both = [(whole, none), (whole, every)]
    _, drawn = resampled_wholes(both, MOST_WHOLE, np.random.default_rng(0))
    here = whole(none) - whole(every)
    return _difference(outcomes.metric, here, drawn[:, 0] - drawn[:, 1], n, names)


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Examples
    --------
    >>> str(Interval(0.9412, 0.936, 0.9459))
    '0.9412 (0.936 to 0.9459)'
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} ({self.low:.4g} to {self.high:.4g})"


def joint_prediction(outcomes: Outcomes, point: OperatingPoint) -> Any:
    """(n,): the answer that the joint model gives each example at an operating point.

    For detection a list of n `Detections`.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> joint_prediction(outcomes, TradeOffCurve.of(outcomes, "max_logit").at(threshold=1.5))
    array([0, 1])
    """
    _, deferred = point.router(outcomes.student)
    table = outcomes.with_scale(point.rescale)
    answered = outcomes.kind.predict(table.deferred(point.blend))
    rows = np.flatnonzero(deferred)
    return put_rows(table.predictions("student"), rows, take_rows(answered, rows))


def bootstrap(
    outcomes: Outcomes,
    point: OperatingPoint,
    n_resamples: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of what an operating point does, from resampled examples: percentiles of them.

    At one point an example is of one of 16 kinds: deferred or not, and student, teacher and
    deferred answer each right or wrong. Drawing n examples with replacement and counting the
    kinds *is* one draw from a multinomial distribution, so that the kinds are resampled instead:
    the same bootstrap exactly, in time and memory that do not depend on n. Losses of regressors
    have no kinds: their rows are resampled, or beyond 20,000 of them drawn from the normal
    distribution that the resampled means then have. COCO's mAP is evaluated anew on each resample
    of the images. It is too high on few images, and on a resample, where fewer differ, once more by
    about as much: its own interval is the basic bootstrap's, which corrects for that and so reaches
    further down than up. From differences of two mAP this drops out.

    Parameters
    ----------
    outcomes
        Examples that the threshold was not chosen on; on others the intervals flatter.
    point
        Its score, blend and threshold.
    n_resamples
        How often to resample, at least 100; 2,000 times if left out, `MOST_WHOLE` where the metric
        is no mean of rows.
    seed
        Same seed, same intervals.
    level
        The intervals' confidence, between 0 and 1.

    Returns
    -------
    dict
        `accuracy`, or the name of the metric with its figure; `deferral_rate`,
        `gain_over_teacher`, `gain_over_student` (in accuracy; for losses how much less) and, where
        costs are known, `cost` in ``point.unit`` and `saving`, how many times cheaper than the
        teacher alone, and `joules_saved`, a share of the teacher's. Costs of one example are taken
        as exact; only the rate varies.

    Raises
    ------
    ValueError
        Too few resamples, or a level out of range.

    Notes
    -----
    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; the basic
    bootstrap: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = TradeOffCurve.of(outcomes, "max_logit").at(threshold=1.5)
    >>> str(bootstrap(outcomes, point)["deferral_rate"])
    '0.5 (0 to 1)'
    """
    outcomes = outcomes.with_scale(point.rescale)
    n, measure, rng = len(outcomes), outcomes.measure, np.random.default_rng(seed)
    n_resamples = resamples(measure) if n_resamples is None else n_resamples
    if n_resamples < 100:
        raise ValueError(f"n_resamples must be at least 100, not {n_resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if measure.whole is not None:
        means, drawn = _whole_draws(outcomes, point, n_resamples, rng)
    elif measure.binary:
        counts = _kinds(outcomes, point)
        draws = rng.multinomial(n, counts / n, size=n_resamples)
        means, drawn = counts[None] / n @ _KIND_ROWS, draws / n @ _KIND_ROWS
    else:
        rows = _point_rows(outcomes, point)
        means, drawn = rows.mean(axis=0)[None], _resampled_means(rows, n_resamples, rng)
    estimate, resampled = _figures(means, point, measure), _figures(drawn, point, measure)
    basic = {measure.name} if measure.whole is not None else set()
    return {
        name: interval_of(estimate[name][0], values, level, basic=name in basic)
        for name, values in resampled.items()
    }


def interval_of(
    estimate: float, resampled: Array, level: float = 0.95, basic: bool = False
) -> Interval:
    """The interval of a figure from what it came to on resampled examples, (resamples,).

    Their percentiles, or the basic bootstrap: these mirrored at the estimate, which corrects for a
    figure that is too high on few examples, and on a resample once more by about as much.

    Examples
    --------
    >>> print(interval_of(1.0, np.linspace(0.5, 2.5, 101), level=0.9))
    1 (0.6 to 2.4)
    >>> print(interval_of(1.0, np.linspace(0.5, 2.5, 101), level=0.9, basic=True))
    1 (-0.4 to 1.4)
    """
    values = 2 * estimate - np.asarray(resampled) if basic else resampled
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


MOST_WHOLE = 500
"""How often to resample for a metric that is no mean of rows, unless told otherwise."""


def resamples(measure: Metric) -> int:
    """How often `bootstrap` resamples for a metric, unless told otherwise."""
    return 2000 if measure.whole is None else MOST_WHOLE


def _whole_draws(
    outcomes: Outcomes, point: OperatingPoint, n_resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(1, 4) and (resamples, 4): deferred, the joint model, the student and the teacher."""
    _, deferred = point.router(outcomes.student)
    own, plain = outcomes.whole(point.blend), outcomes.whole()
    assert own is not None
    assert plain is not None
    n = len(outcomes)
    chosen = [(own, deferred), (plain, np.zeros(n, bool)), (plain, np.ones(n, bool))]
    times, drawn = resampled_wholes(chosen, n_resamples, rng)
    here = [deferred.mean(), *(whole(mask) for whole, mask in chosen)]
    return np.array([here]), np.column_stack([times @ deferred / n, drawn])


def resampled_wholes(
    chosen: Sequence[tuple[Whole, np.ndarray]], n_resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Qualities that are no means of rows, on rows drawn with replacement.

    Parameters
    ----------
    chosen
        m pairs of a `Whole` and the rows that are deferred, (n,) bool.
    n_resamples
        How often to draw.
    rng
        What draws.

    Returns
    -------
    tuple
        How often each row was drawn, (n_resamples, n), and the qualities, (n_resamples, m). Draws
        on which there is no quality, as without a labeled box, are drawn again.
    """
    n = len(chosen[0][1])
    times = np.empty((n_resamples, n), np.int64)
    drawn = np.empty((n_resamples, len(chosen)))
    for row in range(n_resamples):
        while True:
            times[row] = rng.multinomial(n, np.full(n, 1 / n))
            try:
                drawn[row] = [whole(mask, times=times[row]) for whole, mask in chosen]
            except ValueError:
                continue
            break
    return times, drawn


def _kinds(outcomes: Outcomes, point: OperatingPoint) -> np.ndarray:
    """(16,): how many examples are of each kind; the bits are those of `_KIND`."""
    _, deferred = point.router(outcomes.student)
    bits = (
        np.asarray(deferred),
        outcomes.student_quality > 0,
        outcomes.teacher_quality > 0,
        outcomes.deferred_quality(point.blend) > 0,
    )
    kind = sum(bit.astype(np.int64) << place for place, bit in enumerate(bits))
    return np.bincount(kind, minlength=16)


_KIND = (np.arange(16)[:, None] >> np.arange(4)) & 1
"""(16, 4): deferred, student right, teacher right, answer right if deferred."""

_KIND_ROWS = np.stack(
    [_KIND[:, 0], np.where(_KIND[:, 0], _KIND[:, 3], _KIND[:, 1]), _KIND[:, 1], _KIND[:, 2]], axis=1
).astype(np.float64)
"""(16, 4): deferred, quality of the joint model, of the student, of the teacher."""


def _point_rows(outcomes: Outcomes, point: OperatingPoint) -> np.ndarray:
    """(n, 4): deferred, quality of the joint model, of the student, of the teacher."""
    _, deferred = point.router(outcomes.student)
    student, answered = outcomes.student_quality, outcomes.deferred_quality(point.blend)
    joint = np.where(deferred, answered, student)
    return np.column_stack([deferred, joint, student, outcomes.teacher_quality])


_MOST_RESAMPLED = 20_000


def _resampled_means(columns: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(n_resamples, c): means of columns (n, c) over rows drawn with replacement."""
    n = len(columns)
    if n > _MOST_RESAMPLED:
        spread = np.cov(columns, rowvar=False, ddof=0) / n
        return rng.multivariate_normal(columns.mean(axis=0), spread, n_resamples, method="eigh")
    means = np.empty((n_resamples, columns.shape[1]))
    for k in range(n_resamples):
        means[k] = np.bincount(rng.integers(0, n, n), minlength=n) @ columns / n
    return means


def _figures(means: np.ndarray, point: OperatingPoint, measure: Metric) -> dict[str, np.ndarray]:
    """Each figure, (resamples,), from means (resamples, 4) of what `_point_rows` holds."""
    rate = means[:, 0]
    joint, student, teacher = (np.asarray(measure.quality(column)) for column in means[:, 1:].T)
    figures = {
        measure.name: np.asarray(measure.figure(joint)),
        "deferral_rate": rate,
        "gain_over_teacher": joint - teacher,
        "gain_over_student": joint - student,
    }
    if point.unit is not None:
        fixed = getattr(joint_cost(point.student_cost, point.teacher_cost, 0.0), point.unit)
        each = getattr(point.teacher_cost, point.unit)
        figures["cost"] = fixed + rate * each
        if fixed > 0:
            figures["saving"] = each / figures["cost"]
    if point.joules_saved is not None:
        share = (point.student_cost.joules or 0.0) / (point.teacher_cost.joules or 1.0)
        figures["joules_saved"] = 1 - share - rate
    return figures


def auroc(score: Any, correct: Any) -> float:
    """The probability that a right row scores above a wrong one, ties counting half.

    Parameters
    ----------
    score
        (n,); NaN counts as ``-inf``, since it is always deferred.
    correct
        (n,) bool, or 0 and 1: where the student is right.

    Returns
    -------
    float
        Between 0 and 1; NaN where all rows are right, or all wrong.

    Raises
    ------
    ValueError
        Different lengths or no rows.

    Examples
    --------
    >>> auroc([3.0, 2.0, 2.0, 1.0], [1, 1, 0, 0])
    0.875
    """
    values, right = _rows(score, correct)
    hits = int(right.sum())
    pairs = hits * (len(right) - hits)
    if not pairs:
        return math.nan
    return float((rankdata(values)[right].sum() - hits * (hits + 1) / 2) / pairs)


def aurc(score: Any, correct: Any) -> float:
    """Area under the risk-coverage curve: mean error among the k best-scored rows, over all k.

    Rows that tie are taken in random order: this is the mean over all those orders. Lower is
    better. It answers "how wrong are the kept rows?" and weighs the few best rows heavily;
    `augrc` does not.

    Parameters
    ----------
    score, correct
        As in `auroc`.

    Raises
    ------
    ValueError
        Different lengths or no rows.

    Notes
    -----
    Source: Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation for deep neural
    classifiers", ICLR 2019.

    Examples
    --------
    >>> aurc([3.0, 2.0, 1.0], [1, 1, 0]), aurc([1.0, 1.0, 1.0], [1, 1, 0])
    (0.1111111111111111, 0.3333333333333333)
    """
    errors = np.cumsum(_expected_errors(score, correct))
    return float((errors / np.arange(1, len(errors) + 1)).mean())


def augrc(score: Any, correct: Any) -> float:
    """Area under the generalized risk-coverage curve: share of rows both kept and wrong.

    The mean, over all coverages, of the share of *all* rows that are kept and wrong; 0 to 1/2.
    It equals ``(1 - AUROC) a (1 - a) + (1 - a)^2 / 2`` at accuracy a, ties in random order
    included. Lower is better.

    Parameters
    ----------
    score, correct
        As in `auroc`.

    Raises
    ------
    ValueError
        Different lengths or no rows.

    Notes
    -----
    Source: Traub et al., "Overcoming common flaws in the evaluation of selective classification
    systems", NeurIPS 2024.

    Examples
    --------
    >>> round(augrc([3.0, 2.0, 1.0], [1, 1, 0]), 4)
    0.0556
    """
    errors = np.concatenate(([0.0], np.cumsum(_expected_errors(score, correct))))
    n = len(errors) - 1
    return float(np.trapezoid(errors) / n**2)


def oracle_share(curve: TradeOffCurve) -> float:
    """Which share of the oracle's gain over random routing a curve reaches.

    The area between the curve and the straight line from student to teacher, over that of the
    score that knows the answers. 1 is the oracle, 0 random routing, less is worse than random.

    Parameters
    ----------
    curve
        Of any score; the oracle is that of its outcomes and blend.

    Returns
    -------
    float
        At most 1; NaN where the models agree everywhere on right and wrong.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> oracle_share(TradeOffCurve.of(outcomes, "max_logit"))
    1.0
    """
    best = TradeOffCurve.of(curve.outcomes, oracle(curve.outcomes, curve.blend), curve.blend)
    return _share_of_gain(curve, best)


@dataclass(frozen=True)
class ScoreRow:
    """How good one score is, on one table of outcomes.

    Attributes
    ----------
    score
        Its name.
    auroc, aurc, augrc
        How well it tells where the student is right; NaN where answers are not right or wrong.
    gain
        Mean row quality of the joint model over all deferral rates, minus that of random routing.
    oracle_share
        The same as a share of the oracle's: how well it tells where the *teacher helps*, which is
        what routing needs.
    """

    score: str
    auroc: float
    aurc: float
    augrc: float
    gain: float
    oracle_share: float


@dataclass(frozen=True)
class Standing:
    """Where a score stands: the gain that ranks it, and its figures on other examples.

    Attributes
    ----------
    gain
        Mean quality over all deferral rates beyond random routing's, on the examples that scores
        are chosen on, with its 95 % confidence interval.
    elsewhere
        The score's row of `score_table`, on examples that nothing was chosen on.
    """

    gain: Interval
    elsewhere: ScoreRow

    @property
    def score(self) -> str:
        """The score's name."""
        return self.elsewhere.score


def score_table(
    outcomes: Outcomes,
    scores: Sequence[str | Callable[..., Array] | Score] | None = None,
    blend: float | Blend = 0.0,
) -> list[ScoreRow]:
    """Every figure of every score, in the order given.

    Parameters
    ----------
    outcomes
        What both models said.
    scores
        Names or callables; all that have a name and fit, when left out.
    blend
        The student's weight in a deferred answer.

    Raises
    ------
    ValueError
        An unknown score, or one that is ``+inf`` somewhere.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> score_table(outcomes, ["max_logit"])[0].auroc
    1.0
    """
    best = TradeOffCurve.of(outcomes, oracle(outcomes, blend), blend)
    quality, binary = outcomes.student_quality, outcomes.measure.binary
    rows = []
    for score in map(
        as_score, outcomes.kind.scores(outcomes.student) if scores is None else scores
    ):
        values = np.asarray(score(outcomes.student), dtype=np.float64)
        curve = TradeOffCurve.of(outcomes, values, blend)
        rows.append(
            ScoreRow(
                score=str(score),
                auroc=auroc(values, quality) if binary else math.nan,
                aurc=aurc(values, quality) if binary else math.nan,
                augrc=augrc(values, quality) if binary else math.nan,
                gain=curve.area - _line_area(curve),
                oracle_share=_share_of_gain(curve, best),
            )
        )
    return rows


@dataclass(frozen=True)
class ScoreBin:
    """Neighbors in score, and how often each model is right on them.

    Attributes
    ----------
    n
        How many examples.
    start, end
        The shares of all examples that score below them, and up to their highest score.
    low, high
        The lowest and the highest score; ``-inf`` where the input is always deferred.
    mean
        The mean score.
    student, teacher
        Each one's accuracy with Clopper and Pearson's 95 % interval; of losses the metric's figure
        with the interval of the mean's standard error.
    """

    n: int
    start: float
    end: float
    low: float
    high: float
    mean: float
    student: Interval
    teacher: Interval


def reliability(outcomes: Outcomes, point: OperatingPoint, bins: int = 10) -> list[ScoreBin]:
    """Both models' accuracy along the score, the lowest first: where is the teacher better?

    Parameters
    ----------
    outcomes
        Examples that the threshold was not chosen on.
    point
        Its score is looked at.
    bins
        How many, of equal counts but for ties: what ties stays together, so that there may be
        fewer.

    Raises
    ------
    ValueError
        No bins.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = TradeOffCurve.of(outcomes, "max_logit").at(threshold=1.5)
    >>> [(row.mean, row.student.estimate) for row in reliability(outcomes, point, bins=2)]
    [(1.0, 0.0), (2.0, 1.0)]
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    outcomes = outcomes.with_scale(point.rescale)
    values = np.asarray(point.router.score(outcomes.student), dtype=np.float64)
    values = np.where(np.isnan(values), -np.inf, values)
    student, teacher = outcomes.student_quality, outcomes.teacher_quality
    measure = outcomes.measure
    order = np.argsort(values, kind="stable")
    middle = (rankdata(values[order]) - 0.5) / len(order)
    cut = np.flatnonzero(np.diff(np.floor(middle * bins), prepend=-1, append=bins))
    return [
        _bin(values[order], student[order], teacher[order], start, end, measure)
        for start, end in pairwise(cut.tolist())
    ]


def _bin(
    values: np.ndarray,
    student: np.ndarray,
    teacher: np.ndarray,
    start: int,
    end: int,
    measure: Metric,
) -> ScoreBin:
    n, rows = end - start, slice(start, end)
    return ScoreBin(
        n=n,
        start=start / len(values),
        end=end / len(values),
        low=float(values[start]),
        high=float(values[end - 1]),
        mean=float(values[rows].mean()),
        student=_rows_interval(student[rows], measure),
        teacher=_rows_interval(teacher[rows], measure),
    )


def _rows_interval(rows: np.ndarray, measure: Metric) -> Interval:
    """The figure of some rows, with its 95 % interval."""
    if measure.binary:
        return share_interval(int(rows.sum()), len(rows))
    mean, error = rows.mean(), 1.96 * rows.std() / math.sqrt(len(rows))
    here, *ends = (
        float(measure.figure(measure.quality(value)))
        for value in (mean, mean - error, mean + error)
    )
    return Interval(here, min(ends), max(ends))


def share_interval(hits: int, n: int, level: float = 0.95) -> Interval:
    """A share with Clopper and Pearson's exact confidence interval.

    Notes
    -----
    Source: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 1934.

    Examples
    --------
    >>> str(share_interval(0, 10))
    '0 (0 to 0.3085)'
    """
    tail, misses = (1 - level) / 2, n - hits
    low = float(beta.ppf(tail, hits, misses + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, misses)) if misses else 1.0
    return Interval(hits / n if n else math.nan, low, high)


def _line_area(curve: TradeOffCurve) -> float:
    """The area under the straight line from all-student to all-teacher: random routing."""
    last = float(curve.outcomes.measure.mean(curve.quality[-1]))
    return (float(curve.outcomes.student_quality.mean()) + last) / 2


def _share_of_gain(curve: TradeOffCurve, best: TradeOffCurve) -> float:
    gain, most = curve.area - _line_area(curve), best.area - _line_area(best)
    return gain / most if most > 1e-12 else math.nan


def _expected_errors(score: Any, correct: Any) -> np.ndarray:
    """(n,): the error of each row, the best-scored first, averaged over the rows it ties with."""
    values, right = _rows(score, correct)
    _, group, count = np.unique(-values, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~right)
    return np.repeat(wrong / count, count)


def _rows(score: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    values, right = np.asarray(score, dtype=np.float64), _right("correct", correct)
    if values.shape != right.shape:
        raise ValueError(
            f"score and correct must both be (n,), not {values.shape} and {right.shape}"
        )
    if not len(values):
        raise ValueError("there are no rows")
    return np.where(np.isnan(values), -np.inf, values), right


def _right(name: str, correct: Any) -> np.ndarray:
    array = np.asarray(correct)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must be (n,), True or 1 where the answer is right, else 0")
    return array.astype(bool)


def _odds(b: float, c: float) -> float:
    if c:
        return b / c
    return math.inf if b else math.nan


def _odds_interval(b: int, c: int) -> tuple[float, float]:
    """Clopper and Pearson's interval of ``b / (b + c)``, as odds."""
    share = share_interval(b, b + c)
    return _odds(share.low, 1 - share.low), _odds(share.high, 1 - share.high)

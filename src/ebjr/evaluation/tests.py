"""Tests: is a difference between two models more than chance?

McNemar's test if answers are right or wrong, a paired bootstrap if they have losses. Both hold for
examples drawn independently from one population.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc

from ebjr.evaluation.bootstrap import MOST_WHOLE, interval_of, resampled_means, resampled_wholes
from ebjr.metric import METRICS, Metric
from ebjr.outcomes import Outcomes
from ebjr.stats import (
    Interval,
    binomial_cdf,
    right_or_wrong,
    same_labels,
    same_length,
    share_interval,
)

FEW = 25
"""With fewer discordant pairs, McNemar's test is exact by default."""

ANY_TWO = ("the first", "the second")
JOINT_AND_OTHER = ("the joint model", "the other model")


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two models on the same examples.

    `first_only` and `second_only` count the discordant pairs: examples on which only that model is
    right. `exact` says whether `p_value` is `p_exact` or `p_chi_square`; `names` are the models'
    names in the verdict.

    Examples
    --------
    >>> mcnemar([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1]).verdict
    'The first is right on 3 of 6 examples where the second is wrong, and wrong on 0 where it is
    right: chance alone may explain this (p = 0.25, exact).'
    """

    first_only: int
    second_only: int
    n: int
    exact: bool
    names: tuple[str, str] = ANY_TWO

    @property
    def discordant(self) -> int:
        """The number of examples on which exactly one model is right."""
        return self.first_only + self.second_only

    @property
    def odds(self) -> Interval:
        """``first_only / second_only``, `inf` or NaN over 0, with its exact 95 % interval."""
        share = share_interval(self.first_only, self.discordant)
        ends = _odds(share.low, 1 - share.low), _odds(share.high, 1 - share.high)
        return Interval(_odds(self.first_only, self.second_only), *ends)

    @property
    def statistic(self) -> float:
        """``max(|first_only - second_only| - 1, 0)^2 / (first_only + second_only)``."""
        surplus = max(abs(self.first_only - self.second_only) - 1, 0)
        return surplus**2 / self.discordant if self.discordant else 0.0

    @property
    def p_exact(self) -> float:
        """The two-sided p-value from the binomial distribution of the discordant pairs."""
        fewer = min(self.first_only, self.second_only)
        return min(1.0, 2 * float(binomial_cdf(fewer, self.discordant, 0.5)))

    @property
    def p_chi_square(self) -> float:
        """The p-value from the statistic, with one degree of freedom."""
        return float(chdtrc(1, self.statistic))

    @property
    def p_value(self) -> float:
        """The probability of a difference this large if the models are equally good."""
        return self.p_exact if self.exact else self.p_chi_square

    @property
    def better(self) -> str | None:
        """The name of the significantly better model at 5 %, or None."""
        return _better(self.p_value, self.first_only > self.second_only, self.names)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        first, second = self.names
        how = "exact" if self.exact else "chi-square"
        return (
            f"{first[:1].upper()}{first[1:]} is right on {self.first_only:,} of {self.n:,} "
            f"examples where {second} is wrong, and wrong on {self.second_only:,} where it is "
            f"right: {_judged(self.better)} (p = {self.p_value:.2g}, {how})."
        )

    @property
    def details(self) -> str:
        """Odds ratio and both p-values in one sentence; empty if the models never differ."""
        ratio, low, high = (f"{x:.2f}" for x in self.odds)
        if ratio == "nan":
            return ""
        return (
            f"Odds ratio {ratio} (95 % interval {low} to {high}); exact p = {self.p_exact:.2g}, "
            f"chi-square p = {self.p_chi_square:.2g}."
        )

    @property
    def cells(self) -> dict[str, str]:
        """A table row, by column."""
        ratio, low, high = (f"{x:.2f}" for x in self.odds)
        return {
            "only joint": f"{self.first_only:,}",
            "only other": f"{self.second_only:,}",
            "odds ratio (95 %)": f"{ratio} ({low} to {high})",
            "p exact": f"{self.p_exact:.2g}",
            "p chi²": f"{self.p_chi_square:.2g}",
        }

    def as_dict(self) -> dict[str, Any]:
        """Return every figure for JSON."""
        ratio, *ends = self.odds
        names = ("statistic", "p_exact", "p_chi_square", "p_value", "better", "verdict")
        figures = {name: getattr(self, name) for name in names}
        return {**asdict(self), "odds_ratio": ratio, "odds_interval": tuple(ends), **figures}


def mcnemar(
    first_correct: Any,
    second_correct: Any,
    exact: bool | None = None,
    names: tuple[str, str] = ANY_TWO,
) -> McNemar:
    """McNemar's test: are two models equally often right on the same examples?

    The odds ratio's interval is Clopper and Pearson's for the share of the first among the
    discordant pairs. Source: McNemar, "Note on the sampling error of the difference between
    correlated proportions or percentages", Psychometrika 1947; correction by Edwards, 1948.

    - `first_correct`, `second_correct`: (n,) bool, or 0 and 1: where each model is right.
    - `exact`: Use the binomial p-value, or the chi-square one with continuity correction. None: the
      binomial one below 25 discordant pairs. The result has both.
    - `names`: The models' names in the verdict.

    Raises
    ------
    ValueError
        `first_correct` and `second_correct` are not 0 and 1, are empty or differ in length.

    Examples
    --------
    >>> test = mcnemar(np.arange(100) < 90, np.arange(100) < 60)
    >>> test.first_only, test.second_only, test.exact, round(test.statistic, 2)
    (30, 0, False, 28.03)
    """
    first, second = same_length(
        first_correct=right_or_wrong("first_correct", first_correct),
        second_correct=right_or_wrong("second_correct", second_correct),
    )
    if not len(first):
        raise ValueError("there are no examples")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(b, c, len(first), b + c < FEW if exact is None else exact, names)


def compare(
    joint_prediction: Any,
    other_prediction: Any,
    targets: Any,
    names: tuple[str, str] = JOINT_AND_OTHER,
) -> McNemar:
    """McNemar's test of the joint model against other saved predictions.

    All are (n,) labels of the same examples in the same order.

    Raises
    ------
    ValueError
        The shapes differ, or some are names and others numbers.

    Examples
    --------
    >>> compare([0, 1, 1], [0, 1, 0], [0, 1, 1]).first_only
    1
    """
    joint, other, truth = same_labels(
        joint_prediction=joint_prediction, other_prediction=other_prediction, targets=targets
    )
    return mcnemar(joint == truth, other == truth, names=names)


@dataclass(frozen=True)
class LossDifference:
    """A test of two models' losses on the same examples.

    `difference` is the first model's figure minus the second's, with its 95 % interval. `p_value`
    is two-sided, from the same resamples: the probability of a difference this large if the models
    are equally good.

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
    names: tuple[str, str] = ANY_TWO

    @property
    def measure(self) -> Metric:
        """The metric."""
        return METRICS[self.metric]

    @property
    def better(self) -> str | None:
        """The name of the significantly better model at 5 %, or None."""
        return _better(self.p_value, self.measure.figure(self.difference.estimate) > 0, self.names)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        here, low, high = self._shown
        ends = sorted((abs(low), abs(high)))
        span = f"{ends[0]:.3g} to {ends[1]:.3g}"
        if low < 0 < high:
            span = f"{abs(low):.3g} less to {high:.3g} more"
        return (
            f"On {self.n:,} examples {self.names[0]} has {abs(here):.3g}"
            f"{' points' if self.measure.percent else ''} (95 % interval {span}) "
            f"{'less' if here < 0 else 'more'} {self.measure.title} than {self.names[1]}: "
            f"{_judged(self.better)} (p = {self.p_value:.2g})."
        )

    @property
    def details(self) -> str:
        """Empty: the verdict has every figure."""
        return ""

    @property
    def cells(self) -> dict[str, str]:
        """A table row, by column."""
        here, low, high = (f"{value:+.3g}" for value in self._shown)
        unit = ", points" if self.measure.percent else ""
        return {
            f"{self.measure.title}{unit} (95 %)": f"{here} ({low} to {high})",
            "p": f"{self.p_value:.2g}",
        }

    @property
    def _shown(self) -> list[float]:
        """The difference and its ends in the shown unit: points for shares."""
        return [(100 if self.measure.percent else 1) * value for value in self.difference]

    def as_dict(self) -> dict[str, Any]:
        """Return every figure, with `better` and `verdict`, for JSON."""
        return {**asdict(self), "better": self.better, "verdict": self.verdict}


Comparison = McNemar | LossDifference
"""A test of two models: by their right answers, or by their losses."""


def loss_difference(
    first_rows: Any,
    second_rows: Any,
    metric: str,
    names: tuple[str, str] = ANY_TWO,
    n_resamples: int = 2000,
    seed: int = 0,
) -> LossDifference:
    """Paired bootstrap: are two models equally good on the same examples?

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 16.

    - `first_rows`, `second_rows`: (n,): row qualities of both, from `Metric.rows`.
    - `n_resamples`: The p-value is at least ``2 / (n_resamples + 1)``.

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

    drawn = difference(resampled_means(columns, n_resamples, np.random.default_rng(seed)))
    here = float(difference(columns.mean(axis=0)[None])[0])
    return _difference(metric, here, drawn, len(columns), names)


def _difference(
    metric: str, here: float, drawn: np.ndarray, n: int, names: tuple[str, str]
) -> LossDifference:
    """Judge a difference of two figures by the same difference on resamples, `drawn`."""
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return LossDifference(metric, interval_of(here, drawn), p_value, n, names)


def compare_answers(
    outcomes: Outcomes, joint: Any, other: Any, names: tuple[str, str] = JOINT_AND_OTHER
) -> Comparison:
    """Test the joint model's answers against other answers, as the metric requires.

    `joint` and `other` are (n,) labels or predictions, (n, labels) sets of labels, or lists of n
    `Detections`.

    Raises
    ------
    ValueError
        `joint` or `other` has another length than the outcomes, or is not of the task's answers.

    Examples
    --------
    >>> table = Outcomes([3.0, 3.0], [2.0, 4.0], [0.0, 4.0], task="regression")
    >>> compare_answers(table, [2.0, 4.0], [3.0, 3.0]).names
    ('the joint model', 'the other model')
    """
    measure, targets = outcomes.measure, outcomes.targets
    if outcomes.kind.has_labels:
        return compare(joint, other, targets, names=names)
    columns = _judgeable(outcomes, joint, other)
    if measure.rows is None:
        return _compare_wholes(outcomes, columns, names)
    one, two = (measure.rows(column, targets) for column in columns)
    if measure.binary:
        return mcnemar(one == 1, two == 1, names=names)
    return loss_difference(one, two, outcomes.metric, names)


def _judgeable(outcomes: Outcomes, *answers: Any) -> list[Any]:
    if outcomes.kind.scale is not None:
        return [outcomes.kind.judged(found, outcomes.targets) for found in answers]
    columns = [np.asarray(column) for column in answers]
    if any(column.shape != outcomes.targets.shape for column in columns):
        shapes = " and ".join(str(column.shape) for column in columns)
        raise ValueError(f"both models need {len(outcomes)} predictions, not {shapes}")
    try:
        return [outcomes.kind.check_targets(column) for column in columns]
    except ValueError as error:
        raise ValueError(str(error).replace("targets", "predictions", 1)) from error


def _compare_wholes(
    outcomes: Outcomes, judged: list[Any], names: tuple[str, str]
) -> LossDifference:
    """Compare by a metric that is not a mean of rows: all deferred against none deferred."""
    assert outcomes.measure.whole is not None
    one, other = judged
    whole, n = outcomes.measure.whole(one, other, outcomes.targets), len(outcomes)
    none, every = np.zeros(n, bool), np.ones(n, bool)
    both = [(whole, none), (whole, every)]
    _, drawn = resampled_wholes(both, MOST_WHOLE, np.random.default_rng(0))
    here = whole(none) - whole(every)
    return _difference(outcomes.metric, here, drawn[:, 0] - drawn[:, 1], n, names)


def _better(p_value: float, first_leads: bool, names: tuple[str, str]) -> str | None:
    return None if p_value >= 0.05 else names[0 if first_leads else 1]


def _judged(better: str | None) -> str:
    if better is None:
        return "chance alone may explain this"
    return f"{better} is better, by more than chance explains"


def _odds(hits: float, misses: float) -> float:
    if misses:
        return hits / misses
    return math.inf if hits else math.nan

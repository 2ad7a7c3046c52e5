"""Ranking: how well a score tells which rows to defer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ebjr.arrays import Array
from ebjr.curve import OperatingPoint, TradeOffCurve, oracle, score_values
from ebjr.errors import check_at_least
from ebjr.metric import Metric
from ebjr.outcomes import Outcomes
from ebjr.router import deferral_key
from ebjr.scores import Score, as_score
from ebjr.stats import Interval, average_ranks, right_or_wrong, same_length, share_interval


def auroc(score: Any, correct: Any) -> float:
    """The probability that a right row scores above a wrong one, ties counting half.

    - `score`: (n,); NaN counts as ``-inf``, because it is always deferred.
    - `correct`: (n,) bool, or 0 and 1: where the student is right.

    Returns a number between 0 and 1; NaN if all rows are right, or all wrong.

    Raises
    ------
    ValueError
        `score` and `correct` differ in length or are empty.

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
    return float((average_ranks(values)[right].sum() - hits * (hits + 1) / 2) / pairs)


def aurc(score: Any, correct: Any) -> float:
    """Area under the risk-coverage curve: mean error among the k best-scored rows, over all k.

    Lower is better; arguments and errors are those of `auroc`. It is the mean over all orders of
    tied rows. The area answers "how wrong are the kept rows?" and gives the few best rows much
    weight; `augrc` does not.

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

    The mean, over all coverages, of the share of *all* rows that are kept and wrong; 0 to 1/2,
    lower is better. It equals ``(1 - AUROC) a (1 - a) + (1 - a)^2 / 2`` at accuracy a, averaged
    over the orders of tied rows. Arguments and errors are those of `auroc`.

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
    """The share of the oracle's gain over random deferral that a curve reaches.

    The area between the curve and the straight line from student to teacher, over the area for the
    score that knows the answers, on the same outcomes and blend. 1 is the oracle, 0 random
    deferral, below 0 worse than random; NaN if both models are right on the same rows.

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
    """A score's figures on some outcomes.

    `auroc`, `aurc` and `augrc` measure how well it tells where the student is right; NaN if answers
    are not right or wrong. `gain` is the mean row quality over all deferral rates, minus that of
    random deferral, and `oracle_share` that gain as a share of the oracle's.
    """

    score: str
    auroc: float
    aurc: float
    augrc: float
    gain: float
    oracle_share: float


@dataclass(frozen=True)
class Standing:
    """A score's rank: the gain that ranks it, and its figures on other examples.

    `gain` is as in `ScoreRow`, with its 95 % interval, on the examples that choose scores;
    `elsewhere` is the score's row of `score_table` on held-out examples.
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
    blend: float = 0.0,
) -> list[ScoreRow]:
    """Return every figure of scores, in the order given, by default of all named scores that fit.

    `blend` is the student's weight in a deferred answer.

    Raises
    ------
    ValueError
        `scores` has an unknown score, or one that is ``+inf`` for a row.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> score_table(outcomes, ["max_logit"])[0].auroc
    1.0
    """
    best = TradeOffCurve.of(outcomes, oracle(outcomes, blend), blend)
    given = outcomes.kind.scores(outcomes.student) if scores is None else scores
    return [_score_row(outcomes, as_score(score), blend, best) for score in given]


def _score_row(outcomes: Outcomes, score: Score, blend: float, best: TradeOffCurve) -> ScoreRow:
    values, curve = score_values(score, outcomes), TradeOffCurve.of(outcomes, score, blend)
    own = {"auroc": math.nan, "aurc": math.nan, "augrc": math.nan}
    if outcomes.measure.binary:
        # presorted, so that sorting again is fast
        ranked = values[curve.order], outcomes.student_quality[curve.order]
        own = {of.__name__: of(*ranked) for of in (auroc, aurc, augrc)}
    return ScoreRow(str(score), gain=_gain(curve), oracle_share=_share_of_gain(curve, best), **own)


@dataclass(frozen=True)
class ScoreBin:
    """Examples with neighboring scores, and how often each model is right on them.

    `n` examples, from the share `start` to the share `end` of all examples in order of the score,
    which is `low` to `high` there and `mean` on average. `student` and `teacher` are accuracies
    with Clopper and Pearson's intervals, or figures of losses with standard-error intervals.
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
    """Return both models' accuracy along the score, lowest first.

    `outcomes` did not choose the threshold, and the score is that of `point`. Bins have equal
    counts; tied examples stay together, so there may be fewer bins.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = TradeOffCurve.of(outcomes, "max_logit").at(threshold=1.5)
    >>> [(row.mean, row.student.estimate) for row in reliability(outcomes, point, bins=2)]
    [(1.0, 0.0), (2.0, 1.0)]
    """
    check_at_least(1, bins=bins)
    outcomes = outcomes.with_scale(point.rescale)
    values = deferral_key(score_values(point.router.score, outcomes))
    order = point.curve(outcomes).order
    middle = (average_ranks(values[order]) - 0.5) / len(order)
    cut = np.flatnonzero(np.diff(np.floor(middle * bins), prepend=-1, append=bins))
    return [_bin(outcomes, values, order, *ends) for ends in pairwise(cut.tolist())]


def _bin(
    outcomes: Outcomes, values: np.ndarray, order: np.ndarray, start: int, end: int
) -> ScoreBin:
    """Make the bin of the places `start` to before `end` of the order."""
    rows, n = order[start:end], len(order)
    return ScoreBin(
        n=end - start,
        start=start / n,
        end=end / n,
        low=float(values[rows[0]]),
        high=float(values[rows[-1]]),
        mean=float(values[rows].mean()),
        student=_rows_interval(outcomes.student_quality[rows], outcomes.measure),
        teacher=_rows_interval(outcomes.teacher_quality[rows], outcomes.measure),
    )


def _rows_interval(rows: np.ndarray, measure: Metric) -> Interval:
    if measure.binary:
        return share_interval(int(rows.sum()), len(rows))
    mean, error = rows.mean(), 1.96 * rows.std() / math.sqrt(len(rows))
    here, *ends = (
        float(measure.figure(measure.quality(value)))
        for value in (mean, mean - error, mean + error)
    )
    return Interval(here, min(ends), max(ends))


def _gain(curve: TradeOffCurve) -> float:
    """Return the area above the straight line from student to teacher, which is random deferral."""
    last = float(curve.outcomes.measure.mean(curve.quality[-1]))
    return curve.area - (float(curve.outcomes.student_quality.mean()) + last) / 2


def _share_of_gain(curve: TradeOffCurve, best: TradeOffCurve) -> float:
    most = _gain(best)
    return _gain(curve) / most if most > 1e-12 else math.nan


def _expected_errors(score: Any, correct: Any) -> np.ndarray:
    """Return each row's error, (n,), best-scored first, averaged over the rows it ties with."""
    values, right = _rows(score, correct)
    _, group, count = np.unique(-values, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~right)
    return np.repeat(wrong / count, count)


def _rows(score: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    values, right = same_length(score=score, correct=right_or_wrong("correct", correct))
    if not len(values):
        raise ValueError("there are no rows")
    return deferral_key(values.astype(np.float64)), right

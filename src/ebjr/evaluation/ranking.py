"""Ranking: how well does a score tell where to defer?"""

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

    ValueError: `score` and `correct` differ in length or are empty.

    - `score`: (n,); NaN counts as ``-inf``, since it is always deferred.
    - `correct`: (n,) bool, or 0 and 1: where the student is right.

    Returns: Between 0 and 1; NaN where all rows are right, or all wrong.

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

    Lower is better; arguments and errors are those of `auroc`. Rows that tie are taken in random
    order: this is the mean over all those orders. The area answers "how wrong are the kept rows?"
    and weighs the few best rows heavily; `augrc` does not.

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
    lower is better. It equals ``(1 - AUROC) a (1 - a) + (1 - a)^2 / 2`` at accuracy a, ties in
    random order included. Arguments and errors are those of `auroc`.

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
    """The share of the oracle's gain over random routing that a curve reaches.

    The area between the curve and the straight line from student to teacher, over that of the
    score that knows the answers, of the same outcomes and blend. 1 is the oracle, 0 random routing,
    less is worse than random; NaN where the models agree everywhere on right and wrong.

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

    `auroc`, `aurc` and `augrc` say how well it tells where the student is right; NaN where answers
    are not right or wrong. `gain` is the mean row quality over all deferral rates, minus that of
    random routing, and `oracle_share` that gain as a share of the oracle's.
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

    `gain` is as in `ScoreRow`, with its 95 % interval, on the examples that scores are chosen on;
    `elsewhere` is the score's row of `score_table` on examples that nothing was chosen on.
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
    """Every figure of every score, in the order given; of all named scores that fit if left out.

    `blend` is the student's weight in a deferred answer. A ValueError names an unknown score, or
    one that is ``+inf`` somewhere.

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
        ranked = values[curve.order], outcomes.student_quality[curve.order]  # quick to sort again
        own = {of.__name__: of(*ranked) for of in (auroc, aurc, augrc)}
    return ScoreRow(str(score), gain=_gain(curve), oracle_share=_share_of_gain(curve, best), **own)


@dataclass(frozen=True)
class ScoreBin:
    """Neighbors in score, and how often each model is right on them.

    `n` examples, from the share `start` to the share `end` of all examples in order of the score,
    which is `low` to `high` there and `mean` on average. `student` and `teacher` are accuracies,
    with Clopper and Pearson's interval; of losses figures, with that of the standard error.
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

    `outcomes` are examples that the threshold was not chosen on, and the score is that of `point`.
    The bins are of equal counts; examples that tie stay together, so there may be fewer.

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
    """The examples at the places from `start` to before `end` of the order."""
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
    """The area over the straight line from all-student to all-teacher, which is random routing."""
    last = float(curve.outcomes.measure.mean(curve.quality[-1]))
    return curve.area - (float(curve.outcomes.student_quality.mean()) + last) / 2


def _share_of_gain(curve: TradeOffCurve, best: TradeOffCurve) -> float:
    most = _gain(best)
    return _gain(curve) / most if most > 1e-12 else math.nan


def _expected_errors(score: Any, correct: Any) -> np.ndarray:
    """(n,): the error of each row, the best-scored first, averaged over the rows it ties with."""
    values, right = _rows(score, correct)
    _, group, count = np.unique(-values, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~right)
    return np.repeat(wrong / count, count)


def _rows(score: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    values, right = same_length(score=score, correct=right_or_wrong("correct", correct))
    if not len(values):
        raise ValueError("there are no rows")
    return deferral_key(values.astype(np.float64)), right

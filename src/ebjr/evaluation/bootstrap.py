"""Bootstrap: intervals for an operating point's figures, from resampled examples.

They hold for examples drawn independently from one population.
"""

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from ebjr.arrays import Array
from ebjr.costs import joint_cost
from ebjr.curve import OperatingPoint
from ebjr.errors import check_at_least
from ebjr.metric import Metric, Whole
from ebjr.outcomes import Outcomes
from ebjr.stats import Interval, share_interval

MOST_WHOLE = 500
"""The default number of resamples for a metric that is not a mean of rows."""

_MOST_RESAMPLED = 20_000


def bootstrap(
    outcomes: Outcomes,
    point: OperatingPoint,
    n_resamples: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return intervals for an operating point's figures, from resampled examples.

    If answers are right or wrong, an example is of one of 16 kinds, and counting the kinds of n
    examples drawn with replacement *is* one draw from a multinomial distribution: exactly the same
    bootstrap, with time and memory independent of n. For losses the rows are resampled, or beyond
    20,000 rows their means are drawn from the normal distribution that they then have. COCO's mAP
    is computed again on each resample of the images. It is too high on few images, and even higher
    on a resample, which has fewer different ones: its own interval is the basic bootstrap's, which
    corrects for that. Differences of two mAP need no correction. Where no resample differs from the
    examples, as when joint model and teacher are right on the same ones, the interval covers what n
    examples can have missed.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; the basic
    bootstrap: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2.

    - `outcomes`: Examples that did not choose the threshold; otherwise intervals are optimistic.
    - `n_resamples`: At least 100; None is 2,000, or `MOST_WHOLE` for a metric that is not a mean of
      rows.
    - `level`: The intervals' confidence, between 0 and 1.

    Returns the metric's name (such as `accuracy`) with its figure; `deferral_rate`,
    `gain_over_teacher`, `gain_over_student` (in accuracy; for losses how much less) and, if costs
    are known, `cost` in ``point.unit``, `saving`, how many times cheaper than the teacher alone,
    and `joules_saved`, a share of the teacher's. Costs per example are taken as exact: only the
    deferral rate varies.

    Examples
    --------
    >>> from ebjr.curve import TradeOffCurve
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = TradeOffCurve.of(outcomes, "max_logit").at(threshold=1.5)
    >>> str(bootstrap(outcomes, point)["deferral_rate"])
    '0.5 (0 to 1)'
    """
    outcomes = outcomes.with_scale(point.rescale)
    n, measure, rng = len(outcomes), outcomes.measure, np.random.default_rng(seed)
    n_resamples = resamples(measure) if n_resamples is None else n_resamples
    check_at_least(100, n_resamples=n_resamples)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if measure.whole is not None:
        means, drawn = _whole_draws(outcomes, point, n_resamples, rng)
    elif measure.binary:
        kinds, counts = _kinds(outcomes, point)
        draws = rng.multinomial(n, counts / n, size=n_resamples)
        means, drawn = counts[None] / n @ kinds, draws / n @ kinds
    else:
        rows = point_rows(outcomes, point)
        means, drawn = rows.mean(axis=0)[None], resampled_means(rows, n_resamples, rng)
    estimate, figures = _figures(means, point, measure), _figures(drawn, point, measure)
    basic = {measure.name} if measure.whole is not None else set()
    found = {
        name: interval_of(estimate[name][0], values, level, basic=name in basic)
        for name, values in figures.items()
    }
    if measure.binary and math.isfinite(point.threshold):  # else a difference of 0 is certain
        for name in (measure.name, "deferral_rate", "gain_over_teacher", "gain_over_student"):
            least = -1.0 if name.startswith("gain") else 0.0
            found[name] = _with_unseen(found[name], least, n, level)
    return found


def _with_unseen(interval: Interval, least: float, n: int, level: float) -> Interval:
    """Widen an interval without width: one more kind of example, from `least` to 1, may exist.

    Source: the share of a kind that n examples do not show, Clopper & Pearson, Biometrika, 1934.
    """
    estimate, low, high = interval
    if high - low > 1e-12:  # differences of means are not exact in binary
        return interval
    unseen = share_interval(0, n, level).high
    return Interval(estimate, *(estimate + unseen * (end - estimate) for end in (least, 1.0)))


def interval_of(
    estimate: float, resampled: Array, level: float = 0.95, basic: bool = False
) -> Interval:
    """Return the interval of a figure from its values on resampled examples, (resamples,).

    It is their percentiles, or with `basic` the percentiles mirrored at the estimate.

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


def resamples(measure: Metric) -> int:
    """Return the default number of resamples for a metric."""
    return 2000 if measure.whole is None else MOST_WHOLE


def _whole_draws(
    outcomes: Outcomes, point: OperatingPoint, n_resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return deferred, joint, student and teacher figures: (1, 4) here, (resamples, 4) drawn."""
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
    """Resample qualities that are not means of rows.

    `chosen` are m pairs of a `Whole` and the deferred rows, (n,) bool. Returns how often each row
    was drawn, (n_resamples, n), and the qualities, (n_resamples, m). A draw without a quality, such
    as one without a labeled box, is drawn again.
    """
    n = len(chosen[0][1])
    times = np.empty((n_resamples, n), np.int64)
    drawn = np.empty((n_resamples, len(chosen)))
    for row in range(n_resamples):
        while True:
            times[row] = rng.multinomial(n, np.full(n, 1 / n))
            with suppress(ValueError):
                drawn[row] = [whole(mask, times=times[row]) for whole, mask in chosen]
                break
    return times, drawn


def _kinds(outcomes: Outcomes, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
    """Return the `point_rows` of each kind of example, and how many examples are of it."""
    rows = point_rows(outcomes, point)
    bits = np.column_stack([rows[:, [0, 2, 3]], outcomes.deferred_quality(point.blend)]) > 0
    kind = bits @ (1 << np.arange(4))
    _, first, counts = np.unique(kind, return_index=True, return_counts=True)
    return rows[first], counts


def point_rows(outcomes: Outcomes, point: OperatingPoint) -> np.ndarray:
    """Return, (n, 4): deferred, and the qualities of joint model, student and teacher."""
    _, deferred = point.router(outcomes.student)
    student, answered = outcomes.student_quality, outcomes.deferred_quality(point.blend)
    joint = np.where(deferred, answered, student)
    return np.column_stack([deferred, joint, student, outcomes.teacher_quality])


def resampled_means(columns: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return means, (n_resamples, c), of columns (n, c) over rows drawn with replacement."""
    n = len(columns)
    if n > _MOST_RESAMPLED:
        spread = np.cov(columns, rowvar=False, ddof=0) / n
        return rng.multivariate_normal(columns.mean(axis=0), spread, n_resamples, method="eigh")
    means = np.empty((n_resamples, columns.shape[1]))
    for k in range(n_resamples):
        means[k] = np.bincount(rng.integers(0, n, n), minlength=n) @ columns / n
    return means


def _figures(means: np.ndarray, point: OperatingPoint, measure: Metric) -> dict[str, np.ndarray]:
    """Return each figure, (resamples,), from means (resamples, 4) of `point_rows`."""
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
            figures["saving"] = getattr(point.alone_cost, point.unit) / figures["cost"]
    if point.joules_saved is not None:
        whole, both = point.alone_cost.joules or 1.0, (point.student_cost, point.teacher_cost)
        share, each = ((cost.joules or 0.0) / whole for cost in both)
        figures["joules_saved"] = 1 - share - rate * each
    return figures

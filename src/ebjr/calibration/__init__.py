"""Calibration: choose a threshold on labeled examples that both models answered."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ebjr.arrays import Array
from ebjr.blend import Blend, as_blend
from ebjr.calibration.choice import choose_blend, choose_score, rank_scores
from ebjr.calibration.crossing import crossing
from ebjr.calibration.goal import GOALS, Goal
from ebjr.calibration.guarantee import certify
from ebjr.calibration.learned import cross_fitted
from ebjr.curve import OperatingPoint, TradeOffCurve
from ebjr.errors import CalibrationError, GridWarning, OutputWarning
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, as_score, is_fitted
from ebjr.task import OUTPUT_SEEN

__all__ = ["GOALS", "Goal", "calibrate", "choose_blend", "choose_score", "crossing", "rank_scores"]

CHOICE_SHARE = 0.3
"""With a guarantee: the share of the examples that choose score and blend."""

CHOICE_SEED = 1
"""The seed of that split, unlike the default seed, so that a split of a split is a new split."""


def calibrate(
    outcomes: Outcomes,
    goal: str | Goal = "match-teacher",
    *,
    tolerance: float | None = None,
    target: float | None = None,
    flops: float | None = None,
    dollars: float | None = None,
    seconds: float | None = None,
    joules: float | None = None,
    bytes: float | None = None,
    deferral_rate: float | None = None,
    score: str | Callable[..., Array] | Score = "auto",
    blend: float | Blend | str = "auto",
    delta: float | None = None,
    promise: str | None = None,
    loss_bound: float | None = None,
    margin: float | None = None,
) -> OperatingPoint:
    """Choose a threshold. Give it one half of the outcomes, and report on the other.

    For detection it also puts both detectors' scores on one scale, unless the outcomes have one
    (`OperatingPoint.rescale`). The point's figures are those on `outcomes`, or on the part that
    certified it, so they are optimistic. Its `certified` is the `Certificate`.

    Parameters
    ----------
    outcomes
        The calibration examples.
    goal
        A `Goal`, or its kind with the arguments below.
        ``"match-teacher"``: the least deferral with at least the teacher's quality minus
        `tolerance` (default 0).
        ``"accuracy"``: the least deferral with an accuracy of at least `target`. For regression
        both are in the metric's unit (an RMSE of at most `target`, an R2 of at least `target`);
        for detection they are shares, like 0.37 AP.
        ``"budget"``: the best quality that costs at most `flops`, `dollars`, `seconds` or `joules`
        per example, moves at most `bytes` over the link, or defers at most `deferral_rate`.
        ``"crossing"``: the paper's choice, where the score densities of the student's right and
        wrong answers cross; only for answers that are right or wrong.
    score
        A score, or ``"auto"``: the simplest score whose deferral curve on `outcomes` is as good as
        the best one's, up to noise, or a simpler one with a larger gain. ``"learned"``, and
        ``"learned_gain"`` for detection, are fitted to `outcomes` first.
    blend
        The student's weight in a deferred answer, with temperatures as a `Blend`, or ``"auto"`` to
        choose it on `outcomes`. 0, the paper's, is always a candidate; temperatures must win by
        more than noise.
    delta
        Ask for a guarantee: the goal holds on new inputs with probability at least ``1 - delta``,
        for any models and data, if the inputs are exchangeable with the examples. `CHOICE_SHARE` of
        the examples then choose the score and blend, if ``"auto"`` or fitted, and two detectors'
        common scale; the others certify the threshold.
    promise
        What is certified, by default the first for the goal. For ``"match-teacher"``:
        ``"excess"``, the joint error minus the teacher's is at most `tolerance`, or ``"harm"``, the
        share of inputs that the student keeps and gets wrong where the teacher is right is at most
        `tolerance`. For ``"accuracy"``: ``"risk"``, the joint error is at most ``1 - target``. For
        ``"budget"``: ``"rate"``, the deferral rate is at most what the budget allows.
    loss_bound
        With `delta`, for losses without a bound, like squared errors: the promise cuts off each
        row's loss here, and `certified.clipped` counts these. Choose it, in the row's unit (for
        RMSE and MSE a squared error), without looking at these examples.
    margin
        For ``"match-teacher"`` and ``"accuracy"`` without `delta`: the standard errors by which the
        threshold exceeds its goal on `outcomes`, because a pick that just reaches it falls short on
        new examples. By default `MARGIN`; 0 is the plain pick.

    Raises
    ------
    ValueError
        `goal` is unknown, or an argument is out of range or goes with another goal.
    CalibrationError
        No threshold reaches the goal or can be certified; the message says what is feasible.

    Warns
    -----
    GridWarning
        The score's y grid does not cover the targets, or the student's predictions.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = calibrate(outcomes, goal="match-teacher", score="max_logit")
    >>> round(point.threshold, 3), point.quality
    (2.0, 1.0)
    """
    limits = {"tolerance": tolerance, "target": target, "deferral_rate": deferral_rate}
    costs = {"flops": flops, "dollars": dollars, "seconds": seconds, "joules": joules}
    costs |= {"bytes": bytes}
    guarantee = {"delta": delta, "promise": promise, "loss_bound": loss_bound}
    aim = Goal.of(goal, **limits, **costs, **guarantee, margin=margin)
    aim.check(outcomes.measure)
    choosing, outcomes = _parts(outcomes, aim, chosen=_is_open(score) or blend == "auto")
    if _is_open(score):
        point_score = choose_score(choosing, None if score == "auto" else [score])
    else:
        point_score = as_score(score)
    weight = choose_blend(choosing, point_score) if blend == "auto" else as_blend(blend)
    _look_at(outcomes)
    if (gap := outcomes.kind.grid_gap(point_score, outcomes.student, outcomes.targets)) is not None:
        warnings.warn(gap, GridWarning, stacklevel=2)
    curve = TradeOffCurve.of(outcomes, point_score, weight)
    if aim.delta is not None:
        return _certified(curve, aim, all_given=choosing is outcomes)
    if aim.kind == "crossing":
        values = np.asarray(point_score(outcomes.student), dtype=np.float64)
        crossed = crossing(values, outcomes.student_quality)
        return curve.at(index=int(np.searchsorted(curve.threshold, crossed)))
    point = curve.at(index=aim.row(curve))
    if _is_open(score) and is_fitted(point_score.name):
        # a fitted score is too good on its own examples: also use cross-fitted scores
        unseen = TradeOffCurve.of(outcomes, cross_fitted(outcomes), weight)
        stricter = max if aim.limits_quality else min
        threshold = stricter(point.threshold, unseen.threshold_of(aim.row(unseen)))
        point = curve.at(threshold=threshold)
    return replace(point, margin=aim.own_margin)


def _look_at(outcomes: Outcomes) -> None:
    """Warn if raw output that was not recorded by EBJR is of a kind that scores cannot read."""
    for role in ("student", "teacher"):
        recorded = "output_kind" in outcomes.models.get(role, {})
        some = getattr(outcomes, role)[:1000]  # enough to recognize probabilities
        seen = outcomes.kind.output_kind_of(some, hard=False)
        if seen is not None and not recorded:
            words = f"{OUTPUT_SEEN[seen].format(role)}: record again, or convert it"
            warnings.warn(words, OutputWarning, stacklevel=3)


def _is_open(score: Any) -> bool:
    """Whether a score is yet to be chosen or fitted."""
    return isinstance(score, str) and (score == "auto" or is_fitted(score))


def _parts(outcomes: Outcomes, aim: Goal, chosen: bool) -> tuple[Outcomes, Outcomes]:
    """Return the examples that choose score, blend and scale, and those for the threshold."""
    # a guarantee's proof covers the threshold's choice alone, so the others need their own examples
    scaled = outcomes.kind.scale is not None and outcomes.rescale is None
    if aim.delta is None or not (chosen or scaled):
        outcomes = outcomes.with_scale(outcomes.fit_scale()) if scaled else outcomes
        return outcomes, outcomes
    choosing, rest = outcomes.split(CHOICE_SHARE, CHOICE_SEED)
    scale = choosing.fit_scale() if scaled else outcomes.rescale
    return choosing.with_scale(scale), rest.with_scale(scale)


def _certified(curve: TradeOffCurve, aim: Goal, all_given: bool) -> OperatingPoint:
    assert aim.delta is not None
    allowed = aim.allowed(curve)
    try:
        certificate = certify(
            curve, aim.promised, tolerance=allowed, delta=aim.delta, loss_bound=aim.loss_bound
        )
    except CalibrationError as error:
        if all_given:
            raise
        way = ": give both to certify on all examples"
        if curve.outcomes.kind.scale is not None:
            way = ", and put both detectors on one scale"
        words = f"{CHOICE_SHARE:.0%} of the examples chose score and blend{way}"
        raise CalibrationError(f"{error} ({words})") from None
    return replace(curve.at(index=certificate.row), certified=certificate)

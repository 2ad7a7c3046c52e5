"""Calibration: from what both models said on labeled examples to a threshold."""

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
"""With a guarantee: the share of the examples that score and blend are chosen on, if they are."""

CHOICE_SEED = 1
"""Of that split; another than the usual one, so that a split within a split is a fresh one."""


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

    For detection the examples also put the scores of both detectors on one scale, unless the
    outcomes have one (`OperatingPoint.rescale`). The point has its figures on `outcomes`, or on the
    part that was certified on: they flatter, since the threshold was picked there. Its `certified`
    is the `Certificate`.

    Parameters
    ----------
    outcomes
        The calibration examples.
    goal
        A `Goal`, or its kind with the arguments below.
        ``"match-teacher"``: the least deferral whose quality is at least the teacher's minus
        `tolerance` (default 0).
        ``"accuracy"``: the least deferral whose accuracy is at least `target`. For regression both
        are in the unit of the outcomes' metric: an RMSE of at most `target`, an R2 of at least it;
        for detection a share of 1, as 0.37 AP.
        ``"budget"``: the best quality that costs at most `flops`, `dollars`, `seconds` or `joules`
        per example, moves at most `bytes` over the link, or defers at most `deferral_rate`.
        ``"crossing"``: the paper's, where the score densities of inputs that the student gets
        right and wrong cross; for answers that are right or wrong alone.
    score
        A score, or ``"auto"``: the simplest one whose deferral curve on `outcomes` is as good
        as the best one's, up to noise, or of those simpler still one with a larger gain.
        ``"learned"``, of detectors ``"learned_gain"``, is fitted to `outcomes` first.
    blend
        The student's weight in a deferred answer, with temperatures as a `Blend`, or ``"auto"``:
        picked on `outcomes`, 0 (the paper) being a candidate; temperatures only if they win by
        more than noise.
    delta
        Ask for a guarantee: the goal holds beyond these examples with probability at least
        ``1 - delta``, whatever the models and the data are, if the inputs in use are exchangeable
        with the examples. Score and blend, where they are ``"auto"`` or fitted, and the common
        scale of two detectors are then chosen on `CHOICE_SHARE` of the examples, and the threshold
        is certified on the others.
    promise
        What is certified; the goal says it if this does not. For ``"match-teacher"``
        ``"excess"``, the joint error minus the teacher's is at most `tolerance`, or ``"harm"``,
        the share of inputs that the student keeps and gets wrong where the teacher is right is.
        For ``"accuracy"`` ``"risk"``, the joint error is at most ``1 - target``; for ``"budget"``
        ``"rate"``, the deferral rate is at most what the budget allows.
    loss_bound
        With `delta`, for losses without a bound of their own, as squared errors: the largest loss
        of a row that counts, in the row's unit, fixed without looking at these examples. The
        promise is about losses cut off there.
    margin
        For ``"match-teacher"`` and ``"accuracy"`` without `delta`: by how many standard errors the
        threshold exceeds what is asked on `outcomes`, since a pick that just reaches it there falls
        short elsewhere. `MARGIN` if left out; 0 is the plain pick.

    Raises
    ------
    ValueError
        `goal` is unknown, or an argument is out of range or goes with another goal.
    CalibrationError
        No threshold reaches the goal, or none can be certified; the message says what is feasible.

    Warns
    -----
    GridWarning
        The score's y grid does not cover the targets, or what the student believes.

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
        # where a score was fitted it flatters: also look at rows scored by a fit without them
        unseen = TradeOffCurve.of(outcomes, cross_fitted(outcomes), weight)
        stricter = max if aim.limits_quality else min
        threshold = stricter(point.threshold, unseen.threshold_of(aim.row(unseen)))
        point = curve.at(threshold=threshold)
    return replace(point, margin=aim.own_margin)


def _look_at(outcomes: Outcomes) -> None:
    """Warn where raw output that was not recorded here is none that scores read."""
    for role in ("student", "teacher"):
        recorded = "output_kind" in outcomes.models.get(role, {})
        some = getattr(outcomes, role)[:1000]  # enough to tell probabilities
        seen = outcomes.kind.output_kind_of(some, hard=False)
        if seen is not None and not recorded:
            words = f"{OUTPUT_SEEN[seen].format(role)}: record again, or make the outcomes of it"
            warnings.warn(words, OutputWarning, stacklevel=3)


def _is_open(score: Any) -> bool:
    """Whether a score is yet to be chosen or fitted."""
    return isinstance(score, str) and (score == "auto" or is_fitted(score))


def _parts(outcomes: Outcomes, aim: Goal, chosen: bool) -> tuple[Outcomes, Outcomes]:
    """The examples to choose score, blend and scale on, and those to choose the threshold on."""
    # two parts where the proof of a guarantee, of the threshold's choice alone, needs them
    scaled = outcomes.kind.scale is not None and outcomes.rescale is None
    if aim.delta is None or not (chosen or scaled):
        outcomes = outcomes.with_scale(outcomes.fit_scale()) if scaled else outcomes
        return outcomes, outcomes
    choosing, rest = outcomes.split(CHOICE_SHARE, CHOICE_SEED)
    scale = choosing.fit_scale() if scaled else outcomes.rescale
    return choosing.with_scale(scale), rest.with_scale(scale)


def _certified(curve: TradeOffCurve, aim: Goal, all_given: bool) -> OperatingPoint:
    """The point whose promise is certified."""
    assert aim.delta is not None
    allowed = aim.allowed(curve)
    try:
        certificate = certify(
            curve, aim.promised, tolerance=allowed, delta=aim.delta, loss_bound=aim.loss_bound
        )
    except CalibrationError as error:
        if all_given:
            raise
        way = ": give both to certify on all"
        if curve.outcomes.kind.scale is not None:
            way = ", and put both detectors on one scale"
        words = f"{CHOICE_SHARE:.0%} of those given chose score and blend{way}"
        raise CalibrationError(f"{error} ({words})") from None
    return replace(curve.at(index=certificate.row), certified=certificate)

"""Calibration: from what both models said on labeled examples to a threshold."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ebjr.arrays import Array
from ebjr.blend import as_blend
from ebjr.calibration.choice import choose_blend, choose_score, rank_scores
from ebjr.calibration.crossing import crossing
from ebjr.calibration.guarantee import PROMISES, certify
from ebjr.calibration.targets import best_within, cheapest
from ebjr.costs import UNITS
from ebjr.curve import OperatingPoint, TradeOffCurve
from ebjr.errors import CalibrationError, GridWarning
from ebjr.metrics import METRICS, Metric
from ebjr.outcomes import Outcomes
from ebjr.regression_scores import check_grid
from ebjr.scores import FITTED, Score, as_score

__all__ = ["GOALS", "calibrate", "choose_blend", "choose_score", "crossing", "rank_scores"]

GOALS = {
    "match-teacher": ("tolerance",),
    "accuracy": ("target",),
    "budget": ("flops", "seconds", "joules", "bytes", "deferral_rate"),
    "crossing": (),
}
"""Each goal with the arguments that go with it."""

CHOICE_SHARE = 0.3
"""With a guarantee: the share of the examples that score and blend are chosen on, if they are."""

CHOICE_SEED = 1
"""Of that split; another than the usual one, so that a split within a split is a fresh one."""


def calibrate(
    outcomes: Outcomes,
    goal: str = "match-teacher",
    *,
    tolerance: float | None = None,
    target: float | None = None,
    flops: float | None = None,
    seconds: float | None = None,
    joules: float | None = None,
    bytes: float | None = None,
    deferral_rate: float | None = None,
    score: str | Callable[..., Array] | Score = "auto",
    blend: float | str = "auto",
    delta: float | None = None,
    promise: str | None = None,
    loss_bound: float | None = None,
) -> OperatingPoint:
    """Choose a threshold. Give it one half of the outcomes, and report on the other.

    For detection the examples also put the scores of both detectors on one scale, unless the
    outcomes have one (`OperatingPoint.rescale`).

    Parameters
    ----------
    outcomes
        The calibration examples.
    goal
        ``"match-teacher"``: the least deferral whose quality is at least the teacher's minus
        `tolerance` (default 0).
        ``"accuracy"``: the least deferral whose accuracy is at least `target`. For regression both
        are in the unit of the outcomes' metric: an RMSE of at most `target`, an R2 of at least it;
        for detection a share of 1, as 0.37 AP.
        ``"budget"``: the best quality that costs at most `flops`, `seconds` or `joules` per
        example, moves at most `bytes` over the link, or defers at most `deferral_rate`.
        ``"crossing"``: the paper's, where the score densities of inputs that the student gets
        right and wrong cross; for classification alone.
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
        with the examples. Score and blend, where they are ``"auto"`` or fitted, are then chosen on
        `CHOICE_SHARE` of the examples, and the threshold is certified on the others.
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

    Returns
    -------
    OperatingPoint
        With its figures on `outcomes`, or on the part that was certified on: they flatter, since
        the threshold was picked there. Its `certified` is the `Certificate`.

    Raises
    ------
    ValueError
        An unknown goal, or an argument that is out of range or goes with another goal.
    CalibrationError
        No threshold does it, or none that can be certified; the message says what is feasible.

    Warns
    -----
    GridWarning
        The score's y grid does not cover the targets, or what the student believes.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = calibrate(outcomes, goal="match-teacher", score="max_logit")
    >>> point.threshold, point.quality
    (2.0, 1.0)
    """
    given = {
        "tolerance": tolerance,
        "target": target,
        "flops": flops,
        "seconds": seconds,
        "joules": joules,
        "bytes": bytes,
        "deferral_rate": deferral_rate,
    }
    check_goal(goal, given, outcomes.measure)
    promise = check_promise(goal, promise, delta, tolerance)
    if loss_bound is not None and promise is None:
        raise ValueError("loss_bound is for a guarantee: give delta with it")
    automatic = isinstance(score, str) and score in ("auto", *FITTED)
    choosing = outcomes
    if delta is not None and (automatic or blend == "auto"):
        # the proof of the guarantee covers the choice of the threshold, not that of score and blend
        choosing, outcomes = outcomes.split(CHOICE_SHARE, CHOICE_SEED)
    if outcomes.rescale is None:
        scale = choosing.fit_scale()
        same = choosing is outcomes
        choosing = choosing.with_scale(scale)
        outcomes = choosing if same else outcomes.with_scale(scale)
    chosen = _fitted(choosing, str(score)) if automatic else as_score(score)
    weight = choose_blend(choosing, chosen) if blend == "auto" else as_blend(blend)
    _check_cover(chosen, outcomes)
    curve = TradeOffCurve.of(outcomes, chosen, weight)
    if promise is not None and delta is not None:
        allowed = _allowed(curve, goal, given)
        try:
            certificate = certify(
                curve, promise, tolerance=allowed, delta=delta, loss_bound=loss_bound
            )
        except CalibrationError as error:
            if choosing is outcomes:
                raise
            raise CalibrationError(
                f"{error} ({CHOICE_SHARE:.0%} of those given chose score and blend: "
                "give both to certify on all)"
            ) from None
        return replace(curve.at(index=certificate.row), certified=certificate)
    if goal == "crossing":
        values = np.asarray(chosen(outcomes.student), dtype=np.float64)
        return curve.at(threshold=crossing(values, outcomes.student_quality))
    return curve.at(index=_row(curve, goal, given))


def _fitted(choosing: Outcomes, score: str) -> Score:
    """The best of all scores, or the one that the name stands for once it is fitted."""
    return choose_score(choosing, None if score == "auto" else [score])


def _check_cover(score: Score, outcomes: Outcomes) -> None:
    """Say how much lies outside of a score's y grid; the grid of a trained head cannot be moved."""
    grid = score.parameters.get("grid")
    if grid is not None and outcomes.task == "regression":
        try:
            check_grid(grid, outcomes.targets, outcomes.student)
        except ValueError as error:
            warnings.warn(str(error), GridWarning, stacklevel=3)


def check_goal(goal: str, given: dict[str, Any], measure: Metric = METRICS["accuracy"]) -> None:
    """Check that a goal is known and has just the arguments that it needs.

    Parameters
    ----------
    goal
        One of `GOALS`.
    given
        Every argument of a goal; None where it is not given.
    measure
        The metric, which says what a tolerance and a target may be.

    Raises
    ------
    ValueError
        It is not, or has not.

    Examples
    --------
    >>> check_goal("accuracy", {"target": 0.9})
    """
    if goal not in GOALS:
        raise ValueError(f"goal must be one of {', '.join(GOALS)}, not {goal!r}")
    named = [name for name, value in given.items() if value is not None]
    for name in named:
        if name not in GOALS[goal]:
            home = next(other for other, names in GOALS.items() if name in names)
            raise ValueError(f"{name} goes with goal {home!r}, not with {goal!r}")
    if goal != "match-teacher" and GOALS[goal] and len(named) != 1:
        raise ValueError(f"goal {goal!r} needs exactly one of {', '.join(GOALS[goal])}")
    if goal == "crossing" and not measure.binary:
        raise ValueError(
            f"goal 'crossing' needs answers that are right or wrong; for {measure.name} use another"
        )
    for name in named:
        value = float(given[name])
        if name == "tolerance":
            measure.check_tolerance(value)
            continue
        if name == "target":
            measure.check_target(value)
            continue
        share = name == "deferral_rate"
        if not (0 <= value <= 1 if share else 0 <= value < np.inf):
            limits = "lie between 0 and 1" if share else "be a finite number of at least 0"
            raise ValueError(f"{name} must {limits}, not {value:g}")


def check_promise(
    goal: str, promise: str | None, delta: float | None, tolerance: float | None
) -> str | None:
    """What is to be certified for a goal; None without `delta`.

    Raises
    ------
    ValueError
        The goal promises nothing, or not that, or `delta` or `tolerance` is missing.

    Examples
    --------
    >>> check_promise("accuracy", None, delta=0.1, tolerance=None)
    'risk'
    """
    if delta is None:
        if promise is not None:
            raise ValueError(f"promise {promise!r} needs delta, as 0.1: how often it may be broken")
        return None
    if not 0 < float(delta) < 1:
        raise ValueError(f"delta must lie between 0 and 1, both excluded, not {delta:g}")
    if promise is not None and promise not in PROMISES:
        raise ValueError(f"promise must be one of {', '.join(PROMISES)}, not {promise!r}")
    known = _PROMISED[goal]
    if not known:
        raise ValueError(f"goal {goal!r} promises nothing that delta could guarantee")
    if promise is not None and promise not in known:
        raise ValueError(f"goal {goal!r} promises {' or '.join(known)}, not {promise}")
    if goal == "match-teacher" and tolerance is None:
        raise ValueError(
            "with delta, match-teacher needs a tolerance, as 0.01: how far below the teacher is "
            "still as good"
        )
    return promise or known[0]


_PROMISED = {
    "match-teacher": ("excess", "harm"),
    "accuracy": ("risk",),
    "budget": ("rate",),
    "crossing": (),
}


def _allowed(curve: TradeOffCurve, goal: str, given: dict[str, Any]) -> float:
    """The tolerance of the promise that the goal makes."""
    if goal == "match-teacher":
        return float(given["tolerance"])
    if goal == "accuracy":
        target = float(given["target"])
        return 1 - target if curve.outcomes.measure.percent else target
    rate = given["deferral_rate"]
    if rate is None:
        unit = _unit(given)
        best_within(curve, curve.cost_in(unit), given[unit], f"cost in {unit}")  # or says the least
        student, teacher = (
            getattr(cost, unit)
            for cost in (curve.outcomes.student_cost, curve.outcomes.teacher_cost)
        )
        rate = (given[unit] - student) / teacher
    if rate >= 1:
        raise ValueError(
            "the budget allows to defer every input, which needs no guarantee: leave delta out"
        )
    return float(rate)


def _row(curve: TradeOffCurve, goal: str, given: dict[str, Any]) -> int:
    """The row of the curve that the goal picks."""
    measure = curve.outcomes.measure
    if goal == "match-teacher":
        tolerance = given["tolerance"] or 0.0
        teacher = curve.outcomes.quality("teacher")
        name = f"the teacher's {measure.figure(teacher):.4g} within {tolerance:g}"
        return cheapest(curve, teacher - tolerance, name)
    if goal == "accuracy":
        wanted = measure.check_target(float(given["target"]))
        return cheapest(curve, wanted, f"{measure.name} {given['target']:g}")
    if given["deferral_rate"] is not None:
        rate = given["deferral_rate"]
        return best_within(curve, curve.deferral_rate, rate, "deferral rate")
    unit = _unit(given)
    return best_within(curve, curve.cost_in(unit), given[unit], f"cost in {unit}")


def _unit(given: dict[str, Any]) -> str:
    """The unit of the budget that is given."""
    return next(unit for unit in UNITS if given[unit] is not None)

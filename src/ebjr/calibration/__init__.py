"""Calibration: from what both models said on labeled examples to a threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ebjr.arrays import Array
from ebjr.calibration.auto import choose_blend, choose_score, rank_scores
from ebjr.calibration.crossing import crossing
from ebjr.calibration.targets import best_within, cheapest
from ebjr.curve import OperatingPoint, TradeOffCurve
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, as_score

__all__ = ["GOALS", "calibrate", "choose_blend", "choose_score", "crossing", "rank_scores"]

GOALS = {
    "match-teacher": ("tolerance",),
    "accuracy": ("target",),
    "budget": ("flops", "seconds", "deferral_rate"),
    "crossing": (),
}
"""Each goal with the arguments that go with it."""


def calibrate(
    outcomes: Outcomes,
    goal: str = "match-teacher",
    *,
    tolerance: float | None = None,
    target: float | None = None,
    flops: float | None = None,
    seconds: float | None = None,
    deferral_rate: float | None = None,
    score: str | Callable[..., Array] | Score = "auto",
    blend: float | str = "auto",
) -> OperatingPoint:
    """Choose a threshold. Give it one half of the outcomes, and report on the other.

    Parameters
    ----------
    outcomes
        The calibration examples.
    goal
        ``"match-teacher"``: the least deferral whose quality is at least the teacher's minus
        `tolerance` (default 0).
        ``"accuracy"``: the least deferral whose accuracy is at least `target`.
        ``"budget"``: the best quality that costs at most `flops` or `seconds` per example, or
        defers at most `deferral_rate`.
        ``"crossing"``: the paper's, where the score densities of inputs that the student gets
        right and wrong cross.
    score
        A score, or ``"auto"``: the simplest one whose deferral curve on `outcomes` is as good
        as the best one's, up to noise.
    blend
        The student's weight in a deferred answer, or ``"auto"``: picked on `outcomes`, 0 (the
        paper) being a candidate.

    Returns
    -------
    OperatingPoint
        With its figures on `outcomes`: they flatter, since the threshold was picked there.

    Raises
    ------
    ValueError
        An unknown goal, or an argument that is out of range or goes with another goal.
    CalibrationError
        No threshold does it; the message says what is feasible.

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
        "deferral_rate": deferral_rate,
    }
    check_goal(goal, given)
    automatic = isinstance(score, str) and score == "auto"
    chosen = choose_score(outcomes) if automatic else as_score(score)
    if isinstance(blend, str):
        if blend != "auto":
            raise ValueError(f"blend must be a weight or 'auto', not {blend!r}")
        blend = choose_blend(outcomes, chosen)
    curve = TradeOffCurve.of(outcomes, chosen, blend)
    if goal == "crossing":
        values = np.asarray(chosen(outcomes.student), dtype=np.float64)
        return curve.at(threshold=crossing(values, outcomes.student_quality))
    return curve.at(index=_row(curve, goal, given))


def check_goal(goal: str, given: dict[str, Any]) -> None:
    """Check that a goal is known and has just the arguments that it needs.

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
    for name in named:
        value = float(given[name])
        share = name in ("tolerance", "target", "deferral_rate")
        if not (0 <= value <= 1 if share else 0 <= value < np.inf):
            limits = "lie between 0 and 1" if share else "be a finite number of at least 0"
            raise ValueError(f"{name} must {limits}, not {value:g}")


def _row(curve: TradeOffCurve, goal: str, given: dict[str, Any]) -> int:
    """The row of the curve that the goal picks."""
    if goal == "match-teacher":
        tolerance = given["tolerance"] or 0.0
        teacher = float(curve.outcomes.teacher_quality.mean())
        name = f"the teacher's {teacher:.4g} within {tolerance:g}"
        return cheapest(curve, teacher - tolerance, name)
    if goal == "accuracy":
        return cheapest(curve, given["target"], f"accuracy {given['target']:g}")
    if given["deferral_rate"] is not None:
        rate = given["deferral_rate"]
        return best_within(curve, curve.deferral_rate, rate, "deferral rate")
    unit = "flops" if given["flops"] is not None else "seconds"
    return best_within(curve, curve.cost_in(unit), given[unit], f"cost in {unit}")

"""A goal's figures on the held-out half, as the mean over many splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ebjr import (
    CalibrationError,
    OperatingPoint,
    Outcomes,
    TradeOffCurve,
    calibrate,
    evaluate,
    oracle,
)
from ebjr.scores import Score
from experiments import intervals
from experiments.choices import choice


def over_splits(
    outcomes: Outcomes, splits: int, goal: str = "match-teacher", **how: Any
) -> dict[str, float]:
    """Calibrate on one half and evaluate on the other, `splits` times.

    Splits on which the goal cannot be reached are left out, and counted. The saving is the inverse
    of the mean cost: the mean of the savings would flatter. Where the goal is the teacher's
    accuracy, with the intervals of `experiments.intervals`.
    """
    found, halves = [], list(judged_halves(outcomes, splits, goal, **how))
    for _, _, point in halves:
        gain = 100 * (point.quality - point.teacher_quality)
        cost = (point.cost.flops or np.nan) / (point.teacher_cost.flops or np.nan)
        found.append((point.deferral_rate, gain, cost))
    rate, gain, cost = np.mean(found, axis=0)
    figures = {
        "splits": len(found),
        "deferral_rate": round(float(rate), 4),
        "over_teacher_points": round(float(gain), 3),
        "times_fewer_flops": round(float(1 / cost), 3),
    }
    if goal != "match-teacher":
        return figures
    drawn = intervals.of_points(halves, -how.get("tolerance", 0.0))
    return figures | intervals.factor(drawn, *flops(outcomes))


def flops(outcomes: Outcomes) -> tuple[float, float]:
    """Return an example's cost for student and teacher."""
    student, teacher = outcomes.student_cost.flops, outcomes.teacher_cost.flops
    assert student is not None
    assert teacher is not None
    return float(student), float(teacher)


def within(outcomes: Outcomes, splits: int, share: float, **how: Any) -> dict[str, Any]:
    """The same for regressors, whose loss may be that share above the teacher's.

    Which scores were chosen and how often, the loss over the teacher's, and how many times cheaper
    the joint model is than the teacher, in the unit that both costs are known in.
    """
    points = held_out_points(outcomes, splits, share=share, **how)
    if not points:
        return {"splits": 0}
    scores = [point.score for point in points]
    found = [
        (p.deferral_rate, p.blend, p.quality / p.teacher_quality, 1 / (p.saving or np.inf))
        for p in points
    ]
    rate, blend, loss, cost = np.mean(found, axis=0)
    return {
        "splits": len(points),
        "scores": {name: scores.count(name) for name in sorted(set(scores))},
        "blend": round(float(blend), 3),
        "deferral_rate": round(float(rate), 4),
        "loss_over_teacher": round(float(loss), 4),
        "times_cheaper": round(float(1 / cost), 3),
    }


def within_by_score(outcomes: Outcomes, splits: int, share: float) -> dict[str, Any]:
    """Both models' losses, and `within` by `auto`, by every score alone, and by the oracle."""
    curve = TradeOffCurve.of(outcomes, oracle(outcomes))
    ideal = curve.at(index=int(np.argmax(curve.quality >= (1 + share) * curve.quality[-1])))
    return {
        "student": round(-outcomes.quality("student"), 5),
        "teacher": round(-outcomes.quality("teacher"), 5),
        "auto": within(outcomes, splits, share),
        **{
            f"{score}, no blend": within(outcomes, splits, share, score=score, blend=0.0)
            for score in (*outcomes.kind.scores(outcomes.student), "random")
        },
        "oracle, no blend": {
            "deferral_rate": round(ideal.deferral_rate, 4),
            "times_cheaper": round(ideal.saving or 0.0, 3),
        },
    }


def held_out_points(outcomes: Outcomes, splits: int, **how: Any) -> list[OperatingPoint]:
    """Return the points of `judged_halves`, which has the arguments."""
    return [point for *_, point in judged_halves(outcomes, splits, **how)]


def judged_halves(
    outcomes: Outcomes,
    splits: int,
    goal: str = "match-teacher",
    share: float | None = None,
    scores: Sequence[str | Score] | None = None,
    blends: Sequence[float] | None = None,
    **how: Any,
) -> Iterator[tuple[Outcomes, Outcomes, OperatingPoint]]:
    """Evaluate each half's choice on the other half; infeasible splits are left out.

    Yields both halves of each split beside the point. The pick is the plain one, without a margin,
    as the paper's: `experiments.optimism` has both.

    A `share` is a tolerance in parts of the teacher's loss on the half that is chosen on. `scores`
    and `blends` have one for each split, where `auto` has chosen them before.
    """
    for seed in range(splits):
        calibration, held_out = outcomes.split(0.5, seed)
        if scores is not None:
            how["score"] = scores[seed]
        if blends is not None:
            how["blend"] = blends[seed]
        if share is not None:
            how["tolerance"] = share * abs(calibration.quality("teacher"))
        try:
            point = evaluate(held_out, calibrate(calibration, goal, margin=0.0, **how))
        except CalibrationError:
            continue
        yield calibration, held_out, point


def aimed_points(
    outcomes: Outcomes, splits: int, overs: Sequence[float]
) -> dict[float, list[OperatingPoint]]:
    """Score and blend by `auto`, the threshold for so much over the teacher's quality, by each.

    A half on which that is out of reach has the best that it can reach.
    """
    found: dict[float, list[OperatingPoint]] = {over: [] for over in overs}
    for seed in range(splits):
        calibration, held_out = outcomes.split(0.5, seed)
        chosen = choice(outcomes, seed)
        best = calibrate(calibration, "budget", deferral_rate=1.0, **chosen)
        for over, points in found.items():
            target = min(calibration.quality("teacher") + over, best.quality)
            point = calibrate(calibration, "accuracy", target=target, margin=0.0, **chosen)
            points.append(evaluate(held_out, point))
    return found


def own_points(outcomes: Outcomes, splits: int) -> list[OperatingPoint]:
    """Score and blend by `auto`, the threshold with the library's own margin."""
    found = []
    for seed in range(splits):
        calibration, held_out = outcomes.split(0.5, seed)
        found.append(evaluate(held_out, calibrate(calibration, **choice(outcomes, seed))))
    return found


def aimed_draws(
    outcomes: Outcomes, splits: int, over: float, margin: float = 0.0
) -> intervals.Draws:
    """The resamples of one of `aimed_points`, or with a margin of `own_points`."""
    chosen = [choice(outcomes, seed) for seed in range(splits)]
    scores, blends = ([one[name] for one in chosen] for name in ("score", "blend"))
    halves = intervals.halves_of(outcomes, splits, scores, blends)
    return intervals.draws(halves, splits, over, capped=not margin, margin=margin)

"""A goal's figures on the held-out half, as the mean over many splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr import CalibrationError, Outcomes, calibrate, evaluate
from ebjr.scores import Score


def over_splits(
    outcomes: Outcomes,
    splits: int,
    goal: str = "match-teacher",
    *,
    scores: Sequence[Score] | None = None,
    **how: Any,
) -> dict[str, float]:
    """Calibrate on one half and evaluate on the other, `splits` times.

    Splits on which the goal cannot be reached are left out, and counted. The saving is the inverse
    of the mean cost: the mean of the savings would flatter. `scores` has one for each split, where
    `auto` has chosen them before.
    """
    found = []
    for seed in range(splits):
        calibration, held_out = outcomes.split(0.5, seed)
        if scores is not None:
            how["score"] = scores[seed]
        try:
            point = evaluate(held_out, calibrate(calibration, goal, **how))
        except CalibrationError:
            continue
        gain = 100 * (point.quality - point.teacher_quality)
        cost = (point.cost.flops or np.nan) / (point.teacher_cost.flops or np.nan)
        found.append((point.deferral_rate, gain, cost))
    rate, gain, cost = np.mean(found, axis=0)
    return {
        "splits": len(found),
        "deferral_rate": round(float(rate), 4),
        "over_teacher_points": round(float(gain), 3),
        "times_fewer_flops": round(float(1 / cost), 3),
    }

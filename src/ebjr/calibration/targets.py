"""Rows of a curve that meet a target: a quality to reach, or a budget to keep."""

from __future__ import annotations

import numpy as np

from ebjr.curve import TradeOffCurve
from ebjr.errors import CalibrationError

_SLACK = 1e-12  # a mean of n zeros and ones, minus a tolerance, is not exact in binary


def cheapest(curve: TradeOffCurve, quality: float, name: str) -> int:
    """The row that defers least among those that reach a quality.

    Parameters
    ----------
    curve
        The score's curve on the calibration examples.
    quality
        What to reach, in the curve's unit.
    name
        What to call it in the error.

    Raises
    ------
    CalibrationError
        No row reaches it; the message says which is the best.

    Examples
    --------
    >>> from ebjr.outcomes import Outcomes
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> cheapest(TradeOffCurve.of(outcomes, "max_logit"), 0.99, "accuracy 0.99")
    1
    """
    slack = _SLACK * max(1.0, abs(quality))
    reached = np.flatnonzero(curve.quality >= quality - slack)
    if not len(reached):
        best = int(curve.quality.argmax())
        raise CalibrationError(
            f"no threshold reaches {name}; the best is "
            f"{curve.outcomes.measure.figure(curve.quality[best]):.4g}, at deferral "
            f"rate {curve.deferral_rate[best]:.4g}"
        )
    return int(reached[0])


def best_within(curve: TradeOffCurve, cost: np.ndarray, budget: float, unit: str) -> int:
    """The row of the best quality among those that cost at most `budget`; of equals the cheapest.

    Parameters
    ----------
    curve
        The score's curve on the calibration examples.
    cost
        (k,): what each row costs.
    budget
        The most it may cost.
    unit
        What `cost` is measured in, for the error.

    Raises
    ------
    CalibrationError
        Every row costs more; the message says what the cheapest costs.

    Examples
    --------
    >>> from ebjr.outcomes import Outcomes
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> curve = TradeOffCurve.of(outcomes, "max_logit")
    >>> best_within(curve, curve.deferral_rate, 0.6, "deferral rate")
    1
    """
    within = np.flatnonzero(cost <= budget * (1 + _SLACK))
    if not len(within):
        raise CalibrationError(
            f"no threshold keeps to a {unit} of {budget:.6g}; the least is {cost[0]:.6g}, at "
            f"deferral rate {curve.deferral_rate[0]:.4g}"
        )
    return int(within[curve.quality[within].argmax()])

"""Evaluation: what a calibrated threshold does on examples that it did not see."""

from __future__ import annotations

from ebjr.curve import OperatingPoint
from ebjr.outcomes import Outcomes

__all__ = ["evaluate"]


def evaluate(held_out: Outcomes, point: OperatingPoint) -> OperatingPoint:
    """The same score, blend and threshold on other examples.

    Parameters
    ----------
    held_out
        Examples that the threshold was not chosen on.
    point
        What `calibrate` chose.

    Examples
    --------
    >>> from ebjr.curve import TradeOffCurve
    >>> table = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = TradeOffCurve.of(table, "max_logit").at(threshold=1.5)
    >>> evaluate(table, point).quality
    1.0
    """
    return point.curve(held_out).at(threshold=point.threshold)

"""Evaluation: the results of a calibrated threshold on examples that did not choose it."""

from typing import Any

import numpy as np

from ebjr.arrays import put_rows, take_rows
from ebjr.curve import OperatingPoint
from ebjr.outcomes import Outcomes

__all__ = ["evaluate", "joint_prediction"]


def evaluate(held_out: Outcomes, point: OperatingPoint) -> OperatingPoint:
    """Return the point's figures on examples that did not choose its threshold.

    Examples
    --------
    >>> from ebjr.curve import TradeOffCurve
    >>> table = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> point = TradeOffCurve.of(table, "max_logit").at(threshold=1.5)
    >>> evaluate(table, point).quality
    1.0
    """
    return point.curve(held_out).at(threshold=point.threshold)


def joint_prediction(outcomes: Outcomes, point: OperatingPoint) -> Any:
    """Return the joint model's answers, (n,), at an operating point; or a list of `Detections`.

    Examples
    --------
    >>> from ebjr.curve import TradeOffCurve
    >>> table = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> joint_prediction(table, TradeOffCurve.of(table, "max_logit").at(threshold=1.5))
    array([0, 1])
    """
    _, deferred = point.router(outcomes.student)
    table = outcomes.with_scale(point.rescale)
    answered = outcomes.kind.predict(table.deferred(point.blend))
    rows = np.flatnonzero(deferred)
    return put_rows(table.predictions("student"), rows, take_rows(answered, rows))

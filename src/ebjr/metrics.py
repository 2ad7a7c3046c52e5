"""Metrics: how good answers are, row by row, and how a mean of rows becomes one figure.

The library compares *qualities*: higher is better, for every metric. What people read is the
*figure*: accuracy and R2 are qualities themselves, while RMSE, MAE and every other loss are minus
the quality. At each threshold a curve takes the mean over rows first, and only then the metric's
own form, so that RMSE is the root of the mean squared error of the joint model.

COCO's mAP is no mean over images at all: such a metric has a `whole`, which gives the quality of
any choice of deferred rows itself, and rows that are its parts to first order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from ebjr.precision import JointPrecision, Matches

Loss = Callable[[Any, Any], np.ndarray]
"""Predictions (n,) and targets (n,) in, a loss of each row (n,) out, at least 0."""


class Whole(Protocol):
    """The quality of a joint model that is no mean of rows, for any choice of deferred rows."""

    def __call__(self, deferred: np.ndarray, *, times: np.ndarray | None = None) -> float:
        """The quality where the rows `deferred`, (n,) bool, are, and each row counts `times`."""
        ...

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Each row's part in it if it is kept, and if it is deferred, to first order: (n,).

        Their means are the qualities of all-student and of all-deferred.
        """
        ...


@dataclass(frozen=True)
class Metric:
    """What a table of outcomes is judged by.

    Attributes
    ----------
    name, tasks
        What it is called, and for which tasks it is.
    rows
        Predictions and targets, (n,), to the quality of each row, (n,); higher is better. Detectors
        are judged by their `Matches`.
    title
        Heading of a column of figures.
    rows_title
        What a mean of row qualities is, for people: what gains of scores are measured in.
    root
        Whether the figure is the root of the mean loss.
    lower
        Whether the figure is a loss, and so minus the quality.
    binary
        Whether every row is right or wrong, 1 or 0.
    percent
        Whether the quality lies between 0 and 1 and is shown in percent.
    certifiable
        Whether a row's quality depends on that row alone, as promises need.
    whole
        Where the quality is no mean of rows: from what the student and what deferred rows are
        judged by to a `Whole`.

    Examples
    --------
    >>> rmse = METRICS["rmse"]
    >>> rows = rmse.rows(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    >>> rows, rmse.text(rmse.quality(rows.mean()))
    (array([-0., -9.]), '2.121')
    """

    name: str
    tasks: tuple[str, ...]
    rows: Loss | None
    title: str
    rows_title: str = ""
    root: bool = False
    lower: bool = True
    binary: bool = False
    percent: bool = False
    certifiable: bool = True
    whole: Callable[[Any, Any], Whole] | None = None

    def quality(self, mean: Any) -> Any:
        """The quality that a mean of row qualities stands for."""
        return -np.sqrt(np.maximum(-np.asarray(mean), 0.0)) if self.root else mean

    def mean(self, quality: Any) -> Any:
        """The mean of row qualities that a quality stands for."""
        return -(np.asarray(quality) ** 2) if self.root else quality

    def figure(self, quality: Any) -> Any:
        """What people read, from a quality; and a quality from that."""
        return -quality if self.lower else quality

    def drawn(self, quality: Any) -> Any:
        """A quality as it is drawn: a share in percent, the others as their figure."""
        return 100 * quality if self.percent else self.figure(quality)

    @property
    def axis(self) -> str:
        """The title of an axis of `drawn`."""
        if self.percent:
            return f"{self.title}, %"
        return f"{self.title} (lower is better)" if self.lower else self.title

    def text(self, quality: float) -> str:
        """A quality as its figure.

        Examples
        --------
        >>> METRICS["accuracy"].text(0.9344), METRICS["mae"].text(-0.25)
        ('93.44%', '0.25')
        """
        if self.percent:
            return f"{quality:.2%}"
        return f"{float(self.figure(quality)) + 0.0:.4g}"

    def words(self, quality: float) -> str:
        """A quality as its figure, for prose.

        Examples
        --------
        >>> METRICS["accuracy"].words(0.9344), METRICS["r2"].words(0.98765)
        ('93.44 %', '0.9877')
        """
        return f"{100 * quality:.2f} %" if self.percent else self.text(quality)

    def gain_text(self, gain: float) -> str:
        """A difference of two means of row qualities, higher is better."""
        return f"{100 * gain:.2f}" if self.percent else f"{gain:.4g}"

    @property
    def gain_unit(self) -> str:
        """What `gain_text` counts."""
        return "points" if self.percent else self.rows_title

    def check_target(self, figure: float) -> float:
        """A figure to reach, as a quality.

        Raises
        ------
        ValueError
            It is out of the metric's range.

        Examples
        --------
        >>> METRICS["rmse"].check_target(2.0)
        -2.0
        """
        high = math.inf if self.lower else 1.0
        low = -math.inf if not (self.lower or self.percent) else 0.0
        if not (math.isfinite(figure) and low <= figure <= high):
            limits = "lie between 0 and 1" if self.percent else "be a finite number of at least 0"
            if not (self.lower or self.percent):
                limits = "be at most 1"
            raise ValueError(f"target must {limits}, not {figure:g}")
        return float(self.figure(figure))

    def check_tolerance(self, tolerance: float) -> float:
        """A tolerance, in the figure's unit.

        Raises
        ------
        ValueError
            It is negative, not finite, or for a share above 1.
        """
        high = 1.0 if self.percent else math.inf
        if not (math.isfinite(tolerance) and 0 <= tolerance <= high):
            limits = "lie between 0 and 1" if self.percent else "be a finite number of at least 0"
            raise ValueError(f"tolerance must {limits}, not {tolerance:g}")
        return float(tolerance)


def _right(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (predictions == targets).astype(np.float64)


def _squared(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -((predictions - targets) ** 2)


def _absolute(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -np.abs(predictions - targets)


def _explained(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    variance = float(np.var(targets))
    if variance == 0:
        raise ValueError("all targets are equal, so that there is no R2; use another metric")
    return 1 - (predictions - targets) ** 2 / variance


def _f1(matches: Matches, targets: Any) -> np.ndarray:
    return matches.f1()


_CLASSES, _NUMBERS = ("classification", "specialized"), ("regression",)
_OF_DETECTORS: dict[str, Any] = {"tasks": ("detection",), "lower": False, "percent": True}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _CLASSES, _right, "accuracy", lower=False, binary=True, percent=True),
        Metric("rmse", _NUMBERS, _squared, "RMSE", "squared error", root=True),
        Metric("mse", _NUMBERS, _squared, "MSE", "squared error"),
        Metric("mae", _NUMBERS, _absolute, "MAE", "absolute error"),
        Metric("r2", _NUMBERS, _explained, "R2", "R2", lower=False, certifiable=False),
        Metric(
            **_OF_DETECTORS,
            name="ap",
            title="AP",
            rows=None,
            certifiable=False,
            whole=JointPrecision,
        ),
        Metric(
            **_OF_DETECTORS,
            name="ap50",
            title="AP50",
            rows=None,
            certifiable=False,
            whole=partial(JointPrecision, overlaps=1),
        ),
        Metric(**_OF_DETECTORS, name="f1", title="F1", rows=_f1),
    )
}
"""The metrics that have a name; the first of a task is its own. `register_metric` adds to them."""

F = TypeVar("F", bound=Loss)


def register_metric(loss: F) -> F:
    """Give a loss of regressors a name, its function's, to judge outcomes by.

    Parameters
    ----------
    loss
        Predictions (n,) and targets (n,) to (n,), at least 0; a row's depends on the row alone.

    Raises
    ------
    ValueError
        Another metric has that name.

    Examples
    --------
    >>> @register_metric
    ... def relative_error(predictions, targets):
    ...     return abs(predictions - targets) / targets
    >>> METRICS.pop("relative_error").rows(np.array([3.0]), np.array([2.0]))
    array([-0.5])
    """
    name = loss.__name__
    if name in METRICS:
        raise ValueError(f"there is a metric named {name} already")

    def rows(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        values = np.asarray(loss(predictions, targets), dtype=np.float64)
        if values.shape != targets.shape or not (values >= 0).all():
            raise ValueError(
                f"metric {name} must return one loss of at least 0 for each of {len(targets)} rows"
            )
        return -values

    METRICS[name] = Metric(name, _NUMBERS, rows, name, name)
    return loss


def as_metric(name: str | None, task: str) -> Metric:
    """The metric of that name, or the task's own.

    Raises
    ------
    ValueError
        There is none of that name for the task.

    Examples
    --------
    >>> as_metric(None, "regression").name
    'rmse'
    """
    known = [metric for metric in METRICS.values() if task in metric.tasks]
    found = known[0] if name is None else METRICS.get(name)
    if found is None or task not in found.tasks:
        names = ", ".join(metric.name for metric in known)
        raise ValueError(f"metric of {task} must be one of {names}, not {name!r}")
    return found

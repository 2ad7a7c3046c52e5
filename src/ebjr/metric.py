"""Metrics: how good each answer is, and how a mean over rows becomes one figure.

The library compares *qualities*: higher is better for every metric. People read the *figure*:
accuracy and R2 are qualities themselves; RMSE, MAE and every other loss are minus the quality. A
curve takes the mean over rows at each threshold before the metric's own form, so that RMSE is the
root of the joint model's mean squared error.

COCO's mAP is not a mean over images. Such a metric has a `whole`, which returns the quality of any
choice of deferred rows, and rows that are its parts to first order.

The metrics of a task are in its folder under `ebjr.tasks`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ebjr.plugins import load_entry_points

Loss = Callable[[Any, Any], np.ndarray]
"""Predictions (n,) and targets (n,) to each row's loss (n,), at least 0."""


class Whole(Protocol):
    """The joint model's quality, if it is not a mean of rows, for any choice of deferred rows."""

    def __call__(self, deferred: np.ndarray, *, times: np.ndarray | None = None) -> float:
        """Return the quality if `deferred`, (n,) bool, are deferred and rows count `times`."""
        ...

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each row's part (n,) if kept, and if deferred; the means are both ends."""
        ...


@dataclass(frozen=True)
class Metric:
    """A way to judge outcomes.

    `rows` takes predictions and targets, (n,), to each row's quality, (n,), higher is better;
    detectors are judged by their `Matches`. If the quality is not a mean of rows, `whole` takes the
    student's and the deferred rows' judged answers, and the targets, to a `Whole`.
    """

    name: str
    rows: Loss | None
    title: str  # heads a column of figures
    rows_title: str = ""  # the unit of a score's gain, in words
    root: bool = False  # the figure is the root of the mean loss
    lower: bool = True  # the figure is a loss, minus the quality
    binary: bool = False  # every row is right or wrong, 1 or 0
    percent: bool = False  # the quality lies between 0 and 1 and is shown in percent
    certifiable: bool = True  # a row's quality depends on that row alone, as promises need
    whole: Callable[[Any, Any, Any], Whole] | None = None

    def quality(self, mean: Any) -> Any:
        """Return the quality of a mean of row qualities."""
        return -np.sqrt(np.maximum(-np.asarray(mean), 0.0)) if self.root else mean

    def mean(self, quality: Any) -> Any:
        """Return the mean of row qualities behind a quality."""
        return -(np.asarray(quality) ** 2) if self.root else quality

    def figure(self, quality: Any) -> Any:
        """Return the figure that people read from a quality, or a quality from a figure."""
        return -quality if self.lower else quality

    def drawn(self, quality: Any) -> Any:
        """Return a quality as plots show it: a share in percent, or the figure."""
        return 100 * quality if self.percent else self.figure(quality)

    @property
    def axis(self) -> str:
        """The axis title of `drawn`."""
        if self.percent:
            return f"{self.title}, %"
        return f"{self.title} (lower is better)" if self.lower else self.title

    def text(self, quality: float) -> str:
        """Return a quality as its figure."""
        if self.percent:
            return f"{quality:.2%}"
        return f"{float(self.figure(quality)) + 0.0:.4g}"

    def words(self, quality: float) -> str:
        """Return a quality as its figure, for prose."""
        return f"{100 * quality:.2f} %" if self.percent else self.text(quality)

    def gain_text(self, gain: float) -> str:
        """Return a difference of two means of row qualities, higher is better."""
        return f"{100 * gain:.2f}" if self.percent else f"{gain:.4g}"

    @property
    def gain_unit(self) -> str:
        """The unit of `gain_text`."""
        return "points" if self.percent else self.rows_title

    def check_target(self, figure: float) -> float:
        """Return a target figure as a quality; ValueError if it is out of range."""
        if self.lower or self.percent:
            return float(self.figure(self._not_negative("target", figure)))
        if not (math.isfinite(figure) and figure <= 1):
            raise ValueError(f"target must be at most 1, not {figure:g}")
        return float(figure)

    def check_tolerance(self, tolerance: float) -> float:
        """Return a tolerance in the figure's unit; ValueError if it is out of range."""
        return self._not_negative("tolerance", tolerance)

    def _not_negative(self, name: str, figure: float) -> float:
        high = 1.0 if self.percent else math.inf
        if not (math.isfinite(figure) and 0 <= figure <= high):
            limits = "lie between 0 and 1" if self.percent else "be a finite number of at least 0"
            raise ValueError(f"{name} must {limits}, not {figure:g}")
        return float(figure)


METRICS: dict[str, Metric] = {}
"""The metrics by name; tasks' folders add theirs, and `register_metric` a user's."""

OWN_METRICS: set[str] = set()  # names given to `register_metric`


def declare_metrics(*metrics: Metric) -> tuple[Metric, ...]:
    """Add a task's metrics to `METRICS`, and return them."""
    METRICS.update({metric.name: metric for metric in metrics})
    return metrics


F = TypeVar("F", bound=Loss)


def register_metric(loss: F) -> F:
    """Register a regression loss under its function's name, as a metric.

    Parameters
    ----------
    loss
        Predictions (n,) and targets (n,) to (n,), at least 0, each row's from that row alone.

    Raises
    ------
    ValueError
        `loss` has the name of another metric.

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
        raise ValueError(f"a metric named {name} exists already: rename yours")

    def rows(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        values = np.asarray(loss(predictions, targets), dtype=np.float64)
        if values.shape != targets.shape or not (values >= 0).all():
            raise ValueError(
                f"metric {name} must return one loss of at least 0 for each of {len(targets)} rows"
            )
        return -values

    METRICS[name] = Metric(name, rows, name, name)
    OWN_METRICS.add(name)
    return loss


def own_metrics() -> tuple[Metric, ...]:
    """Return the registered metrics, the user's and packages', which judge numbers."""
    if not _loaded:
        _loaded.append(True)
        load_entry_points("ebjr.metrics", register_metric)
    return tuple(METRICS[name] for name in METRICS if name in OWN_METRICS)


_loaded: list[bool] = []

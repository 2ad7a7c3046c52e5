"""Metrics: how good answers are, row by row, and how a mean of rows becomes one figure.

The library compares *qualities*: higher is better, for every metric. What people read is the
*figure*: accuracy and R2 are qualities themselves, while RMSE, MAE and every other loss are minus
the quality. At each threshold a curve takes the mean over rows first, and only then the metric's
own form, so that RMSE is the root of the mean squared error of the joint model.

COCO's mAP is no mean over images at all: such a metric has a `whole`, which gives the quality of
any choice of deferred rows itself, and rows that are its parts to first order.

The metrics of a task stand in its folder under `ebjr.tasks`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ebjr.plugins import load_entry_points

Loss = Callable[[Any, Any], np.ndarray]
"""Predictions (n,) and targets (n,) in, a loss of each row (n,) out, at least 0."""


class Whole(Protocol):
    """The quality of a joint model that is no mean of rows, for any choice of deferred rows."""

    def __call__(self, deferred: np.ndarray, *, times: np.ndarray | None = None) -> float:
        """The quality where the rows `deferred`, (n,) bool, are, and each row counts `times`."""
        ...

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Each row's part (n,) if it is kept, and if deferred; the means are those of both ends."""
        ...


@dataclass(frozen=True)
class Metric:
    """What a table of outcomes is judged by.

    `rows` takes predictions and targets, (n,), to the quality of each row, (n,), higher is better;
    detectors are judged by their `Matches`. Where the quality is no mean of rows, `whole` takes
    what the student and what deferred rows are judged by, and the targets, to a `Whole`.
    """

    name: str
    rows: Loss | None
    title: str  # heads a column of figures
    rows_title: str = ""  # what gains of scores are measured in, for people
    root: bool = False  # the figure is the root of the mean loss
    lower: bool = True  # the figure is a loss, and so minus the quality
    binary: bool = False  # every row is right or wrong, 1 or 0
    percent: bool = False  # the quality lies between 0 and 1 and is shown in percent
    certifiable: bool = True  # a row's quality depends on that row alone, as promises need
    whole: Callable[[Any, Any, Any], Whole] | None = None

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
        """A quality as its figure."""
        if self.percent:
            return f"{quality:.2%}"
        return f"{float(self.figure(quality)) + 0.0:.4g}"

    def words(self, quality: float) -> str:
        """A quality as its figure, for prose."""
        return f"{100 * quality:.2f} %" if self.percent else self.text(quality)

    def gain_text(self, gain: float) -> str:
        """A difference of two means of row qualities, higher is better."""
        return f"{100 * gain:.2f}" if self.percent else f"{gain:.4g}"

    @property
    def gain_unit(self) -> str:
        """What `gain_text` counts."""
        return "points" if self.percent else self.rows_title

    def check_target(self, figure: float) -> float:
        """A figure to reach, as a quality, if it is in the metric's range."""
        if self.lower or self.percent:
            return float(self.figure(self._not_negative("target", figure)))
        if not (math.isfinite(figure) and figure <= 1):
            raise ValueError(f"target must be at most 1, not {figure:g}")
        return float(figure)

    def check_tolerance(self, tolerance: float) -> float:
        """A tolerance in the figure's unit, if it is in the metric's range."""
        return self._not_negative("tolerance", tolerance)

    def _not_negative(self, name: str, figure: float) -> float:
        high = 1.0 if self.percent else math.inf
        if not (math.isfinite(figure) and 0 <= figure <= high):
            limits = "lie between 0 and 1" if self.percent else "be a finite number of at least 0"
            raise ValueError(f"{name} must {limits}, not {figure:g}")
        return float(figure)


METRICS: dict[str, Metric] = {}
"""The metrics that have a name. A task's folder adds its own, and `register_metric` a user's."""

OWN_METRICS: set[str] = set()  # the names that `register_metric` was given


def declare_metrics(*metrics: Metric) -> tuple[Metric, ...]:
    """Give metrics their names, as a task's folder does, and return them."""
    METRICS.update({metric.name: metric for metric in metrics})
    return metrics


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
        raise ValueError(f"there is a metric named {name} already")

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
    """The registered metrics, a user's and packages'; they judge numbers."""
    if not _loaded:
        _loaded.append(True)
        load_entry_points("ebjr.metrics", register_metric)
    return tuple(METRICS[name] for name in METRICS if name in OWN_METRICS)


_loaded: list[bool] = []

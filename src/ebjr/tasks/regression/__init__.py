"""Regression: raw output is one number per input, then what a score reads (eq. 8-11)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ebjr.arrays import Array, Batch, to_numpy
from ebjr.blend import Blend, blend_predictions
from ebjr.errors import CalibrationError
from ebjr.joint import JointModel
from ebjr.metric import Metric, declare_metrics
from ebjr.scores import Score
from ebjr.task import Task, finite_rows, refuse_missing, target_column
from ebjr.tasks.regression.scores import PREDICTIONS, as_regression, check_grid

_ENOUGH = 32
"""The fewest rows that can show whether columns are classes."""


def _squared(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -((predictions - targets) ** 2)


def _explained(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    variance = float(np.var(targets))
    if variance == 0:
        raise ValueError("all targets are equal, so R2 is undefined: use another metric")
    return 1 - (predictions - targets) ** 2 / variance


class Regression(Task):
    """One number per input."""

    name = "regression"
    raw = PREDICTIONS
    metrics = declare_metrics(
        Metric("rmse", _squared, "RMSE", "squared error", root=True),
        Metric("mse", _squared, "MSE", "squared error"),
        Metric("mae", lambda found, real: -np.abs(found - real), "MAE", "absolute error"),
        Metric("r2", _explained, "R2", "R2", lower=False, certifiable=False),
    )
    targets_are = "numbers"

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] < 1):
            raise ValueError(
                f"{role} output must have shape (n,) or (n, 1 + k), the prediction first, not "
                f"{array.shape}"
            )
        return finite_rows(f"{role} output", array[:, None] if array.ndim == 1 else array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = target_column(targets)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"targets must be numbers, not {array.dtype}")
        refuse_missing(array)
        if not np.isfinite(array).all():
            raise ValueError("targets must be finite, but some are infinite")
        return array.astype(np.float64)

    def check_meant(self, role: str, output: np.ndarray, targets: np.ndarray) -> None:
        """Refuse a classifier's output, whose first column would be taken for the prediction.

        Its largest column is mostly the target, and its first is worse than the targets' mean.
        """
        width = output.shape[1]
        in_range = width > 1 and bool(((targets % 1 == 0) & (targets >= 0)).all())
        if len(targets) < _ENOUGH or not in_range or targets.max() >= width:
            return
        hits = float((output.argmax(axis=1) == targets).mean())
        missed = float(((output[:, 0] - targets) ** 2).mean())
        if hits > 0.5 and missed > np.var(targets) > 0:
            raise ValueError(
                f"{role} output must have the prediction first, but looks like the logits of "
                f"{width} classes: the largest column is the target in {hits:.0%} of {len(targets)}"
                " rows; give --task classification (task='classification')"
            )

    def predict(self, output: Array) -> Array:
        return as_regression(output)[:, 0]

    def shared(self, output: Batch, change: Callable[..., Any] | None = None) -> Batch:
        return as_regression(output)[:, :1]

    def mix(self, student: Array, teacher: Array, blend: float | Blend) -> Array:
        self.check_blend(blend)
        return blend_predictions(self.shared(student), self.shared(teacher), blend)

    def scores(self, student: np.ndarray) -> list[str]:
        return [name for name in super().scores(student) if _reads(name, student)]

    def candidates(self, student: np.ndarray) -> list[str]:
        """Return the usual candidates; CalibrationError if no score has anything to read."""
        found = super().candidates(student)
        if not found:
            raise CalibrationError(
                "the student's raw output has only predictions, so no score can tell which rows to "
                "defer: return (n, 1 + k) with energies, a standard deviation, quantiles or "
                "ensemble members after the prediction"
            )
        return found

    def grid_gap(self, score: Score, student: np.ndarray, targets: np.ndarray) -> str | None:
        grid = score.parameters.get("grid")
        try:
            if grid is not None:
                check_grid(grid, targets, student)
        except ValueError as error:
            return str(error)
        return None

    def weights(
        self, student: np.ndarray, teacher: np.ndarray, targets: np.ndarray
    ) -> tuple[float, ...]:
        """Return inverse-variance weights, with independent errors and with their covariance."""
        one, other = student[:, 0] - targets, teacher[:, 0] - targets
        mine, theirs, both = (float(np.mean(v)) for v in (one**2, other**2, one * other))
        found = [theirs / mine if mine else np.inf]
        if mine > both:
            found.append((theirs - both) / (mine - both))
        return tuple(float(f"{w:.3g}") for w in found if 0 < w <= 10)


def _reads(name: str, output: np.ndarray) -> bool:
    """Whether a score can read raw output of this width, and is finite in nearly all rows."""
    try:  # NaN always defers, at no cost to a curve, so that a score with many NaN would win
        return bool(np.isfinite(PREDICTIONS.scores[name](output)).mean() >= 0.99)
    except ValueError:
        return False


TASK = Regression()


class JointRegressor(JointModel):
    """Two regressors of the same quantity as one (eq. 7).

    Parameters
    ----------
    student, teacher
        Models whose raw output is (n,) predictions or (n, 1 + k): the prediction first, then what
        the score reads. The teacher needs only predictions.
    router, when_unavailable, late
        As in `JointClassifier`.
    blend
        The student's weight in a deferred answer, ``(teacher + blend * student) / (1 + blend)``. By
        default as in `JointClassifier`.

    Examples
    --------
    >>> from ebjr import Router
    >>> student = lambda x: np.stack([x, 0.1 * x], axis=1)  # a prediction and its deviation
    >>> joint = JointRegressor(student, lambda x: x + 1, Router("predicted_std", threshold=-0.2))
    >>> answer = joint(np.array([1.0, 5.0]))
    >>> answer.prediction, answer.deferred
    (array([1., 6.]), array([False,  True]))
    """

    kind = TASK


Regression.final = JointRegressor

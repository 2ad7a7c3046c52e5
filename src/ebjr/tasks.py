"""Tasks: what raw output and targets are, what they mean, and how two answers are mixed.

Everything that differs between classification and regression is here: outcomes, curves,
calibration and the joint loop ask the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ebjr.arrays import Array, to_numpy
from ebjr.blend import Blend, blend_logits, blend_predictions
from ebjr.regression_scores import as_regression
from ebjr.scores import REGRESSION_SCORES, SCORES


class Task:
    """One task. The only instances are those of `TASKS`.

    Attributes
    ----------
    name
        As in ``task=``.
    columns
        What the columns of raw output are, for messages.
    takes_temperatures
        Whether a blend may carry temperatures.
    """

    name: str
    columns: str
    takes_temperatures = False

    def check_output(self, role: str, output: Any) -> np.ndarray:
        """One model's raw output as NumPy floats.

        Raises
        ------
        ValueError
            Another rank, or something else than finite real numbers.
        """
        raise NotImplementedError

    def check_targets(self, targets: Any) -> np.ndarray:
        """(n,) targets as NumPy.

        Raises
        ------
        ValueError
            Another rank or type.
        """
        raise NotImplementedError

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int | None:
        """How many classes both answer; None where there are none.

        Raises
        ------
        ValueError
            They do not answer alike.
        """
        return None

    def check_range(self, targets: np.ndarray, classes: int | None, where: str = "") -> None:
        """Check that targets are among the classes.

        Raises
        ------
        ValueError
            Some are not.
        """

    def predict(self, output: Array) -> Array:
        """(n,): the answers that raw output means."""
        raise NotImplementedError

    def shared(self, output: Array) -> Array:
        """What of raw output student and teacher have in common: the joint model's own."""
        return output

    def mix(self, student: Array, teacher: Array, blend: float) -> Array:
        """Raw output of deferred rows with the student's answer blended in."""
        raise NotImplementedError

    def check_blend(self, blend: float) -> None:
        """Check that answers can be mixed like that.

        Raises
        ------
        ValueError
            It carries temperatures, and there are no logits that they could divide.
        """
        if isinstance(blend, Blend) and not self.takes_temperatures:
            raise ValueError(
                f"a blend of predictions is a weight without temperatures, not {blend}"
            )

    def weights(
        self, student: np.ndarray, teacher: np.ndarray, targets: np.ndarray
    ) -> tuple[float, ...]:
        """Weights of a blend that the examples suggest, beside the usual candidates."""
        return ()

    def scores(self, student: np.ndarray) -> list[str]:
        """The named scores that can read a student's raw output."""
        raise NotImplementedError

    def pack(self, targets: np.ndarray) -> np.ndarray:
        """The targets in the smallest type that keeps them."""
        return targets


class _Classification(Task):
    name = "classification"
    columns = "classes"
    takes_temperatures = True

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim != 2 or array.shape[1] < 2:
            raise ValueError(
                f"{role} logits must have shape (n, classes) with at least 2 classes, not "
                f"{array.shape}"
            )
        return _finite(f"{role} logits", array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = _column(targets)
        if len(array) and not np.issubdtype(array.dtype, np.integer):
            _refuse_missing(array)
            raise ValueError(f"targets must be integer labels, not {array.dtype}")
        return array.astype(np.int64)

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int:
        classes = student.shape[1]
        if teacher.shape[1] != classes:
            raise ValueError(
                f"student and teacher must answer the same classes, but the student has {classes} "
                f"and the teacher {teacher.shape[1]}"
            )
        return int(classes)

    def check_range(self, targets: np.ndarray, classes: int | None, where: str = "") -> None:
        assert classes is not None
        outside = (targets < 0) | (targets >= classes)
        if outside.any():
            raise ValueError(
                f"targets must lie in 0..{classes - 1}, but {int(outside.sum())} of "
                f"{len(targets)}{where} do not, the first is {targets[outside][0]}; leave examples "
                "without a label out"
            )

    def predict(self, output: Array) -> Array:
        return output.argmax(-1)

    def mix(self, student: Array, teacher: Array, blend: float) -> Array:
        return blend_logits(student, teacher, blend)

    def scores(self, student: np.ndarray) -> list[str]:
        return list(SCORES)

    def pack(self, targets: np.ndarray) -> np.ndarray:
        return targets.astype(np.min_scalar_type(int(targets.max())))


class _Regression(Task):
    name = "regression"
    columns = "columns"

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] < 1):
            raise ValueError(
                f"{role} output must have shape (n,) or (n, 1 + k), the prediction first, not "
                f"{array.shape}"
            )
        return _finite(f"{role} output", array[:, None] if array.ndim == 1 else array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = _column(targets)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"targets must be numbers, not {array.dtype}")
        _refuse_missing(array)
        if not np.isfinite(array).all():
            raise ValueError("targets must be finite, but some are infinite")
        return array.astype(np.float64)

    def predict(self, output: Array) -> Array:
        return as_regression(output)[:, 0]

    def shared(self, output: Array) -> Array:
        return as_regression(output)[:, :1]

    def mix(self, student: Array, teacher: Array, blend: float) -> Array:
        self.check_blend(blend)
        return blend_predictions(self.shared(student), self.shared(teacher), blend)

    def scores(self, student: np.ndarray) -> list[str]:
        return [name for name in REGRESSION_SCORES if _reads(name, student)]

    def weights(
        self, student: np.ndarray, teacher: np.ndarray, targets: np.ndarray
    ) -> tuple[float, ...]:
        """Inverse variances, as if the errors were independent, and with their covariance."""
        one, other = student[:, 0] - targets, teacher[:, 0] - targets
        mine, theirs, both = (float(np.mean(v)) for v in (one**2, other**2, one * other))
        found = [theirs / mine if mine else np.inf]
        if mine > both:
            found.append((theirs - both) / (mine - both))
        return tuple(float(f"{w:.3g}") for w in found if 0 < w <= 10)


TASKS: Mapping[str, Task] = {task.name: task for task in (_Classification(), _Regression())}
"""By name: everything a task decides."""


def as_task(name: str) -> Task:
    """The task of that name.

    Raises
    ------
    ValueError
        There is none.

    Examples
    --------
    >>> as_task("regression").predict(np.array([[5.0, 0.1]]))
    array([5.])
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {name!r}")
    return TASKS[name]


def _reads(name: str, output: np.ndarray) -> bool:
    """Whether a score can read raw output of this width, and what it reads means something.

    Rows with NaN are always deferred, which costs a curve nothing: many of them would win.
    """
    try:
        return bool(np.isfinite(REGRESSION_SCORES[name](output)).mean() >= 0.99)
    except ValueError:
        return False


def _finite(what: str, array: np.ndarray) -> np.ndarray:
    """Real, finite floats (n, k)."""
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{what} must be real numbers, not {array.dtype}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{what} must be finite, but {len(bad)} of {len(array)} rows hold NaN or "
            f"infinity, the first in row {bad[0]}"
        )
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _column(targets: Any) -> np.ndarray:
    array = to_numpy(targets)
    if array.ndim != 1:
        raise ValueError(f"targets must have shape (n,), not {array.shape}")
    return array


def _refuse_missing(array: np.ndarray) -> None:
    missing = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
    if missing:
        raise ValueError(
            f"{missing} of {len(array)} targets are NaN: leave examples without a label out, "
            "or give no targets at all, to compare with the teacher's own answers"
        )

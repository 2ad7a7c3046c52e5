"""Router: one comparison, ``score >= threshold``, keeps an input on the student (eq. 6).

The comparison, and the order in which thresholds defer rows, are in this file only.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ebjr.arrays import Array, as_float, is_array
from ebjr.scores import Score, as_score


class Router:
    """Keeps or defers each row of the student's raw output (eq. 6).

    Parameters
    ----------
    score
        A name (``"energy"``, ``"softmax(temperature=2.0)"``) or any callable from raw output
        (n, ...) to (n,). Higher = keep.
    threshold
        In the score's unit, above ``-inf``. A row is kept if ``score >= threshold``; every other
        row, also one with a NaN score, is deferred. ``inf`` defers every finite score.
    skip
        For a stage with more stages after it: a row whose score is under `skip` has no hope here.
        It is kept, so that the next stage's router can defer it.

    Attributes
    ----------
    chosen_with
        The `blend` and `rescale` of the operating point that the router comes from, and of a chain
        the number of `models`; empty if it comes from none. A joint model takes what it is not
        given from here, and refuses a chain's router without the chain.

    Raises
    ------
    ValueError
        `score` is unknown, or `threshold` or `skip` is NaN or ``-inf``.

    Examples
    --------
    >>> import numpy as np
    >>> router = Router("max_logit", threshold=2.0)
    >>> router(np.array([[3.0, 0.0], [1.0, 0.0]]))
    (array([3., 1.]), array([False,  True]))
    >>> router.threshold = 4.0
    """

    def __init__(
        self,
        score: str | Callable[..., Array] | Score,
        threshold: float,
        skip: float | None = None,
    ) -> None:
        self.score = as_score(score)
        self.threshold = threshold
        self.chosen_with: Mapping[str, Any] = {}
        self.skip = None if skip is None else check_threshold(skip, "skip")
        if self.skip is not None and self.skip >= self.threshold:
            raise ValueError(f"skip must be under the threshold, {threshold}, not {skip}")

    @property
    def threshold(self) -> float:
        """The knob; a new value takes effect at the next batch."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = check_threshold(value)

    def __call__(self, output: Array) -> tuple[Array, Array]:
        """Return score, (n,), and deferred, (n,) bool, of the student's raw output, (n, ...)."""
        score = self.score(output)
        return score, self.deferred(score, self._threshold)

    def deferred(self, score: Array, threshold: float | np.ndarray) -> Array:
        """Return which rows, (n,) bool, a threshold defers, see `is_deferred`."""
        return is_deferred(score, threshold, self.skip)

    def __repr__(self) -> str:
        skip = "" if self.skip is None else f", skip={self.skip!r}"
        return f"Router({str(self.score)!r}, threshold={self.threshold!r}{skip})"


def is_deferred(score: Array, threshold: float | np.ndarray, skip: float | None = None) -> Array:
    """Return which rows the teacher answers: all but those with ``score >= threshold`` (eq. 6).

    Rows whose score is under `skip`, if given, are not deferred either; NaN is not under `skip`.

    `score` is (n,) or a number; NaN is deferred at every threshold. With NumPy scores `threshold`
    may be (n,), one per row. The result is bool, in the score's shape, library and device. A
    single-precision score is compared as in double precision, which some devices lack.

    Examples
    --------
    >>> is_deferred(np.array([0.4, 0.6, np.nan]), 0.5)
    array([ True, False,  True])
    """
    if skip is not None:
        hopeless = is_deferred(score, skip) & (score == score)
        return is_deferred(score, threshold) & ~hopeless
    if isinstance(threshold, np.ndarray):
        return ~(np.asarray(score, np.float64) >= threshold)
    exact = as_float(score) if is_array(score) else np.float64(score)
    return ~(exact >= (round_up(threshold) if exact.dtype.itemsize == 4 else threshold))


def deferral_key(score: np.ndarray) -> np.ndarray:
    """Return scores, (n,), as they are ranked: NaN, which every threshold defers, is ``-inf``.

    A rising threshold defers rows in the ascending order of this key.
    """
    return np.where(np.isnan(score), -np.inf, score)


def check_threshold(value: float, name: str = "threshold") -> float:
    """Return a threshold, called `name`, as a float.

    Raises
    ------
    ValueError
        `value` is NaN, or ``-inf``, which would keep even rows that a score marks with ``-inf``.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (ValueError, OverflowError):  # not a number, or an integer too large for a float
        number = math.nan
    if math.isnan(number) or number == -math.inf:
        raise ValueError(f"{name} must be a number above -inf, not {value!r:.60}")
    return number


@lru_cache(maxsize=256)
def round_up(number: float) -> float:
    """Return the smallest single-precision number that is at least `number`.

    A single-precision score reaches one exactly if it reaches the other.
    """
    with np.errstate(over="ignore"):
        single = np.float32(number)
        below = float(single) < number
        return float(np.nextafter(single, np.float32(np.inf)) if below else single)

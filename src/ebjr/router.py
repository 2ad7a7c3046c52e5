"""Router: one comparison, ``score >= threshold``, keeps an input on the student (eq. 6).

The comparison, and the order in which thresholds defer rows, stand in this file and nowhere else.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ebjr.arrays import Array, as_float, is_array
from ebjr.scores import Score, as_score


class Router:
    """Decides for each row of the student's raw output: keep it, or defer to the teacher (eq. 6).

    Parameters
    ----------
    score
        A name (``"energy"``, ``"softmax(temperature=2.0)"``) or any callable from raw output
        (n, ...) to (n,). Higher = keep.
    threshold
        In the score's unit; above ``-inf``. A row is kept when ``score >= threshold``; every other
        one, those with a NaN score included, is deferred. ``inf`` defers every finite score.
    skip
        Of a stage with more stages after it: a row whose score is under `skip` is hopeless here. It
        is kept, too, for the router of the next stage to defer.

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
        self.skip = None if skip is None else check_threshold(skip)
        if self.skip is not None and self.skip >= self.threshold:
            raise ValueError(f"skip must be under the threshold, {threshold}, but is {skip}")

    @property
    def threshold(self) -> float:
        """The knob. A new value takes effect at the next batch."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = check_threshold(value)

    def __call__(self, output: Array) -> tuple[Array, Array]:
        """Score the student's raw output (n, ...): returns score (n,) and deferred (n,) bool."""
        score = self.score(output)
        return score, self.deferred(score, self._threshold)

    def deferred(self, score: Array, threshold: float | np.ndarray) -> Array:
        """(n,) bool: which rows of a score are deferred at a threshold, see `is_deferred`."""
        return is_deferred(score, threshold, self.skip)

    def __repr__(self) -> str:
        skip = "" if self.skip is None else f", skip={self.skip!r}"
        return f"Router({str(self.score)!r}, threshold={self.threshold!r}{skip})"


def is_deferred(score: Array, threshold: float | np.ndarray, skip: float | None = None) -> Array:
    """Which rows the teacher answers: not those with ``score >= threshold`` (eq. 6).

    Nor those whose score is under `skip`, if that is given; a NaN is under nothing.

    `score` is (n,), or one number; NaN is deferred at every threshold. Of NumPy scores `threshold`
    may be (n,), one for each row. The answer is bool, of the score's shape, in its library and on
    its device. A single-precision score reaches a double-precision threshold just where it does so
    in double precision, which some devices lack.

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
    """Scores as they are ranked, (n,): what every threshold defers comes first, as ``-inf``.

    Rows are deferred in the ascending order of this key as the threshold rises.
    """
    return np.where(np.isnan(score), -np.inf, score)


def check_threshold(value: float) -> float:
    """The threshold as a float.

    NaN is refused, and ``-inf``, which would keep even the rows that a score marks with ``-inf``.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (ValueError, OverflowError):  # no number, or a whole one that no float holds
        number = math.nan
    if math.isnan(number) or number == -math.inf:
        raise ValueError(f"threshold must be a number above -inf, not {value!r:.60}")
    return number


@lru_cache(maxsize=256)
def round_up(number: float) -> float:
    """The smallest single-precision number that is not below `number`.

    A single-precision score reaches the one just where it reaches the other.
    """
    with np.errstate(over="ignore"):
        single = np.float32(number)
        below = float(single) < number
        return float(np.nextafter(single, np.float32(np.inf)) if below else single)

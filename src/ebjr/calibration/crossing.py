"""The paper's threshold (figure 4): where the score densities of right and wrong cross."""

from __future__ import annotations

import numpy as np

from ebjr.errors import CalibrationError


def crossing(score: np.ndarray, right: np.ndarray) -> float:
    """Return the score at which the densities of the student's right and wrong rows cross.

    By Bayes' rule the densities are equal where the chance of being right, given the score, equals
    the overall share of right rows. That chance is fitted as an increasing function of the score
    (isotonic regression), so that no bin width or bandwidth is chosen and any increasing
    transformation of the score gives the same rows. The result is the smallest score at which a row
    is at least as typical of the right rows.

    `score` is (n,), without rows that are not finite; `right` is (n,), 1 or 0.

    Raises
    ------
    CalibrationError
        The student is right on all rows or on none, or the score does not tell them apart.

    Examples
    --------
    >>> crossing(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    3.0
    """
    from scipy.optimize import isotonic_regression  # slow to import

    usable = np.isfinite(score)
    score, right = score[usable], right[usable]
    share = float(right.mean()) if len(right) else 0.0
    if share in (0.0, 1.0):
        which = "right" if share else "wrong"
        raise CalibrationError(
            f"the student is {which} on all {len(right)} examples, so no two densities can cross: "
            "use another goal"
        )
    values, group, count = np.unique(score, return_inverse=True, return_counts=True)
    chance = np.bincount(group, weights=right) / count
    fitted = isotonic_regression(chance, weights=count.astype(np.float64)).x
    above = np.flatnonzero(fitted > share)
    if fitted[0] >= share or not len(above):
        raise CalibrationError(
            "the densities of right and wrong answers do not cross, because this score does not "
            "tell them apart: use another score or goal"
        )
    return float(values[np.flatnonzero(fitted >= share)[0]])

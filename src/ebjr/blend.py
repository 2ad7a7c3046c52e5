"""Blend: once the teacher has been called, the student's answer is already paid for.

A deferred answer is ``softmax(teacher) + weight * softmax(student)``, renormalized. Weight 0 is
the paper: the teacher alone. Whether more helps is a matter of the pair, and is calibrated.
"""

from __future__ import annotations

import math

from ebjr.arrays import Array, as_float, log_softmax, namespace


def check_weight(weight: float) -> float:
    """The weight as a float: finite and not negative.

    Raises
    ------
    ValueError
        It is neither.

    Examples
    --------
    >>> check_weight(1)
    1.0
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"blend must be a finite weight of at least 0, not {weight}")
    return float(weight)


def blend_logits(student: Array, teacher: Array, weight: float) -> Array:
    """Mix the student's probabilities into the teacher's.

    Parameters
    ----------
    student, teacher
        Logits, (n, classes), of the same examples.
    weight
        What the student's probabilities count beside the teacher's 1.

    Returns
    -------
    Array
        (n, classes): the teacher's logits untouched where `weight` is 0, else the
        log-probabilities of the mixture. The softmax of either is the answer.

    Raises
    ------
    ValueError
        The weight is negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> teacher, student = np.log([[0.6, 0.4]]), np.log([[0.2, 0.8]])
    >>> np.exp(blend_logits(student, teacher, weight=1.0)).round(3)
    array([[0.4, 0.6]])
    """
    weight = check_weight(weight)
    if weight == 0:
        return teacher
    xp = namespace(teacher)
    mixed = xp.logaddexp(
        log_softmax(as_float(teacher)), log_softmax(as_float(student)) + math.log(weight)
    )
    return mixed - math.log1p(weight)

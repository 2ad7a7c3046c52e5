"""Scores of specialized students, whose last column is "other" (eq. 16 and 17)."""

import math
from collections.abc import Callable

import numpy as np

from ebjr.arrays import Array, as_logits, logsumexp, namespace, top_and_total
from ebjr.scores import declare_raw_output, entropy, margin, scaled_logits, softmax


def specialized_energy(logits: Array, temperature: float = 1.0) -> Array:
    """Energy over the known classes; ``-inf`` where "other" wins (eq. 16 and 17), in nats.

    - `logits`: (n, C + 1): the C known classes, then "other".
    - `temperature`: T > 0; the paper's is 1.

    Raises
    ------
    ValueError
        `logits` has fewer than two columns, or `temperature` is not positive.

    Examples
    --------
    >>> specialized_energy(np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 3.0]])).round(3)
    array([2.693,  -inf])
    """
    scaled = scaled_logits(logits, temperature)
    return _unless_other(logsumexp(_known(scaled)) * temperature, scaled)


def specialized_softmax(logits: Array, temperature: float = 1.0) -> Array:
    """The largest softmax probability among the known classes; ``-inf`` where "other" wins.

    Examples
    --------
    >>> specialized_softmax(np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    array([ 0.5, -inf])
    """
    return _of_known(softmax, logits, temperature)


def specialized_margin(logits: Array, temperature: float = 1.0) -> Array:
    """`margin` among the known classes; ``-inf`` where "other" wins.

    Examples
    --------
    >>> specialized_margin(np.log([[0.6, 0.2, 0.2], [0.2, 0.2, 0.6]])).round(3)
    array([ 0.5, -inf])
    """
    return _of_known(margin, logits, temperature)


def specialized_entropy(logits: Array, temperature: float = 1.0) -> Array:
    """`entropy` among the known classes; ``-inf`` where "other" wins.

    Examples
    --------
    >>> specialized_entropy(np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])).round(3)
    array([-0.693,   -inf])
    """
    return _of_known(entropy, logits, temperature)


def known_softmax(logits: Array, temperature: float = 1.0) -> Array:
    """The softmax probability of the best known class, with "other" as one of the classes.

    It is small where "other" is likely, so that no row has to be marked.

    Examples
    --------
    >>> known_softmax(np.log([[0.6, 0.2, 0.2], [0.2, 0.1, 0.7]])).round(3)
    array([0.6, 0.2])
    """
    scaled = scaled_logits(logits, temperature)
    top, total = top_and_total(scaled)
    xp = namespace(scaled)
    with np.errstate(invalid="ignore"):
        return xp.exp(xp.max(_known(scaled), axis=-1) - top) / total


def _of_known(score: Callable[..., Array], logits: Array, temperature: float) -> Array:
    """Apply a score to the logits of two or more known classes; ``-inf`` where "other" wins."""
    logits = as_logits(logits)
    if logits.shape[1] < 3:
        raise ValueError(
            f"{score.__name__} needs at least two known classes and 'other', 3 columns, not "
            f"{logits.shape[1]}: with one known class use specialized_energy"
        )
    return _unless_other(score(_known(logits), temperature), logits)


def _known(logits: Array) -> Array:
    """Return the known classes' logits, contiguous, so that sums round alike in every batch."""
    columns = logits[:, :-1]
    return np.ascontiguousarray(columns) if type(columns) is np.ndarray else columns


def _unless_other(values: Array, logits: Array) -> Array:
    """Return values (n,), ``-inf`` where "other" is largest, NaN where a logit is NaN or inf."""
    xp = namespace(logits)
    _, total = top_and_total(logits)
    other_wins = logits[:, -1] > xp.max(_known(logits), axis=-1)  # a known class wins a tie
    return xp.where(other_wins, xp.full_like(values, -math.inf), values) + 0 * total


LOGITS_AND_OTHER = declare_raw_output(
    "logits and that of other",
    lambda name, parameters: np.zeros((1, 3)),
    (
        *(known_softmax, specialized_softmax, specialized_margin),
        *(specialized_entropy, specialized_energy),
    ),
)

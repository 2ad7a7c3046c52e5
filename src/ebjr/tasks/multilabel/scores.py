"""Scores of multilabel students, whose raw output is a logit per label, (n, labels)."""

import numpy as np

from ebjr.arrays import Array, as_logits, namespace, top_and_total
from ebjr.scores import declare_raw_output, scaled_logits


def smallest_margin(logits: Array) -> Array:
    """The distance of the least sure label from its boundary, in logits.

    Examples
    --------
    >>> smallest_margin(np.array([[3.0, -0.5], [4.0, -4.0]]))
    array([0.5, 4. ])
    """
    logits = as_logits(logits, 1)
    xp = namespace(logits)
    return _or_nan(xp.min(xp.abs(logits), axis=-1), logits)


def set_probability(logits: Array, temperature: float = 1.0) -> Array:
    """The logarithm of the probability of the predicted set of labels, at most 0.

    Labels are taken as independent: ``-sum log(1 + exp(-|z|))``.

    Examples
    --------
    >>> set_probability(np.array([[0.0, 0.0], [9.0, -9.0]])).round(3)
    array([-1.386, -0.   ])
    """
    scaled = scaled_logits(logits, temperature, least=1)
    xp = namespace(scaled)
    return _or_nan(-xp.sum(xp.log1p(xp.exp(-xp.abs(scaled))), axis=-1), scaled)


def label_entropy(logits: Array, temperature: float = 1.0) -> Array:
    """Negative entropy of the labels, taken as independent, in nats: 0 if certain, else below.

    Examples
    --------
    >>> label_entropy(np.array([[0.0], [99.0]])).round(3)
    array([-0.693, -0.   ])
    """
    scaled = scaled_logits(logits, temperature, least=1)
    xp = namespace(scaled)
    far = xp.abs(scaled)
    odds = xp.exp(-far)
    # with an infinite logit, the less likely answer has probability 0 and adds 0
    finite = xp.where(odds == 0, xp.zeros_like(far), far)
    return _or_nan(-xp.sum(xp.log1p(odds) + finite * odds / (1 + odds), axis=-1), scaled)


def label_energy(logits: Array, temperature: float = 1.0) -> Array:
    """The sum of the labels' negative free energies, ``sum T log(1 + exp(z / T))``, in nats.

    Each label is a choice between two logits, its own and 0 (eq. 3).

    Source: Wang et al., "Can multi-label classification networks know what they don't know?",
    NeurIPS 2021.

    Examples
    --------
    >>> label_energy(np.array([[0.0, 0.0], [9.0, -9.0]])).round(3)
    array([1.386, 9.   ])
    """
    scaled = scaled_logits(logits, temperature, least=1)
    xp = namespace(scaled)
    positive = xp.where(scaled > 0, scaled, xp.zeros_like(scaled))
    energy = positive + xp.log1p(xp.exp(-xp.abs(scaled)))
    return _or_nan(xp.sum(energy, axis=-1), scaled) * temperature


def _or_nan(values: Array, logits: Array) -> Array:
    """Return values (n,), but NaN where a logit is NaN or +inf or all are -inf."""
    _, total = top_and_total(logits)
    return values + 0 * total


LABEL_LOGITS = declare_raw_output(
    "label logits",
    lambda name, parameters: np.zeros((1, 2)),
    (smallest_margin, set_probability, label_entropy, label_energy),
)

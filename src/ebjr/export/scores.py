"""Every score of `ebjr.scores` in ONNX operators: raw output (n, k) of known k in, (n,) out.

Each does what the function of its name does there, with the same parameters. A row that holds NaN
or +inf has the score NaN, which no threshold keeps. A score of your own gets its form here::

    ONNX_SCORES["logit_gap"] = lambda op, logits: op.Sub(*top_two(op, logits))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ebjr.export.operators import Operators, Value
from ebjr.scores import Score
from ebjr.tasks.regression.scores import Grid, bin_log_weights, grid_log_weights, grid_points

_LEAST = -1e30
"""What stands in for a logarithm of 0 where it is multiplied by 0."""


def score_graph(op: Operators, score: Score, raw: Value) -> Value:
    """A score of raw output (n, k) as a part of a graph: (n,).

    Raises
    ------
    ValueError
        It has no form in ONNX operators.
    """
    if not score.named or score.name not in ONNX_SCORES:
        raise ValueError(
            f"the score {score.title} has no form in ONNX operators; these have: "
            f"{', '.join(ONNX_SCORES)}, and what ebjr.export.ONNX_SCORES is given"
        )
    return ONNX_SCORES[score.name](op, raw, **score.parameters)


# Classifiers


def energy(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """``T logsumexp(S(x) / T)`` (eq. 3)."""
    scaled = _scaled(op, logits, temperature)
    return _sound(op, scaled, op.Mul(logsumexp(op, scaled), temperature))


def softmax_energy(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """Log-sum-exp of the softmax probabilities."""
    scaled = _scaled(op, logits, temperature)
    return _sound(op, scaled, logsumexp(op, op.Exp(log_softmax(op, scaled))))


def softmax(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """The largest softmax probability."""
    scaled = _scaled(op, logits, temperature)
    _, below = _top(op, scaled)
    return _sound(op, scaled, op.Reciprocal(op.reduce("ReduceSum", op.Exp(below))), below)


def entropy(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """Negative entropy of the softmax probabilities."""
    scaled = _scaled(op, logits, temperature)
    likely = log_softmax(op, scaled)
    terms = op.Mul(op.Exp(likely), op.Max(likely, _LEAST))
    return _sound(op, scaled, op.reduce("ReduceSum", terms))


def margin(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """The largest softmax probability minus the second largest."""
    scaled = _scaled(op, logits, temperature)
    first, second = top_two(op, scaled)
    _, below = _top(op, scaled)
    apart = op.Sub(1.0, op.Exp(op.Sub(second, first)))
    return _sound(op, scaled, op.Div(apart, op.reduce("ReduceSum", op.Exp(below))), below)


def max_logit(op: Operators, logits: Value) -> Value:
    """The largest logit."""
    return _sound(op, logits, op.reduce("ReduceMax", logits))


def normalized_logit(op: Operators, logits: Value, p: float = 4.0) -> Value:
    """The largest logit over the p-norm of the row, each row centered at its mean."""
    centered = op.Sub(logits, op.reduce("ReduceMean", logits, keep=True))
    largest = op.reduce("ReduceMax", op.Abs(centered), keep=True)
    epsilon = 4.0 * float(np.finfo(op.dtype).eps)
    flat = op.LessOrEqual(
        largest, op.Mul(op.reduce("ReduceMax", op.Abs(logits), keep=True), epsilon)
    )
    scaled = op.Div(op.Where(flat, 0.0, centered), op.Where(flat, 1.0, largest))
    norm = op.Pow(op.reduce("ReduceSum", op.Pow(op.Abs(scaled), float(p))), 1.0 / p)
    value = op.Div(op.reduce("ReduceMax", scaled), op.Where(op.Equal(norm, 0.0), 1.0, norm))
    return op.where_all(op.Less(op.Abs(logits), math.inf), value)


def learned(
    op: Operators,
    logits: Value,
    helps: Sequence[float],
    hurts: Sequence[float],
    classes: Sequence[Sequence[float]] = (),
) -> Value:
    """P(deferring hurts) - P(deferring helps), of a logistic model on the score's features."""
    weights = np.array([helps, hurts], np.float64).T.astype(op.dtype)
    odds = op.Add(op.MatMul(_features(op, logits), weights[1:]), weights[0])
    if len(classes):
        offsets = np.array(classes, np.float64).astype(op.dtype)
        odds = op.Add(odds, op.Gather(offsets, op.ArgMax(logits, axis=1, keepdims=0)))
    alike = op.Sub(op.columns(odds, 0, 1), op.columns(odds, 0, 1))
    likely = op.Softmax(op.Concat(odds, alike, axis=1), axis=1)
    return _sound(op, logits, op.Sub(op.column(likely, 1), op.column(likely, 0)))


def _features(op: Operators, logits: Value) -> Value:
    """What `ebjr.tasks.classification.learned.score_features` gives, (n, 5)."""
    top, below = _top(op, logits)
    total = op.reduce("ReduceSum", op.Exp(below))
    first, second = top_two(op, logits)
    rest = op.Max(op.Sub(total, 1.0), float(np.finfo(op.dtype).eps))
    largest = op.Squeeze(top, [1])
    columns = (
        op.Neg(op.Log(rest)),
        op.Max(op.Min(op.Sub(first, second), 50.0), 0.0),
        entropy(op, logits),
        op.Add(op.Log(total), largest),
        largest,
    )
    return op.Concat(*(op.Unsqueeze(column, [1]) for column in columns), axis=1)


def top_two(op: Operators, x: Value) -> tuple[Value, Value]:
    """The largest and the second largest logit, each (n,)."""
    values, _ = op.TopK(x, [2], outputs=2)
    return op.column(values, 0), op.column(values, 1)


# Specialized students


def specialized_energy(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """Energy over the known classes; -inf where "other" wins (eq. 16 and 17)."""
    return _of_known(op, energy, logits, temperature)


def specialized_softmax(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """`softmax` among the known classes; -inf where "other" wins."""
    return _of_known(op, softmax, logits, temperature)


def specialized_margin(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """`margin` among the known classes; -inf where "other" wins."""
    return _of_known(op, margin, logits, temperature)


def specialized_entropy(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """`entropy` among the known classes; -inf where "other" wins."""
    return _of_known(op, entropy, logits, temperature)


def known_softmax(op: Operators, logits: Value, temperature: float = 1.0) -> Value:
    """The softmax probability of the best known class, "other" being one of the classes."""
    scaled = _scaled(op, logits, temperature)
    _, below = _top(op, scaled)
    best = op.reduce("ReduceMax", op.columns(below, 0, -1))
    return _sound(op, scaled, op.Div(op.Exp(best), op.reduce("ReduceSum", op.Exp(below))), below)


def _of_known(
    op: Operators, score: Callable[..., Value], logits: Value, temperature: float
) -> Value:
    known = op.columns(logits, 0, -1)
    other = op.column(logits, -1)
    wins = op.Greater(other, op.reduce("ReduceMax", known))
    value = op.Where(wins, -math.inf, score(op, known, temperature))
    return _sound(op, logits, value)


# Regressors


def regression_energy(op: Operators, output: Value, **density: Any) -> Value:
    """``log integral exp S(x, y) dy`` (eq. 8-11)."""
    _, weighted, _ = _density(op, output, **density)
    return _sound(op, weighted, logsumexp(op, weighted))


def density_entropy(op: Operators, output: Value, **density: Any) -> Value:
    """Negative differential entropy of the density that the energies mean."""
    energies, weighted, _ = _density(op, output, **density)
    free = op.Unsqueeze(logsumexp(op, weighted), [1])
    terms = op.Mul(op.Exp(op.Sub(weighted, free)), op.Max(op.Sub(energies, free), _LEAST))
    return _sound(op, weighted, op.reduce("ReduceSum", terms))


def density_std(op: Operators, output: Value, **density: Any) -> Value:
    """Minus the standard deviation of the density that the energies mean."""
    _, weighted, places = _density(op, output, **density)
    mass = op.Exp(log_softmax(op, weighted))
    mean = op.reduce("ReduceSum", op.Mul(mass, places), keep=True)
    away = op.Sub(places, mean)
    variance = op.reduce("ReduceSum", op.Mul(mass, op.Mul(away, away)))
    return _sound(op, weighted, op.Neg(op.Sqrt(variance)))


def predicted_std(op: Operators, output: Value, of: str = "std") -> Value:
    """Minus the standard deviation that the student predicts; NaN where that is negative."""
    value = op.column(output, 1)
    if of == "log_variance":
        spread = op.Exp(op.Mul(value, 0.5))
        return op.Where(op.Less(value, math.inf), op.Neg(spread), np.nan)
    spread = op.Sqrt(value) if of == "variance" else value
    return op.Where(op.GreaterOrEqual(value, 0.0), op.Neg(spread), np.nan)


def interval_width(op: Operators, output: Value) -> Value:
    """Minus the width between the lowest and the highest quantile; NaN where they cross."""
    width = op.Sub(op.column(output, -1), op.column(output, 1))
    return op.Where(op.GreaterOrEqual(width, 0.0), op.Neg(width), np.nan)


def ensemble_spread(op: Operators, output: Value) -> Value:
    """Minus the standard deviation of the members' predictions."""
    members = op.columns(output, 1)
    off = op.Sub(members, op.reduce("ReduceMean", members, keep=True))
    variance = op.Div(op.reduce("ReduceSum", op.Mul(off, off)), float(output.shape[1] - 2))
    return op.where_all(op.Less(op.Abs(members), math.inf), op.Neg(op.Sqrt(variance)))


def _density(
    op: Operators,
    output: Value,
    widths: float | Sequence[float] | None = None,
    grid: Grid | None = None,
    rule: str = "trapezoid",
) -> tuple[Value, Value, np.ndarray]:
    """Energies (n, k), the same with the logarithm of what each stands for, and their y (k,)."""
    energies, count = op.columns(output, 1), output.shape[1] - 1
    if grid is not None:
        weights, places = grid_log_weights(grid, count, rule), grid_points(grid, count)
    else:
        each = 1.0 if widths is None else widths
        sizes = np.broadcast_to(np.asarray(each, np.float64), (count,))
        weights, places = bin_log_weights(each, count), np.cumsum(sizes) - sizes / 2
    weighted = op.Add(energies, weights.astype(op.dtype)) if weights.any() else energies
    return energies, weighted, places.astype(op.dtype)


# What they share


def _scaled(op: Operators, logits: Value, temperature: float) -> Value:
    return logits if temperature == 1 else op.Div(logits, float(temperature))


def _top(op: Operators, x: Value) -> tuple[Value, Value]:
    """The largest logit, (n, 1), and how far below it each one lies, (n, k)."""
    top = op.reduce("ReduceMax", x, keep=True)
    return top, op.Sub(x, top)


def logsumexp(op: Operators, x: Value) -> Value:
    """``log(sum(exp(x)))`` of (n, k): (n,)."""
    top, below = _top(op, x)
    return op.Add(op.Log(op.reduce("ReduceSum", op.Exp(below))), op.Squeeze(top, [1]))


def log_softmax(op: Operators, x: Value) -> Value:
    """Logits to log-probabilities, (n, k)."""
    return op.Sub(x, op.Unsqueeze(logsumexp(op, x), [1]))


def _sound(op: Operators, logits: Value, score: Value, below: Value = None) -> Value:
    """The score (n,), but NaN where a logit is NaN or +inf, or all are -inf.

    Just there one of the differences to the largest is NaN. No runtime's own way with NaN is relied
    on, as they differ in it.
    """
    if below is None:
        _, below = _top(op, logits)
    return op.where_all(op.LessOrEqual(below, 0.0), score)


ONNX_SCORES: dict[str, Callable[..., Value]] = {
    function.__name__: function
    for function in (
        *(energy, softmax_energy, softmax, entropy, margin, max_logit, normalized_logit, learned),
        *(specialized_energy, specialized_softmax, specialized_margin, specialized_entropy),
        *(known_softmax, regression_energy, density_entropy, density_std, predicted_std),
        *(interval_width, ensemble_spread),
    )
}
"""The form of each score by its name: operators and raw output (n, k) in, (n,) out."""

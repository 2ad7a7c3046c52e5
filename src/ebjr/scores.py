"""Scores: how well an input fits what the student knows. Higher = keep on the student.

Every score maps raw output (n, classes) to (n,); those of regressors, which
`ebjr.regression_scores` holds and this file names, read (n, 1 + k), those of specialized students
(n, C + 1), the logits of the C known classes and that of "other" last, and those of detectors, in
`ebjr.detection_scores`, a list of n `Detections`. Arrays of NumPy and PyTorch go in, and the same
library on the same device comes out. A row with a NaN or +inf logit has the score NaN, which no
threshold keeps: it is deferred.

The paper's score is `energy` (eq. 3, on logits). The thresholds that its authors published for
10 and for 100 classes lie in the only range that `softmax_energy` can take and outside of any
logit energy, so both are here, under two names. Which one is best depends on the pair: measure.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ebjr.arrays import (
    Array,
    argmax,
    as_logits,
    convert_like,
    is_array,
    log_softmax,
    logsumexp,
    namespace,
    row_count,
    take_places,
    to_numpy,
    top_and_total,
    top_two,
)
from ebjr.detection_scores import DETECTION_SCORES, image_numbers, learned_gain
from ebjr.regression_scores import (
    density_entropy,
    density_std,
    ensemble_spread,
    interval_width,
    predicted_std,
    regression_energy,
)


def energy(logits: Array, temperature: float = 1.0) -> Array:
    """Negative free energy of the logits, ``-F(x) = T logsumexp(S(x) / T)`` (eq. 3), in nats.

    Parameters
    ----------
    logits
        (n, classes).
    temperature
        T > 0; 1 is the paper's.

    Returns
    -------
    Array
        (n,), unbounded; grows by c when every logit of a row grows by c.

    Raises
    ------
    ValueError
        Not (n, classes) with two classes or more, or a temperature that is not positive.

    Examples
    --------
    >>> energy(np.array([[0.0, 0.0], [9.0, 0.0]])).round(3)
    array([0.693, 9.   ])
    """
    return logsumexp(_scaled(logits, temperature)) * temperature


def softmax_energy(logits: Array, temperature: float = 1.0) -> Array:
    """Log-sum-exp of the softmax probabilities: what the authors' notebook probably ran.

    Its range is ``[1/C + log C, 1 + log(1 + (C - 1)/e)]`` for C classes: 2.40 to 2.46 for ten.

    Examples
    --------
    >>> softmax_energy(np.array([[0.0] * 10, [99.0] + [0.0] * 9])).round(3)
    array([2.403, 2.461])
    """
    return logsumexp(_exp(log_softmax(_scaled(logits, temperature))))


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """The largest softmax probability.

    Source: Hendrycks & Gimpel, "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks", ICLR 2017.

    Examples
    --------
    >>> softmax(np.array([[0.0, 0.0]]))
    array([0.5])
    """
    _, total = top_and_total(_scaled(logits, temperature))
    return namespace(total).reciprocal(total)


def entropy(logits: Array, temperature: float = 1.0) -> Array:
    """Negative entropy of the softmax probabilities, in nats: 0 when certain, else below.

    Source: Teerapittayanon et al., "BranchyNet", ICPR 2016.

    Examples
    --------
    >>> entropy(np.array([[0.0, 0.0], [99.0, 0.0]])).round(3)
    array([-0.693, -0.   ])
    """
    log_probabilities = log_softmax(_scaled(logits, temperature))
    xp = namespace(log_probabilities)
    probabilities = xp.exp(log_probabilities)
    # 0 log 0 = 0, also for a logit of -inf
    nothing = xp.zeros_like(log_probabilities)
    finite = xp.where(probabilities == 0, nothing, log_probabilities)
    return xp.sum(probabilities * finite, axis=-1)


def margin(logits: Array, temperature: float = 1.0) -> Array:
    """The largest softmax probability minus the second largest.

    Source: Scheffer et al., "Active hidden Markov models for information extraction", IDA 2001.

    Examples
    --------
    >>> margin(np.log([[0.7, 0.2, 0.1]])).round(3)
    array([0.5])
    """
    scaled = _scaled(logits, temperature)
    first, second = top_two(scaled)
    _, total = top_and_total(scaled)
    with np.errstate(invalid="ignore"):
        return -namespace(scaled).expm1(second - first) / total


def max_logit(logits: Array) -> Array:
    """The largest logit.

    Source: Hendrycks et al., "Scaling out-of-distribution detection for real-world settings",
    ICML 2022.

    Examples
    --------
    >>> max_logit(np.array([[3.0, 1.0]]))
    array([3.])
    """
    largest, total = top_and_total(as_logits(logits))
    return largest + 0 * total  # a +inf or NaN logit is NaN here as everywhere


def normalized_logit(logits: Array, p: float = 4.0) -> Array:
    """The largest logit over the p-norm of the row, each row centered at its mean first.

    The norm says how loud the row is as a whole, which is no sign of being right. A row with an
    infinite logit has no mean: its score is NaN.

    Source: Cattelan & Silva, "How to fix a broken confidence estimator", UAI 2024.

    Raises
    ------
    ValueError
        `p` is under 1, or the logits are not (n, classes).

    Examples
    --------
    >>> normalized_logit(np.array([[3.0, -3.0], [0.3, -0.3]]), p=2.0).round(3)
    array([0.707, 0.707])
    """
    if not (math.isfinite(p) and p >= 1):
        raise ValueError(f"p must be a number of at least 1, not {p}")
    logits = as_logits(logits)
    xp = namespace(logits)
    with np.errstate(invalid="ignore"):
        centered = logits - xp.mean(logits, axis=-1, keepdims=True)
        largest = xp.max(xp.abs(centered), axis=-1, keepdims=True)
        # equal logits differ from their mean by rounding alone, and that says nothing
        rounding = 4 * xp.finfo(logits.dtype).eps * xp.max(xp.abs(logits), axis=-1, keepdims=True)
        flat = largest <= rounding
        centered = xp.where(flat, xp.zeros_like(centered), centered)
        scale = xp.where(flat, xp.ones_like(largest), largest)  # no overflow in the power
        norm = xp.sum(xp.abs(centered / scale) ** p, axis=-1) ** (1 / p)
        top = xp.max(centered / scale, axis=-1)
    return top / xp.where(norm == 0, xp.ones_like(norm), norm)


def learned(
    logits: Array,
    helps: Sequence[float],
    hurts: Sequence[float],
    classes: Sequence[Sequence[float]] = (),
) -> Array:
    """Minus the gain to expect from the teacher: P(deferring hurts) - P(deferring helps).

    A logistic model over `score_features` and the predicted class, whose weights
    `ebjr.calibration.learned.fit_learned` finds; its reference is that both models do alike.

    Parameters
    ----------
    logits
        (n, classes).
    helps, hurts
        A constant and a weight for each of the features: the log-odds of either against alike.
    classes
        For each class the student can predict, what it adds to the one and to the other.

    Returns
    -------
    Array
        (n,), in [-1, 1].

    Raises
    ------
    ValueError
        There are more classes in the logits than it was fitted for.

    Examples
    --------
    >>> weights = dict(helps=[0.0, -1.0, 0.0, 0.0, 0.0, 0.0], hurts=[-9.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    >>> learned(np.array([[0.0, 0.0], [4.0, 0.0]]), **weights).round(3)
    array([-0.5  , -0.018])
    """
    features = score_features(logits)
    xp = namespace(features)
    fitted = np.array([helps, hurts], dtype=np.float64).T
    weights = xp.astype(convert_like(fitted, features), features.dtype)
    odds = features @ weights[1:, :] + weights[0, :]
    if len(classes):
        if len(classes) < logits.shape[1]:
            raise ValueError(
                f"the learned score knows {len(classes)} classes, and the logits have "
                f"{logits.shape[1]}"
            )
        offsets = convert_like(np.array(classes, dtype=np.float64), features)
        odds = odds + take_places(xp.astype(offsets, features.dtype), argmax(logits), axis=0)
    alike = xp.zeros_like(odds[:, :1])
    top, total = top_and_total(xp.concat([odds, alike], axis=1))
    likely = xp.exp(odds - top[:, None]) / total[:, None]
    return likely[:, 1] - likely[:, 0]


def score_features(logits: Array) -> Array:
    """What a learned score looks at, (n, 5), each on a scale that a linear model can use.

    The log-odds of the softmax probability, the gap between the two largest logits (at most 50),
    and the scores `entropy`, `energy` and `max_logit`.

    Examples
    --------
    >>> score_features(np.array([[2.0, 0.0]])).round(3)
    array([[ 2.   ,  2.   , -0.365,  2.127,  2.   ]])
    """
    logits = as_logits(logits)
    xp = namespace(logits)
    top, total = top_and_total(logits)
    first, second = top_two(logits)
    with np.errstate(invalid="ignore"):
        gap = xp.clip(first - second, 0, 50)
    rest = xp.clip(total - 1, xp.finfo(total.dtype).eps, None)
    return xp.stack([-xp.log(rest), gap, entropy(logits), xp.log(total) + top, top], axis=1)


def random(logits: Array, seed: int = 0) -> Array:
    """A pseudo-random number in [0, 1) from the row's bits: the baseline that knows nothing.

    It depends on the row, or the image's detections, alone, so that any split into batches gives
    the same answers.

    Examples
    --------
    >>> random(np.array([[3.0, 1.0], [3.0, 2.0]])).round(3)
    array([0.921, 0.778])
    """
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**64):
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed!r}")
    # a regressor's raw output may be its prediction alone
    rows = image_numbers(logits) if isinstance(logits, list | tuple) else as_logits(logits, 1)
    bits = to_numpy(rows).astype(np.float64).view(np.uint64)
    state = np.full(bits.shape[0], seed, np.uint64)
    with np.errstate(over="ignore"):
        for column in bits.T:
            state = _mix(state ^ column)
    digits = 24 if rows.dtype == namespace(rows).float32 else 53
    uniform = (state >> np.uint64(64 - digits)) * 2.0**-digits
    _, total = top_and_total(rows)
    uniform[np.isnan(to_numpy(total))] = np.nan
    xp = namespace(rows)
    return xp.astype(convert_like(uniform, rows), rows.dtype, copy=False)


def _mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def specialized_energy(logits: Array, temperature: float = 1.0) -> Array:
    """Energy over the known classes alone; ``-inf`` where "other" wins (eq. 16 and 17), in nats.

    Parameters
    ----------
    logits
        (n, C + 1): of the C known classes, and of "other" in the last column.
    temperature
        T > 0; 1 is the paper's.

    Returns
    -------
    Array
        (n,): a row whose largest logit is that of "other" is deferred at every threshold.

    Raises
    ------
    ValueError
        Not (n, C + 1) with one known class or more, or a temperature that is not positive.

    Examples
    --------
    >>> specialized_energy(np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 3.0]])).round(3)
    array([2.693,  -inf])
    """
    scaled = _scaled(logits, temperature)
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
    """The softmax probability of the best known class, "other" being one of the classes.

    Where "other" is likely it is small, so that nothing has to be marked.

    Examples
    --------
    >>> known_softmax(np.log([[0.6, 0.2, 0.2], [0.2, 0.1, 0.7]])).round(3)
    array([0.6, 0.2])
    """
    scaled = _scaled(logits, temperature)
    top, total = top_and_total(scaled)
    xp = namespace(scaled)
    with np.errstate(invalid="ignore"):
        return xp.exp(xp.max(_known(scaled), axis=-1) - top) / total


def _of_known(score: Callable[..., Array], logits: Array, temperature: float) -> Array:
    """A score of the known classes' logits, two or more; ``-inf`` where "other" wins."""
    logits = as_logits(logits)
    if logits.shape[1] < 3:
        raise ValueError(
            f"{score.__name__} among the known classes needs two of them and 'other', 3 columns, "
            f"not {logits.shape[1]}; with one known class use specialized_energy"
        )
    return _unless_other(score(_known(logits), temperature), logits)


def _known(logits: Array) -> Array:
    """The known classes' logits, laid out so that sums round alike in every batch."""
    columns = logits[:, :-1]
    return np.ascontiguousarray(columns) if type(columns) is np.ndarray else columns


def _unless_other(values: Array, logits: Array) -> Array:
    """Values (n,), but ``-inf`` where the last logit is the largest; NaN where one is NaN or inf.

    A tie is the known class's.
    """
    xp = namespace(logits)
    _, total = top_and_total(logits)
    other_wins = logits[:, -1] > xp.max(_known(logits), axis=-1)
    return xp.where(other_wins, xp.full_like(values, -math.inf), values) + 0 * total


def _scaled(logits: Array, temperature: float) -> Array:
    """Checked logits over the temperature."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    logits = as_logits(logits)
    return logits if temperature == 1 else logits / temperature


def _exp(array: Array) -> Array:
    return namespace(array).exp(array)


SCORES: dict[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        energy,
        softmax_energy,
        softmax,
        entropy,
        margin,
        max_logit,
        normalized_logit,
        random,
    )
}
"""The scores of classifiers that have a name. `register_score` adds to them."""

REGRESSION_SCORES: dict[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        density_std,
        density_entropy,
        predicted_std,
        interval_width,
        ensemble_spread,
        regression_energy,
    )
}
"""The scores of regressors that have a name: see `ebjr.regression_scores`.

The free energy is the last, as no likelihood says what it is: of scores that noise does not tell
apart, `auto` takes the first.
"""

SPECIALIZED_SCORES: dict[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        known_softmax,
        specialized_softmax,
        specialized_margin,
        specialized_entropy,
        specialized_energy,
    )
}
"""The scores of specialized students that have a name: their last column is "other"."""

FITTED: dict[str, Callable[..., Array]] = {"learned": learned, "learned_gain": learned_gain}
"""The scores that have a name, and weights that only a fit can give."""

READS: dict[str, str] = {
    **dict.fromkeys((*SCORES, *SPECIALIZED_SCORES, learned.__name__), "logits"),
    **dict.fromkeys(REGRESSION_SCORES, "predictions"),
    **dict.fromkeys((*DETECTION_SCORES, learned_gain.__name__), "detections"),
}
"""What these scores make something of; `random`, and a score of your own, are for every task."""
del READS[random.__name__]

REGISTRIES = (SCORES, REGRESSION_SCORES, SPECIALIZED_SCORES, DETECTION_SCORES, FITTED)
"""Where a name is looked up."""

F = TypeVar("F", bound=Callable[..., Array])


def register_score(function: F) -> F:
    """Give a score of your own a name, its function's, for `joint.toml` and the command line.

    Raises
    ------
    ValueError
        Another score has that name.

    Examples
    --------
    >>> @register_score
    ... def second_logit(logits):
    ...     return np.sort(logits)[:, -2]
    >>> str(as_score("second_logit"))
    'second_logit'
    >>> del SCORES["second_logit"]
    """
    name = function.__name__
    if _find(name) not in (None, function):
        raise ValueError(f"there is a score named {name} already")
    SCORES.setdefault(name, function)
    return function


def _find(name: str) -> Callable[..., Array] | None:
    """The function of that name."""
    return next((registry[name] for registry in REGISTRIES if name in registry), None)


@dataclass(frozen=True)
class Score:
    """A score with its parameters: raw output of n rows in, (n,) out. Built by `as_score`.

    Examples
    --------
    >>> str(Score("softmax", softmax, {"temperature": 2.0}))
    'softmax(temperature=2.0)'
    """

    name: str
    function: Callable[..., Array] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, output: Array) -> Array:
        """Score raw output, and check that there is one number for each row.

        Raises
        ------
        ValueError
            The function gave something else than (n,).
        """
        values, rows = self.function(output, **self.parameters), row_count(output)
        if not is_array(values) or values.shape != (rows,):
            came = tuple(values.shape) if is_array(values) else type(values).__name__
            raise ValueError(
                f"score {self.name} must return one number for each of {rows} rows, "
                f"but returned {came}"
            )
        return values

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{self.name}({arguments})" if arguments else self.name

    @property
    def title(self) -> str:
        """The score as text for people: long parameters are left out.

        Examples
        --------
        >>> as_score("softmax(temperature=2.0)").title
        'softmax(temperature=2.0)'
        """
        return score_title(str(self))

    @property
    def named(self) -> bool:
        """Whether its name alone finds it again, as `joint.toml` and the command line need."""
        return self.function is _find(self.name)


def score_title(text: str) -> str:
    """A score's text without parameters that are too long to read.

    Examples
    --------
    >>> score_title("learned(helps=[0.125, 0.25, 0.375, 0.5], hurts=[0.625, 0.75, 0.875, 1.0])")
    'learned'
    """
    return text if len(text) <= 40 else text.partition("(")[0]


def as_score(score: str | Callable[..., Array] | Score) -> Score:
    """A score from its name, from a name with parameters, or from any callable.

    Raises
    ------
    ValueError
        No score has that name, or it does not take such a parameter.
    TypeError
        `score` is neither a string nor callable.

    Examples
    --------
    >>> as_score("softmax(temperature=2)")(np.array([[2.0, 0.0]])).round(3)
    array([0.731])
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, str):
        return _parse(score)
    if not callable(score):
        raise TypeError(
            f"a score is a name or a callable, not {type(score).__name__}; names: "
            f"{', '.join(SCORES)}"
        )
    return Score(getattr(score, "__name__", type(score).__name__), score)


def _parse(text: str) -> Score:
    """Read ``name`` or ``name(parameter=value, ...)``."""
    name, parameters = text.strip(), {}
    if "(" in text:
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                raise ValueError
            if call.args or any(key.arg is None for key in call.keywords):
                raise ValueError
            name = call.func.id
            parameters = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
        except (ValueError, SyntaxError):
            raise ValueError(
                f"cannot read the score {text!r}; write it like 'softmax(temperature=2.0)'"
            ) from None
    function = _find(name)
    if function is None:
        known = ", ".join(name for registry in REGISTRIES[:-1] for name in registry)
        raise ValueError(f"there is no score named {name!r}; there are: {known}")
    if name in FITTED and not parameters:
        raise ValueError(
            f"score {name} is fitted to outcomes, as ebjr.calibrate(outcomes, score={name!r}) does"
        )
    found = Score(name, function, parameters)
    try:
        found(_sample(name, parameters))
    except TypeError:
        raise ValueError(f"score {name} does not take the parameters of {text!r}") from None
    return found


def _sample(name: str, parameters: Mapping[str, Any]) -> Any:
    """Raw output that the score takes: a regressor's parameters may be one for each column."""
    if name in DETECTION_SCORES or name == learned_gain.__name__:
        return []
    if name not in REGRESSION_SCORES:
        return np.zeros((1, 3 if name in SPECIALIZED_SCORES else 2))
    lists = {key: len(v) for key, v in parameters.items() if isinstance(v, list | tuple)}
    if lists.get("grid") == 2:  # its ends: of any number of points, and Simpson's rule wants three
        lists["grid"] = 3
    return np.zeros((1, 1 + max(lists.values(), default=1 if name == "predicted_std" else 2)))

"""Scores: how well an input fits what the student knows. Higher = keep on the student.

Every score maps raw output of n rows to (n,). The scores of classifiers are here and read logits,
(n, classes). Other forms of raw output and their scores are in the folders of their tasks under
`ebjr.tasks`, which call `declare_raw_output`. Scores take NumPy and PyTorch arrays and return the
same library's on the same device. A row with a NaN or +inf logit has the score NaN, which no
threshold keeps, so it is deferred.

The paper's score is `energy` (eq. 3, on logits). The thresholds that its authors published for 10
and for 100 classes lie in the only range that `softmax_energy` can take, and outside that of any
logit energy, so both are here under two names. Which is best depends on the pair: measure.
"""

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from ebjr.arrays import (
    Array,
    as_logits,
    convert_like,
    is_array,
    log_softmax,
    logsumexp,
    namespace,
    row_count,
    to_numpy,
    top_and_total,
    top_two,
)
from ebjr.errors import check_choice, one_line
from ebjr.plugins import load_entry_points


def energy(logits: Array, temperature: float = 1.0) -> Array:
    """Negative free energy of the logits, ``-F(x) = T logsumexp(S(x) / T)`` (eq. 3), in nats.

    - `logits`: (n, classes).
    - `temperature`: T > 0; the paper's is 1.

    Returns (n,), unbounded; it grows by c when every logit of a row grows by c.

    Raises
    ------
    ValueError
        `logits` has fewer than two columns, or `temperature` is not positive.

    Examples
    --------
    >>> energy(np.array([[0.0, 0.0], [9.0, 0.0]])).round(3)
    array([0.693, 9.   ])
    """
    return logsumexp(scaled_logits(logits, temperature)) * temperature


def softmax_energy(logits: Array, temperature: float = 1.0) -> Array:
    """Log-sum-exp of the softmax probabilities, which the authors' notebook probably used.

    Its range is ``[1/C + log C, 1 + log(1 + (C - 1)/e)]`` for C classes: 2.40 to 2.46 for ten.

    Examples
    --------
    >>> softmax_energy(np.array([[0.0] * 10, [99.0] + [0.0] * 9])).round(3)
    array([2.403, 2.461])
    """
    likely = log_softmax(scaled_logits(logits, temperature))
    return logsumexp(namespace(likely).exp(likely))


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """The largest softmax probability.

    Source: Hendrycks & Gimpel, "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks", ICLR 2017.

    Examples
    --------
    >>> softmax(np.array([[0.0, 0.0]]))
    array([0.5])
    """
    _, total = top_and_total(scaled_logits(logits, temperature))
    return namespace(total).reciprocal(total)


def entropy(logits: Array, temperature: float = 1.0) -> Array:
    """Negative entropy of the softmax probabilities, in nats: 0 if certain, else below.

    Source: Teerapittayanon et al., "BranchyNet", ICPR 2016.

    Examples
    --------
    >>> entropy(np.array([[0.0, 0.0], [99.0, 0.0]])).round(3)
    array([-0.693, -0.   ])
    """
    log_probabilities = log_softmax(scaled_logits(logits, temperature))
    xp = namespace(log_probabilities)
    probabilities = xp.exp(log_probabilities)
    # 0 log 0 = 0, even for a logit of -inf
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
    scaled = scaled_logits(logits, temperature)
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
    return largest + 0 * total  # `0 * total` makes rows with +inf or NaN NaN


def normalized_logit(logits: Array, p: float = 4.0) -> Array:
    """The largest logit over the p-norm of the row, after centering the row at its mean.

    The norm measures the row's overall size, which says nothing about being right. A row with an
    infinite logit has no mean, so its score is NaN.

    Raises
    ------
    ValueError
        `p` is under 1.

    Source: Cattelan & Silva, "How to fix a broken confidence estimator", UAI 2024.

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
        # equal logits differ from their mean by rounding, which must not be scaled up
        rounding = 4 * xp.finfo(logits.dtype).eps * xp.max(xp.abs(logits), axis=-1, keepdims=True)
        flat = largest <= rounding
        centered = xp.where(flat, xp.zeros_like(centered), centered)
        scale = xp.where(flat, xp.ones_like(largest), largest)  # avoids overflow in the power
        norm = xp.sum(xp.abs(centered / scale) ** p, axis=-1) ** (1 / p)
        top = xp.max(centered / scale, axis=-1)
    return top / xp.where(norm == 0, xp.ones_like(norm), norm)


def label_mass(logits: Array) -> Array:
    """The probability, at most 1, that a language model answers with one of the labels.

    For raw output of label log-probabilities among all possible answers it is their sum,
    ``exp(-F(x))`` at T = 1. It ranks like `energy`, in a unit that people can judge. For other
    logits it means nothing, and is 1 if they are large.

    - `logits`: (n, classes), log-probabilities.

    Examples
    --------
    >>> label_mass(np.log([[0.7, 0.2], [0.1, 0.1]])).round(3)
    array([0.9, 0.2])
    """
    found = energy(logits)
    xp = namespace(found)
    return xp.exp(xp.where(found > 0, xp.zeros_like(found), found))


def random(logits: Array, seed: int = 0) -> Array:
    """A pseudo-random number in [0, 1) from the row's bits: the uninformed baseline.

    It depends only on the row (or the image's detections), so that any split into batches gives the
    same answers.

    Examples
    --------
    >>> random(np.array([[3.0, 1.0], [3.0, 2.0]])).round(3)
    array([0.921, 0.778])
    """
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**64):
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed!r}")
    # one column is enough for a regressor; a detector's raw output is a list
    listed = isinstance(logits, list | tuple)
    rows = np.array([row.numbers for row in logits]) if listed else as_logits(logits, 1)
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
    """Take one step of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def scaled_logits(logits: Array, temperature: float, least: int = 2) -> Array:
    """Return checked logits, (n, classes), of at least `least` classes, over the temperature."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    logits = as_logits(logits, least)
    return logits if temperature == 1 else logits / temperature


@dataclass(frozen=True, eq=False)
class RawOutput:
    """A form of raw output, and the scores that read it."""

    name: str  # for messages
    # the smallest raw output that a score reads, by its name and parameters, to check these on
    sample: Callable[[str, Mapping[str, Any]], Any]
    scores: dict[str, Callable[..., Array]] = field(default_factory=dict)
    fitted: dict[str, Callable[..., Array]] = field(default_factory=dict)  # fitted to outcomes

    def names(self, own: bool) -> list[str]:
        """Return the names of registered scores (`own`), or of all others."""
        return [name for name in self.scores if (name in OWN_SCORES) is own]


RAW_OUTPUTS: dict[str, RawOutput] = {}
"""Every form of raw output by name; tasks' folders add theirs."""

OWN_SCORES: set[str] = set()
"""The names given to `register_score`; these scores may score any raw output they can read."""


def declare_raw_output(
    name: str,
    sample: Callable[[str, Mapping[str, Any]], Any],
    scores: Sequence[Callable[..., Array]],
    fitted: Sequence[Callable[..., Array]] = (),
) -> RawOutput:
    """Declare a form of raw output with its scores."""
    named = ({function.__name__: function for function in part} for part in (scores, fitted))
    RAW_OUTPUTS[name] = RawOutput(name, sample, *named)
    return RAW_OUTPUTS[name]


LOGITS = declare_raw_output(
    "logits",
    lambda name, parameters: np.zeros((1, 2)),
    (
        energy,
        softmax_energy,
        softmax,
        entropy,
        margin,
        max_logit,
        normalized_logit,
        label_mass,
        random,
    ),
)

SCORES = LOGITS.scores
"""The named scores that read logits, by name; `register_score` adds to them."""

F = TypeVar("F", bound=Callable[..., Array])


def register_score(function: F | None = None, *, reads: str = "logits") -> Any:
    """Register a score of your own under its function's name, so that it works everywhere.

    It competes in `auto`, and the report, `joint.toml`, the command line and servers find it by
    name (``--import mine.py`` in another process). Use the array-API functions of
    `ebjr.arrays.namespace` to make it exportable.

    Parameters
    ----------
    function
        Raw output of n rows, and parameters with defaults, to (n,); higher = keep.
    reads
        The form of raw output, a name in `RAW_OUTPUTS`: ``"logits"``, ``"label logits"``,
        ``"predictions"``, ``"detections"`` or ``"logits and that of other"``.

    Raises
    ------
    ValueError
        `function` has no name or another score's name, or `reads` is unknown.

    Examples
    --------
    >>> @register_score
    ... def second_logit(logits):
    ...     return np.sort(logits)[:, -2]
    >>> str(as_score("second_logit"))
    'second_logit'
    >>> del SCORES["second_logit"]
    """
    if function is None:
        return lambda given: register_score(given, reads=reads)
    name = getattr(function, "__name__", "")
    if not (callable(function) and name.isidentifier()):
        raise ValueError("register a score as a function with a name")
    found = find_score(name)
    if found not in (None, function):
        raise ValueError(f"a score named {name} exists already: rename yours")
    check_choice("reads", reads, RAW_OUTPUTS)
    if found is None:
        RAW_OUTPUTS[reads].scores[name] = function
        OWN_SCORES.add(name)
    return function


def raw_output_of(name: str) -> RawOutput | None:
    """Return the raw output that a score reads; None if there is no such score."""
    for loaded in (False, True):
        if loaded:
            load_declared()
        for raw in RAW_OUTPUTS.values():
            if name in raw.scores or name in raw.fitted:
                return raw
    return None


def find_score(name: str) -> Callable[..., Array] | None:
    """Return a score's function by name, or None."""
    raw = raw_output_of(name)
    return None if raw is None else {**raw.scores, **raw.fitted}[name]


def is_fitted(name: str) -> bool:
    """Whether a score's weights are fitted to outcomes, so that a name does not define it."""
    raw = raw_output_of(name)
    return raw is not None and name in raw.fitted


def load_declared() -> None:
    """Import the tasks, which declare more scores and build on this file, and the entry points."""
    if not _declared:
        _declared.append(True)
        import_module("ebjr.tasks").load_all()
        load_entry_points("ebjr.scores", register_score)


_declared: list[bool] = []


@dataclass(frozen=True)
class Score:
    """A score with its parameters: raw output of n rows in, (n,) out. See `as_score`.

    Examples
    --------
    >>> str(Score("softmax", softmax, {"temperature": 2.0}))
    'softmax(temperature=2.0)'
    """

    name: str
    function: Callable[..., Array] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, output: Array) -> Array:
        """Score raw output; raise ValueError unless there is one number per row."""
        try:
            values, rows = self.function(output, **self.parameters), row_count(output)
        except (ArithmeticError, AttributeError, LookupError) as error:
            words = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"score {self.name} failed: {words}") from error
        found = is_array(values)
        if not found or values.shape != (rows,) or getattr(values.dtype, "kind", "f") in "cOSUVmM":
            came = f"{tuple(values.shape)} {values.dtype}" if found else type(values).__name__
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
        """The score's text without long parameters."""
        return score_title(str(self))

    @property
    def named(self) -> bool:
        """Whether the name alone identifies it, as `joint.toml` and the command line need."""
        return self.function is find_score(self.name)


def score_title(text: str) -> str:
    """Return a score's text without parameters that are too long to read."""
    return text if len(text) <= 40 else text.partition("(")[0]


def as_score(score: str | Callable[..., Array] | Score) -> Score:
    """Make a score from its name, with or without parameters, or from any callable.

    Raises
    ------
    ValueError
        `score` is not a known name, has a parameter that it does not take, or is a function with
        the name of another score.
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
            f"score must be a name or a callable, not {type(score).__name__}; names: "
            f"{', '.join(SCORES)}"
        )
    name = getattr(score, "__name__", type(score).__name__)
    for raw in RAW_OUTPUTS.values():  # files keep the name alone
        if {**raw.scores, **raw.fitted}.get(name, score) is not score:
            raise ValueError(f"a score named {name} exists already: rename yours")
    return Score(name, score)


def _parse(text: str) -> Score:
    """Read ``name`` or ``name(parameter=value, ...)``."""
    name, parameters = text.strip(), {}
    if "(" in text:
        try:
            match ast.parse(name, mode="eval").body:
                case ast.Call(ast.Name(name), [], keys) if all(key.arg for key in keys):
                    parameters = {str(key.arg): ast.literal_eval(key.value) for key in keys}
                case _:
                    raise ValueError
        except (ValueError, SyntaxError):
            raise ValueError(
                f"cannot read the score {text!r}: write it like 'softmax(temperature=2.0)'"
            ) from None
    raw = raw_output_of(name)
    if raw is None:
        known = ", ".join(name for raw in RAW_OUTPUTS.values() for name in raw.scores)
        raise ValueError(
            f"there is no score named {name!r}; there are: {known}. Import the file that registers "
            "a score of your own (--import FILE)"
        )
    if name in raw.fitted and not parameters:
        raise ValueError(
            f"score {name} must be fitted to outcomes: use ebjr.calibrate(outcomes, score={name!r})"
        )
    found = Score(name, {**raw.scores, **raw.fitted}[name], parameters)
    try:
        if name in OWN_SCORES:  # its raw output is unknown, so only the names are checked
            inspect.signature(found.function).bind(None, **parameters)
        else:
            found(raw.sample(name, parameters))
    except TypeError:
        raise ValueError(f"score {name} does not take the parameters of {text!r}") from None
    return found

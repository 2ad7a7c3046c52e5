"""Blend: mix the student's answer, already paid for, into the teacher's.

A deferred answer is ``softmax(teacher) + weight * softmax(student)``, renormalized; for regression
the weighted mean of both predictions. Weight 0 is the paper's: the teacher alone. Whether more
helps depends on the pair, and is calibrated. If the student's row has no softmax, because of a NaN
or an infinite logit, or if its prediction is not finite, the teacher's row replaces it.
"""

import ast
import math
from dataclasses import astuple, dataclass, fields

import numpy as np

from ebjr.arrays import Array, as_float, log_softmax, logaddexp, logsumexp, unless_nan


@dataclass(frozen=True)
class Blend:
    """A weight with both models' temperatures.

    If both temperatures are 1, the blend is the weight alone, a float: `as_blend` makes it so.

    Parameters
    ----------
    weight
        The weight of the student's probabilities; the teacher's is 1.
    student_temperature, teacher_temperature
        Divide each model's logits.

    Raises
    ------
    ValueError
        `weight` is negative, a temperature is not positive, or one of them is not finite.

    Examples
    --------
    >>> blend = Blend(0.5, teacher_temperature=2.0)
    >>> str(blend), f"{blend:g}", float(blend)
    ('blend(weight=0.5, teacher_temperature=2.0)', '0.5 at temperatures 1 and 2', 0.5)
    """

    weight: float
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        for name in _TEMPERATURES:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value}")
        for field in fields(self):
            object.__setattr__(self, field.name, float(getattr(self, field.name)))

    @property
    def is_plain(self) -> bool:
        """Whether the weight alone defines the blend."""
        return self.weight == 0 or self.student_temperature == self.teacher_temperature == 1

    def __str__(self) -> str:
        temperatures = {name: getattr(self, name) for name in _TEMPERATURES}
        shown = "".join(f", {name}={value!r}" for name, value in temperatures.items() if value != 1)
        return f"blend(weight={self.weight!r}{shown})"

    def __format__(self, form: str) -> str:
        weight, student, teacher = (format(value, form) for value in astuple(self))
        return f"{weight} at temperatures {student} and {teacher}" if form else str(self)

    def __float__(self) -> float:
        return self.weight


_TEMPERATURES = ("student_temperature", "teacher_temperature")


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"blend must be a finite weight of at least 0, not {weight}")


def as_blend(blend: float | Blend | str) -> float | Blend:
    """Make a blend from a weight or text; a plain weight becomes a float.

    Raises
    ------
    ValueError
        `blend` cannot be read or is out of range.
    """
    if isinstance(blend, str):
        blend = _parse(blend)
    if not isinstance(blend, Blend):
        _check_weight(blend)
        return float(blend)
    return blend.weight if blend.is_plain else blend


def blend_text(blend: float | Blend) -> float | str:
    """Return a blend for JSON and TOML; `as_blend` reads it."""
    return str(blend) if isinstance(blend, Blend) else blend


def _parse(text: str) -> float | Blend:
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call):
            if not (isinstance(call.func, ast.Name) and call.func.id == "blend" and not call.args):
                raise ValueError
            return Blend(**{str(key.arg): ast.literal_eval(key.value) for key in call.keywords})
        return float(text)
    except (ValueError, SyntaxError, TypeError) as error:
        if isinstance(error, ValueError) and "must be" in str(error):
            raise
        raise ValueError(
            f"blend must be a weight or 'auto', not {text!r}; write temperatures like "
            "'blend(weight=0.3, student_temperature=2.0)'"
        ) from None


def blend_logits(student: Array, teacher: Array, blend: float | Blend) -> Array:
    """Mix the student's probabilities into the teacher's, from logits (n, classes).

    `blend` is the weight of the student's probabilities beside the teacher's 1, or a `Blend`.
    Returns the teacher's logits unchanged if the weight is 0, else the log-probabilities of the
    mixture: the softmax of either is the answer.

    Raises
    ------
    ValueError
        `blend` is negative or not finite.
    """
    weight, mine, theirs = astuple(blend) if isinstance(blend, Blend) else (blend, 1.0, 1.0)
    _check_weight(weight)
    if weight == 0:
        return teacher
    student, teacher = as_float(student), as_float(teacher)
    known = student + 0 * logsumexp(student)[..., None]  # NaN in rows without a softmax
    mixed = logaddexp(
        log_softmax(_over(teacher, theirs)),
        log_softmax(_over(unless_nan(known, teacher), mine)) + math.log(weight),
    )
    return mixed - math.log1p(weight)


def blend_predictions(student: Array, teacher: Array, blend: float | Blend) -> Array:
    """Return the weighted mean ``(teacher + weight * student) / (1 + weight)`` of predictions.

    With weight 0 it is the teacher's predictions, unchanged. `blend` is as in `blend_logits`.
    """
    weight = float(blend)
    _check_weight(weight)
    if weight == 0:
        return teacher
    with np.errstate(invalid="ignore"):
        known = student + 0 * student  # NaN for infinities
    return (teacher + weight * unless_nan(known, teacher)) / (1 + weight)


def _over(logits: Array, temperature: float) -> Array:
    return logits if temperature == 1 else logits / temperature

"""Blend: once the teacher has been called, the student's answer is already paid for.

A deferred answer is ``softmax(teacher) + weight * softmax(student)``, renormalized; of regressors
the weighted mean of both predictions. Weight 0 is the paper: the teacher alone. Whether more helps
is a matter of the pair, and is calibrated.
"""

from __future__ import annotations

import ast
import math

from ebjr.arrays import Array, as_float, log_softmax, logaddexp


class Blend(float):
    """A weight that carries the temperatures of both models, where they are not 1.

    As a number it is the weight alone.

    Parameters
    ----------
    weight
        What the student's probabilities count beside the teacher's 1.
    student_temperature, teacher_temperature
        Each model's logits are divided by its own.

    Raises
    ------
    ValueError
        The weight is negative, a temperature is not positive, or one of them is not finite.

    Examples
    --------
    >>> blend = Blend(0.5, teacher_temperature=2.0)
    >>> str(blend), f"{blend:g}", blend > 0
    ('blend(weight=0.5, teacher_temperature=2.0)', '0.5 at temperatures 1 and 2', True)
    """

    student_temperature: float
    teacher_temperature: float

    def __new__(
        cls, weight: float, student_temperature: float = 1.0, teacher_temperature: float = 1.0
    ) -> Blend:
        """Check the numbers; a float is made, not changed."""
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"blend must be a finite weight of at least 0, not {weight}")
        self = super().__new__(cls, weight)
        given = {
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
        }
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value}")
            setattr(self, name, float(value))
        return self

    def _key(self) -> tuple[float, float, float]:
        return float(self), self.student_temperature, self.teacher_temperature

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]
        return self._key()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Blend):
            return self._key() == other._key()
        return self._key() == (other, 1.0, 1.0)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(float(self))

    def __repr__(self) -> str:
        temperatures = zip(_TEMPERATURES, self._key()[1:], strict=True)
        shown = "".join(f", {name}={value!r}" for name, value in temperatures if value != 1)
        return f"blend(weight={float(self)!r}{shown})"

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        weight, student, teacher = (format(value, form) for value in self._key())
        return f"{weight} at temperatures {student} and {teacher}" if form else str(self)


_TEMPERATURES = ("student_temperature", "teacher_temperature")


def as_blend(blend: float | str) -> float:
    """A blend from a weight, from its text, or as it is; a plain weight where that says it all.

    Raises
    ------
    ValueError
        It cannot be read, or is out of range.

    Examples
    --------
    >>> as_blend("0.3"), as_blend(Blend(0.3)), as_blend("blend(weight=0.3, student_temperature=2)")
    (0.3, 0.3, blend(weight=0.3, student_temperature=2.0))
    """
    if isinstance(blend, str):
        blend = _parse(blend)
    whole = blend if isinstance(blend, Blend) else Blend(blend)
    return float(whole) if whole == float(whole) or float(whole) == 0 else whole


def blend_text(blend: float) -> float | str:
    """A blend as JSON and TOML can hold it, for `as_blend` to read.

    Examples
    --------
    >>> blend_text(0.3), blend_text(Blend(0.3, 2.0))
    (0.3, 'blend(weight=0.3, student_temperature=2.0)')
    """
    return str(blend) if isinstance(blend, Blend) else blend


def _parse(text: str) -> float:
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
            f"blend must be a weight or 'auto', not {text!r}; temperatures are given like "
            "'blend(weight=0.3, student_temperature=2.0)'"
        ) from None


def blend_logits(student: Array, teacher: Array, blend: float) -> Array:
    """Mix the student's probabilities into the teacher's.

    Parameters
    ----------
    student, teacher
        Logits, (n, classes), of the same examples.
    blend
        What the student's probabilities count beside the teacher's 1; a `Blend` where a
        temperature is not 1.

    Returns
    -------
    Array
        (n, classes): the teacher's logits untouched where the weight is 0, else the
        log-probabilities of the mixture. The softmax of either is the answer.

    Raises
    ------
    ValueError
        The weight is negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> teacher, student = np.log([[0.6, 0.4]]), np.log([[0.2, 0.8]])
    >>> np.exp(blend_logits(student, teacher, 1.0)).round(3)
    array([[0.4, 0.6]])
    """
    whole = blend if isinstance(blend, Blend) else Blend(blend)
    weight = float(whole)
    if weight == 0:
        return teacher
    mixed = logaddexp(
        log_softmax(_over(as_float(teacher), whole.teacher_temperature)),
        log_softmax(_over(as_float(student), whole.student_temperature)) + math.log(weight),
    )
    return mixed - math.log1p(weight)


def blend_predictions(student: Array, teacher: Array, blend: float) -> Array:
    """The weighted mean of both predictions, ``(teacher + weight * student) / (1 + weight)``.

    Parameters
    ----------
    student, teacher
        Predictions of the same examples, of one shape.
    blend
        What the student counts beside the teacher's 1.

    Returns
    -------
    Array
        The teacher's, untouched, where the weight is 0.

    Raises
    ------
    ValueError
        The weight is negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> blend_predictions(np.array([1.0]), np.array([4.0]), 0.5)
    array([3.])
    """
    weight = float(Blend(blend))
    return teacher if weight == 0 else (teacher + weight * student) / (1 + weight)


def _over(logits: Array, temperature: float) -> Array:
    return logits if temperature == 1 else logits / temperature

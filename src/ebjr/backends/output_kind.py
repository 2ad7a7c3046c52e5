"""Models that return probabilities, or one number of a binary decision, instead of logits."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ebjr.arrays import Array, as_float, is_array, namespace, to_numpy
from ebjr.data.preprocess import prepared, unprepared
from ebjr.errors import ModelError, check_choice
from ebjr.link.far import FarTeacher
from ebjr.model import Answer, Around, Model, ModelFacts, as_answer, facts
from ebjr.task import SUM_ROUNDING

LEAST = 1e-12  # probabilities are clipped to it: log(0) is -inf


def _columns(output: Array) -> Array:
    return output[:, None] if output.ndim == 1 else output


def _of_logits(output: Array) -> Array:
    """Return (n, classes); one column d becomes -d/2 and d/2, whose softmax is the sigmoid."""
    output = _columns(as_float(output))
    if output.shape[1] > 1:
        return output
    return namespace(output).concat([-output / 2, output / 2], axis=1)


def _log(output: Array) -> Array:
    xp = namespace(output)
    return xp.log(xp.clip(output, LEAST, 1.0))


def _of_probabilities(output: Array) -> Array:
    """Return logarithms (n, classes); one column is the probability of the second class."""
    output = _columns(as_float(output))
    if output.shape[1] == 1:
        output = namespace(output).concat([1 - output, output], axis=1)
    return _log(output)


def _of_label_probabilities(output: Array) -> Array:
    """Return the log-odds of each label, (n, labels)."""
    output = _columns(as_float(output))
    return _log(output) - _log(1 - output)


KINDS: Mapping[str, Callable[[Array], Array]] = {
    "logits": _of_logits,
    "probabilities": _of_probabilities,
    "label_probabilities": _of_label_probabilities,
}
"""The values of ``output_kind``, and the functions that turn such outputs into logits.

The softmax of log-probabilities gives the probabilities back, so that the score `softmax` is the
model's own; their log-sum-exp, the score `energy`, is 0 for every input.
"""


class AsLogits(Around):
    """A model that returns (n, k) or (n,) of a `kind` in `KINDS`, made to return logits."""

    def __init__(self, model: Model, kind: str) -> None:
        check_choice("output_kind", kind, KINDS)
        super().__init__(model)
        self.kind = kind

    def __call__(self, batch: Any, /) -> Any:
        """Return logits (n, classes) for n inputs."""
        said = self.model(batch)
        if isinstance(said, Answer):
            return replace(said, output=self.as_logits(said.output))
        return self.as_logits(as_answer(said).output)

    def as_logits(self, output: Any) -> Array:
        """Turn the inner model's output into logits; a ModelError if it is of another kind."""
        array = output if is_array(output) else np.asarray(output)
        if array.ndim not in (1, 2):
            raise ModelError(
                f"{self.name} must return (n, classes), but its output has shape "
                f"{tuple(array.shape)}"
            )
        if self.kind != "logits":
            found = to_numpy(array)
            outside = found[~((found >= -SUM_ROUNDING) & (found <= 1 + SUM_ROUNDING))]
            if outside.size:
                raise ModelError(
                    f"{self.name} must return {self.kind.replace('_', ' ')}, from 0 to 1, since "
                    f"its output_kind says so, but returned {outside[0]:g}; give --output-kind "
                    "logits"
                )
        return KINDS[self.kind](array)

    @property
    def facts(self) -> ModelFacts:
        """The inner model's facts, with `output_kind`."""
        inside = facts(self.model)
        options = {**inside.options, "output_kind": self.kind}
        return replace(inside, options=options, probabilities=False)


def with_output_kind(model: Model, kind: str) -> Model:
    """Make a model that returns a `kind` in `KINDS` return logits."""
    if isinstance(model, FarTeacher):
        return FarTeacher(with_output_kind(model.teacher, kind), model.link)
    bare, preprocess = unprepared(model)
    return prepared(AsLogits(bare, kind), preprocess)

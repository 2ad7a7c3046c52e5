"""Models whose answers are not logits yet: probabilities, or one number of a binary decision."""

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

LEAST = 1e-12  # the least probability whose logarithm is taken: one of 0 has none


def _columns(output: Array) -> Array:
    return output[:, None] if output.ndim == 1 else output


def _of_logits(output: Array) -> Array:
    """(n, classes) as they are; of one column d, -d/2 and d/2, whose softmax is the sigmoid."""
    output = _columns(as_float(output))
    if output.shape[1] > 1:
        return output
    return namespace(output).concat([-output / 2, output / 2], axis=1)


def _log(output: Array) -> Array:
    xp = namespace(output)
    return xp.log(xp.clip(output, LEAST, 1.0))


def _of_probabilities(output: Array) -> Array:
    """(n, classes): the logarithm; one column is the probability of the second of two classes."""
    output = _columns(as_float(output))
    if output.shape[1] == 1:
        output = namespace(output).concat([1 - output, output], axis=1)
    return _log(output)


def _of_label_probabilities(output: Array) -> Array:
    """(n, labels): the log-odds of each label."""
    output = _columns(as_float(output))
    return _log(output) - _log(1 - output)


KINDS: Mapping[str, Callable[[Array], Array]] = {
    "logits": _of_logits,
    "probabilities": _of_probabilities,
    "label_probabilities": _of_label_probabilities,
}
"""What a model may answer, by the name that ``output_kind`` gives it, and what makes it logits.

The softmax of the logarithm of probabilities is these probabilities, so that scores such as
`softmax` mean what the model says; their log-sum-exp, the score `energy`, is 0 for every input.
"""


class AsLogits(Around):
    """A model that answers (n, k) or (n,) of a `kind` of `KINDS`, as one that answers logits."""

    def __init__(self, model: Model, kind: str) -> None:
        check_choice("output_kind", kind, KINDS)
        super().__init__(model)
        self.kind = kind

    def __call__(self, batch: Any, /) -> Any:
        """The raw output, (n, classes) logits, for n inputs."""
        said = self.model(batch)
        if isinstance(said, Answer):
            return replace(said, output=self.as_logits(said.output))
        return self.as_logits(as_answer(said).output)

    def as_logits(self, output: Any) -> Array:
        """What the model inside has said, as logits; a ModelError where it is of another kind."""
        array = output if is_array(output) else np.asarray(output)
        if array.ndim not in (1, 2):
            raise ModelError(
                f"{self.name} must answer (n, classes), but its output has shape "
                f"{tuple(array.shape)}"
            )
        if self.kind != "logits":
            found = to_numpy(array)
            outside = found[~((found >= -SUM_ROUNDING) & (found <= 1 + SUM_ROUNDING))]
            if outside.size:
                raise ModelError(
                    f"{self.name} must answer {self.kind.replace('_', ' ')}, from 0 to 1, as its "
                    f"output_kind says, but answered {outside[0]:g}; give --output-kind logits"
                )
        return KINDS[self.kind](array)

    @property
    def facts(self) -> ModelFacts:
        """Those of the model inside, and the kind of its answers."""
        inside = facts(self.model)
        options = {**inside.options, "output_kind": self.kind}
        return replace(inside, options=options, probabilities=False)


def with_output_kind(model: Model, kind: str) -> Model:
    """A model whose answers are of a kind, as one that gives logits."""
    if isinstance(model, FarTeacher):
        return FarTeacher(with_output_kind(model.teacher, kind), model.link)
    bare, preprocess = unprepared(model)
    return prepared(AsLogits(bare, kind), preprocess)

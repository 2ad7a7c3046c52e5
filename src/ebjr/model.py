"""Model: what a student or a teacher is. The project's one seam.

A model is a callable: a batch in, its raw output out, one row for each input. A torch module, an
ONNX session, a remote endpoint, an estimator and a lambda are the same thing to the joint loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ebjr.arrays import to_numpy
from ebjr.errors import ModelError
from ebjr.task import Task


@runtime_checkable
class Model(Protocol):
    """A batch of n inputs in, raw output with n rows out. Synchronous.

    A batch is an array (n, ...) of NumPy or PyTorch, or a list of n inputs (images of different
    sizes). The raw output of a classifier is its logits, (n, classes); of a regressor (n,)
    predictions, or (n, 1 + k), the prediction first and then what its score reads; of a detector a
    list of n `Detections`.

    Examples
    --------
    >>> isinstance(lambda batch: batch, Model)
    True
    """

    def __call__(self, batch: Any, /) -> Any:
        """Answer a batch of n inputs with raw output of n rows."""
        ...


@dataclass(frozen=True, eq=False)
class Answer:
    """Raw output with a word on its rows, of models that have more to say than an array.

    Attributes
    ----------
    output
        The raw output, a row for each input that was answered.
    degraded
        As many bool: which of these rows are not what they should be; None where nobody said.
    answered
        (n,) bool: which inputs were answered; None is all of them.
    """

    output: Any
    degraded: Any = None
    answered: Any = None


def model_name(model: Model) -> str:
    """What to call a model in a message.

    Examples
    --------
    >>> def student(batch): return batch
    >>> model_name(student)
    'student'
    """
    name = getattr(model, "name", None) or getattr(model, "__name__", None)
    return name if isinstance(name, str) else type(model).__name__


def answer(model: Model, batch: Any, rows: int, kind: Task | None = None) -> Answer:
    """Run a model and check that it gave one row of raw output for each of `rows` inputs.

    `kind` is the task, which knows what raw output is; any array with rows will do without.

    Returns
    -------
    Answer
        The raw output. Which rows are degraded is known of a joint model, and that not all are
        answered of a far one.

    Raises
    ------
    ModelError
        The output has no rows, or not as many as were answered.

    Examples
    --------
    >>> import numpy as np
    >>> answer(lambda batch: batch * 2, np.ones((1, 3)), rows=1).output
    array([[2., 2., 2.]])
    """
    whole = model(batch)
    output = getattr(whole, "output", whole)  # a joint model's answer carries its raw output
    answered = getattr(whole, "answered", None)
    expected = rows if answered is None else int(to_numpy(answered).sum())
    if getattr(output, "requires_grad", False):
        output = output.detach()  # an answer, not a graph to train
    kind = kind or Task()
    if kind.count_rows(output) != expected:
        raise ModelError(
            f"{model_name(model)} was given {expected} inputs and must return "
            f"{kind.rows.format(expected)}, but returned {_came(output)}"
        )
    return Answer(output, getattr(whole, "degraded", None), answered)


def _came(output: Any) -> str:
    shape = getattr(output, "shape", None)
    if shape is not None:
        return f"shape {tuple(shape)}"
    count = f" of {len(output)}" if isinstance(output, list | tuple) else ""
    return f"{type(output).__name__}{count}"

"""Model: what a student or a teacher is. The project's one seam.

A model is a callable: a batch in, its raw output out, one row for each input. A torch module, an
ONNX session, a remote endpoint, an estimator and a lambda are the same thing to the joint loop.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ebjr.errors import ModelError
from ebjr.tasks import TASKS, Task


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


def answer(
    model: Model, batch: Any, rows: int, kind: Task = TASKS["classification"]
) -> tuple[Any, Any]:
    """Run a model and check that it gave one row of raw output for each of `rows` inputs.

    `kind` is the task, which knows what raw output is.

    Returns
    -------
    tuple
        The raw output, and which rows are degraded: (rows,) bool from a joint model, None from
        any other.

    Raises
    ------
    ModelError
        The output has no rows, or not `rows` of them.

    Examples
    --------
    >>> import numpy as np
    >>> answer(lambda batch: batch * 2, np.ones((1, 3)), rows=1)
    (array([[2., 2., 2.]]), None)
    """
    whole = model(batch)
    output = getattr(whole, "output", whole)  # a joint model's answer carries its raw output
    if getattr(output, "requires_grad", False):
        output = output.detach()  # an answer, not a graph to train
    if kind.count_rows(output) != rows:
        raise ModelError(
            f"{model_name(model)} was given {rows} inputs and must return "
            f"{kind.rows.format(rows)}, but returned {_came(output)}"
        )
    return output, getattr(whole, "degraded", None)


def _came(output: Any) -> str:
    shape = getattr(output, "shape", None)
    if shape is not None:
        return f"shape {tuple(shape)}"
    count = f" of {len(output)}" if isinstance(output, list | tuple) else ""
    return f"{type(output).__name__}{count}"

"""Model: the one interface of students and teachers.

A model is a callable from a batch to raw output, a row for each input. A torch module, an ONNX
session, a remote endpoint, an estimator and a lambda are the same thing to the joint loop.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ebjr.arrays import Batch, row_count, to_numpy
from ebjr.costs import Cost
from ebjr.errors import ModelError, OtherModel, TeacherUnavailable
from ebjr.labels import are_names, label_text, some
from ebjr.task import Task

InputShape = tuple[int | None, ...]  # of a batch of inputs; a dynamic dimension is None


@runtime_checkable
class Model(Protocol):
    """A batch of n inputs in, raw output with n rows out. Synchronous.

    A batch is an array (n, ...) of NumPy or PyTorch, or a list of n inputs (images of different
    sizes). A classifier's raw output is its logits, (n, classes). A regressor's is (n,)
    predictions, or (n, 1 + k), the prediction and then the numbers that its score reads. A
    detector's is a list of n `Detections`.

    Examples
    --------
    >>> isinstance(lambda batch: batch, Model)
    True
    """

    def __call__(self, batch: Any, /) -> Any:
        """Answer a batch of n inputs with raw output of n rows."""
        ...


@dataclass(frozen=True)
class ModelFacts:
    """A model's description of itself; None is unknown.

    - `name`: The model's name in messages.
    - `path`, `url`: The file, or the address, that the model came from.
    - `labels`: The model's names of its classes, in the order of its raw output.
    - `input_name`, `input_shape`, `input_dtype`: Name, shape (rows first) and type of a batch.
    - `options`: The options of `load_model` that differ from their defaults.
    - `metadata`: A remote model's metadata.
    - `sha256`: A remote model's hash, if its server gives it.
    - `cost`: The cost of an example, if the model knows it.
    - `multilabel`: An input may have several labels.
    - `probabilities`: The raw output is probabilities, not logits.
    - `preprocess`: The preprocessing of a model that takes decoded images, as in
      `Preprocess.as_dict`.
    - `sends_files`: Inputs are sent to the model as image files.
    - `calls`: How many concurrent calls are useful; None for a local model.
    - `bytes_moved`: Bytes that a remote model has sent and received; None for a local model.
    - `features`: Shape and type of the features in its answers; () if they carry none.
    - `continues`: The model's input is the features in the student's answer.
    - `columns`: The columns of a row that the model reads, in order, by which a table's columns are
      chosen.
    - `device`: Where the model runs: ``"cpu"``, a PyTorch device, or an ONNX Runtime provider.
    """

    name: str
    path: Path | None = None
    url: str | None = None
    labels: tuple[str, ...] | None = None
    input_name: str = "input"
    input_shape: InputShape | None = None
    input_dtype: np.dtype[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    sha256: str | None = None
    cost: Cost = field(default_factory=Cost)
    multilabel: bool | None = None
    probabilities: bool | None = None
    preprocess: Mapping[str, Any] | None = None
    sends_files: bool = False
    calls: int | None = None
    bytes_moved: int | None = None
    features: tuple[Any, ...] | None = None
    continues: bool = False
    columns: tuple[str, ...] | None = None
    device: str = "cpu"

    @property
    def fixed_batch(self) -> int | None:
        """The number of rows of a batch, if the model fixes it."""
        return self.input_shape[0] if self.input_shape else None


def facts(model: Any) -> ModelFacts:
    """Return a model's own `facts`, or gather them from its attributes.

    A wrapper's facts are the inner model's with its own additions. From any other callable the
    attributes with names in `ModelFacts` are taken if they have the right type, from an estimator
    its classes and features, and from a torch module its device.

    Examples
    --------
    >>> def student(batch): return batch
    >>> student.input_shape = (None, 8)
    >>> facts(student).input_shape, facts(student).fixed_batch, facts(student).path
    ((None, 8), None, None)
    """
    own = getattr(model, "facts", None)
    return own if isinstance(own, ModelFacts) else _seen(model)


_SEEN: tuple[tuple[str, str, Any, Callable[[Any], Any]], ...] = (
    ("path", "path", str | os.PathLike, Path),
    ("url", "url", str, str),
    ("labels", "classes_", np.ndarray, lambda classes: tuple(map(label_text, classes))),
    ("labels", "labels", tuple, tuple),
    ("input_name", "input_name", str, str),
    ("input_shape", "n_features_in_", int, lambda features: (None, features)),
    ("input_shape", "input_shape", tuple, tuple),
    ("input_dtype", "input_dtype", np.dtype | type, np.dtype),
    ("multilabel", "multilabel", bool, bool),
    ("bytes_moved", "bytes_moved", int, int),
    ("features", "features", tuple, tuple),
    ("continues", "continues", bool, bool),
    ("columns", "columns", tuple, tuple),
    ("calls", "calls", int, int),
)
"""A fact, the attribute that holds it, the attribute's type, and its conversion."""


def _seen(model: Any) -> ModelFacts:
    found = {
        fact: convert(value)
        for fact, attribute, kind, convert in _SEEN
        if isinstance(value := getattr(model, attribute, None), kind)
    }
    return ModelFacts(model_name(model), device=_device(model), **found)


def _device(model: Any) -> str:
    """Return the first device other than the CPU of a model and of the models in it."""
    parts = [getattr(model, name, None) for name in ("model", "student", "teacher")]
    devices = [facts(part).device for part in parts if callable(part)]
    return next((device for device in (*devices, _own_device(model)) if device != "cpu"), "cpu")


def _own_device(model: Any) -> str:
    device, parameters = getattr(model, "device", None), getattr(model, "parameters", None)
    if device is None and callable(parameters):  # a torch module
        device = getattr(next(iter(parameters()), None), "device", None)
    providers = getattr(model, "providers", None) or ("cpu",)
    return device_name(device or providers[0])


def device_name(device: Any) -> str:
    """Return `ModelFacts.device` for a PyTorch device or an ONNX Runtime provider."""
    name = str(getattr(device, "type", device or "cpu"))
    return "cpu" if name.startswith("cpu") or name == "CPUExecutionProvider" else name


@dataclass(frozen=True, eq=False)
class Answer:
    """Raw output with more about its rows.

    - `output`: A row for each answered input.
    - `degraded`: A bool for each of these rows, true if the row should have been deferred; None is
      unknown.
    - `answered`: (n,) bool, which inputs were answered; None is all.
    - `why`: The reason why some rows have no usable answer.
    - `stage`: The index of the model that answered each row in a joint model; None is one model.
    - `features`: A row for each input, the input of a model that continues from them.
    - `spent`: (n, 3) for all inputs, answered or not: tokens in, tokens out and dollars; NaN is
      unknown, None a model without a price.
    - `away`: The model could not be reached.
    """

    output: Any
    degraded: Any = None
    answered: Any = None
    why: str | None = None
    stage: Any = None
    features: Any = None
    spent: Any = None
    away: bool = False

    def stages(self, rows: int) -> np.ndarray:
        """Return the stage of each answered row, (rows,), 0 if it has none."""
        return np.zeros(rows, np.int64) if self.stage is None else to_numpy(self.stage)


class TeacherFailed(TeacherUnavailable):
    """The teacher was reached but gave no valid answer; an error that it raised is the cause.

    Its rows are handled as if it were away. The same inputs are likely to fail again.
    """


def may_answer_fewer(failure: Exception) -> bool:
    """Whether a model that failed on a batch may answer a part of it: it was there to fail."""
    if isinstance(failure, TeacherFailed):
        return failure.__cause__ is not None and not isinstance(failure.__cause__, OtherModel)
    return not isinstance(failure, TeacherUnavailable | OtherModel)


class Around:
    """A wrapper around `model`, to which it passes on all other attributes."""

    def __init__(self, model: Model) -> None:
        self.model, self.name = model, model_name(model)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":  # unpickling asks before `model` is set
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"


def as_answer(said: Any) -> Answer:
    """Turn what a model returned, raw output or a joint model's answer, into an `Answer`."""
    if isinstance(said, Answer):
        return said
    marks: dict[str, Any] = {
        name: getattr(said, name, None) for name in ("degraded", "stage", "spent")
    }
    return Answer(getattr(said, "output", said), **marks)


def model_name(model: Model) -> str:
    """Return a model's name for messages."""
    name = getattr(model, "name", None) or getattr(model, "__name__", None)
    return name if isinstance(name, str) else type(model).__name__


def check_pair(student: Model, teacher: Model, kind: Task) -> None:
    """Check that the facts of both models fit a task and each other.

    Raises
    ------
    ValueError
        A model returns label sets but the task has single labels, or the reverse; both name their
        classes, but differently; or the teacher continues from features that the student lacks.
    """
    said = {"student": facts(student), "teacher": facts(teacher)}
    _check_continues(**said)
    for role, known in said.items():
        _check_labels_each(role, known, kind)
    mine, theirs = said["student"].labels, said["teacher"].labels
    if kind.targets_are == "boxes" or mine is None or theirs is None:
        return
    if are_names(mine) and are_names(theirs):
        kind.check_names(mine, theirs)


def _check_continues(student: ModelFacts, teacher: ModelFacts) -> None:
    """Check that a teacher that continues is local, and takes the student's features."""
    if student.continues:
        raise ValueError(f"{student.name} continues from features, so it can only be a teacher")
    if teacher.continues and (teacher.url is not None or teacher.preprocess is not None):
        way = "give its file" if teacher.preprocess is None else "leave its preprocessing out"
        raise ValueError(f"{teacher.name} continues from local features, not from images: {way}")
    if teacher.continues and student.features is not None:
        _check_features(student.name, student.features, teacher)


def trunk_of(found: Answer, rows: int, student: str, teacher: ModelFacts) -> Batch:
    """Return the features in a student's answer to `rows` inputs, checked for a teacher.

    Raises
    ------
    ValueError
        The answer does not have features for each row, or the teacher takes others.
    """
    said = found.features
    known = said is not None and row_count(said) == rows
    form = (tuple(said.shape), to_numpy(said[:0]).dtype) if known else ()
    _check_features(student, form, teacher)
    return said


def _check_features(student: str, said: tuple[Any, ...], teacher: ModelFacts) -> None:
    """Check that features fit a teacher's input, as far as shapes and types are known."""
    (shape, dtype), takes = said or (None, None), (teacher.input_shape, teacher.input_dtype)
    known = [None if one is None else len(one) for one in (shape, takes[0])]
    sides = zip((shape or ())[1:], (takes[0] or ())[1:], strict=False)
    alike = None in known or known[0] == known[1]
    alike &= all(one is None or other in (None, one) for one, other in sides)
    if not said or not alike or (dtype and takes[1] and dtype != takes[1]):
        carry = f"{shape and shape[1:]} of {dtype}" if said else "none for each row"
        raise ValueError(
            f"{teacher.name} continues from features {takes[0] and takes[0][1:]} of {takes[1]},"
            f" but the answers of {student} carry {carry}: choose the student's with features="
        )


def _check_labels_each(role: str, known: ModelFacts, kind: Task) -> None:
    """Check that models with classes or label sets are used for a task that has them."""
    wanted = kind.targets_are == "label sets"
    if kind.targets_are == "numbers" and len(known.labels or ()) > 1:
        raise ValueError(
            f"the {role}, {known.name}, names classes ({some(known.labels or ())}), but task "
            f"{kind.name} needs models that return numbers: give another --task (task=)"
        )
    if known.multilabel and not wanted:
        raise ValueError(
            f"the {role}, {known.name}, returns any number of labels for each input: give "
            "--task multilabel (task='multilabel')"
        )
    if known.multilabel is False and wanted:
        raise ValueError(
            f"the {role}, {known.name}, returns one label for each input, but task multilabel "
            "needs models with a logit for each label; give --task classification "
            "(task='classification') if one label is right"
        )


def answer(
    model: Model, batch: Any, rows: int, kind: Task | None = None, dollars: float | None = None
) -> Answer:
    """Run a model and check that it returns one row of raw output for each of `rows` inputs.

    `kind` is the task, which defines raw output; without it any array with rows will do. `dollars`
    is the price of a row if the model has none.

    Raises
    ------
    ModelError
        The output does not have a row for each answered input, its marks are not booleans, or what
        it spent is not given for each input.
    """
    found = as_answer(model(batch))
    expected = rows if found.answered is None else int(to_numpy(found.answered).sum())
    for marks, count in ((found.answered, rows), (found.degraded, expected)):
        if marks is not None and (to_numpy(marks).dtype != bool or len(marks) != count):
            raise ModelError(f"{model_name(model)} must mark {count} rows as true or false")
    if found.spent is not None and np.shape(found.spent) != (rows, 3):
        raise ModelError(
            f"{model_name(model)} must say what it spent on each of {rows} inputs, ({rows}, 3), "
            f"not {np.shape(found.spent)}"
        )
    if getattr(found.output, "requires_grad", False):
        found = replace(found, output=found.output.detach())  # an answer, not a graph to train
    if dollars is not None:
        found = replace(found, spent=_charged(found, rows, dollars))
    kind = kind or Task()
    if kind.count_rows(found.output) != expected:
        raise ModelError(
            f"{model_name(model)} was given {expected} inputs and must return "
            f"{kind.rows.format(expected)}, but returned {_came(found.output)}"
        )
    return found


def _charged(found: Answer, rows: int, dollars: float) -> Any:
    """Return what was spent, (rows, 3), with unknown dollars filled in; None if nothing was."""
    if found.spent is None and not dollars:
        return None
    if found.spent is None:  # a model without tokens: only answered rows are paid
        asked = np.ones(rows, bool) if found.answered is None else to_numpy(found.answered)
        return asked[:, None] * np.array([0.0, 0.0, dollars])
    spent = np.array(to_numpy(found.spent))
    spent[np.isnan(spent[:, 2]), 2] = dollars
    return spent


def _came(output: Any) -> str:
    shape = getattr(output, "shape", None)
    if shape is not None:
        return f"shape {tuple(shape)}"
    count = f" of {len(output)}" if isinstance(output, list | tuple) else ""
    return f"{type(output).__name__}{count}"

"""Model: what a student or a teacher is. The project's one seam.

A model is a callable: a batch in, its raw output out, one row for each input. A torch module, an
ONNX session, a remote endpoint, an estimator and a lambda are the same thing to the joint loop.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ebjr.arrays import Batch, row_count, to_numpy
from ebjr.costs import Cost
from ebjr.errors import ModelError, TeacherUnavailable
from ebjr.labels import are_names, label_text
from ebjr.task import Task

InputShape = tuple[int | None, ...]  # of a batch of inputs; an open dimension is None


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


@dataclass(frozen=True)
class ModelFacts:
    """What a model says of itself, beside its answers; None is "not known".

    - `name`: What to call the model in a message.
    - `path`, `url`: The file, or the address, that the model came from.
    - `labels`: The model's own name of each class, in the order of its raw output.
    - `input_name`, `input_shape`, `input_dtype`: What a batch of inputs is called, its shape (the
      rows first) and its type.
    - `options`: What `load_model` takes, beside `path` or `url`, to load the same model; those that
      have their defaults are left out.
    - `metadata`: What the server of a remote model says of it.
    - `sha256`: What a remote model is made of, as one hash, where its server says it.
    - `cost`: What an example costs, where the model knows.
    - `multilabel`: Whether an input may have several labels at once.
    - `probabilities`: Whether the raw output is probabilities, and not logits.
    - `preprocess`: Where the model takes decoded images: how they are prepared, as
      `Preprocess.as_dict` says.
    - `sends_files`: Whether each input travels to the model as the file of an image.
    - `calls`: How many batches at once the model is asked with profit; None where it runs here.
    - `bytes_moved`: Bytes that a remote model has sent and received so far; None of a model that is
      here.
    - `features`: Shape and type of the features that its answers carry; () where they carry none.
    - `continues`: Whether the model is asked about the features that the student's answer carries,
      in place of the inputs.
    - `columns`: What the columns of a row are called that it reads, in its order: a table's are
      taken by these names.
    - `device`: Where the model runs: ``"cpu"``, a device of PyTorch's, or ONNX Runtime's provider.
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
        """The only number of rows that the model takes, if it is fixed to one."""
        return self.input_shape[0] if self.input_shape else None


def facts(model: Any) -> ModelFacts:
    """What a model says of itself, or what can be seen of one that says nothing.

    A model's own `facts` come first: those of a wrapper are the model's inside, with what the
    wrapper adds. Of any other callable the attributes that are called as those of `ModelFacts` are
    taken, where they have the right type; of an estimator its classes and features; of a torch
    module its device.

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
"""A fact, the attribute that tells it, the type it must have, and what makes the fact of it."""


def _seen(model: Any) -> ModelFacts:
    found = {
        fact: convert(value)
        for fact, attribute, kind, convert in _SEEN
        if isinstance(value := getattr(model, attribute, None), kind)
    }
    return ModelFacts(model_name(model), device=_device(model), **found)


def _device(model: Any) -> str:
    """The first device, other than the processor, of a model and of the models in it."""
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
    """A device of PyTorch's, or a provider of ONNX Runtime's, as `ModelFacts.device` says it."""
    name = str(getattr(device, "type", device or "cpu"))
    return "cpu" if name.startswith("cpu") or name == "CPUExecutionProvider" else name


@dataclass(frozen=True, eq=False)
class Answer:
    """Raw output of a model that says more of its rows.

    `output` has a row for each input that was answered, and `degraded` a bool for each of these
    rows: whether it is not what it should be; None is unknown. `answered`, (n,) bool, says which
    inputs were answered; None is all of them. `why` says why some were answered with nonsense.
    `stage` says which of a joint model's models answered each row, the first being 0; None is all
    by one. `features`, a row for each input, are what a model that continues from them is asked.
    `spent`, (n, 3) for all inputs, answered or not: tokens in, tokens out and dollars of each; NaN
    is unknown, and None is a model that nobody charges for. `away` says that nothing was heard.
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
        """(rows,): the stage of each row that was answered; 0 where it says none."""
        return np.zeros(rows, np.int64) if self.stage is None else to_numpy(self.stage)


class TeacherFailed(TeacherUnavailable):
    """The teacher was there and gave no sound answer; where it raised an error, that is the cause.

    It counts as away. Asked the same again, it is likely to fail again.
    """


class Around:
    """A model around another, `model`, which is asked for all else."""

    def __init__(self, model: Model) -> None:
        self.model, self.name = model, model_name(model)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":  # while it is unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"


def as_answer(said: Any) -> Answer:
    """What a model has returned as an `Answer`; a joint model's answer carries its raw output."""
    if isinstance(said, Answer):
        return said
    marks: dict[str, Any] = {
        name: getattr(said, name, None) for name in ("degraded", "stage", "spent")
    }
    return Answer(getattr(said, "output", said), **marks)


def model_name(model: Model) -> str:
    """What to call a model in a message."""
    name = getattr(model, "name", None) or getattr(model, "__name__", None)
    return name if isinstance(name, str) else type(model).__name__


def check_pair(student: Model, teacher: Model, kind: Task) -> None:
    """Check that what both models say of themselves fits a task and each other.

    ValueError: a model answers label sets and the task is of single labels, or the other way round;
    both name their classes, and not alike; or the teacher continues from features that the
    student's answers do not carry.
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
    """A teacher that continues is here, and takes what the student's answers carry."""
    if student.continues:
        raise ValueError(f"{student.name} continues from features, so it can only be a teacher")
    if teacher.continues and (teacher.url is not None or teacher.preprocess is not None):
        way = "give its file" if teacher.preprocess is None else "leave its preprocessing out"
        raise ValueError(f"{teacher.name} continues from features that are no images here: {way}")
    if teacher.continues and student.features is not None:
        _check_features(student.name, student.features, teacher)


def trunk_of(found: Answer, rows: int, student: str, teacher: ModelFacts) -> Batch:
    """The features of a student's answer to `rows` inputs, checked: a teacher continues from them.

    ValueError: it carries none for each row, or others than the teacher takes.
    """
    said = found.features
    known = said is not None and row_count(said) == rows
    form = (tuple(said.shape), to_numpy(said[:0]).dtype) if known else ()
    _check_features(student, form, teacher)
    return said


def _check_features(student: str, said: tuple[Any, ...], teacher: ModelFacts) -> None:
    """Check that features of a shape and type, as far as these are known, are a teacher's input."""
    (shape, dtype), takes = said or (None, None), (teacher.input_shape, teacher.input_dtype)
    known = [None if one is None else len(one) for one in (shape, takes[0])]
    sides = zip((shape or ())[1:], (takes[0] or ())[1:], strict=False)
    alike = None in known or known[0] == known[1]
    alike &= all(one is None or other in (None, one) for one, other in sides)
    if not said or not alike or (dtype and takes[1] and dtype != takes[1]):
        carry = f"{shape and shape[1:]} of {dtype}" if said else "none for each row"
        raise ValueError(
            f"{teacher.name} continues from features {takes[0] and takes[0][1:]} of {takes[1]},"
            f" but the answers of {student} carry {carry}: features= names those of one model"
        )


def _check_labels_each(role: str, known: ModelFacts, kind: Task) -> None:
    """Models that are known to answer label sets are for the task multilabel; no others are."""
    wanted = kind.targets_are == "label sets"
    if known.multilabel and not wanted:
        raise ValueError(
            f"the {role}, {known.name}, answers any number of labels for each input: give "
            "--task multilabel (task='multilabel')"
        )
    if known.multilabel is False and wanted:
        raise ValueError(
            f"the {role}, {known.name}, answers one label for each input, and task multilabel "
            "needs models with a logit for each label; give --task classification "
            "(task='classification') if one label is right"
        )


def answer(
    model: Model, batch: Any, rows: int, kind: Task | None = None, dollars: float | None = None
) -> Answer:
    """Run a model and check that it gave one row of raw output for each of `rows` inputs.

    `kind` is the task, which knows what raw output is; without it any array with rows will do.
    `dollars` is what a row costs where the model does not say it. ModelError: the output has no
    rows, or not as many as were answered, or marks that are none.
    """
    found = as_answer(model(batch))
    expected = rows if found.answered is None else int(to_numpy(found.answered).sum())
    for marks, count in ((found.answered, rows), (found.degraded, expected)):
        if marks is not None and (to_numpy(marks).dtype != bool or len(marks) != count):
            raise ModelError(f"{model_name(model)} must mark {count} rows as true or false")
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
    """(rows, 3): what was spent, with dollars where they are not known; None if nothing was."""
    if found.spent is None and not dollars:
        return None
    if found.spent is None:  # such a model has no tokens, and was asked what it has answered
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

"""The first batches of a joint model: clients do not wait for them, or meet a broken model."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from ebjr.errors import ModelError, one_line
from ebjr.joint import JointModel, models_of
from ebjr.link.far import FarTeacher
from ebjr.model import Answer, Model, answer, facts, model_name
from ebjr.serving.served import Served

MOST_SECONDS = 2.0  # expected time of a full batch above which a single row must do

WORD = "a"  # a text that every tokenizer knows


def warm_up(served: Served, rows: int = 64) -> None:
    """Let each local model answer one row, and then `rows` rows, before clients ask.

    The rows are zeros, black images or one-letter texts; if the form of the input is unknown,
    nothing runs. A slow model answers one row only. No metric counts these rows. ModelError if a
    model fails, the two models' answers do not match, or the labels do not match the answers.
    """
    inputs = _inputs(served)
    if inputs is None:
        return
    with np.errstate(all="ignore"):  # zeros may overflow or divide by zero
        if (said := _ask(served.joint, inputs)) is not None:
            _check_written(served, said.output)
        began = time.perf_counter()
        _ask(served.joint, inputs)
        if (time.perf_counter() - began) * rows < MOST_SECONDS:
            many = inputs * rows if isinstance(inputs, list) else np.repeat(inputs, rows, axis=0)
            _ask(served.joint, many)


def _inputs(served: Served) -> Any:
    """Return the simplest input, a batch of one; None if its form is unknown."""
    if served.takes_images:
        known = [facts(model).preprocess for model in models_of(served.joint)]
        sizes = [None if one is None else one.get("size") for one in known]
        size = sizes[0]
        if None in sizes or size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return [np.zeros((height, width, 3), np.uint8)]
    if served.takes_texts:  # only the model knows which values its columns take
        return np.array([WORD], object) if len(served.columns or ("",)) == 1 else None
    shape = facts(models_of(served.joint)[0]).input_shape
    if shape is None or None in shape[1:]:
        return None
    dtype = facts(models_of(served.joint)[0]).input_dtype
    return np.zeros((1, *(int(size or 1) for size in shape[1:])), dtype or np.float32)


def _ask(joint: JointModel, inputs: Any) -> Answer | None:
    """Ask a joint model, and return its student's raw output; None if the student is remote."""
    student = joint.student
    own = (
        _ask(student, inputs) if isinstance(student, JointModel) else _said(joint, student, inputs)
    )
    if own is not None:
        _tried(student, lambda: joint.router.score(own.output))
    said = None if own is None else _tried(student, lambda: joint.of_student(own.output))
    if own is not None or not facts(joint.teacher).continues:
        asked = inputs if own is None else joint.for_teacher(inputs, own)
        if isinstance(joint.teacher, JointModel):
            taught = _ask(joint.teacher, asked)
        else:
            taught = _said(joint, joint.teacher, asked)
        if own is not None and taught is not None:
            output = joint.of_teacher(taught.output, said)
            _tried(joint.teacher, lambda: joint.mix(said, output))
    return None if own is None else Answer(said)


def check_labels(served: Served) -> None:
    """Raise ModelError if labels and the models' own class names differ in number."""
    joint = served.joint
    if not joint.kind.targets_are.startswith("label"):
        return
    for model in models_of(joint)[0 if joint.known_classes is None else -1 :]:
        if names := facts(model).labels:
            _check_count(served, len(names), model_name(model))


def _check_count(served: Served, classes: int, who: str) -> None:
    if served.labels is not None and len(served.labels) != classes:
        raise ModelError(
            f"there are {len(served.labels)} labels, but {who} answers {classes} classes: name "
            "each class once, in the model's order"
        )


def _check_written(served: Served, output: Any) -> None:
    """Raise ModelError unless every output of the answer can be written."""
    joint, form = served.joint, served.joint.kind.form(output)
    if joint.kind.targets_are != "numbers" and len(form) == 1:
        _check_count(served, form[0], model_name(joint.student))

    def write() -> None:
        answer = SimpleNamespace(prediction=joint.predict(output), output=output)
        for tensor in served.tensors().values():
            tensor.of(answer)

    _tried(joint.student, write)


def _said(joint: JointModel, model: Model, inputs: Any) -> Answer | None:
    if isinstance(model, FarTeacher) or facts(model).url is not None:
        return None
    found: Answer = _tried(model, lambda: answer(model, inputs, len(inputs), joint.kind))
    return found


def _tried(model: Model, ask: Any) -> Any:
    try:
        return ask()
    except Exception as error:  # any error of a model: a client would meet it
        raise ModelError(
            f"{model_name(model)} fails on its first batch: {one_line(error)}; fix the model, or "
            "use --no-warm-up if it cannot take zeros or a one-letter text"
        ) from error

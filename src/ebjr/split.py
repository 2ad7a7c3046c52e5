"""A network with an early exit, cut in two: a student, and a teacher that continues from it."""

import os
from pathlib import Path

from ebjr.backends import load_model
from ebjr.errors import ModelError, needs, one_line
from ebjr.files import write_beside
from ebjr.model import Model


def split_model(
    path: str | os.PathLike[str],
    at: str,
    *,
    student: str | os.PathLike[str],
    teacher: str | os.PathLike[str],
    outputs: tuple[str, str] | None = None,
) -> tuple[Model, Model]:
    """Cut an ``.onnx`` file with two outputs at a tensor, into the files of a pair.

    `at` is the last tensor that the early exit and the rest share. `student`, a file to write,
    answers with the exit, and carries this tensor as features; `teacher` is asked about these.
    `outputs` names the exit and the last output; None is the file's two, in its order.

    ModelError: the file cannot be cut there.
    """
    with needs("onnx", f"cutting {path}"):
        import onnx.utils
    try:
        graph = onnx.load(path, load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in weights]
        early, last = outputs or [value.name for value in graph.output]
        for target, given, wanted in ((student, inputs, [early, at]), (teacher, [at], [last])):
            with write_beside(target) as folder:
                draft = folder / Path(target).name
                onnx.utils.extract_model(str(path), str(draft), given, wanted)
    except Exception as error:  # of protobuf, of ONNX's checker, of names
        way = f"{at} must be all that the last output needs, and exist: {one_line(error)}"
        raise ModelError(f"{path} cannot be cut at {at}: {way}") from error
    return load_model(student, features=at), load_model(teacher, continues=True)

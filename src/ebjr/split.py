"""Split a network with an early exit into a student and a teacher that continues from it."""

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
    returns the exit and this tensor as features, which are the input of `teacher`. `outputs` names
    the exit and the last output; None takes the file's two, in order.

    Raises
    ------
    ModelError
        The file at `path` cannot be cut at `at`.
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
    except Exception as error:  # from protobuf, ONNX's checker or a wrong name
        way = f"{at} must exist, and be all that the last output needs: {one_line(error)}"
        raise ModelError(f"{path} cannot be cut at {at}: {way}") from error
    return load_model(student, features=at), load_model(teacher, continues=True)

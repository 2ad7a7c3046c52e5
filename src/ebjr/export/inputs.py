"""The joint graph's input, and each model's input made from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_ir as ir

from ebjr.backends.entry import ModelEntry
from ebjr.backends.onnx import OnnxModel, can_become
from ebjr.data.preprocess import Preprocess
from ebjr.errors import ModelError
from ebjr.export.images import prepare_images
from ebjr.export.operators import Operators, Value

OURS = ("prediction", "output", "score", "deferred", "stage", "threshold")
SIZES = (32, 64, 224, 128, 16, 8, 1)
"""Sizes tried in turn for dynamic dimensions, until all models answer."""


@dataclass(frozen=True)
class Given:
    """The joint graph's input: the batch comes first, and dynamic dimensions are names."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    models: Mapping[str, OnnxModel]  # by role
    files: Mapping[str, ModelEntry]  # by role, with preprocessing

    def value(self) -> ir.Value:
        """Return the input as a value of a graph."""
        return ir.val(self.name, ir.DataType.from_numpy(self.dtype), list(self.shape))

    def prepare(self, role: str, op: Operators, x: Value) -> Value:
        """Make a model's input from the joint graph's, or from some of its rows."""
        preprocess, model = self.files[role].preprocess, self.models[role]
        if model.continues:  # `x` are features, in its type
            return x
        if preprocess is not None:
            x = prepare_images(op, x, preprocess)
            x.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(preprocess.dtype)))
        known = self.dtype if x.dtype is None else x.dtype.numpy()
        return x if known == model.input_dtype else op.to(x, model.input_dtype)

    def examples(self, seed: int = 0) -> Iterator[np.ndarray]:
        """Yield batches of random rows, one for each of `SIZES` of dynamic dimensions."""
        rng = np.random.default_rng(seed)
        rows = self.shape[0] if isinstance(self.shape[0], int) else 8
        for size in SIZES:
            sides = (size if isinstance(side, str) else side for side in self.shape[1:])
            yield _random(rng, self.dtype, (rows, *sides))
            if not any(isinstance(side, str) for side in self.shape[1:]):
                return


def given_of(models: Mapping[str, OnnxModel], files: Mapping[str, ModelEntry]) -> Given:
    """Return an input that all models can take."""
    for role, model in models.items():
        if not model.input_shape:
            raise ModelError(
                f"the {role} {model.path} has no batch dimension in its input {model.input_name}; "
                "export it again with a dynamic first dimension for the batch"
            )
    rows: int | str = 1 if 1 in {model.fixed_batch for model in models.values()} else "n"
    asked = {role: model for role, model in models.items() if not model.continues}
    if any(entry.preprocess for entry in files.values()):
        fixed = [_sides(model, files[role].preprocess) for role, model in asked.items()]
        tall, wide = zip(*fixed, strict=True)
        height, width = next(filter(None, tall), "height"), next(filter(None, wide), "width")
        return Given("image", np.dtype(np.uint8), (rows, height, width, 3), models, files)
    several = list(asked.values())
    shapes = [tuple(model.input_shape or ())[1:] for model in several]
    sides = [set(column) - {None} for column in zip_longest(*shapes, fillvalue=-1)]
    if any(len(known) > 1 or -1 in known for known in sides):
        said = zip(several, shapes, strict=True)
        takes = " and ".join(f"{model.path} takes rows of shape {shape}" for model, shape in said)
        raise ModelError(
            f"all models must take the same inputs, but {takes}; if these are images, record with "
            "preprocessing for each model, which then runs inside the graph"
        )
    shape = (next(iter(known), None) or f"d{place}" for place, known in enumerate(sides, 1))
    name = "input" if several[0].input_name in OURS else several[0].input_name
    return Given(name, _common_dtype(several), (rows, *shape), models, files)


def _common_dtype(models: list[OnnxModel]) -> np.dtype[Any]:
    """Return the widest type that all models can take."""
    wanted = [model.input_dtype for model in models]
    for dtype in sorted(wanted, key=lambda one: -one.itemsize):
        if all(can_become(dtype, other) for other in wanted):
            return dtype
    takes = " and ".join(f"{model.path} takes {model.input_dtype}" for model in models)
    raise ModelError(f"all models must take the same inputs, but {takes}; export one of them again")


def _sides(model: OnnxModel, preprocess: Preprocess | None) -> tuple[int | None, int | None]:
    """Return the (height, width) that a model needs of images; None for any."""
    if preprocess is not None and preprocess.size is not None:
        return None, None
    shape = model.input_shape or ()
    first = 1 if preprocess is None or preprocess.layout == "nhwc" else 2
    height, width = (*shape[first : first + 2], None, None)[:2]
    return height, width


def _random(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    return rng.integers(0, 2, shape).astype(dtype)

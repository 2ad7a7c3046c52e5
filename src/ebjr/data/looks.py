"""Looks: how a model sees an image: prepared, mirrored, shifted or at another size.

A second look is a model with the same weights: one more pass, but no second file.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ebjr.arrays import Array, Batch
from ebjr.data.preprocess import (
    Preprocess,
    Preprocessed,
    given_preprocess,
    infer_preprocess,
    is_pixels,
    moved,
    prepared,
    unprepared,
)
from ebjr.errors import note
from ebjr.model import Around, InputShape, Model, ModelFacts, facts

LOOK_KEYS = {"size", "mirror", "shift"}
"""The fields of a `Preprocess` in which a second look may differ from the first."""


def look(
    model: Model,
    *,
    mirror: bool = False,
    shift: tuple[int, int] = (0, 0),
    size: int | tuple[int, int] | None = None,
) -> Model:
    """Return the same model, which sees each image mirrored, shifted, or at another size.

    For a model of decoded images the look is another `Preprocess`, which ``joint.toml`` stores. A
    model of arrays gets them mirrored and shifted; ``joint.toml`` needs its import path.

    Parameters
    ----------
    model
        A model of images, or a look, to which this one is added.
    mirror, shift, size
        As for `Preprocess`. A `size` is for decoded images.

    Raises
    ------
    ValueError
        `model` does not take images, has a fixed other `size`, or is at an address. If it does not
        say what it takes, its first batch raises.

    Examples
    --------
    >>> left = lambda images: images[:, 0, :, 0]  # the left column of each
    >>> image = np.arange(4.0).reshape(1, 1, 1, 4)
    >>> left(image), look(left, mirror=True)(image), look(left, shift=(-1, 0))(image)
    (array([[0.]]), array([[3.]]), array([[1.]]))
    """
    return look_as(model, Preprocess(size=size, mirror=mirror, shift=shift))


def mirrored(model: Model) -> Model:
    """Return the same model, which sees each image mirrored: ``look(model, mirror=True)``."""
    return look(model, mirror=True)


def look_as(model: Model, change: Preprocess) -> Model:
    """`look` with the `LOOK_KEYS` of `change` as arguments."""
    if isinstance(model, Look):
        return look_as(model.model, _changed(model.change, change))
    bare, own = unprepared(model)
    _check(facts(bare), change)
    if own is not None:
        return prepared(model, _changed(own, change))
    if facts(model).url is not None:
        raise ValueError(f"{facts(model).name} is at an address: a look needs a local model")
    return model if change == Preprocess() else Look(model, change)


class Look(Around):
    """A look of a model that takes arrays of images, (n, channels, height, width) or channels last.

    `change` has the mirroring and the shift.
    """

    def __init__(self, model: Model, change: Preprocess) -> None:
        super().__init__(model)
        self.change = change
        self.name = f"{self.name} ({change.as_text()})"

    def __call__(self, batch: Batch, /) -> Any:
        """Return the raw output for n images."""
        return self.model(self.seen(batch))

    def seen(self, batch: Batch) -> Batch:
        """Return the images as the model gets them; a ValueError refuses other inputs."""
        if self.change.size is not None:
            raise ValueError(
                f"{self.name} takes arrays, which keep their size: a look at another size needs "
                "decoded images"
            )
        if isinstance(batch, list | tuple):
            return [self._moved(image, (None, *np.shape(image))) for image in batch]
        return self._moved(batch, np.shape(batch))

    def _moved(self, images: Array, shape: InputShape) -> Array:
        tall = _height_axis(facts(self.model).input_shape or ()) or _height_axis(shape)
        if tall is None or len(shape) != 4:
            raise _no_images(self.name, shape)
        found = moved(images, self.change.mirror, self.change.shift, tall)
        return np.ascontiguousarray(found) if isinstance(found, np.ndarray) else found

    @property
    def facts(self) -> ModelFacts:
        """The model's facts without its path, since the file alone is not the look."""
        return replace(facts(self.model), name=self.name, path=None)


def _changed(own: Preprocess, change: Preprocess) -> Preprocess:
    right, down = (mine + further for mine, further in zip(own.shift, change.shift, strict=True))
    mirror, size = own.mirror != change.mirror, change.size or own.size
    return replace(own, size=size, mirror=mirror, shift=(right, down))


def _check(known: ModelFacts, change: Preprocess) -> None:
    """Check that a model's input, as far as known, allows the look."""
    shape, fixed = known.input_shape, None
    if shape is not None and len(shape) != 4:
        raise _no_images(known.name, shape)
    with suppress(ValueError):  # it may take images without saying so
        fixed = infer_preprocess(shape or ()).height_width
    if change.size is not None and fixed not in (None, change.height_width):
        raise ValueError(
            f"{known.name} takes only images of {fixed[0]} x {fixed[1]} pixels: a look at another "
            "size needs a model with dynamic height and width"
        )


def _no_images(name: str, shape: InputShape) -> ValueError:
    return ValueError(
        f"a look needs images, (n, 3, height, width) or (n, height, width, 3), but {name} takes "
        f"{tuple('n' if side is None else side for side in shape)}: leave the look out"
    )


def _height_axis(shape: Sequence[int | None]) -> int | None:
    """Return the axis of a batch's height, negative; None if it is ambiguous."""
    first, last = (len(shape) == 4 and shape[axis] in (1, 3) for axis in (1, 3))
    return None if first == last else -2 if first else -3


def prepare_for(
    model: Model,
    inputs: Batch,
    preprocess: Preprocess | str | None = "auto",
    argument: str = "preprocess",
) -> Model:
    """Give a model its preprocessing, if `inputs` are decoded images and it needs one.

    `preprocess` is as for `record`, and `argument` its name in messages.
    """
    if isinstance(model, Look):
        return look_as(prepare_for(model.model, inputs, preprocess, argument), model.change)
    if facts(model).continues and preprocess not in ("auto", "infer", None):
        raise ValueError(f"features are not images: leave {argument}= of the teacher out")
    own_way = unprepared(model)[1]
    if preprocess not in ("auto", "infer"):
        if own_way is not None and (own_way.mirror or any(own_way.shift)):
            raise ValueError(
                f"{facts(model).name} is a look with its own preprocessing, {own_way.as_text()}: "
                f"leave {argument}= out, or make the look of a model without any"
            )
        chosen = None if preprocess is None else given_preprocess(preprocess, argument)
        return prepared(model, chosen)
    known, own = facts(unprepared(model)[0]), facts(model)
    listed = isinstance(inputs, list) and bool(inputs)
    images = is_pixels(inputs[0], 3) if listed else is_pixels(inputs, 4)
    if not images or known.sends_files or known.continues:
        return model
    pixels, unsized = own.input_dtype == np.uint8, known.input_shape is None
    ready = own.preprocess is not None or pixels or unsized
    made = isinstance(model, Preprocessed)  # the user has chosen
    if made or (preprocess == "auto" and ready) or (pixels and unsized):
        return model
    if known.input_shape is None:
        raise ValueError(
            f"{known.name} has no input size: give {argument}=, like 'size=224,range=0..1', or for "
            "a function that takes decoded images set its input_dtype = numpy.uint8"
        )
    chosen = infer_preprocess(known.input_shape)
    words = ", ".join(f"{key} {value}" for key, value in chosen.as_dict().items())
    note(
        f"no {argument}= given; inferred from {known.name}'s input: {words}, "
        f"pixels in {chosen.range[0]:g}..{chosen.range[1]:g}, no mean and std"
    )
    return prepared(model, chosen)

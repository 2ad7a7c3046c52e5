"""Preprocess: from decoded images to a model's input, as data instead of code.

Each model has its own, so that student and teacher take the same decoded images at different
resolutions.
"""

import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ebjr.arrays import Array, convert_like, is_array, namespace
from ebjr.errors import note
from ebjr.files import read_text
from ebjr.model import Model, ModelFacts, facts, model_name

Image = NDArray[np.uint8]
Channels = float | tuple[float, ...]
Sides = tuple[int, int]  # a height and a width
Place = tuple[Sides, int, int]

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "resize": ("squash", "crop", "letterbox"),
    "interpolation": ("bilinear", "bicubic"),
    "color": ("rgb", "bgr", "gray"),
    "layout": ("nchw", "nhwc"),
    "dtype": ("float32", "float16", "uint8"),
}
PADDING = 114
# these three bound the memory that a thin or tiny image takes on its way to the input's size
MOST_ENLARGED = 4  # times image or input, whichever is larger: beyond it crop before scaling
MOST_BETWEEN = 2**24  # pixels between the two passes of a resize
MOST_SIDE = 2**20  # a longer side is thinned to every second, third... pixel
WEIGHT_BITS = 22  # fixed-point bits of Pillow's weights for uint8
LUMA = (19595, 38470, 7471)
"""The weights of red, green and blue in Pillow's mode ``"L"``, in 65536ths."""


@dataclass(frozen=True)
class Preprocess:
    """How decoded images become a model's input.

    Attributes
    ----------
    size
        A square's side, or (height, width), in pixels; None keeps the images' own size.
    resize
        ``"squash"`` to the size; ``"crop"``: scale until the size is covered, keep the center;
        ``"letterbox"``: scale until it fits, pad to the size with gray (114) on both sides.
    interpolation
        ``"bilinear"`` or ``"bicubic"``, both with antialiasing.
    range
        What pixel values 0 and 255 become, before `mean` and `std`.
    mean, std
        Subtracted, then divided by; one number for each channel in the order of `color`.
    color
        The order of the channels, ``"rgb"`` or ``"bgr"``; or ``"gray"``: one channel, the
        luminance of Pillow's mode ``"L"``.
    layout
        ``"nchw"`` or ``"nhwc"``.
    dtype
        ``"float32"``, ``"float16"``, or ``"uint8"`` for unscaled pixels.
    mirror
        Mirror the image left-right, at the model's size.
    shift
        Pixels by which the image is shifted right and down after mirroring; negative numbers shift
        left and up. Edge pixels are repeated.

    Raises
    ------
    ValueError
        A field has a value that is not allowed; the message names it.

    Examples
    --------
    >>> preprocess = Preprocess(size=4, range=(-1, 1))
    >>> preprocess([np.zeros((8, 6, 3), np.uint8)]).shape
    (1, 3, 4, 4)
    >>> preprocess.as_dict()
    {'size': 4, 'range': [-1.0, 1.0]}
    """

    size: int | tuple[int, int] | None = None
    resize: Literal["squash", "crop", "letterbox"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    range: tuple[float, float] = (0.0, 1.0)
    mean: Channels | None = None
    std: Channels | None = None
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    mirror: bool = False
    shift: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = vars(self)[name]
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        checked: dict[str, Any] = {"size": _checked_size(self.size)}
        for name, count in (("range", 2), ("mean", self.channels), ("std", self.channels)):
            left_out = name != "range" and vars(self)[name] is None
            checked[name] = None if left_out else _numbers(name, vars(self)[name], count)
        vars(self).update(checked, shift=_checked_shift(self.shift))  # frozen: no assignment
        if not isinstance(self.mirror, bool):
            raise ValueError(f"mirror must be true or false, not {self.mirror!r}")
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range must be (low, high) with low under high, not {self.range!r}")
        if isinstance(self.std, tuple) and min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std!r}")
        scaled = self.mean or self.std or self.range not in ((0.0, 1.0), (0.0, 255.0))
        if self.dtype == "uint8" and scaled:
            raise ValueError(
                "dtype uint8 keeps the pixels unscaled and takes no range, mean or std; leave them "
                "out, or choose float32"
            )
        if self.dtype != "uint8" and np.abs(self.values()).max() > np.finfo(self.dtype).max:
            raise ValueError(
                f"range, mean and std give values that overflow {self.dtype}; choose another "
                "dtype, or a std nearer to the range"
            )

    @property
    def channels(self) -> int:
        """The number of channels of the model's input."""
        return 1 if self.color == "gray" else 3

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size as (height, width), or None."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def fitting(self) -> tuple[Sides | None, str, str]:
        """What decides how an image is resized: the size as (height, width), and the way."""
        return self.height_width, self.resize, self.interpolation

    def __call__(self, images: Sequence[Image] | Image) -> NDArray[Any]:
        """Turn n decoded images into the model's input, in its `layout` and `dtype`.

        `images` is a list of n uint8 arrays (height, width, 3), or one uint8 array of rank 4.

        Raises
        ------
        TypeError
            `images` are not uint8, and may have been preprocessed already.
        ValueError
            `images` is empty, one is not RGB, or `size` is None and their sizes differ.
        """
        return self._tensor(moved(self._sized(images), self.mirror, self.shift, -3))

    def boxes_to_image(
        self, boxes: NDArray[Any], input_size: tuple[int, int], image_size: tuple[int, int]
    ) -> NDArray[Any]:
        """Map boxes (b, 4) from pixels of the model's input to pixels of the image.

        Both sizes are (height, width); boxes are clipped at the image's edges.

        Examples
        --------
        >>> letterbox = Preprocess(size=8, resize="letterbox")
        >>> letterbox.boxes_to_image(np.array([[0.0, 2.0, 8.0, 6.0]]), (8, 8), (32, 64))
        array([[ 0.,  0., 64., 32.]])
        """
        if self.size is None:
            (tall, wide), top, left = image_size, 0, 0
        else:
            (tall, wide), top, left = _place(image_size, input_size, self.resize)
        scale = np.array([image_size[1] / wide, image_size[0] / tall] * 2)
        seen = boxes - np.array(self.shift * 2)  # the shift came last, so it is undone first
        if self.mirror:
            seen[:, [0, 2]] = input_size[1] - seen[:, [2, 0]]
        placed = (seen - np.array([left, top] * 2)) * scale
        inside: NDArray[Any] = placed.clip(0, np.array([image_size[1], image_size[0]] * 2))
        return inside.astype(boxes.dtype)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, for TOML or JSON."""
        usual = vars(Preprocess())
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value != usual[name]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `as_dict` wrote; a ValueError names a wrong key or value."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"preprocess has no key {name!r}; it has {', '.join(known)}")
        return cls(**values)

    def as_text(self) -> str:
        """Return the fields that differ from their defaults, as text for `parse`.

        Examples
        --------
        >>> Preprocess(size=(96, 128), range=(-1, 1)).as_text()
        'size=96x128,range=-1.0..1.0'
        """
        return ",".join(f"{name}={_as_text(name, value)}" for name, value in self.as_dict().items())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a flag of the command line: the values, or a ``.toml`` file.

        Raises
        ------
        FileNotFoundError
            `text` names a file that does not exist.
        ValueError
            `text` has a part that is not ``key=value``, or a key or value that is not allowed.

        Examples
        --------
        >>> Preprocess.parse("size=96x128,resize=crop,range=0..1,mean=0.485/0.456/0.406").mean
        (0.485, 0.456, 0.406)
        """
        if text.endswith(".toml"):
            return cls.from_file(text)
        values = values_of(text, "preprocess", "size=224,resize=crop,mean=0.485/0.456/0.406")
        return cls.from_dict({name: _from_text(name, value) for name, value in values.items()})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file with the keys of `as_dict`."""
        try:
            text = read_text(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"preprocess file {path} does not exist") from None
        try:
            return cls.from_dict(tomllib.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _sized(self, images: Sequence[Image] | Image) -> Image:
        """Resize all images, (n, height, width, 3)."""
        size = self.height_width
        if isinstance(images, np.ndarray):
            _check_pixels(images, 4)
            if size is None or images.shape[1:3] == size:
                return images
            if len(images) == 0:
                return np.zeros((0, *size, 3), np.uint8)
        if not isinstance(images, list | tuple | np.ndarray):
            raise TypeError(f"images must be a list or an array, not {type(images).__name__}")
        if len(images) == 0:
            raise ValueError("images must have at least one image, but it is empty")
        for image in images:
            _check_pixels(image, 3)
        if size is None:
            shapes = sorted({image.shape[:2] for image in images})
            if len(shapes) > 1:
                raise ValueError(
                    f"images of different sizes, like {shapes[0]} and {shapes[1]}, cannot be one "
                    "batch; give preprocess a size"
                )
            return np.stack(list(images))
        return np.stack([self.fit(image) for image in images])

    def fit(self, image: Image) -> Image:
        """Resize an image (height, width, 3) to `size`, unless it knows the result."""
        known = image.resized.get(self.fitting) if isinstance(image, ImageFile) else None
        size, resize, interpolation = self.fitting
        if size is None or known is not None:
            return image if known is None else known
        return _fit(image, size, resize, interpolation)

    def _tensor(self, pixels: Image) -> NDArray[Any]:
        """Convert pixels (n, height, width, 3) to the model's color, range, layout and type."""
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        if self.color == "gray":
            luminance = (pixels @ np.array(LUMA, np.uint32) + 2**15) >> 16  # rounds like Pillow
            pixels = luminance.astype(np.uint8)[..., None]
        planes = pixels.transpose(0, 3, 1, 2)
        output = np.empty(planes.shape if self.layout == "nchw" else pixels.shape, self.dtype)
        target = output if self.layout == "nchw" else output.transpose(0, 3, 1, 2)
        if self.dtype == "uint8":
            target[...] = planes
            return output
        # a table of 256 values: each is rounded once, and equal in the exported graph
        for channel, table in enumerate(self.values().astype(self.dtype)):
            target[:, channel] = table[planes[:, channel]]
        return output

    def values(self) -> NDArray[np.float64]:
        """Return what each of the 256 pixel values becomes, (channels, 256)."""
        low, high = self.range
        values = low + np.arange(256) * (high - low) / 255
        mean = np.array(self.mean or (0.0,) * self.channels)[:, None]
        std = np.array(self.std or (1.0,) * self.channels)[:, None]
        return np.asarray((values - mean) / std, np.float64)


def moved(images: Array, mirror: bool, shift: tuple[int, int], tall: int) -> Array:
    """Mirror images, then shift them right and down, repeating edge pixels.

    `tall` is the axis of the height, negative; the next one is the width.
    """
    if mirror:
        images = namespace(images).flip(images, axis=tall + 1)
    for axis, by in zip((tall + 1, tall), shift, strict=True):
        if by:
            side = images.shape[axis]
            places = convert_like((np.arange(side) - by).clip(0, side - 1), images)
            images = namespace(images).take(images, places, axis=axis)
    return images


def values_of(text: str, what: str, example: str) -> dict[str, str]:
    """Parse ``key=value,key=value,...``, each key once."""
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if not value:
            raise ValueError(f"{what} must be key=value,..., like {example}, but has {part!r}")
        if name in values:
            raise ValueError(f"{what} has the key {name!r} twice; give it once")
        values[name] = value
    return values


def given_preprocess(preprocess: Preprocess | str, argument: str) -> Preprocess:
    """Read preprocessing from `argument`; a note says which of range, mean and std is a guess."""
    chosen = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    text = preprocess if isinstance(preprocess, str) else chosen.as_text()
    lines = read_text(text) if text.endswith(".toml") else text.replace(",", "\n")
    given = re.findall(r"^\s*(\w+)\s*=", lines, re.MULTILINE)
    if chosen.dtype != "uint8" and not {"mean", "std"} <= {*given}:
        low, high = chosen.range
        usual = {"range": f"pixels in {low:g}..{high:g}", "mean": "no mean", "std": "no std"}
        guess = ", ".join(words for key, words in usual.items() if key not in given)
        none = "mean=0,std=1" if chosen.channels == 1 else "mean=0/0/0,std=1/1/1"
        said = ", ".join(given) or "nothing"
        note(f"{argument}= gives {said}; the rest is a guess: {guess} (give {none} if it has none)")
    return chosen


def upright_pixels(image: Any) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode to upright RGB pixels (height, width, 3).

    EXIF orientation is applied, transparency laid over white, and 16-bit gray scaled to 8 bits. A
    ValueError refuses floating-point pixels.
    """
    from PIL import ImageOps

    return np.array(to_rgb(ImageOps.exif_transpose(image)))


def to_rgb(image: Any) -> Any:
    """Convert a Pillow image of any mode to RGB."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255
        gray = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("it has floating-point pixels of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image.convert("RGB")


class ImageFile(np.ndarray):
    """A decoded image with the file it came from, to send on unchanged, and its resized copies.

    Slices and computed arrays have neither.
    """

    file: bytes | None = None
    resized: Mapping[Any, Image] = MappingProxyType({})

    @classmethod
    def of(cls, pixels: NDArray[Any], file: bytes | None = None) -> Self:
        """Attach a file to pixels."""
        image = pixels.view(cls)
        image.file = file
        return image

    def with_sizes(self, models: Iterable["Preprocess"]) -> Self:
        """Resize the image ahead of the models' batches, where each `Preprocess` finds its size."""
        pixels = self.view(np.ndarray)  # a view of the image itself would keep it alive forever
        self.resized = {model.fitting: model.fit(pixels) for model in models}
        return self


class Preprocessed:
    """A model with its preprocessing, which takes decoded images of any size.

    Attributes
    ----------
    name, model, preprocess
        The inner model's name, the inner model, and its preprocessing.

    Examples
    --------
    >>> brightness = Preprocessed(lambda batch: batch.mean(axis=(2, 3)), Preprocess(size=8))
    >>> brightness([np.full((4, 4, 3), 255, np.uint8)]).tolist()
    [[1.0, 1.0, 1.0]]
    """

    def __init__(self, model: Model, preprocess: Preprocess) -> None:
        self.name = model_name(model)
        self.model = model
        self.preprocess = preprocess

    def __call__(self, images: Sequence[Image] | Image, /) -> Any:
        """Return the raw output for n decoded images, n rows."""
        return self.model(self.preprocess(images))

    @property
    def facts(self) -> ModelFacts:
        """The inner model's facts, with decoded images as input."""
        return facts_of_images(facts(self.model), self.preprocess)

    def with_preprocess(self, preprocess: Preprocess) -> "Preprocessed":
        """Return a copy with other preprocessing."""
        return Preprocessed(self.model, preprocess)

    def __repr__(self) -> str:
        return f"Preprocessed({self.name}, {self.preprocess.as_text() or 'no options'})"


def facts_of_images(inside: ModelFacts, preprocess: Preprocess) -> ModelFacts:
    """Return the facts of a model that prepares decoded images for an inner model."""
    return replace(
        inside,
        input_name="image",
        input_shape=(inside.fixed_batch, None, None, 3),
        input_dtype=np.dtype(np.uint8),
        preprocess=preprocess.as_dict(),
    )


@runtime_checkable
class PreparesImages(Protocol):
    """A model that takes decoded images and prepares them for an inner model.

    `Preprocessed` is one, and so is a detector, which maps boxes back to the image.
    """

    model: Model
    preprocess: Preprocess

    def with_preprocess(self, preprocess: Preprocess) -> Model:
        """Return a copy with other preprocessing."""
        ...


def prepared(model: Model, preprocess: Preprocess | None) -> Model:
    """Give a model preprocessing, instead of its own; None leaves it unchanged."""
    if preprocess is None:
        return model
    if isinstance(model, PreparesImages):
        return model.with_preprocess(preprocess)
    return Preprocessed(model, preprocess)


def unprepared(model: Model) -> tuple[Model, Preprocess | None]:
    """Return the inner model and its preprocessing; None if it takes arrays."""
    if isinstance(model, PreparesImages):
        return model.model, model.preprocess
    return model, None


def infer_preprocess(input_shape: Sequence[int | str | None]) -> Preprocess:
    """Infer size, layout and color from the shape of a model's input.

    A dynamic dimension is a name or None, as in an ONNX file.

    Raises
    ------
    ValueError
        `input_shape` is not a batch of RGB (3 channels) or gray (1 channel) images, or fits both
        layouts.
    """
    shape = list(input_shape)
    first, last = (len(shape) == 4 and shape[axis] in (1, 3) for axis in (1, 3))
    if first == last:
        which = "fits both" if first else "is neither"
        raise ValueError(
            "the input must have the shape (n, 3, height, width) or (n, height, width, 3), with 1 "
            f"instead of 3 for gray images, but {tuple(shape)} {which}; give the layout with "
            "preprocess"
        )
    tall, wide = (
        side if isinstance(side, int) and side > 0 else None
        for side in (shape[2:] if first else shape[1:3])
    )
    if (tall is None) != (wide is None):
        raise ValueError(
            f"the input has one fixed and one dynamic side, {tuple(shape)}; "
            "give both with preprocess, for example size=224x320"
        )
    size = None if tall is None or wide is None else (tall, wide)
    color: Any = "gray" if shape[1 if first else 3] == 1 else "rgb"
    return Preprocess(size=size, color=color, layout="nchw" if first else "nhwc")


def _fit(image: Image, size: tuple[int, int], resize: str, interpolation: str) -> Image:
    inner, top, left = _place(image.shape[:2], size, resize)
    if resize == "crop" and math.prod(inner) > MOST_ENLARGED * max(
        image.size // 3, math.prod(size)
    ):
        image, inner, top, left = _cut(image, size, inner, (top, left), interpolation), size, 0, 0
    scaled = _scaled(image, inner, interpolation)
    if resize != "letterbox":
        return scaled[-top : size[0] - top, -left : size[1] - left]
    page = np.full((*size, 3), PADDING, np.uint8)
    page[top : top + inner[0], left : left + inner[1]] = scaled
    return page


def _scaled(image: Image, size: tuple[int, int], interpolation: str) -> Image:
    from PIL import Image as pillow

    if image.shape[:2] == size:
        return image
    method = pillow.Resampling[interpolation.upper()]
    image = image[tuple(slice(None, None, -(-side // MOST_SIDE)) for side in image.shape[:2])]
    (height, width), (tall, wide) = size, image.shape[:2]
    # across, then down: the order up to Pillow 12, which later versions choose by the sizes
    stretched = width * tall > MOST_BETWEEN and width > wide and tall > height
    between = (wide, height) if stretched else (width, tall)
    across = pillow.fromarray(image).resize(between, method)
    return np.asarray(across.resize((width, height), method))


def _cut(image: Image, size: Sides, inner: Sides, start: Sides, interpolation: str) -> Image:
    """Enlarge only the visible part of an image's long side, bit for bit like Pillow.

    Enlarging all of a thin image and then cropping it could take gigabytes.
    """
    side, reach = int(inner[1] > size[1]), 2 if interpolation == "bicubic" else 1
    step = image.shape[side] / inner[side]
    center = (np.arange(-start[side], size[side] - start[side])[:, None] + 0.5) * step
    first = np.maximum((center - reach + 0.5).astype(int), 0)
    end = np.minimum((center + reach + 0.5).astype(int), image.shape[side])
    place = first + np.arange(2 * reach + 1)
    share = np.where(place < end, _weight(np.abs(place - center + 0.5), reach), 0.0)
    share = share / share.sum(1, keepdims=True) * 2.0**WEIGHT_BITS
    part = image.take(range(first.min(), end.max()), side)
    if side == 0:
        part = _scaled(part, (len(part), size[1]), interpolation)
    seen = part.take(np.minimum(place, end.max() - 1) - first.min(), side)
    # Pillow's fixed-point arithmetic: weights rounded half away from zero, one rounding at the end
    whole = np.trunc(share + np.copysign(0.5, share)).astype(np.int64)
    total = np.einsum("hwtc,wt->hwc" if side else "htwc,ht->hwc", seen, whole)
    rounded = np.right_shift(total + 2 ** (WEIGHT_BITS - 1), WEIGHT_BITS)
    return np.asarray(rounded.clip(0, 255), np.uint8)


def _weight(distance: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Return Pillow's bilinear (`reach` 1) or bicubic weight at a distance in pixels."""
    if reach == 1:
        return np.maximum(1 - distance, 0.0)
    near = (distance * 1.5 - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _place(image: tuple[int, ...], size: tuple[int, int], resize: str) -> Place:
    """Return an image's size, top and left in an input of another size."""
    (height, width), (tall, wide) = size, image
    if resize == "squash":
        return size, 0, 0
    if resize == "letterbox":
        scale = min(height / tall, width / wide)
        fitting = (max(1, round(tall * scale)), max(1, round(wide * scale)))
        return fitting, (height - fitting[0]) // 2, (width - fitting[1]) // 2
    if height * wide >= width * tall:  # the image is wider than the input: its height fits exactly
        covering = (height, wide * height // tall)
    else:
        covering = (tall * width // wide, width)
    # Python's round is half to even, as ONNX's Round in the exported graph
    return covering, -round((covering[0] - height) / 2), -round((covering[1] - width) / 2)


def is_pixels(value: Any, rank: int) -> bool:
    """Tell whether `value` is a decoded image (rank 3) or a batch of them (rank 4): uint8 RGB."""
    array = isinstance(value, np.ndarray) and value.dtype == np.uint8
    return array and value.ndim == rank and value.shape[-1] == 3


def _check_pixels(image: Any, rank: int) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        came = image.dtype if is_array(image) else type(image).__name__
        raise TypeError(
            f"preprocess takes decoded images, uint8 arrays, not {came}; give the images as "
            "decoded, or leave preprocess out for prepared inputs"
        )
    if image.ndim != rank or image.shape[-1] != 3 or 0 in image.shape[rank - 3 :]:
        expected = "(n, height, width, 3)" if rank == 4 else "(height, width, 3)"
        raise ValueError(f"images must have the shape {expected}, but one is {image.shape}")


def _checked_size(size: Any) -> int | tuple[int, int] | None:
    sides = (size, size) if isinstance(size, int) else size
    if sides is None:
        return None
    fits = isinstance(sides, list | tuple) and len(sides) == 2
    if not fits or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"size must be a positive whole number or (height, width), not {size!r}")
    height, width = sides
    return height if height == width else (height, width)


def _checked_shift(shift: Any) -> tuple[int, int]:
    fits = isinstance(shift, list | tuple) and len(shift) == 2
    if not fits or not all(type(by) is int and abs(by) < MOST_SIDE for by in shift):
        raise ValueError(f"shift must be (right, down) in whole pixels, not {shift!r}")
    return tuple(shift)


def _numbers(name: str, value: Any, count: int) -> tuple[float, ...]:
    value = [value] if count == 1 and _is_number(value) else value
    fits = isinstance(value, list | tuple) and len(value) == count
    if not fits or not all(_is_number(number) for number in value):
        wanted = f"{count} finite numbers" if count > 1 else "one finite number for a gray image"
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
    return tuple(float(number) for number in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    separator = {"size": "x", "range": ".."}.get(name, "/")
    return separator.join(map(str, value)) if isinstance(value, list) else str(value)


def _from_text(name: str, text: str) -> Any:
    """Parse a flag's value for `from_dict`, which refuses text that is not a number."""
    with suppress(ValueError):
        if name == "size":
            sides = [int(side) for side in text.split("x")]
            return sides[0] if len(sides) == 1 else sides
        if name == "mirror":
            return {"true": True, "false": False}.get(text, text)
        if name == "shift":
            return [int(pixels) for pixels in text.split("/")]
        if name in ("range", "mean", "std"):
            return [float(number) for number in text.split(".." if name == "range" else "/")]
    return text

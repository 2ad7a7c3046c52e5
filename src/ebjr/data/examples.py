"""Examples in batches: arrays in memory, or images decoded ahead on a few threads, in order.

An image that cannot be read is named, counted and left out.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebjr.arrays import take_rows
from ebjr.data.preprocess import to_rgb, upright_pixels
from ebjr.errors import check_at_least
from ebjr.files import sha256_of
from ebjr.labels import check_once, some
from ebjr.tasks.detection.boxes import GroundTruth
from ebjr.threads import in_order

OnUnreadable = Literal["skip", "error"]


@dataclass(frozen=True)
class Examples:
    """Some consecutive examples."""

    inputs: NDArray[Any] | list[NDArray[np.uint8]]  # (n, ...), or images, uint8 (height, width, 3)
    # (n,) or (n, labels), int64, or text or bool if the classes have no names; None: no labels
    targets: NDArray[Any] | list[GroundTruth] | None
    names: list[str]  # each example's name in messages and answers

    def __len__(self) -> int:
        return len(self.names)


Part = tuple[Examples | None, list[tuple[str, str]]]
"""A batch, and (name, reason) of each example that could not be read."""


@dataclass(eq=False)
class Data(ABC):
    """Examples that can be read in batches, as often as needed."""

    path: Path
    classes: tuple[str, ...] | None  # the names of the labels, if they have any
    has_targets: bool
    # source of `classes`: "given", "folders", "table" or "categories"
    named_by: str | None = field(default=None, init=False)
    class_ids: tuple[int, ...] | None = field(default=None, init=False)  # COCO's, if each has one
    # (name, reason) of each example left out of the latest pass, filled during the pass
    unreadable: list[tuple[str, str]] = field(default_factory=list, init=False)
    left_out: dict[str, int] = field(default_factory=dict, init=False)  # files that are no examples
    how: Any = field(default=None, init=False)  # options of reading, for `fingerprint`
    # a table's names of its columns of numbers or texts, in the order of the inputs
    columns: tuple[str, ...] | None = field(default=None, init=False)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples, unreadable ones included."""

    @abstractmethod
    def _read(self, batch_size: int, start: int) -> Iterator[Examples]: ...

    @abstractmethod
    def take(self, rows: Sequence[int]) -> tuple[Examples, NDArray[np.int64]]:
        """Return the readable examples of some ascending rows, and their rows."""

    @property
    def omissions(self) -> str | None:
        """A sentence about what was left out of `path`; None if nothing was."""
        counts = ", ".join(f"{what} ({count})" for what, count in self.left_out.items())
        return f"left out of {self.path}: {counts}" if counts else None

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        """Yield all examples from `start` on, in order, `batch_size` at a time.

        Raises
        ------
        ValueError
            No example can be read, or one cannot and `on_unreadable` is ``"error"``.
        """
        check_at_least(1, batch_size=batch_size)
        self.unreadable.clear()
        return self._read(batch_size, start)

    def parts(self, batch_size: int, start: int = 0) -> Iterator[Part]:
        """Yield each batch with the examples found unreadable since the batch before."""
        told = 0
        for batch in self.batches(batch_size, start):
            unreadable, told = self.unreadable[told:], len(self.unreadable)
            yield batch, unreadable
        if len(self.unreadable) > told:
            yield None, self.unreadable[told:]

    def fingerprint(self) -> str:
        """Hash the examples, to notice when they change.

        A file of rows or labels counts with its bytes, image files with name, size and time of
        change.
        """
        found = hashlib.sha256(repr((self.classes, self.how)).encode())
        if self.path.is_file():
            found.update(sha256_of(self.path).encode())
        for name, file in self.files():
            about = file.stat() if file.is_file() and file != self.path else None
            facts = (name, about and about.st_size, about and about.st_mtime_ns)
            found.update(repr(facts).encode())
        return found.hexdigest()

    def files(self) -> Iterable[tuple[str, Path]]:
        """Return the files in `path` or beside it, each with its example's name."""
        return ()


@dataclass(eq=False)
class ArrayData(Data):
    """Inputs and, optionally, targets (n,).

    `inputs` are an array (n, ...), memory-mapped if large; a list of n texts; or for several
    columns of texts an object array (n, columns) of str.
    """

    inputs: Any
    targets: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.inputs)

    def _read(self, batch_size: int, start: int) -> Iterator[Examples]:
        for first in range(start, len(self), batch_size):
            end = min(first + batch_size, len(self))
            yield self._batch(slice(first, end), range(first, end))

    def take(self, rows: Sequence[int]) -> tuple[Examples, NDArray[np.int64]]:
        """Return the examples of some rows, and all these rows."""
        where = np.asarray(rows, np.int64)
        return self._batch(where, where), where

    def _batch(self, rows: Any, numbers: Iterable[int]) -> Examples:
        targets = None if self.targets is None else self.targets[rows]
        inputs = take_rows(self.inputs, rows)
        # a copy: a model may write to its input, and a mapped file is read-only
        inputs = inputs if isinstance(inputs, list) else np.array(inputs)
        return Examples(inputs, targets, [f"{self.path.name}:{n}" for n in numbers])

    def files(self) -> Iterable[tuple[str, Path]]:
        """Return the arrays of a folder."""
        return ((file.name, file) for file in sorted(self.path.glob("*.npy")))


@dataclass(frozen=True)
class Example:
    """One encoded image: its name, how to read its bytes, and its label."""

    name: str
    read: Callable[[], bytes]
    target: int | str | GroundTruth | None
    file: Path | None = None  # its file, if known
    size: tuple[int, int] | None = None  # (height, width) of the pixels that were labeled


Decoded = tuple[Example, NDArray[np.uint8]]


@dataclass(eq=False)
class ImageData(Data):
    """Encoded images, decoded while they are read; one without a label is left out."""

    examples: Callable[[Sequence[int] | None], Iterable[Example]]  # all, or those of ascending rows
    count: int
    on_unreadable: OnUnreadable
    apart: bool = True  # examples may be files of their own

    def __len__(self) -> int:
        return self.count

    def files(self) -> Iterable[tuple[str, Path]]:
        """Return the examples that are files of their own."""
        every = self.examples(None) if self.apart else ()  # do not read a table for nothing
        return ((each.name, each.file) for each in every if each.file is not None)

    def _read(self, batch_size: int, start: int) -> Iterator[Examples]:
        decoded = in_order(
            self._decode,
            islice(self.examples(None), start, None),
            workers=min(4, max(2, os.cpu_count() or 2)),
            ahead=min(max(batch_size, 8), 64),
            name="ebjr-decode",
        )
        readable = filter(None, map(self._kept, decoded))
        empty = start == 0
        while lot := list(islice(readable, batch_size)):
            yield self._batch(lot)
            empty = False
        if empty:
            name, reason = self.unreadable[0] if self.unreadable else ("nothing", "it is empty")
            raise ValueError(f"no image in {self.path} can be read; the first is {name}: {reason}")

    def take(self, rows: Sequence[int]) -> tuple[Examples, NDArray[np.int64]]:
        """Return the readable examples of some ascending rows, and their rows."""
        kept = [self._kept(self._decode(example)) for example in self.examples(rows)]
        where = [row for row, found in zip(rows, kept, strict=True) if found]
        return self._batch([found for found in kept if found]), np.array(where, np.int64)

    def _decode(self, example: Example) -> tuple[Example, NDArray[np.uint8] | str]:
        if self.has_targets and example.target is None:
            return example, "it has no label"
        try:
            if example.file is not None and example.file.exists() and not example.file.is_file():
                return example, "it is a pipe, a socket or a device"
            return example, decode_image(example.read(), example.size)
        # decoders fail in many ways on foreign files: to the user all are unreadable
        except Exception as error:
            return example, reason_of(error)

    def _kept(self, found: tuple[Example, NDArray[np.uint8] | str]) -> Decoded | None:
        """Return a decoded example; record an unreadable one and return None, or raise."""
        example, image = found
        if not isinstance(image, str):
            return example, image
        self.unreadable.append((example.name, image))
        if self.on_unreadable == "error":
            raise ValueError(
                f"{example.name} in {self.path} cannot be read: {image}; "
                "repair it, or skip it with on_unreadable='skip' (no --strict)"
            )
        return None

    def _batch(self, some: Sequence[Decoded]) -> Examples:
        targets: Any = [example.target for example, _ in some] if self.has_targets else None
        if targets and not isinstance(targets[0], GroundTruth):
            bools, named = (isinstance(targets[0], kind) for kind in (bool, str))
            targets = np.array(targets, str if named else bool if bools else np.int64)
        return Examples(
            [image for _, image in some], targets, [example.name for example, _ in some]
        )


# Pillow opens these, but they are not pictures, or need another program (EPS)
_NO_PICTURES = {"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}


@cache
def image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats."""
    from PIL import Image

    Image.init()
    return tuple(form for form in Image.ID if form not in _NO_PICTURES)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the supported formats, like ``.png``."""
    from PIL import Image

    forms = {*image_formats(), "MPO"}  # the JPEG reader opens MPO
    return frozenset(end for end, form in Image.registered_extensions().items() if form in forms)


def decode_image(
    data: bytes,
    size: tuple[int, int] | None = None,
    *,
    formats: Sequence[str] | None = None,
    check: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Decode an image to upright RGB pixels, uint8 (height, width, 3).

    Of several frames the first is taken. If `size` (height, width), that of the labels, is the size
    before the EXIF orientation is applied, the pixels stay as stored. `check` gets the number of
    pixels before they are decoded; without it Pillow's limit holds. `formats` are some of
    `image_formats`.

    Raises
    ------
    ValueError
        `data` is empty, has too many pixels, another size than `size`, or floating-point pixels.
    """
    from PIL import Image

    with _opened(data, formats) as image:
        count, most = _pixels(image), Image.MAX_IMAGE_PIXELS
        if check is not None:
            check(count)
        elif most is not None and count > most:  # up to twice the limit Pillow only warns
            raise ValueError(f"it has {count} pixels; the limit is {most}")
        pixels = upright_pixels(image)
        if size in (None, pixels.shape[:2]):
            return pixels
        if size == (image.height, image.width):
            return np.array(to_rgb(image))
    (height, width), (tall, wide) = size, pixels.shape[:2]
    raise ValueError(f"it has {wide} x {tall} pixels, but the labels say {width} x {height}")


_MOST_BYTES: Mapping[str | None, int] = {"JPEG": 18, "GIF": 18, "BMP": 20, "PNG": 22}
"""Measured bytes per pixel while decoding; of the other formats WebP needs the most, 28.3."""


def image_cost(file: bytes, *, formats: Sequence[str] | None = None) -> tuple[int, int]:
    """Return, from the header, the pixels of an image and the most bytes that decoding takes."""
    with _opened(file, formats) as image:
        pixels = _pixels(image)
        return pixels, len(file) + _MOST_BYTES.get(image.format, 30) * pixels


class TooManyPixels(ValueError):
    """An image has more pixels than Pillow opens."""

    def __str__(self) -> str:
        return f"it has {self.args[0]} pixels, more than any image may have"


def _opened(data: bytes, formats: Sequence[str] | None) -> Any:
    from PIL import Image

    if not data:
        raise ValueError("it is empty")
    try:
        return Image.open(BytesIO(data), formats=formats or image_formats())
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"over {2 * int(Image.MAX_IMAGE_PIXELS or 0)}") from error


def _pixels(image: Any) -> int:
    """Count the pixels to decode: the image's, or a TIFF tile's, which may be larger."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))  # TileWidth, TileLength
    return max(int(image.width * image.height), tile)


def reason_of(error: Exception) -> str:
    """Return in one line why an image cannot be read."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} does not exist"
    said = error.strerror if isinstance(error, OSError) else None
    text = said or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


def label_place(
    label: str, classes: Sequence[str] | Mapping[str, int], called: str | None = None
) -> int:
    """Return the index of a label in `classes`; a ValueError names an unknown one."""
    if label not in classes:
        raise ValueError(
            f"{called or f'the label {label!r}'} is not one of the {len(classes)} given classes "
            f"({some([*classes])})"
        )
    return classes[label] if isinstance(classes, Mapping) else classes.index(label)


def number_place(number: int, places: Mapping[int, int], classes: Sequence[str]) -> int:
    """Return the index of a number or bool by `labels.spelled_places`; else as `label_place`."""
    return places[number] if number in places else label_place(str(number), classes)


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Check that `classes` are distinct names; else a TypeError or ValueError."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a sequence of names, not {classes!r}")
    check_once("classes", classes)
    return tuple(classes)

"""Examples in batches: one class for arrays that are held, one for images that are decoded ahead.

Images are decoded on a few threads, in order; one that cannot be read is named, counted and left
out.
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
from ebjr.labels import some
from ebjr.tasks.detection.boxes import GroundTruth
from ebjr.threads import in_order

OnUnreadable = Literal["skip", "error"]


@dataclass(frozen=True)
class Examples:
    """Some consecutive examples."""

    inputs: NDArray[Any] | list[NDArray[np.uint8]]  # (n, ...), or images, uint8 (height, width, 3)
    # (n,) or (n, labels), int64, or text where nobody names the classes; None: no labels
    targets: NDArray[Any] | list[GroundTruth] | None
    names: list[str]  # what to call each in a message or an answer

    def __len__(self) -> int:
        return len(self.names)


Part = tuple[Examples | None, list[tuple[str, str]]]
"""A batch, and (name, reason) of each example that could not be read."""


@dataclass(eq=False)
class Data(ABC):
    """Examples that can be read in batches, as often as needed."""

    path: Path
    classes: tuple[str, ...] | None  # the names of the labels, where they have some
    has_targets: bool
    # where `classes` are from: "given", "folders", "table" or "categories"
    named_by: str | None = field(default=None, init=False)
    class_ids: tuple[int, ...] | None = field(default=None, init=False)  # COCO's, if each has one
    # (name, reason) of each example left out of the latest pass, filled as it is read
    unreadable: list[tuple[str, str]] = field(default_factory=list, init=False)
    left_out: dict[str, int] = field(default_factory=dict, init=False)  # what else is no example
    how: Any = field(default=None, init=False)  # what else decides what is read
    # what a table calls its columns of numbers or texts, in the order of the inputs
    columns: tuple[str, ...] | None = field(default=None, init=False)

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples, those that cannot be read included."""

    @abstractmethod
    def _read(self, batch_size: int, start: int) -> Iterator[Examples]: ...

    @abstractmethod
    def take(self, rows: Sequence[int]) -> tuple[Examples, NDArray[np.int64]]:
        """The examples of some rows, rising, that can be read, and which rows they are."""

    @property
    def omissions(self) -> str | None:
        """What of the path made no example, in words; None if nothing was left out."""
        counts = ", ".join(f"{what} ({count})" for what, count in self.left_out.items())
        return f"left out of {self.path}: {counts}" if counts else None

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        """All examples in order after `start`, `batch_size` at a time; the last may be fewer.

        A ValueError says that one cannot be read and must be, or that none can.
        """
        check_at_least(1, batch_size=batch_size)
        self.unreadable.clear()
        return self._read(batch_size, start)

    def parts(self, batch_size: int, start: int = 0) -> Iterator[Part]:
        """Each batch with what could not be read before it was full; the rest comes last, alone."""
        told = 0
        for batch in self.batches(batch_size, start):
            unreadable, told = self.unreadable[told:], len(self.unreadable)
            yield batch, unreadable
        if len(self.unreadable) > told:
            yield None, self.unreadable[told:]

    def fingerprint(self) -> str:
        """A hash that differs when the examples do: of the bytes of a file of rows or labels.

        Image files of their own count with name, size and time of change.
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
        """The image files in `path` or beside it, each with its example's name."""
        return ()


@dataclass(eq=False)
class ArrayData(Data):
    """Inputs and, optionally, targets (n,).

    `inputs` are an array (n, ...), mapped where it is large; a list of n texts; or texts of several
    columns, an object array (n, columns) of str.
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
        """The examples of some rows, and which rows they are: all that were asked for."""
        where = np.asarray(rows, np.int64)
        return self._batch(where, where), where

    def _batch(self, rows: Any, numbers: Iterable[int]) -> Examples:
        targets = None if self.targets is None else self.targets[rows]
        inputs = take_rows(self.inputs, rows)
        inputs = inputs if isinstance(inputs, list) else np.array(inputs)  # a model may write to it
        return Examples(inputs, targets, [f"{self.path.name}:{n}" for n in numbers])

    def files(self) -> Iterable[tuple[str, Path]]:
        """The arrays of a folder."""
        return ((file.name, file) for file in sorted(self.path.glob("*.npy")))


@dataclass(frozen=True)
class Example:
    """One encoded image: its name, how to read its bytes, and its label."""

    name: str
    read: Callable[[], bytes]
    target: int | str | GroundTruth | None
    file: Path | None = None  # that it is read from, where it is known
    size: tuple[int, int] | None = None  # (height, width) of the pixels that were labeled


Decoded = tuple[Example, NDArray[np.uint8]]


@dataclass(eq=False)
class ImageData(Data):
    """Encoded images, decoded while they are read; one without a label is left out."""

    examples: Callable[[Sequence[int] | None], Iterable[Example]]  # all, or of some rows, rising
    count: int
    on_unreadable: OnUnreadable
    apart: bool = True  # whether an example may lie in a file of its own

    def __len__(self) -> int:
        return self.count

    def files(self) -> Iterable[tuple[str, Path]]:
        """Those of the examples that are files of their own."""
        every = self.examples(None) if self.apart else ()  # others would be read for nothing
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
        """The examples of some rows that can be read, and which rows they are."""
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
        # A file from anywhere can fail in any way; each of them means the same to the reader.
        except Exception as error:
            return example, reason_of(error)

    def _kept(self, found: tuple[Example, NDArray[np.uint8] | str]) -> Decoded | None:
        """What was decoded; None where it could not be, which is written down or an error."""
        example, image = found
        if not isinstance(image, str):
            return example, image
        self.unreadable.append((example.name, image))
        if self.on_unreadable == "error":
            raise ValueError(
                f"{example.name} in {self.path} cannot be read: {image}; "
                "mend it, or go on without it: on_unreadable='skip', or no --strict"
            )
        return None

    def _batch(self, some: Sequence[Decoded]) -> Examples:
        targets: Any = [example.target for example, _ in some] if self.has_targets else None
        if targets and not isinstance(targets[0], GroundTruth):
            targets = np.array(targets, str if isinstance(targets[0], str) else np.int64)
        return Examples(
            [image for _, image in some], targets, [example.name for example, _ in some]
        )


# What Pillow opens and is no picture, or has a decoder elsewhere: EPS starts another program.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here."""
    from PIL import Image

    Image.init()
    return tuple(form for form in Image.ID if form not in _NO_PICTURES)


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the files that are read here, as ``.png``."""
    from PIL import Image

    forms = {*image_formats(), "MPO"}  # which the JPEG reader opens
    return frozenset(end for end, form in Image.registered_extensions().items() if form in forms)


def decode_image(
    data: bytes,
    size: tuple[int, int] | None = None,
    *,
    formats: Sequence[str] | None = None,
    check: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """An encoded image that Pillow can read as upright RGB pixels, uint8 (height, width, 3).

    Of several frames the first is taken. Pixels whose `size` (height, width) is that of the image
    before its EXIF orientation is applied are given as they are stored. `check` is called with the
    number of pixels before they are decoded, and holds them to Pillow's limit if left out;
    `formats` are some of `image_formats`. A ValueError refuses no bytes, too many pixels, another
    size than `size`, and floating-point pixels.
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
    raise ValueError(f"it is {wide} x {tall} pixels, and the labels say {width} x {height}")


_MOST_BYTES: Mapping[str | None, int] = {"JPEG": 18, "GIF": 18, "BMP": 20, "PNG": 22}
"""Per pixel while a file of a format is decoded, measured; the others' most is WebP's 28.3."""


def image_cost(file: bytes, *, formats: Sequence[str] | None = None) -> int:
    """How many bytes `decode_image` holds at most at once, read off the header; of any size."""
    with _opened(file, formats) as image:
        return len(file) + _MOST_BYTES.get(image.format, 30) * _pixels(image)


def _opened(data: bytes, formats: Sequence[str] | None) -> Any:
    from PIL import Image

    if not data:
        raise ValueError("it is empty")
    return Image.open(BytesIO(data), formats=formats or image_formats())


def _pixels(image: Any) -> int:
    """How many pixels are decoded: those of the image, or of a TIFF's tile, which may be larger."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))  # its width and length
    return max(int(image.width * image.height), tile)


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, as one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {error.filename}"
    said = error.strerror if isinstance(error, OSError) else None
    text = said or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


def label_place(
    label: str, classes: Sequence[str] | Mapping[str, int], called: str | None = None
) -> int:
    """The place of a label in `classes`; a ValueError names one that is none of them."""
    if label not in classes:
        raise ValueError(
            f"{called or f'the label {label!r}'} is none of the {len(classes)} classes that were "
            f"given ({some([*classes])})"
        )
    return classes[label] if isinstance(classes, Mapping) else classes.index(label)


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, if they are names that differ; else a TypeError or ValueError."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a sequence of names, but is {classes!r}")
    if len(set(classes)) != len(classes):
        raise ValueError("classes must differ, but one name is there twice")
    return tuple(classes)

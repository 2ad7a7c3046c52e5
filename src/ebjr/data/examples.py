"""Examples in batches: one class for arrays that are held, one for images that are decoded ahead.

Images are decoded on a few threads, in order; one that cannot be read is named, counted and left
out.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebjr.data.preprocess import upright_pixels
from ebjr.tasks.detection.boxes import GroundTruth
from ebjr.threads import in_order

OnUnreadable = Literal["skip", "error"]


@dataclass(frozen=True)
class Examples:
    """Some consecutive examples, with what to call each in a message or an answer (`names`).

    `inputs` are one array (n, ...) when the data are arrays; for images a list of n uint8 RGB
    arrays (height, width, 3), each of its own size. `targets` are int64 (n,) or (n, labels); for
    COCO's json a list of n `GroundTruth`; None when the data have no labels.
    """

    inputs: NDArray[Any] | list[NDArray[np.uint8]]
    targets: NDArray[Any] | list[GroundTruth] | None
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


class Data(ABC):
    """Examples that can be read in batches, as often as needed.

    `classes` are the names of the labels, or None where they are not known. `unreadable` holds
    (name, reason) of each example left out of the latest pass, filled as it is read.
    """

    path: Path
    classes: tuple[str, ...] | None
    has_targets: bool
    unreadable: list[tuple[str, str]]
    named_by: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples, those that cannot be read included."""

    @abstractmethod
    def _read(self, batch_size: int, start: int) -> Iterator[Examples]: ...

    @abstractmethod
    def take(self, rows: Sequence[int]) -> tuple[Examples, NDArray[np.int64]]:
        """The examples of some rows, rising, and which rows they are.

        Examples that cannot be read are added to `unreadable`, and left out, or a ValueError where
        `on_unreadable` is ``"error"``.
        """

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        """All examples in order, `batch_size` at a time (the last batch may be smaller).

        `start` is how many to leave out first, those that cannot be read included. A ValueError
        says that one cannot be read and `on_unreadable` is ``"error"``, or that none can.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        self.unreadable.clear()
        return self._read(batch_size, start)


@dataclass(eq=False)
class ArrayData(Data):
    """Arrays of inputs (n, ...) and, optionally, of targets (n,), held in memory."""

    path: Path
    inputs: NDArray[Any]
    targets: NDArray[Any] | None
    classes: tuple[str, ...] | None
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.has_targets = self.targets is not None

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
        return Examples(self.inputs[rows], targets, [f"{self.path.name}:{n}" for n in numbers])


@dataclass(frozen=True)
class Example:
    """One encoded image: its name, how to read its bytes, and its label."""

    name: str
    read: Callable[[], bytes]
    target: int | GroundTruth | None


Decoded = tuple[Example, NDArray[np.uint8]]


@dataclass(eq=False)
class ImageData(Data):
    """Encoded images, decoded while they are read; one without a label is left out.

    `examples` gives `count` examples from the start each time it is called, or those of some rows,
    rising.
    """

    path: Path
    examples: Callable[[Sequence[int] | None], Iterable[Example]]
    count: int
    has_targets: bool
    on_unreadable: OnUnreadable
    classes: tuple[str, ...] | None
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

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
            raise ValueError(self._nothing_readable())

    def take(self, rows: Sequence[int]) -> tuple[Examples, NDArray[np.int64]]:
        """The examples of some rows that can be read, and which rows they are."""
        kept = [self._kept(self._decode(example)) for example in self.examples(rows)]
        where = [row for row, found in zip(rows, kept, strict=True) if found]
        return self._batch([found for found in kept if found]), np.array(where, np.int64)

    def _decode(self, example: Example) -> tuple[Example, NDArray[np.uint8] | str]:
        if self.has_targets and example.target is None:
            return example, "it has no label"
        try:
            return example, decode_image(example.read())
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
            targets = np.array(targets, np.int64)
        return Examples(
            [image for _, image in some], targets, [example.name for example, _ in some]
        )

    def _nothing_readable(self) -> str:
        name, reason = self.unreadable[0] if self.unreadable else ("nothing", "it is empty")
        return f"no image in {self.path} can be read; the first is {name}: {reason}"


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """An encoded image that Pillow can read as upright RGB pixels, uint8 (height, width, 3).

    Of several frames the first is taken. A ValueError refuses no bytes, more pixels than Pillow's
    limit, and floating-point pixels.
    """
    from PIL import Image

    if not data:
        raise ValueError("it is empty")
    with Image.open(BytesIO(data)) as image:
        pixels = image.width * image.height
        # Up to twice the limit Pillow only warns.
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"it has {pixels} pixels; the limit is {Image.MAX_IMAGE_PIXELS}")
        image.load()
        return upright_pixels(image)


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, as one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    said = error.strerror if isinstance(error, OSError) else None
    text = said or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, if they are names that differ; else a TypeError or ValueError."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a sequence of names, but is {classes!r}")
    if len(set(classes)) != len(classes):
        raise ValueError("classes must differ, but one name is there twice")
    return tuple(classes)


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

"""Encoded images in a request: their memory is reserved before any of them is decoded."""

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ebjr.data.examples import (
    TooManyPixels,
    decode_image,
    image_cost,
    image_formats,
    reason_of,
)
from ebjr.data.preprocess import ImageFile, Preprocess
from ebjr.errors import ProtocolError
from ebjr.serving.admission import Hold
from ebjr.serving.lanes import LARGE_PIXELS

# A container's header may understate the picture's size and so bypass the pixel limit.
_CONTAINERS = {"BLP", "ICNS", "ICO"}
_ANY_SERVER_READS = (b"\xff\xd8", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


class Encoded(NamedTuple):
    """An image file, its pixels by its header, and the most bytes that decoding takes."""

    file: bytes
    pixels: int
    cost: int


def opened_images(files: Sequence[bytes], most_pixels: int, hold: Hold) -> list[Encoded]:
    """Read the headers of image files, or of base64 of them, whose files `hold` counts.

    ProtocolError if one is no image, or if they have more than `most_pixels` together.
    """
    pixels, found = 0, list[Encoded]()
    for number, sent in enumerate(files):
        try:
            with _readable(number):
                found.append(_opened(sent))
        except TooManyPixels as error:
            raise _too_many(most_pixels, number, error.args[0]) from error
        if found[-1].file is not sent:
            hold.add(bytes=len(found[-1].file))
        pixels += found[-1].pixels
        if pixels > most_pixels:
            raise _too_many(most_pixels, number, pixels)
    return found


def _too_many(most: int, number: int, pixels: Any) -> ProtocolError:
    return ProtocolError(
        f"the images of a request may have at most {most} pixels together; with image {number} "
        f"they have {pixels}"
    )


def decoded_images(opened: Sequence[Encoded], hold: Hold) -> list[ImageFile]:
    """Decode images to pixels (h, w, 3), as `ebjr record` does.

    ProtocolError if one cannot be read. `hold` reserves their memory.
    """
    found = []
    for number, (file, _, cost) in enumerate(opened):
        hold.add(bytes=cost)
        with _readable(number):
            pixels = decode_image(file, formats=_formats(), check=lambda pixels: None)
        hold.add(bytes=pixels.nbytes - cost)  # decoding is over: keep only the pixels
        whole = file.startswith(_ANY_SERVER_READS)  # a remote teacher gets the file itself
        found.append(ImageFile.of(pixels, file if whole else None))
    return found


def is_large(image: np.ndarray) -> bool:
    """Whether resizing a decoded image would keep the rows beside it in a batch waiting."""
    return math.prod(image.shape[:2]) > LARGE_PIXELS


def resize(images: Iterable[ImageFile], fits: Sequence[Preprocess], hold: Hold) -> None:
    """Resize large images once, ahead of the batches of all models; they keep their pixels.

    `hold` reserves the memory of the resized copies.
    """
    copies = sum(3 * math.prod(fit.height_width or ()) for fit in fits)
    for image in images:
        if is_large(image):
            hold.add(bytes=copies)
            image.with_sizes(fits)


@contextmanager
def _readable(number: int) -> Iterator[None]:
    try:
        yield
    except TooManyPixels:
        raise
    except Exception as error:  # broken images raise errors of any kind
        raise ProtocolError(
            f"image {number} cannot be read ({reason_of(error)}): send the bytes of a JPEG, "
            "PNG, WebP, GIF, BMP or TIFF file, or their base64 in JSON"
        ) from error


@cache
def _formats() -> list[str]:
    return [form for form in image_formats() if form not in _CONTAINERS]


def _opened(sent: bytes) -> Encoded:
    """Read the header of an image's file, which may come as base64 or a data URL."""
    from PIL import UnidentifiedImageError

    try:
        return Encoded(sent, *image_cost(sent, formats=_formats()))
    except UnidentifiedImageError as error:
        text = sent.partition(b";base64,")[2] if sent.startswith(b"data:") else sent
        try:
            file = base64.b64decode(b"".join(text.split()), validate=True)
        except ValueError:
            raise error from None
        return Encoded(file, *image_cost(file, formats=_formats()))

"""Encoded images in a request: what they will take is held before any of them is decoded."""

import base64
from collections.abc import Sequence

import numpy as np

from ebjr.data.examples import decode_image, image_cost, image_formats, reason_of
from ebjr.data.preprocess import ImageFile
from ebjr.errors import EbjrError, ProtocolError
from ebjr.serving.admission import Hold

# What a container says of its picture's size may be false, and the limit on pixels with it.
_CONTAINERS = {"BLP", "ICNS", "ICO"}
_ANY_SERVER_READS = (b"\xff\xd8", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


def decoded_images(
    files: Sequence[bytes], most_pixels: int, hold: Hold | None = None
) -> list[np.ndarray]:
    """The pixels (h, w, 3) of image files, or of their base64, as `ebjr record` decodes them.

    They may have `most_pixels` together; else ProtocolError. `hold` is what their request holds.
    """
    pixels = 0

    def check(more: int) -> None:  # before anything is decoded
        nonlocal pixels
        pixels += more
        if pixels > most_pixels:
            raise ProtocolError(
                f"the images of a request may have {most_pixels} pixels together, and with image "
                f"{number} they have {pixels}"
            )

    formats = [form for form in image_formats() if form not in _CONTAINERS]
    found: list[np.ndarray] = []
    for number, sent in enumerate(files):
        try:
            file, cost = _file_and_cost(sent, formats)
            if hold is not None:
                hold.add(bytes=cost)
            image = decode_image(file, formats=formats, check=check)
        except EbjrError:
            raise
        except Exception as error:  # whatever a broken image makes the decoder say
            raise ProtocolError(
                f"image {number} is no image that can be read ({reason_of(error)}): send the bytes "
                "of a JPEG, PNG, WebP, GIF, BMP or TIFF file, or in JSON their base64"
            ) from error
        if hold is not None:
            hold.add(bytes=image.nbytes - cost)  # what is left of it
        whole = file.startswith(_ANY_SERVER_READS)  # a far teacher is sent the file itself
        found.append(ImageFile.of(image, file) if whole else image)
    return found


def _file_and_cost(sent: bytes, formats: Sequence[str]) -> tuple[bytes, int]:
    """An image's file, which may come as base64 of some form, and the bytes that decoding takes."""
    from PIL import UnidentifiedImageError

    try:
        return sent, image_cost(sent, formats=formats)
    except UnidentifiedImageError as error:
        text = sent.partition(b";base64,")[2] if sent.startswith(b"data:") else sent
        try:
            file = base64.b64decode(b"".join(text.split()), validate=True)
        except ValueError:
            raise error from None
        return file, image_cost(file, formats=formats)

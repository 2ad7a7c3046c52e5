"""Encoded images in a request: their memory is reserved before any of them is decoded."""

import base64
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ebjr.data.examples import decode_image, image_cost, image_formats, reason_of
from ebjr.data.preprocess import ImageFile
from ebjr.errors import EbjrError, ProtocolError
from ebjr.serving.admission import Hold

# A container's header may understate the picture's size and so bypass the pixel limit.
_CONTAINERS = {"BLP", "ICNS", "ICO"}
_ANY_SERVER_READS = (b"\xff\xd8", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


class Decoder:
    """A thread that decodes; clients take turns, however much each has queued.

    One thread: each takes memory, and time from the models.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ebjr-decoder")
        self._lines: dict[Any, deque[Callable[[], None]]] = {}  # by client; the first is next
        self._lock = threading.Lock()

    def put(self, client: Any, work: Callable[[], None]) -> None:
        """Queue work of a client."""
        with self._lock:
            self._lines.setdefault(client, deque()).append(work)
        self._thread.submit(self._next)

    def _next(self) -> None:
        with self._lock:
            client, line = next(iter(self._lines.items()))
            work = line.popleft()
            del self._lines[client]
            if line:  # to the end of the round
                self._lines[client] = line
        work()

    def stop(self) -> None:
        """Drop the work that has not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def decoded_images(
    files: Sequence[bytes], most_pixels: int, hold: Hold | None = None
) -> list[np.ndarray]:
    """Decode image files, or base64 of them, to pixels (h, w, 3), as `ebjr record` does.

    ProtocolError if they have more than `most_pixels` together. `hold` reserves their memory.
    """
    pixels = 0

    def check(more: int) -> None:  # called with a header's size, before decoding
        nonlocal pixels
        pixels += more
        if pixels > most_pixels:
            raise ProtocolError(
                f"the images of a request may have at most {most_pixels} pixels together; with "
                f"image {number} they have {pixels}"
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
        except Exception as error:  # broken images raise errors of any kind
            raise ProtocolError(
                f"image {number} cannot be read ({reason_of(error)}): send the bytes of a JPEG, "
                "PNG, WebP, GIF, BMP or TIFF file, or their base64 in JSON"
            ) from error
        if hold is not None:
            hold.add(bytes=image.nbytes - cost)  # decoding is over: keep only the pixels
        whole = file.startswith(_ANY_SERVER_READS)  # a remote teacher gets the file itself
        found.append(ImageFile.of(image, file) if whole else image)
    return found


def _file_and_cost(sent: bytes, formats: Sequence[str]) -> tuple[bytes, int]:
    """Return an image's file, which may come as base64 or a data URL, and its decoding's bytes."""
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

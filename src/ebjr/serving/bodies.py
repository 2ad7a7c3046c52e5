"""HTTP bodies: read within limits, decompressed, and compressed for clients that accept it."""

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from ebjr.errors import needs
from ebjr.serving.admission import Hold
from ebjr.serving.limits import Limits, Refused

with needs("serve", "serving"):
    from starlette.requests import Request

Found = TypeVar("Found")

WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}  # zlib's wbits by encoding
SMALLEST_BYTES = 512  # a smaller answer is not worth compressing
LARGE_BYTES = 128 * 2**10  # larger bodies take milliseconds: a thread parses them
PIECE_BYTES = 2**20  # bytes decompressed between two admission checks


async def aside(size: int, function: Callable[..., Found], *arguments: Any) -> Found:
    """Call a function on `size` bytes: in a thread if they are many."""
    if size <= LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


async def read_body(request: Request, limits: Limits, hold: Hold) -> bytes:
    """Read a request's body, decompress it, and hold its bytes.

    Refused if the body is too large, or does not match its ``Content-Encoding``.
    """
    most, parts, size = limits.body_bytes, [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, too_large(most), {"Connection": "close"})
        hold.add(bytes=len(part))
        parts.append(part)
    body = b"".join(parts)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in WINDOWS:
        raise Refused(415, f"bodies may be compressed with gzip or deflate, not {encoding!r}")
    # a small body may decompress into a large one: never in the event loop
    return await asyncio.to_thread(_decompressed, body, encoding, most, hold)


def too_large(most: int) -> str:
    """Return the sentence for a body over the limit."""
    return f"a body may have at most {most} bytes, and this one has more"


def compressed(body: bytes, accepted: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Compress a body as ``Accept-Encoding`` asks; also return the headers for it."""
    encoding = next((name for name in _preferred(accepted) if name in WINDOWS), None)
    if encoding is None or len(body) < SMALLEST_BYTES:
        return body, []
    engine = zlib.compressobj(1, zlib.DEFLATED, WINDOWS[encoding])
    found = engine.compress(body) + engine.flush()
    return found, [(b"content-encoding", encoding.encode()), (b"vary", b"Accept-Encoding")]


def _decompressed(body: bytes, encoding: str, most: int, hold: Hold) -> bytes:
    engine, parts, left, size = zlib.decompressobj(WINDOWS[encoding]), [], body, 0
    while left and size <= most:
        try:
            part = engine.decompress(left, PIECE_BYTES)
        except zlib.error as error:
            raise Refused(400, f"the body is not valid {encoding}") from error
        hold.add(bytes=len(part))  # may refuse, before the next piece takes memory
        parts.append(part)
        size, left = size + len(part), engine.unconsumed_tail
    if size > most:
        raise Refused(413, f"a body may have at most {most} bytes decompressed; this one has more")
    if not engine.eof:
        raise Refused(400, f"the body ends inside its {encoding} data")
    if engine.unused_data:
        raise Refused(400, f"the body goes on after the end of its {encoding} data")
    return b"".join(parts)


def _preferred(accepted: str) -> list[str]:
    """Return the encodings that a client accepts, in its order of preference."""
    found = []
    for part in accepted.split(","):
        name, _, quality = part.partition(";")
        try:
            liking = float(quality.partition("=")[2]) if quality else 1.0
        except ValueError:
            continue
        if liking > 0:
            found.append((-liking, name.strip().lower()))
    return [name for _, name in sorted(found, key=lambda pair: pair[0])]

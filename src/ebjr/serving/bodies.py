"""HTTP bodies: read within limits, decompressed, and compressed for clients that accept it."""

import json
import math
import zlib
from functools import partial
from typing import Any

from ebjr.errors import ProtocolError, needs
from ebjr.serving.admission import Hold
from ebjr.serving.lanes import LARGE_BYTES
from ebjr.serving.limits import Refused
from ebjr.serving.shared import Shared

with needs("serve", "serving"):
    from starlette.requests import Request

WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}  # zlib's wbits by encoding
SMALLEST_BYTES = 512  # a smaller answer is not worth compressing
PIECE_BYTES = 2**20  # bytes decompressed between two admission checks
FED_BYTES = 2**14  # compressed bytes taken at once: what they leave over is copied
DENSEST = 1032  # bytes that deflate makes of one, at most


async def read_body(request: Request, shared: Shared, hold: Hold) -> bytes:
    """Read a request's body, decompress it, and hold its bytes.

    Refused if the body is too large, or does not match its ``Content-Encoding``.
    """
    most, parts, size = shared.limits.body_bytes, [], 0
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
    size = _declared(body, most) if encoding == "gzip" else most
    work = partial(_decompressed, body, encoding, size, most, hold)
    if max(size, len(body)) <= LARGE_BYTES:
        return work()
    return await shared.lanes.large.run(hold.client, work)


def small_json(body: bytes) -> Any:
    """Read a small JSON body; ValueError if it is malformed.

    ProtocolError if an object has two values of one name, of which parsers drop one, or if a number
    is beyond those of JSON and floats.
    """
    return json.loads(body, object_pairs_hook=_once, parse_float=_number, parse_constant=_number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ProtocolError(f"the JSON has two values of {name!r:.60}: send one")
        found[name] = value
    return found


def _number(text: str) -> float:
    """Read a float; NaN stays one, which nothing takes."""
    if math.isinf(number := float(text)):
        raise ProtocolError(f"{text:.40} is beyond JSON's numbers; an infinite threshold is 'inf'")
    return number


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


def _declared(body: bytes, most: int) -> int:
    """Return the decompressed size that a gzip body ends with; `most` if it cannot be true.

    A size above `most` is refused before anything is decompressed.
    """
    size = int.from_bytes(body[-4:], "little")
    if size > DENSEST * len(body):  # cut off, or no gzip: decompressing tells what is wrong
        return most
    if size > most:
        raise Refused(413, f"{_too_dense(most)}; this one says {size}")
    return size


def _too_dense(most: int) -> str:
    return f"a body may have at most {most} bytes decompressed"


def _decompressed(body: bytes, encoding: str, size: int, most: int, hold: Hold) -> bytes:
    """Decompress a body of up to `size` bytes, of `most` that are allowed."""
    engine, parts, left_over = zlib.decompressobj(WINDOWS[encoding]), [], size
    for start in range(0, len(body), FED_BYTES):
        fed = body[start : start + FED_BYTES]
        while fed and left_over >= 0 and not engine.eof:
            try:
                part = engine.decompress(fed, PIECE_BYTES)
            except zlib.error as error:
                raise Refused(400, f"the body is not valid {encoding}") from error
            hold.add(bytes=len(part))  # may refuse, before the next piece takes memory
            parts.append(part)
            left_over, fed = left_over - len(part), engine.unconsumed_tail
        if engine.eof or left_over < 0:
            break
    if left_over < 0 and size < most:
        raise Refused(400, f"the body is not valid {encoding}: it has more than {size} bytes")
    if left_over < 0:
        raise Refused(413, f"{_too_dense(most)}; this one has more")
    if not engine.eof:
        raise Refused(400, f"the body ends inside its {encoding} data")
    if engine.unused_data or start + FED_BYTES < len(body):
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

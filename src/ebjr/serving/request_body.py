"""Bodies over HTTP: read within limits, decompressed, and compressed for who asks for it."""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ebjr.errors import needs
from ebjr.serving.deadlines import Deadlines
from ebjr.serving.limits import Limits
from ebjr.serving.logs import Receive

with needs("serve", "serving"):
    from starlette.requests import ClientDisconnect

Found = TypeVar("Found")

WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}  # of each encoding, for zlib
SMALLEST_BYTES = 512  # what is smaller is not worth compressing
LARGE_BYTES = 128 * 2**10  # more takes milliseconds: a thread does it, and other clients go on
WHEN_GONE = "ebjr.when_gone"  # in a request's scope: called when its client hangs up too early


class Refused(Exception):
    """A request that gets an error: its status, sentence and headers."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


async def aside(size: int, function: Callable[..., Found], *arguments: Any) -> Found:
    """Call a function with bytes to work on: in a thread if they are many."""
    if size <= LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


async def read_body(
    headers: Mapping[bytes, bytes],
    receive: Receive,
    limits: Limits,
    hold: Callable[[int], None],
    deadlines: Deadlines,
) -> bytes:
    """The body, decompressed; `hold` is told how many bytes more are held, before they are.

    Refused: the body is too large or too slow, or not what its encoding says. ClientDisconnect: its
    client has gone.
    """
    most = limits.body_bytes
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:19]) > most:
        raise _too_large(most)
    body = await _received(receive, limits, hold, deadlines)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in WINDOWS:
        raise Refused(415, f"bodies may be compressed by gzip or deflate, not by {encoding!r}")
    found = await aside(most if len(body) > 1024 else 0, _decompressed, body, encoding, most)
    hold(len(found))
    return found


def compressed(body: bytes, accepted: str) -> tuple[bytes, dict[str, str]]:
    """A body as the header ``Accept-Encoding`` asks for it, and the headers that say so."""
    encoding = next((name for name in _preferred(accepted) if name in WINDOWS), None)
    if encoding is None or len(body) < SMALLEST_BYTES:
        return body, {}
    engine = zlib.compressobj(1, zlib.DEFLATED, WINDOWS[encoding])
    found = engine.compress(body) + engine.flush()
    return found, {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}


async def _received(
    receive: Receive, limits: Limits, hold: Callable[[int], None], deadlines: Deadlines
) -> bytes:
    parts: list[bytes] = []
    size, late = 0, False
    task = asyncio.current_task()
    assert task is not None

    def give_up() -> None:
        nonlocal late
        late = True
        task.cancel()

    loop = asyncio.get_running_loop()
    began = loop.time()
    wait = deadlines.begin(limits.body_seconds, give_up)
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect()
            part = message.get("body", b"")
            size += len(part)
            if size > limits.body_bytes:
                raise _too_large(limits.body_bytes)
            hold(len(part))
            parts.append(part)
            if not message.get("more_body", False):
                break
            deadlines.end(wait)
            until = began + limits.body_seconds + size / limits.body_bytes_per_second
            wait = deadlines.begin(until - loop.time(), give_up)
    except asyncio.CancelledError:
        if not late:  # its client has gone
            raise
        task.uncancel()
        sentence = f"the body came too slowly: {size} bytes in {loop.time() - began:.0f} seconds"
        raise Refused(408, sentence, {"Connection": "close"}) from None
    finally:
        deadlines.end(wait)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> Refused:
    sentence = f"a body may have {most} bytes, and this one has more"
    return Refused(413, sentence, {"Connection": "close"})


def _decompressed(body: bytes, encoding: str, most: int) -> bytes:
    engine = zlib.decompressobj(WINDOWS[encoding])
    try:
        found = engine.decompress(body, most + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not what its encoding, {encoding}, says") from error
    if len(found) > most:
        raise Refused(413, f"a body may have {most} bytes decompressed, and this one has more")
    if not engine.eof:
        raise Refused(400, f"the body ends before its {encoding} does")
    if engine.unused_data:
        raise Refused(400, f"the body goes on after its {encoding} has ended")
    return found


def _preferred(accepted: str) -> list[str]:
    """Encodings as a client likes them best, without those that it refuses.

    Examples
    --------
    >>> _preferred("gzip;q=0.5, deflate, br;q=0")
    ['deflate', 'gzip']
    """
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

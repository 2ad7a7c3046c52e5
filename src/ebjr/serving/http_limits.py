"""uvicorn's HTTP with limits that it lacks: slow clients, endless heads, too many at once."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from ebjr.errors import needs
from ebjr.serving.limits import Limits
from ebjr.serving.request_body import WHEN_GONE

with needs("serve", "serving"):
    from uvicorn.protocols.http.auto import AutoHTTPProtocol


def limited_http(limits: Limits, base: Any = AutoHTTPProtocol) -> type[asyncio.Protocol]:
    """A class for uvicorn's ``http``: `base`, which is one of uvicorn's own, within limits.

    It limits heads, clients that do not read, and connections; `request_body` limits bodies.
    """

    class LimitedHttp(base):
        """One connection."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            self._seen = 0  # bytes since the last head was complete
            self._late: asyncio.TimerHandle | None = None
            self._stuck: asyncio.TimerHandle | None = None
            super().connection_made(_Gathering(transport, self.loop))
            if len(self.connections) > limits.connections:
                self.refuse(
                    503, f"{limits.connections} clients are connected already; try again later"
                )
                return
            self._late = self.loop.call_later(limits.head_seconds, self._head_is_late)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            known = self.cycle
            super().data_received(data)
            if self.cycle is not known:
                self._late, self._seen = _ended(self._late), 0
                return
            self._seen += len(data)
            within_head = known is None or known.response_complete
            if within_head and self._late is None:
                self._late = self.loop.call_later(limits.head_seconds, self._head_is_late)
            most = limits.head_bytes + (0 if within_head else 2 * limits.body_bytes)
            if self._seen > most and not self.transport.is_closing():
                self.refuse(
                    431 if within_head else 413, f"a request's head may have {most} bytes at most"
                )

        def connection_lost(self, exc: Exception | None) -> None:
            self._late, self._stuck = _ended(self._late), _ended(self._stuck)
            super().connection_lost(exc)
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.scope.get(WHEN_GONE, bool)()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stuck = _ended(self._stuck)

        def send_400_response(self, msg: str) -> None:
            self.refuse(400, "this is no HTTP request")

        def refuse(self, status: int, sentence: str) -> None:
            """Answer in place of the application, and hang up."""
            body = json.dumps({"error": sentence}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

        def _head_is_late(self) -> None:
            if self._seen and not self.transport.is_closing():
                self.refuse(
                    408, f"a request's head must come within {limits.head_seconds:g} seconds"
                )
            else:
                self.transport.close()

    return LimitedHttp


class _Gathering:
    """A transport that sends what is written in one turn of the loop at once.

    uvicorn writes an answer's head and its body one after the other: two calls of the system, and
    a client that is woken twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self.is_closing = transport.is_closing  # asked with every request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.writelines(parts)


def _ended(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None

"""HTTP on the wire: uvicorn's protocol with limits, and a short way to the engine through it.

The most frequent requests go from the parser to the engine and back without a task, a scope or a
framework; Starlette handles the others. Only this file depends on uvicorn's internals, so the extra
`serve` bounds its versions.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from ebjr.errors import EbjrError, needs
from ebjr.serving.bodies import too_large
from ebjr.serving.call import Call
from ebjr.serving.chat import COMPLETIONS
from ebjr.serving.chats import Chats
from ebjr.serving.infer import CALL, ENDED, Infer, Written, error_body, json_bytes, refused
from ebjr.serving.lanes import LARGE_BYTES
from ebjr.serving.logs import REQUEST_ID, new_request_id
from ebjr.serving.repository import Repository
from ebjr.serving.service import Service

with needs("serve", "serving"):
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in HTTPStatus}
_RARE = frozenset({b"content-encoding", b"expect", b"upgrade"})  # headers that take the long way

log = logging.getLogger("ebjr.serving")


class Ways(dict[bytes, tuple[Service | None, Infer | Chats]]):
    """The short ways by path, each with its service.

    Paths are quoted as clients quote them; a path in another spelling takes the long way. The way
    of chat completions has no service: `Chats.pick` reads it from the body.
    """

    def __init__(self, repository: Repository, chats: Chats) -> None:
        super().__init__()
        self._repository, self._chats = repository, chats
        repository.watch(self._look)

    def _look(self) -> None:
        known = {service: way for service, way in self.values() if service is not None}
        self.clear()
        for service in self._repository.services:
            way = known.get(service) or Infer(service)
            model = f"/v2/models/{quote(service.served.name, safe='')}"
            self[f"{model}/versions/{service.version}/infer".encode()] = service, way
            self.setdefault(f"{model}/infer".encode(), (service, way))  # newest version is first
        self[COMPLETIONS.encode()] = None, self._chats


def http_of(app: Any) -> Callable[..., asyncio.Protocol]:
    """Return a factory of uvicorn protocols, one per connection, for an app of `build_app`."""
    state = app.state
    ways = Ways(state.repository, state.chats)
    return partial(Http, state.repository, ways, state.short)


class Http(HttpToolsProtocol):
    """One connection; it uses the short ways only if `short` is set."""

    def __init__(self, repository: Repository, ways: Ways, short: bool, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.repository, self._limits = repository, repository.limits
        self._ways, self._short, self._doors = ways, short, repository.shared.doors
        self.url = b""
        self._seen = 0  # bytes since the last complete head or message
        self._in_body = self._refused = self._waits = False
        self._late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._began = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            most = self._limits.connections
            self.refuse(503, f"{most} clients are connected, the limit; try again later")
            return
        self._late = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        known = self.cycle
        self._seen += len(data)
        super().data_received(data)
        if self._refused:
            return
        if self.cycle is not known:
            self._late, self._began = _ended(self._late), self.loop.time()
        too_long = self._seen > self._limits.head_bytes
        if self._in_body:
            self._wait_for_body()
        elif self.cycle is not None and not self.cycle.response_complete:
            if too_long:
                self.flow.pause_reading()  # pipelined input would grow without bound
        elif too_long:
            most = self._limits.head_bytes
            self.refuse(431, f"a request's head may have at most {most} bytes")
        elif self._late is None and self.cycle is known:
            self._late = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _wait_for_body(self) -> None:
        """Start the timeout of a body, which grows with the bytes that arrive."""
        limits = self._limits
        if self._seen > 2 * limits.body_bytes:  # tiny chunks, whose heads are most of the bytes
            self.refuse(413, too_large(limits.body_bytes))
            return
        if self._late is None:
            self._late = self.loop.call_later(limits.body_seconds, self._body_is_late)

    def _head_is_late(self) -> None:
        if self._seen and not self.transport.is_closing():
            seconds = self._limits.head_seconds
            self.refuse(408, f"a request's head must arrive within {seconds:g} seconds")
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        spent = self.loop.time() - self._began
        left = self._limits.body_seconds + self._seen / self._limits.body_bytes_per_second - spent
        if left > 0:
            self._late = self.loop.call_later(left, self._body_is_late)
            return
        self.refuse(408, f"the body arrived too slowly: {self._seen} bytes in {spent:.0f} seconds")

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own says so
        """Keep the connection open for the answer if the client has only closed its side."""
        cycle = self.cycle
        secret = self.transport.get_extra_info("ssl_object") is not None
        if secret or self._in_body or cycle is None or cycle.response_complete:
            return False  # TLS cannot be half closed
        cycle.keep_alive = False
        scope: Any = {CALL: cycle.call} if isinstance(cycle, Exchange) else cycle.scope
        scope[ENDED] = True
        if (call := scope.get(CALL)) is not None:
            call.forsake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._late, self._stuck = _ended(self._late), _ended(self._stuck)
        for cycle in (self.cycle, *(one for one, _ in self.pipeline)):
            if isinstance(cycle, Exchange) and not cycle.response_complete:
                cycle.leave()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        known = dict(self.headers)
        if (wrong := self._wrong_in(known)) is not None:
            self.refuse(*wrong)
            return
        self._in_body, self._seen = True, 0
        if self._short and (way := self._ways.get(self.url)) and self._is_short(known):
            self._take_turn(Exchange(self, *way, known))
        else:
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            super().on_headers_complete()
            if expects:  # without a 100 no body may come, and the next head would pass as it
                self._waits, self.cycle.keep_alive = self.cycle.keep_alive, False

    def _wrong_in(self, known: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Return the status and sentence for a head that the parser accepts and we refuse."""
        if len(known) != len(self.headers) or b"host" not in known:
            hosts = sum(name == b"host" for name, _ in self.headers)
            if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
                return 400, f"a request must have one Host header, and this one has {hosts}"
        coding = known.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            return 400, "the only Transfer-Encoding accepted for a body is chunked"
        length = known.get(b"content-length", b"0")
        if len(length) > 18 or int(length) > self._limits.body_bytes:
            return 413, too_large(self._limits.body_bytes)
        return None

    def _is_short(self, known: dict[bytes, bytes]) -> bool:
        """Whether a request takes the short way: reading it needs no thread."""
        if self.parser.get_method() != b"POST":
            return False
        if b"content-length" not in known or not _RARE.isdisjoint(known):
            return False
        if self._doors.not_asking(known) is not None:
            return False  # the long way refuses it
        form = known.get(b"content-type", b"")[:10].lower() == b"multipart/"
        return not form and json_bytes(known, int(known[b"content-length"])) <= LARGE_BYTES

    def _take_turn(self, exchange: "Exchange") -> None:
        """Queue behind earlier pipelined requests: answers go out in request order."""
        before, self.cycle = self.cycle, exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            exchange.begin()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        if isinstance(self.cycle, Exchange):
            self.cycle.take(body)
        else:
            self._body_comes()
            super().on_body(body)

    def _body_comes(self) -> None:
        if self._waits:
            self._waits, self.cycle.keep_alive = False, True

    def on_message_complete(self) -> None:
        self._in_body, self._late = False, _ended(self._late)
        if self._refused:
            return
        self._seen = 0
        if isinstance(self.cycle, Exchange):
            self.cycle.complete()
        else:
            self._body_comes()
            super().on_message_complete()

    def answer(self, exchange: "Exchange", status: int, written: Written) -> None:
        """Send a short way's answer, in one write."""
        if self.transport.is_closing():
            return
        about, body = written
        about = [*self.server_state.default_headers, *about, (REQUEST_ID, exchange.own)]
        if not exchange.keep_alive:
            about.append((b"connection", b"close"))
        head = b"".join([b"%b: %b\r\n" % pair for pair in about])
        self.transport.write(b"%b%b\r\n%b" % (_LINES[status], head, body))
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck = _ended(self._stuck)

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self.refuse(400, "this is not an HTTP request")

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless the body of an answered request still arrives."""
        if not self._in_body:
            super().timeout_keep_alive_handler()

    def refuse(self, status: int, sentence: str) -> None:
        """Answer in place of the application, if it has not answered, and close."""
        self._refused, self._late = True, _ended(self._late)
        if self._in_body and self.cycle.response_complete:
            self.transport.close()
            return
        service, way = self._ways.get(self.url, (None, None))
        (service or self.repository).refused(status)
        body = error_body(sentence) if way is None else way.error(status, sentence)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(_LINES[status] + head % len(body) + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which says when it stops and what it waits for."""

    def __init__(self, config: uvicorn.Config, repository: Repository) -> None:
        super().__init__(config)
        self._repository = repository

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, and wait for the open requests."""
        held = self._repository.admission, *(one.admission for one in self._repository.services)
        words = "the server stops: it takes no new requests, and answers the open ones first (%d)"
        log.info(words, sum(one.open for one in held))
        await super().shutdown(sockets)


class Exchange:
    """A request of the short way and its answer: what uvicorn calls a cycle."""

    __slots__ = (
        *("call", "disconnected", "keep_alive", "own", "response_complete"),
        *("_headers", "_hold", "_http", "_parts", "_service", "_turn", "_way", "_whole", "_wrong"),
    )
    message_event = asyncio.Event()  # uvicorn sets it when the connection is lost

    def __init__(
        self, http: Http, service: Service | None, way: Any, headers: dict[bytes, bytes]
    ) -> None:
        self._http, self._headers = http, headers
        self._service, self._way = service, way
        self.keep_alive = bool(http.parser.should_keep_alive())
        self.own = new_request_id(headers.get(REQUEST_ID))
        self.response_complete = self.disconnected = self._turn = self._whole = False
        self._hold = (service or http.repository).admission.hold(http.client)
        self._parts: list[bytes] = []
        self._wrong: Exception | None = None
        self.call: Call | None = None

    def begin(self) -> None:
        """Allow the answer: all earlier requests of the connection are answered."""
        self._turn = True
        if self._whole:
            self._ask()

    def take(self, part: bytes) -> None:
        """Add a part of the body; after a refusal the rest is read and dropped."""
        if not self._parts:  # usually the whole body, which `start` then holds
            self._parts.append(part)
        elif self._wrong is None:
            try:
                self._hold.add(len(self._parts[-1]))
                self._parts.append(part)
            except EbjrError as error:
                self._wrong, self._parts = error, [b""]

    def complete(self) -> None:
        """Ask once the body is complete and it is this request's turn."""
        self._whole = True
        if self._turn:
            self._ask()

    def _ask(self) -> None:
        try:
            wrong, self._wrong = self._wrong, None
            if wrong is not None:
                raise wrong
            parts, self._parts = self._parts or [b""], []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            if self._service is None:
                self._service, self._way = self._way.pick(body)
                self._hold.move(self._service.admission)
            question = self._way.read(body, self._headers)
            self.call = Call(self._service, question, self._hold, self._done)
            self.call.start(question.inputs, len(parts[-1]))
        except Exception as error:
            self._done(error)

    def _done(self, found: Any) -> None:
        """Send the answer, or the error in its place."""
        self._hold.end()
        self.call = None  # break the cycle: nothing is left for the garbage collector
        self.response_complete, status = True, 200
        if isinstance(found, Exception):
            status, found = refused(self._service or self._http.repository, found, self._way.error)
        self._service = self._way = None  # the connection keeps this until its next request
        self._http.answer(self, status, found)

    def leave(self) -> None:
        """The client is gone."""
        if self.call is not None:
            self.call.cancel()
        self._hold.end()


def _ended(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None

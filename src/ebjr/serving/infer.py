"""``infer`` over HTTP: reading requests, and writing answers and errors.

`ebjr.serving.http` calls this straight from the parser. The route serves rare requests, other ASGI
servers, and tests.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import ref

import numpy as np

from ebjr.errors import Overloaded, ProtocolError, UnknownModel, needs
from ebjr.protocol import (
    LENGTH_HEADER,
    InferRequest,
    InferResponse,
    read_request,
    write_response,
)
from ebjr.serving.admission import Hold
from ebjr.serving.bodies import compressed, read_body
from ebjr.serving.call import Call, Question
from ebjr.serving.lanes import LARGE_BYTES, aside
from ebjr.serving.limits import Refused
from ebjr.serving.multipart import read_form
from ebjr.serving.repository import Repository
from ebjr.serving.service import REQUEST_PARAMETERS, Plan, Service

with needs("serve", "serving"):
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response

CALL, ENDED = "ebjr.call", "ebjr.ended"  # scope keys: the call; the client closed its side
HOST = "ebjr.host"  # scope key: a weak reference, as a connection keeps its last scope
KNOWN, KNOWN_BYTES = 256, 2**10  # most remembered request heads, and most bytes of one
MISPLACED = {*REQUEST_PARAMETERS, "binary_data_output", "outputs", "model", "version"}
JSON_GROWTH = 8  # memory per byte of JSON while its numbers are Python objects

LENGTH = LENGTH_HEADER.lower().encode()
Headers = Mapping[bytes, bytes]
Parsed = TypeVar("Parsed")
Written = tuple[list[tuple[bytes, bytes]], bytes]  # headers with lower-case names, and the body


def json_bytes(headers: Headers, size: int) -> int:
    """Return how many bytes of a body are JSON; 0 for a malformed length, refused later."""
    length = headers.get(LENGTH)
    if length is None:
        return size
    said = int(length) if length.isdigit() and len(length) < 19 else 0
    return said if said <= size else 0


def read(body: bytes, headers: Headers) -> InferRequest:
    """Read a request from a body that is not a form."""
    length = headers.get(LENGTH)
    return read_request(body, None if length is None else length.decode("latin-1"))


class Infer:
    """The way of ``infer``, which remembers parsed JSON heads.

    Requests of one client mostly differ in their tensor's bytes alone. Only a head with a single
    numeric tensor is remembered, after it was read and checked in full.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[bytes, tuple[Plan, Any, tuple[int, ...], int, bool]] = {}
        self._config = service.served.config  # the calibration that the plans were made with

    def read(self, body: bytes, headers: Headers) -> Question:
        """Return what a request asks."""
        return self._service.planned(*self._read(body, headers), writer(headers))

    def error(self, status: int, sentence: str) -> bytes:
        """Return the JSON body of an error."""
        return error_body(sentence)

    def _read(self, body: bytes, headers: Headers) -> tuple[Plan, Any]:
        head = body[: json_bytes(headers, len(body))] if LENGTH in headers else b""
        if self._service.served.config is not self._config:  # a point or rate may have moved
            self._config, self._known = self._service.served.config, {}
        known = self._known.get(head)
        if known is not None:
            plan, dtype, shape, size, cast = known
            if len(body) - len(head) == size:
                found = np.frombuffer(body, dtype, offset=len(head)).reshape(shape)
                return plan, self._service.cast(found) if cast else found
        asked = read(body, headers)
        plan, inputs = self._service.plan(asked), self._service.inputs(asked)
        (sent,) = asked.inputs.values()
        if head and len(head) <= KNOWN_BYTES and _same_bytes(sent, body, len(head)):
            if len(self._known) >= KNOWN:
                self._known.clear()
            plan = plan._replace(asked=replace(asked, inputs={}))
            cast = inputs.dtype != sent.dtype
            self._known[head] = plan, sent.dtype, sent.shape, sent.nbytes, cast
        return plan, inputs


def _same_bytes(inputs: np.ndarray, body: bytes, start: int) -> bool:
    """Whether an array is a view of the body from byte `start`, neither cast nor copied."""
    if inputs.dtype.hasobject or inputs.dtype == bool:
        return False
    own = np.frombuffer(body, np.uint8, offset=start)
    return own.size == inputs.nbytes and bool(np.shares_memory(own, inputs))


def writer(headers: Headers) -> Callable[[InferResponse, Plan], Written]:
    """Return the function that writes the answer to a request with these headers."""
    accepted = headers.get(b"accept-encoding")
    return write if accepted is None else partial(write, accepted=accepted)


def write(found: InferResponse, plan: Plan, *, accepted: bytes | None = None) -> Written:
    """Return the headers and body of an answer."""
    body, length = write_response(found, plan.asked)
    about = [(b"content-type", b"application/json")]
    if length is not None:
        about = [(b"content-type", b"application/octet-stream"), (LENGTH, b"%d" % length)]
    return _finished(about, body, accepted)


def finished(body: bytes, headers: Headers) -> Written:
    """Return the headers and body of a JSON answer to a request with these headers."""
    about = [(b"content-type", b"application/json")]
    return _finished(about, body, headers.get(b"accept-encoding"))


def _finished(about: list[tuple[bytes, bytes]], body: bytes, accepted: bytes | None) -> Written:
    if accepted is not None:
        body, more = compressed(body, accepted.decode("latin-1"))
        about += more
    about.append((b"content-length", b"%d" % len(body)))
    return about, body


async def infer(request: Request) -> Response:
    """Answer a request that arrived by a route."""
    repository = host_of(request)
    host: Service | Repository = repository
    with suppress(UnknownModel):  # raised again after the body is read
        host = repository.of(**request.path_params)

    async def read(raw: bytes, headers: Headers, hold: Hold) -> tuple[Service, Question]:
        service = host if isinstance(host, Service) else repository.of(**request.path_params)
        asked = await _asked(service, raw, request, headers, hold)
        return service, service.question(asked, writer(headers))

    return await answered(request, host, read)


def host_of(request: Request) -> Repository:
    """Return the repository that serves a request."""
    repository: Repository = request.app.state.repository
    return repository


async def answered(
    request: Request,
    host: Service | Repository,
    read: Callable[[bytes, Headers, Hold], Awaitable[tuple[Service, Question]]],
) -> Response:
    """Answer a request that arrived by a route; `read` returns its service and question."""
    headers = dict(request.scope["headers"])
    try:
        with host.admission.hold(client_of(request)) as hold:
            request.scope[HOST] = ref(host)
            # before errors: senders do not read
            raw = await read_body(request, host_of(request).shared, hold)
            if misplaced := request.query_params.keys() & MISPLACED:
                raise ProtocolError(
                    f"{min(misplaced)!r} has no effect in the address: send parameters in the "
                    "body, and name model and version in the path"
                )
            service, question = await read(raw, headers, hold)
            request.scope[HOST] = ref(host := service)
            answering = service.ask(question, hold, began=partial(_note_call, request))
            return _as_response(200, await _unless_gone(request, answering))
    except asyncio.CancelledError as error:
        return refusal(host, error)
    finally:
        request.scope.pop(CALL, None)  # the connection keeps the scope: do not keep the inputs


async def _asked(
    service: Service, raw: bytes, request: Request, headers: Headers, hold: Hold
) -> InferRequest:
    if not headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        return await read_aside(raw, headers, hold)
    if not service.served.takes_images:
        raise Refused(415, "this model takes no images, so it takes no multipart form")
    hold.add(bytes=len(raw))  # the form's files are copies
    return await read_form(raw, request.headers, service.input.name)


async def read_aside(raw: bytes, headers: Headers, hold: Hold) -> InferRequest:
    """Read a request as `read` does, in a thread if its JSON is large."""
    return await parsed(hold, json_bytes(headers, len(raw)), read, raw, headers)


async def parsed(hold: Hold, size: int, function: Callable[..., Parsed], *arguments: Any) -> Parsed:
    """Call a function that parses `size` bytes of JSON, as `aside` does; `hold` counts them."""
    if size > LARGE_BYTES:
        hold.add(bytes=JSON_GROWTH * size)
    return await aside(size, function, *arguments)


def _note_call(request: Request, call: Call) -> None:
    """Show the call to the connection, whose client may close its side now or later."""
    request.scope[CALL] = call
    if request.scope.get(ENDED):
        call.forsake()


async def _unless_gone(request: Request, answering: Any) -> Any:
    """Await a coroutine, and cancel it if the client disconnects."""
    task = asyncio.ensure_future(answering)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await task
    finally:
        watching.cancel()


def client_of(request: Request) -> Any:
    """Return the client that a request counts for: its connection's address."""
    return request.scope.get("client")


def error_body(sentence: str) -> bytes:
    """Return the JSON body of an error."""
    return json.dumps({"error": sentence}, separators=(",", ":")).encode()


Form = Callable[[int, str], bytes]  # writes an error's body from its status and sentence


def refusal(
    host: Service | Repository,
    error: BaseException,
    form: Form = lambda _, sentence: error_body(sentence),
) -> Response:
    """Return the response to a request that ends in an error."""
    if isinstance(error, ClientDisconnect | asyncio.CancelledError):
        return Response(status_code=499)
    return _as_response(*refused(host, error, form))


def refused(host: Service | Repository, error: BaseException, form: Form) -> tuple[int, Written]:
    """Return the status, headers and body for a request that ends in an error."""
    status, sentence = host.refuse(error)
    body, more = form(status, sentence), dict[str, str]()
    if isinstance(error, Refused):
        more |= error.headers
    elif isinstance(error, Overloaded):
        more |= {"Retry-After": str(math.ceil(error.retry_after_seconds))}
    about = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    about += [(name.lower().encode(), value.encode()) for name, value in more.items()]
    return status, (about, body)


def _as_response(status: int, written: Written) -> Response:
    about, body = written
    answer = Response(body, status)
    answer.raw_headers = about
    return answer

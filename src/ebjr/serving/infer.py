"""What is asked most, `infer` over HTTP: an ASGI application of its own, with no framework in it.

What a request's error is answered with is here too: one sentence, whoever handles the request.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping

from ebjr.errors import EbjrError, Overloaded, needs
from ebjr.protocol import LENGTH_HEADER, InferRequest, InferResponse, read_request, write_response
from ebjr.serving.logs import REQUEST_ID, Receive, Scope, Send, begin_request
from ebjr.serving.multipart import read_form
from ebjr.serving.request_body import WHEN_GONE, Refused, aside, compressed, read_body
from ebjr.serving.service import BROKEN, VERSION, Service, log, status_of

with needs("serve", "serving"):
    from starlette.datastructures import Headers
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response

MISTAKES = (Refused, EbjrError, ClientDisconnect, asyncio.CancelledError)
"""Errors that `refusal_of` answers."""

TEXT_BYTES = 5  # a float32 of 4 bytes is a text of about 20
_LENGTH = LENGTH_HEADER.lower().encode()
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")


class Infer:
    """``POST /v2/models/NAME/infer`` and ``.../versions/1/infer``.

    With `names` it gives each request its id, as no middleware around it does.
    """

    def __init__(self, service: Service, *, names: bool = False) -> None:
        self._service, self._names = service, names
        model = f"/v2/models/{service.served.name}"
        self._paths = {f"{model}/infer", f"{model}/versions/{VERSION}/infer"}

    def is_asked(self, scope: Scope) -> bool:
        """Whether a request is one for this, by its very path."""
        known = scope["type"] == "http" and scope["path"] in self._paths
        return known and scope["method"] == "POST"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; `scope` has path parameters where it came by a route."""
        service = self._service
        began = time.perf_counter()
        known = dict(scope["headers"])
        own = begin_request(known.get(REQUEST_ID)).encode() if self._names else None
        try:
            with service.holding() as hold:
                body, headers = await self._answer(scope, known, receive, hold)
                service.metrics.request(time.perf_counter() - began)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, MISTAKES):
                answer = refusal_of(service, error)
            else:
                log.exception("a request failed")
                answer = refusal(service, 500, BROKEN)
            if own is not None:
                answer.raw_headers.append((REQUEST_ID, own))
            await answer(scope, receive, send)
            return
        headers.append((b"content-length", b"%d" % len(body)))
        if own is not None:
            headers.append((REQUEST_ID, own))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(
        self,
        scope: Scope,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        hold: Callable[[int], None],
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """The body of an answer, and its headers."""
        # first: who is still sending reads no answer
        service = self._service
        raw = await read_body(headers, receive, service.limits, hold, service.deadlines)
        if "path_params" in scope:
            service.check_model(**scope["path_params"])
        asked = await self._asked(raw, headers)
        task = asyncio.current_task()
        assert task is not None
        scope[WHEN_GONE] = task.cancel
        found = await service.infer(asked)
        body, length = await aside(_answer_bytes(found, asked), write_response, found, asked)
        about = [_JSON] if length is None else [_BINARY, (_LENGTH, b"%d" % length)]
        if accepted := headers.get(b"accept-encoding"):
            body, more = await aside(len(body), compressed, body, accepted.decode("latin-1"))
            about += [(name.lower().encode(), value.encode()) for name, value in more.items()]
        return body, about

    async def _asked(self, raw: bytes, headers: Mapping[bytes, bytes]) -> InferRequest:
        if not headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
            length = headers.get(_LENGTH)
            words = None if length is None else length.decode("latin-1")
            return await aside(_json_bytes(raw, words), read_request, raw, words)
        if not self._service.served.takes_images:
            raise Refused(415, "this model takes no images, and a form can bring nothing else")
        return await read_form(raw, Headers(raw=list(headers.items())), self._service.input["name"])


def refusal_of(service: Service, error: BaseException) -> Response:
    """What a request is answered with that ended in one of `MISTAKES`."""
    if isinstance(error, Refused):
        return refusal(service, error.status, str(error), error.headers)
    if isinstance(error, EbjrError):
        wait = error.retry_after_seconds if isinstance(error, Overloaded) else None
        headers = None if wait is None else {"Retry-After": str(math.ceil(wait))}
        return refusal(service, status_of(error), str(error), headers)
    return Response(status_code=499)  # its client has gone


def refusal(
    service: Service, status: int, sentence: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A request's error: one sentence."""
    service.refused(status)
    return JSONResponse({"error": " ".join(sentence.split())}, status, headers)


def _json_bytes(raw: bytes, length: str | None) -> int:
    """How much of a body is JSON; nothing where its head says nonsense, which is soon refused."""
    if length is None:
        return len(raw)
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else 0


def _answer_bytes(found: InferResponse, asked: InferRequest) -> int:
    """About how long an answer will be; as JSON a number takes so many times its bytes."""
    wishes = ((array.nbytes, asked.wants(name)) for name, array in found.outputs.items())
    return sum(
        size if wish is not None and wish.binary else TEXT_BYTES * size for size, wish in wishes
    )

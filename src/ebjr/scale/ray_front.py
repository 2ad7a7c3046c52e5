"""What stands in front of the students and holds each request until one has answered it.

A replica that dies takes with it what it was given. Here the request is still known, and as any
answer can be asked for twice, another student is asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ebjr.errors import EbjrError, MissingExtra
from ebjr.serving.bodies import Refused, receive_body
from ebjr.serving.limits import Limits
from ebjr.serving.logs import App, Message, Receive, Scope, Send
from ebjr.serving.patience import Patience
from ebjr.serving.service import Hold, status_of

try:
    from ray import serve
    from ray.exceptions import RayActorError, RayError
    from ray.serve.exceptions import RayServeException
    from ray.serve.handle import DeploymentHandle
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount
except ImportError as error:
    raise MissingExtra("scale", "running on Ray") from error

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""

TRIES = 3
"""How many replicas may die under one batch, or one request, before no other is asked."""

SENT_ON = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""What of a request's scope the student gets: the rest is this process's own."""


@serve.ingress()
class Front:
    """Takes requests, and asks students until one answers.

    Parameters
    ----------
    students
        Their handle.
    """

    def __init__(self, students: DeploymentHandle) -> None:
        self._students = students
        self._patience = Patience()
        self.limits, self.held_bytes = Limits(), 0

    def __serve_build_asgi_app__(self) -> Any:  # Serve's name
        return Starlette(routes=[Mount("/", self._answer)])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with Hold(self) as hold:
                body = await receive_body(receive, self.limits, hold, self._patience)
                status, headers, found = await self._ask(scope, body)
        except (Refused, EbjrError) as error:
            await _refusal(error)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": found})

    async def _ask(self, scope: Scope, body: bytes) -> Answer:
        """The first answer."""
        sent = {name: scope[name] for name in SENT_ON if name in scope}
        for _ in range(TRIES):
            try:
                found: Answer = await self._students.answer.remote(sent, body)
            except RayActorError:
                continue
            except (RayError, RayServeException) as error:
                raise Refused(503, f"no student can be asked: {error}") from error
            return found
        raise Refused(503, f"{TRIES} replicas of the student died, one after another")


def _refusal(error: Refused | EbjrError) -> Response:
    said = {"error": " ".join(str(error).split())}
    if isinstance(error, Refused):
        return JSONResponse(said, error.status, error.headers)
    return JSONResponse(said, status_of(error))


async def ask(server: App, scope: Scope, body: bytes) -> Answer:
    """An ASGI application's answer to a request whose body is known."""
    sent: list[Message] = []
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return unread.pop() if unread else await asyncio.Future()  # its client waits

    async def send(message: Message) -> None:
        sent.append(message)

    await server(scope, receive, send)
    start, *parts = sent
    return start["status"], list(start["headers"]), b"".join(p.get("body", b"") for p in parts)

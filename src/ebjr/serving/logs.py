"""A server's log: text for people, or JSON lines for machines, with the id of each request.

A request keeps the id of its ``X-Request-Id`` (over gRPC, metadata of that name) if that is safe to
log, else it gets a new one. The answer and every log line of the request carry the id.
"""

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import count
from typing import Any

from ebjr.serving.events import Failed, Observer

FORMATS = ("words", "json")
REQUEST_ID = b"x-request-id"
QUIET_SECONDS = 10.0  # between repeated lines about one client or one failing model

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# random once per process: a system call for each request is slow
_OWN = secrets.token_hex(10).encode()
_number = count()
_SANE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_REFUSED = {
    *range(400, 500),
    *("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"),
}
"""Statuses that a client can cause at no cost, as often as it likes."""
_POLLED = re.compile(
    r"/v2/health/.+|/v2/models/.+/ready|/v2/repository/index|/v1/status|/metrics"
    r"|/inference\.GRPCInferenceService/(Server|Model)(Live|Ready)"
)
"""Paths that probes, Prometheus and the page poll; their successes are logged at debug level."""
_request: ContextVar[str | None] = ContextVar("ebjr_request", default=None)
NOTES: ContextVar[dict[str, Any] | None] = ContextVar("ebjr_notes", default=None)
"""Figures for the log line of the current request; None if it gets no line."""

log = logging.getLogger("ebjr.serving")


class Quiet(logging.Filter):
    """Passes one record of a kind every `QUIET_SECONDS`, and says how many others it dropped.

    A record's kind is its attribute `kind` (``log.error(..., extra={"kind": "..."})``), else
    `otherwise`; a kind of None always passes.
    """

    def __init__(self, otherwise: str | None = None) -> None:
        super().__init__()
        self._otherwise, self._lock = otherwise, threading.Lock()
        self.told: dict[Any, tuple[float, int]] = {}  # when a kind may log again; lines dropped

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        kind = getattr(record, "kind", self._otherwise)
        if kind is None:
            return True
        now = time.monotonic()
        with self._lock:
            until, others = self.told.get(kind, (0.0, 0))
            silent = now < until
            self.told[kind] = (until, others + 1) if silent else (now + QUIET_SECONDS, 0)
        if silent:
            return False
        if others:
            record.msg = f"{record.getMessage()} ({others} others since the last line)"
            record.args = ()
        return True


log.addFilter(Quiet())


def request_id() -> str | None:
    """Return the id of the current request; None outside of one."""
    return _request.get()


def begin_request(shown: bytes | None) -> str:
    """Give the current request its id: the one it brings if that is safe to log, else a new one."""
    own = new_request_id(shown).decode("ascii")
    _request.set(own)
    return own


def new_request_id(shown: bytes | None) -> bytes:
    """Return the id that a request brings if that is safe to log, else a new one."""
    if shown is not None and _SANE.fullmatch(shown):
        return bytes(shown)
    return b"%b%012x" % (_OWN, next(_number))


@contextmanager
def request_line(method: str, path: str) -> Iterator[dict[str, Any]]:
    """Log a line when a request has been answered, with the figures in the yielded dict."""
    about = {"method": method, "path": path}
    notes: dict[str, Any] = {**about, "status": None}
    NOTES.set(notes)
    began = time.perf_counter()
    try:
        yield notes
    finally:
        notes["seconds"] = round(time.perf_counter() - began, 6)
        kind = notes["status"] if notes["status"] in _REFUSED else None
        polled = notes["status"] in (200, "OK") and _POLLED.fullmatch(path)
        level = logging.DEBUG if polled else logging.INFO
        log.log(level, "%(method)s %(path)s", about, extra={"figures": notes, "kind": kind})


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, request, and its figures."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": when,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (known := request_id()) is not None:
            line["request"] = known
        line |= getattr(record, "figures", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Words(logging.Formatter):
    """A record for people, followed by the model that it concerns."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format a record's message."""
        about = getattr(record, "figures", {})
        known = [f"{name} {about[name]}" for name in ("model", "version") if name in about]
        return super().formatMessage(record) + (f" ({', '.join(known)})" if known else "")


def start_logging(form: str) -> None:
    """Send this process's log to standard error, in one of `FORMATS`."""
    if form not in FORMATS:
        raise ValueError(f"the log format must be one of {', '.join(FORMATS)}, not {form!r}")
    handler = logging.StreamHandler()
    words = Words("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else words)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").addFilter(Quiet("http"))  # else a line per broken request
    log.setLevel(logging.INFO)
    again = logging.getLogger("ebjr.link.far")  # names host and reason; stamina's lines do not
    again.setLevel(logging.INFO)
    again.addFilter(Quiet())
    logging.getLogger("stamina").setLevel(logging.ERROR)


class RequestIds:
    """ASGI middleware that gives every HTTP request an id, and optionally a log line and a span."""

    def __init__(
        self,
        app: App,
        *,
        lines: bool = False,
        span: Callable[..., AbstractContextManager[Any]] | None = None,
    ) -> None:
        self._app, self._lines, self._span = app, lines, span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = begin_request(next((v for k, v in scope["headers"] if k == REQUEST_ID), None))
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_ID, own.encode())]
                message = {**message, "headers": headers}
            await send(message)

        if not self._lines and self._span is None:
            await self._app(scope, receive, sending)
            return
        method, path = scope["method"], scope["path"]
        about = {"http.request.method": method, "url.path": path, "ebjr.request_id": own}
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        with ExitStack() as stack:
            figures = stack.enter_context(request_line(method, path)) if self._lines else {}
            if self._span is not None:
                stack.enter_context(self._span(f"{method} {path}", headers, about))
            try:
                await self._app(scope, receive, sending)
            finally:
                figures["status"] = status


class Faults(Observer):
    """Logs failures of a model, without a line for every batch; `about` names the model."""

    def __init__(self, about: Mapping[str, str]) -> None:
        self._about = about
        self.handlers = {Failed: self._failed}

    def _failed(self, event: Failed) -> None:
        stage, error = event
        who = "teacher, asked for an audit," if stage == "audit" else stage
        words = "the %s failed on a batch: %s: %s"
        about = {"kind": (self, stage), "figures": self._about}
        log.error(words, who, type(error).__name__, error, extra=about)

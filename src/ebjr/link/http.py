"""HTTP to one server: a connection pool, one deadline for each call, one-sentence errors.

All requests run in one event loop in its own thread, so that a call can be canceled at its deadline
and many requests are in flight at once.
"""

import asyncio
import io
import json
import math
import os
import threading
import time
import weakref
import zlib
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ebjr.certificates import client_context, load_authorities, load_chain
from ebjr.errors import ModelError, TeacherUnavailable, needs, one_line
from ebjr.threads import background

MOST_BYTES = 256 * 2**20  # the longest response body that is read
LARGE_BYTES = 2**16  # a longer body is sent in pieces

_UNTIL: ContextVar[float] = ContextVar("until", default=math.inf)  # the deadline
_LATER = (401, 403, 404, 408, 425, 429)  # refusals that are not about the inputs, and may pass


class Server:
    """A server at an address; every failure is a `ModelError` of one sentence.

    - `url`: ``http(s)://host:port/...``, without a trailing slash.
    - `name`: Its name in messages.
    - `timeout_seconds`: The deadline of each exchange, or of all within `in_time`.
    - `gzip`: Ask for compressed answers.
    - `token`: Sent as ``Authorization: Bearer``, if given.
    - `connections`: The most open connections.
    - `certificates`: Arguments of `client_context`, for an https server. The files are read again
      after a failure to connect.
    """

    def __init__(
        self,
        url: str,
        name: str,
        timeout_seconds: float,
        *,
        gzip: bool = False,
        token: str | None = None,
        connections: int = 32,
        certificates: Mapping[str, Any] | None = None,
    ) -> None:
        with needs("remote", f"asking {url}"):
            import aiohttp
        given = {key: value for key, value in (certificates or {}).items() if value is not None}
        if given.keys() - {"password"} and not url.startswith("https:"):
            raise ValueError(f"certificates are for an https:// address, not for {url}")
        # aiohttp's own context is made at its import, and misses certificates that come later
        self._context = client_context(**given) if url.startswith("https:") else None
        self._certificates = given
        self.url, self.name, self.bytes_moved = url, name, 0
        self._seconds = timeout_seconds
        headers = {"Accept-Encoding": "gzip" if gzip else "identity", "User-Agent": "ebjr"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}

        async def session() -> Any:
            context = True if self._context is None else self._context
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=connections, keepalive_timeout=30.0, ssl=context
                ),
                timeout=aiohttp.ClientTimeout(total=None),  # `ask` has the deadline
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # `_unpacked` counts the bytes, and stops a zip bomb
            )

        self._session, self._proxy = run(session()), _proxy_of(url)
        self.close = weakref.finalize(self, _close, self._session)

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Give all exchanges within this context, and within those around it, one deadline."""
        token = _UNTIL.set(min(_UNTIL.get(), time.monotonic() + self._seconds))
        try:
            yield
        finally:
            _UNTIL.reset(token)

    def json(self, method: str, path: str, body: bytes | None = None, of: type = dict) -> Any:
        """Return the JSON answer, an object unless `of` says a list."""
        said, _ = self.exchange(method, path, body, {"Content-Type": "application/json"})
        found = from_json(said)
        if not isinstance(found, of):
            raise TeacherUnavailable(
                f"{self.name} gave an invalid answer to /{path}: no JSON {of.__name__}"
            )
        return found

    def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """Return the body and headers of an answer with status 200; raise on any other."""
        with self.in_time():
            found: tuple[bytes, Mapping[str, str]] = run(
                self.ask(method, path, body, headers, until=_UNTIL.get())
            )
        return found

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        until: float,
    ) -> tuple[bytes, Mapping[str, str]]:
        """`exchange` as a coroutine, with a deadline on the clock of `time.monotonic`."""
        import aiohttp

        url, said = f"{self.url}/{path}".rstrip("/"), bytearray()
        data = io.BytesIO(body) if body and len(body) > LARGE_BYTES else body
        try:  # the loop's clock is the monotonic one
            async with (
                asyncio.timeout_at(until),
                self._session.request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    proxy=self._proxy,
                    allow_redirects=False,
                ) as response,
            ):
                async for part in response.content.iter_any():
                    said += part
                    self._check_size(said)
        except TimeoutError as error:
            raise TeacherUnavailable(
                f"{self.name} gave no answer within {self._seconds:g} s"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            self._renew()
            raise TeacherUnavailable(f"{self.name} cannot be reached: {reason}") from error
        sent = response.request_info.headers
        self.bytes_moved += len(body or b"") + len(said) + head_bytes(sent, response.headers)
        plain = self._unpacked(bytes(said), response.headers.get("Content-Encoding"))
        if response.status != 200:
            raise self._refusal(response.status, plain, response.headers)
        return plain, response.headers

    def _renew(self) -> None:
        """Read the certificates again, in case they were replaced."""
        known, context = self._certificates, self._context
        with suppress(OSError, ValueError):
            if context is not None and "certfile" in known:
                load_chain(context, known["certfile"], known.get("keyfile"), known.get("password"))
            if context is not None and "ca_file" in known:
                load_authorities(context, known["ca_file"])

    def _check_size(self, said: bytes | bytearray) -> None:
        if len(said) > MOST_BYTES:
            raise TeacherUnavailable(f"{self.name} answered more than {MOST_BYTES} bytes")

    def _unpacked(self, said: bytes, coding: str | None) -> bytes:
        if coding is None or coding == "identity":
            return said
        with self.understanding():
            if coding not in ("gzip", "deflate"):
                raise ValueError(f"its Content-Encoding is {coding}")
            said = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(said, MOST_BYTES + 1)
        self._check_size(said)
        return said

    @contextmanager
    def understanding(self) -> Iterator[None]:
        """Turn any error from reading an answer into a `TeacherUnavailable`."""
        try:
            yield
        except Exception as error:  # bytes from outside may break a parser in any way
            raise TeacherUnavailable(
                f"{self.name} gave an invalid answer: {one_line(error)[:200]}"
            ) from error

    def _refusal(self, status: int, body: bytes, headers: Mapping[str, str]) -> ModelError:
        table = from_json(body)
        said = table.get("error", "") if isinstance(table, dict) else ""
        said = str(said.get("message", "") if isinstance(said, dict) else said)
        said = "".join(one if one.isprintable() else " " for one in said)
        words = f"status {status}" + (f": {' '.join(said.split())[:200]}" if said else "")
        error = ModelError(f"{self.name} refused these inputs with {words}")
        if not 400 <= status < 500 or status in _LATER:
            after = _retry_after(headers.get("Retry-After"))
            error = TeacherUnavailable(f"{self.name} answered with {words}", after)
        error.status = status
        return error


def run(what: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in the event loop of all requests, and return its result."""
    return asyncio.run_coroutine_threadsafe(what, _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop, started at the first call."""
    with _STARTING:
        if (process := os.getpid()) not in _LOOPS:  # a fork inherits the loop without its thread
            _LOOPS[process] = loop = asyncio.new_event_loop()
            background("link", loop.run_forever).start()
        return _LOOPS[process]


_STARTING, _LOOPS = threading.Lock(), dict[int, asyncio.AbstractEventLoop]()


def _close(session: Any) -> None:
    asyncio.run_coroutine_threadsafe(session.close(), _loop())


def server_of(url: str, what: str) -> Any:
    """Split a server's address; a ValueError quotes an invalid one."""
    parts = urlsplit(str(url))
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or any(one.isspace() for one in str(url)):
        raise ValueError(f"{what} must be http(s)://host:port/..., not {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{what} holds a name or a password: set keys in the environment")
    return parts


def _proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for an address."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def head_bytes(*heads: Mapping[str, str]) -> int:
    """Estimate the bytes of messages' first lines and headers."""
    lines = 40 * len(heads)
    return lines + sum(len(name) + len(value) + 4 for head in heads for name, value in head.items())


def from_json(body: bytes) -> Any:
    """Parse a body; None if it is not JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def _retry_after(text: str | None) -> float | None:
    """Parse ``Retry-After``, seconds or a date, to seconds; None if it is neither."""
    seconds = math.nan
    with suppress(ValueError, OverflowError):
        seconds = parsedate_to_datetime(text or "").timestamp() - time.time()
    with suppress(ValueError):
        seconds = float(text or "")
    return max(0.0, seconds) if math.isfinite(seconds) else None

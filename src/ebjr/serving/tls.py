"""A server's TLS certificates, and secrets in files that are read again when they change.

Files are checked once a second. Open connections keep what they started with.
"""

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ebjr.certificates import File, expiry_of, server_context, stamp_of
from ebjr.files import read_text

HANDSHAKE_SECONDS = 10.0  # the same as for a request's head

log = logging.getLogger("ebjr.serving")


class Kept:
    """Something read from files, and read again when they change.

    The first `read` raises its OSError or ValueError. Later errors are logged, and the old content
    stays.
    """

    def __init__(self, what: str, read: Callable[[], None], *paths: File) -> None:
        self._what, self._read, self._paths = what, read, paths
        self._lock = threading.Lock()
        self._seen = stamp_of(paths)
        read()

    def look(self, *, again: bool = False) -> None:
        """Read the files if they have changed, or always with `again`."""
        with self._lock:
            now = stamp_of(self._paths)  # before reading: a later change is seen next time
            if now == self._seen and not again:
                return
            self._seen = now
            try:
                self._read()
            except (OSError, ValueError) as error:
                log.error("the %s stays as it was: %s", self._what, error)
            else:
                log.info("the %s was read again", self._what)


class Tls:
    """A server's certificate and key, and the authorities that sign its clients' certificates.

    Each handshake uses the newest files. OSError and ValueError are those of
    `ebjr.certificates.server_context`.
    """

    def __init__(
        self,
        certfile: File,
        keyfile: File | None = None,
        *,
        password: str | None = None,
        ca_certs: File | None = None,
    ) -> None:
        self.ca_certs = ca_certs
        self._cert, self._key = certfile, certfile if keyfile is None else keyfile
        self._password, self._times_read, self._plain = password, 0, False
        paths = [path for path in (certfile, keyfile, ca_certs) if path is not None]
        self.kept = Kept("certificate of the server", self._read, *paths)

    def _read(self) -> None:
        how: Any = {"password": self._password, "ca_certs": self.ca_certs}
        newest = server_context(self._cert, self._key, **how)
        files = (self._key, self._cert, self.ca_certs)
        pem = tuple(None if path is None else Path(path).read_bytes() for path in files)
        self._check_plain(pem[0])
        self._newest, self._pem, self.expires = newest, pem, expiry_of(newest, self._cert)
        self._times_read += 1

    def _check_plain(self, key: bytes | None) -> None:
        if self._plain and b"ENCRYPTED" in (key or b""):
            raise ValueError(
                f"gRPC takes no key with a password; decrypt it: openssl pkey -in {self._key} "
                "-out plain.pem"
            )

    def context(self) -> ssl.SSLContext:
        """Return a listening port's context, which hands each handshake to the newest one."""
        how: Any = {"password": self._password, "ca_certs": self.ca_certs}
        context = server_context(self._cert, self._key, **how)

        def newest(connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._newest

        context.sni_callback = newest  # called even if the client names no server
        return context

    def for_grpc(self) -> Any:
        """Return the credentials of a gRPC port; ValueError if the key has a password."""
        import grpc

        self._plain, known = True, 0
        self._check_plain(self._pem[0])

        def changed() -> Any:
            nonlocal known
            if known == self._times_read:
                return None
            known, (key, cert, roots) = self._times_read, self._pem
            return grpc.ssl_server_certificate_configuration([(key, cert)], roots)

        required = self.ca_certs is not None
        return grpc.dynamic_ssl_server_credentials(changed(), changed, required)


def impatient_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose servers limit a handshake to `HANDSHAKE_SECONDS`."""
    kind: Any = asyncio.SelectorEventLoop
    with suppress(ImportError):
        import uvloop

        kind = uvloop.Loop

    class Impatient(kind):
        async def create_server(self, *given: Any, **how: Any) -> Any:
            if how.get("ssl") is not None:
                how["ssl_handshake_timeout"] = HANDSHAKE_SECONDS
            return await super().create_server(*given, **how)

    loop: asyncio.AbstractEventLoop = Impatient()
    return loop


def secrets_of(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a file of secrets, without empty ones; ValueError if `path` has none."""
    found = [line.strip() for line in read_text(path).splitlines()]
    if not (found := [line for line in found if line]):
        raise ValueError(f"{path} is empty: it must hold one token a line")
    return found

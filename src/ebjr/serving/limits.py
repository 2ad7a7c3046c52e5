"""Limits on what a client may ask of a server."""

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields

from ebjr.errors import EbjrError, check_seconds, check_whole


class Refused(EbjrError):
    """A request that HTTP refuses: its `status`, sentence and headers."""

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


@dataclass(frozen=True)
class Limits:
    """Limits on each client, so that none of them can block the others."""

    body_bytes: int = 64 * 2**20  # also after decompression
    held_bytes: int = 2**30  # of all bodies in progress
    image_pixels: int = 64 * 2**20  # in all encoded images of a request
    head_bytes: int = 64 * 2**10
    head_seconds: float = 10.0
    body_seconds: float = 20.0  # plus a second for each `body_bytes_per_second` received
    body_bytes_per_second: int = 16 * 2**10
    write_seconds: float = 30.0  # that a client may leave its answer unread
    connections: int = 900

    def __post_init__(self) -> None:
        for each in fields(self):
            own = {each.name: getattr(self, each.name)}
            if each.name.endswith("_seconds"):
                check_seconds(**own)
            else:
                check_whole(1, **own)


def loops_back(host: str) -> bool:
    """Whether an address, or the name localhost, is a loopback address."""
    with suppress(ValueError):  # not an address
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return host == "localhost"


def exposure(host: str, *, asking: bool, secret: bool) -> str | None:
    """Return a warning if a server that other machines reach is open to them; else None.

    `asking` says whether clients must authenticate, `secret` whether the server uses TLS.
    """
    open_to = [] if asking else ["anyone may query the models (--infer-token, --ssl-ca-certs)"]
    if not secret:
        open_to.append("traffic, tokens included, is unencrypted (--ssl-certfile)")
    if not open_to or loops_back(host):
        return None
    return f"{host} may be reached from other machines: {', and '.join(open_to)}"

"""How much a client may ask of a server before it is refused."""

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields

from ebjr.errors import EbjrError


class Refused(EbjrError):
    """A request that HTTP answers with an error: its `status`, sentence and headers."""

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


@dataclass(frozen=True)
class Limits:
    """What a server takes from its clients, so that one of them cannot keep it from the others."""

    body_bytes: int = 64 * 2**20  # also after it has been decompressed
    held_bytes: int = 2**30  # of all bodies in work
    image_pixels: int = 64 * 2**20  # of the encoded images of a request
    head_bytes: int = 64 * 2**10
    head_seconds: float = 10.0
    body_seconds: float = 20.0  # and one more for each `body_bytes_per_second` of it
    body_bytes_per_second: int = 16 * 2**10
    write_seconds: float = 30.0  # the wait for a client that does not read
    connections: int = 900

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ValueError(f"{each.name} must be above 0, not {getattr(self, each.name)}")


def loops_back(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine as it calls itself."""
    with suppress(ValueError):  # another name
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return host == "localhost"


def exposure(host: str, *, asking: bool, secret: bool) -> str | None:
    """A warning where a server that listens beyond its own machine is open to others; else None.

    `asking` says whether who asks must show something, and `secret` whether TLS is spoken.
    """
    open_to = [] if asking else ["anybody may ask for answers (--infer-token, --ssl-ca-certs)"]
    if not secret:
        open_to.append("what is sent, tokens too, can be read on the way (--ssl-certfile)")
    if not open_to or loops_back(host):
        return None
    return f"{host} may be reached from other machines: {', and '.join(open_to)}"

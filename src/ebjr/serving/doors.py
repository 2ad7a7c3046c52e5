"""Who may move the knob and read the server: this machine, as the socket's own peer says.

No header makes a request one of this machine; a header of a proxy makes it one from elsewhere. A
browser is a peer of this machine whatever page it shows. So the page's `Origin` must be this
machine's, and so must the `Host` that the page asks: another site's name may lead here by now. From
another machine any `Host` is read by, as no browser on this one can be abused from there.
"""

import hmac
import re
import socket
from collections.abc import Callable, Sequence

from ebjr.serving.limits import Refused, loops_back
from ebjr.serving.logs import App, Receive, Scope, Send

_PASSED_ON = re.compile(rb"forwarded|via|x-real-ip|x-forwarded-.+")
_GUARDED = re.compile(r"/|/metrics|/v1/(?!chat/|models).+")  # not what models are asked by


class Doors:
    """Says who may not come in; `hosts` are more names that the server is read by, ``"*"`` any."""

    def __init__(self, token: str | None = None, hosts: Sequence[str] = ()) -> None:
        self._shown = None if token is None else f"Bearer {token}".encode()
        self._hosts = {socket.gethostname().lower(), *(name.lower() for name in hosts)}

    def reading(self, scope: Scope) -> Refused | None:
        """Why the page, the status and the metrics are not shown; None where they are."""
        if not _is_here(scope) or "*" in self._hosts or self._shows_token(scope):
            return None
        unknown = ", ".join(_others(scope, b"host") - self._hosts)
        sentence = f"{unknown!r:.60} is no name of this server; --allow-host adds more"
        return Refused(421, sentence) if unknown else None

    def check_moving(self, scope: Scope) -> None:
        """Raise Refused where the knob is not moved."""
        if self._shown is not None:
            sentence = "the knob needs the header Authorization: Bearer TOKEN"
            if not self._shows_token(scope):
                raise Refused(401, sentence, {"WWW-Authenticate": "Bearer"})
            return
        passed_on = any(_PASSED_ON.fullmatch(name) for name, _ in scope["headers"])
        how = "by no other site's page" if _others(scope, b"origin") else ""
        if not _is_here(scope) or passed_on or _others(scope, b"host"):
            how = "from this machine alone"
        if how:
            raise Refused(403, f"without a token the knob is moved {how}; serve with --token")

    def guard(self, app: App, refuse: Callable[[Refused], App]) -> App:
        """ASGI middleware: `app`, and `refuse` in its place where reading is refused."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            asked = scope.get("path", "").removeprefix(scope.get("root_path", ""))
            no = self.reading(scope) if _GUARDED.fullmatch(asked) else None
            await (app if no is None else refuse(no))(scope, receive, send)

        return guarded

    def _shows_token(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return self._shown is not None and hmac.compare_digest(shown, self._shown)


def check_loading(doors: Doors, scope: Scope) -> None:
    """Raise Refused where models are not loaded: that takes what moving the knob does."""
    try:
        doors.check_moving(scope)
    except Refused as no:
        words = f"models are loaded by those who may move the knob: {no}"
        raise Refused(no.status, words, no.headers) from None


def _is_here(scope: Scope) -> bool:
    peer = (scope.get("client") or [""])[0]
    return loops_back(peer) or peer == "testclient"  # Starlette's: a socket has no such address


def _others(scope: Scope, header: bytes) -> set[str]:
    """Names in a request's ``Host`` or ``Origin`` that are not this machine's."""
    own = {"localhost", "127.0.0.1", "[::1]", (scope.get("server") or [""])[0]}
    given = (value.decode("latin-1") for name, value in scope["headers"] if name == header)
    return {re.sub(r"^https?://|:\d*$", "", each.lower()) for each in given} - own

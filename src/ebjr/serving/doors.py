"""Who may query the models, read the server and move the knob: by token, or from this machine.

The machine of a request is that of its socket's peer. No header makes a request local, but a
proxy's header makes it remote. A browser on this machine is a local peer whatever page it shows, so
the page's `Origin` must be this machine's, and so must the `Host` that it asks: another site's name
may resolve to this machine by now. From other machines any `Host` may read, as no browser here can
be abused from there.
"""

import hmac
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence

from ebjr.serving.limits import Refused, loops_back
from ebjr.serving.logs import App, Receive, Scope, Send
from ebjr.serving.tls import Kept, secrets_of

_PASSED_ON = re.compile(rb"forwarded|via|x-real-ip|x-forwarded-.+")
_GUARDED = re.compile(r"/|/metrics|/v1/(?!chat/|models).+")  # reads the server, not its models
_CONTROLS = re.compile(r"/v1/router|/v2/repository/.+")  # a POST here queries no model
_BEARER = {"WWW-Authenticate": "Bearer"}
_SENDABLE = re.compile(r"[!-~]+")

File = str | os.PathLike[str]


class Tokens:
    """Bearer tokens that open a door: the given one, or each line of a file."""

    def __init__(self, flag: str, token: str | None, file: File | None) -> None:
        if token is not None and file is not None:
            raise ValueError(f"give {flag} or {flag}-file, not both")
        self.flag, self._all = flag, tuple[bytes, ...]()
        self.kept: Kept | None = None
        if file is not None:
            self.kept = Kept(f"{flag}-file", lambda: self._take(secrets_of(file)), file)
        elif token is not None:
            self._take([token])

    def _take(self, tokens: Sequence[str]) -> None:
        if not all(map(_SENDABLE.fullmatch, tokens)):
            raise ValueError(f"a token ({self.flag}) is printable ASCII without spaces")
        self._all = tuple(token.encode() for token in tokens)

    def __bool__(self) -> bool:
        """Whether there are tokens; without any the door asks for none."""
        return bool(self._all)

    def opened_by(self, authorization: bytes) -> bool:
        """Whether the header ``Authorization`` has one of the tokens."""
        shown = authorization[7:] if authorization[:7].lower() == b"bearer " else b""
        # compare with all of them, so that timing reveals nothing
        return sum(hmac.compare_digest(shown, each) for each in self._all) > 0


class Doors:
    """Decides which requests are refused; `hosts` are more names of this server, ``"*"`` any.

    `token` moves the knob and `infer_token` queries the models; the knob's token does both. A token
    file holds one token a line, and is read again when it changes. ValueError if a token cannot be
    sent in a header, a file holds none, or a token and its file are given; OSError if a token file
    cannot be read.
    """

    def __init__(
        self,
        token: str | None = None,
        hosts: Sequence[str] = (),
        *,
        infer_token: str | None = None,
        token_file: File | None = None,
        infer_token_file: File | None = None,
    ) -> None:
        self.moving = Tokens("--token", token, token_file)
        self.asking = Tokens("--infer-token", infer_token, infer_token_file)
        self.kept = [one.kept for one in (self.moving, self.asking) if one.kept is not None]
        self._hosts = {socket.gethostname().lower(), *(name.lower() for name in hosts)}

    def reading(self, scope: Scope) -> Refused | None:
        """Return why the page, the status and the metrics are refused; None if they are not."""
        if not _is_here(scope) or "*" in self._hosts or self._shows_token(scope):
            return None
        unknown = ", ".join(_others(scope, b"host") - self._hosts)
        sentence = f"{unknown!r:.60} is not a name of this server; add it with --allow-host"
        return Refused(421, sentence) if unknown else None

    def check_moving(self, scope: Scope) -> None:
        """Raise Refused if the request may not move the knob."""
        if self.moving:
            sentence = "the knob needs the header Authorization: Bearer TOKEN"
            if not self._shows_token(scope):
                raise Refused(401, sentence, _BEARER)
            return
        passed_on = any(_PASSED_ON.fullmatch(name) for name, _ in scope["headers"])
        how = "no page of another site moves the knob" if _others(scope, b"origin") else ""
        if not _is_here(scope) or passed_on or _others(scope, b"host"):
            how = "only this machine moves the knob"
        if how:
            raise Refused(403, f"without a token, {how}; serve with --token")

    def not_asking(self, headers: Mapping[bytes, bytes]) -> Refused | None:
        """Return why a request with these headers may not query the models; None if it may."""
        if not self.asking:
            return None
        authorization = headers.get(b"authorization", b"")
        if self.asking.opened_by(authorization) or self.moving.opened_by(authorization):
            return None
        return Refused(401, "a query needs the header Authorization: Bearer TOKEN", _BEARER)

    def guard(self, app: App, refuse: Callable[[Scope, Refused], App]) -> App:
        """Return ASGI middleware: `app`, or `refuse` in its place for refused requests."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
            no = self.reading(scope) if _GUARDED.fullmatch(path) else None
            if no is None and scope.get("method") == "POST" and not _CONTROLS.fullmatch(path):
                no = self.not_asking(dict(scope["headers"]))
            await (app if no is None else refuse(scope, no))(scope, receive, send)

        return guarded

    def _shows_token(self, scope: Scope) -> bool:
        return self.moving.opened_by(dict(scope["headers"]).get(b"authorization", b""))


def check_loading(doors: Doors, scope: Scope) -> None:
    """Raise Refused if the request may not load models: that needs the right to move the knob."""
    try:
        doors.check_moving(scope)
    except Refused as no:
        words = f"loading models needs the right to move the knob: {no}"
        raise Refused(no.status, words, no.headers) from None


def _is_here(scope: Scope) -> bool:
    peer = (scope.get("client") or [""])[0]
    return loops_back(peer) or peer == "testclient"  # Starlette's test client; no socket has it


def _others(scope: Scope, header: bytes) -> set[str]:
    """Return names in a request's ``Host`` or ``Origin`` that are not this machine's."""
    own = {"localhost", "127.0.0.1", "[::1]", (scope.get("server") or [""])[0]}
    given = (value.decode("latin-1") for name, value in scope["headers"] if name == header)
    return {re.sub(r"^https?://|:\d*$", "", each.lower()) for each in given} - own

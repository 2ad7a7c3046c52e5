"""The server: Open Inference Protocol v2 over HTTP, the knob, the metrics and the page.

``/openapi.json`` describes the routes. A client's mistake is answered with a 4xx and one sentence.
"""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from typing import Any
from weakref import ref

from ebjr.errors import EbjrError, needs
from ebjr.joint import JointModel
from ebjr.joint_file import JointConfig
from ebjr.protocol import check_keys, read_object
from ebjr.serving.bodies import read_body, small_json
from ebjr.serving.chat import COMPLETIONS
from ebjr.serving.chats import Chats
from ebjr.serving.doors import Doors, File, check_loading
from ebjr.serving.infer import HOST, client_of, host_of, infer, read_aside, refusal
from ebjr.serving.knob_control import WISHES
from ebjr.serving.kserve import KServe
from ebjr.serving.limits import Refused
from ebjr.serving.logs import RequestIds, Scope, request_id, start_logging
from ebjr.serving.memory import return_large_blocks
from ebjr.serving.openapi import openapi
from ebjr.serving.page import page_and_headers
from ebjr.serving.periodic import Periodic
from ebjr.serving.repository import Models, Repository
from ebjr.serving.served import Served, served_of
from ebjr.serving.service import BROKEN, Service
from ebjr.serving.sources import Files, Folder
from ebjr.serving.tls import Tls

with needs("serve", "serving"):
    from starlette.applications import Starlette
    from starlette.datastructures import State
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Match, Route

__all__ = ["Served", "build_app", "run_server", "served_of"]

log_of = logging.getLogger("ebjr.serving")

SECRETS_SECONDS = 1.0  # between looks at files of tokens and certificates
FEWER_LOOKS = 5_000  # allocations between garbage collections: answers leave no cycles
SWITCH_SECONDS = 0.0005  # that the loop or a worker waits for the other to yield the interpreter
MOST_WISH_BYTES = 4096  # of a small JSON body, parsed in the event loop

Beside = Callable[[Repository], AbstractAsyncContextManager[None]]


def build_app(
    served: Models,
    *,
    token: str | None = None,
    infer_token: str | None = None,
    token_file: File | None = None,
    infer_token_file: File | None = None,
    hosts: Sequence[str] | None = None,
    beside: Sequence[Beside] = (),
    log_requests: bool = False,
    **options: Any,
) -> Starlette:
    """Build the application of one model or several, for uvicorn or any other ASGI server.

    A request that moves the knob must carry ``Authorization: Bearer TOKEN``; without a `token` only
    this machine moves the knob. With an `infer_token`, a request to a model must carry that token
    or the knob's. Token files hold one token a line. `hosts` are more host names under which this
    machine may read the server, for example through a proxy; ``"*"`` allows any. `beside` are
    servers of other protocols on the same models; they run as long as the application. With
    `log_requests` each request is logged. `options` go to `Repository`, each `Service` and its
    `Engine`.

    Raises
    ------
    ValueError
        An option is out of range, a token cannot be sent in a header, or the autopilot cannot hold
        `hold`.
    OSError
        `audit_log` cannot be written, or a token file cannot be read.
    """
    files = {"token_file": token_file, "infer_token_file": infer_token_file}
    doors = Doors(token, hosts or (), infer_token=infer_token, **files)

    async def described_once(_request: Request) -> Response:
        return document()

    model, any_version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    routes = [
        Route(f"{model}/infer", infer, methods=["POST"]),
        Route(f"{any_version}/infer", infer, methods=["POST"]),
        Route("/v2/health/live", _says(lambda _: {"live": True})),
        Route("/v2/health/ready", _server_ready),
        Route("/v2", _says(lambda repository: repository.server_metadata())),
        Route("/v2/repository/index", _index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", _load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", _unload, methods=["POST"]),
        Route("/v2/models/stats", _says(Repository.model_statistics)),
        Route(f"{model}/stats", _says(Repository.model_statistics)),
        Route(f"{any_version}/stats", _says(Repository.model_statistics)),
        Route(f"{model}/config", _says(Repository.model_config)),
        Route(f"{any_version}/config", _says(Repository.model_config)),
        Route(model, _says(Repository.model_metadata)),
        Route(f"{model}/ready", _ready),
        Route(any_version, _says(Repository.model_metadata)),
        Route(f"{any_version}/ready", _ready),
        Route("/v1/router", _router, methods=["GET"]),
        Route("/v1/router", _move_knob, methods=["PUT"]),
        Route("/v1/status", _status),
        Route("/v1/both", _explain, methods=["POST"]),
        Route("/v1/late/{id}", _late),
        Route("/metrics", _metrics),
        Route("/openapi.json", described_once),
        Route("/", _page),
        *KServe().routes(),
    ]
    taken = partial(_taken_by, routes)  # known before a model is loaded
    repository = Repository(served, doors=doors, taken=taken, **options)
    chats = Chats(repository)
    routes += chats.routes()
    described = partial(openapi, repository, routes)
    document = cache(lambda: JSONResponse(described()))
    repository.watch(document.cache_clear)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        repository.start()
        looking = Periodic(SECRETS_SECONDS, *(one.look for one in doors.kept))
        if doors.kept:
            looking.start()
        try:
            async with AsyncExitStack() as stack:
                for server in beside:
                    await stack.enter_async_context(server(repository))
                yield
        finally:
            await asyncio.to_thread(looking.stop)
            await asyncio.to_thread(repository.stop)

    tracing = repository.shared.tracing
    span = None if tracing is None else tracing.request
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(RequestIds, lines=log_requests, span=span),
            Middleware(doors.guard, refuse=partial(_refused, repository, chats)),
        ],
        exception_handlers=dict.fromkeys(
            (HTTPException, EbjrError, ClientDisconnect, Exception), _failed
        ),
    )
    app.state = _State()
    app.state.repository, app.state.described, app.state.chats = repository, described, chats
    app.state.short = span is None and not log_requests  # the short way logs and traces nothing
    return app


class _State(State):
    """The state of an application."""

    @property
    def service(self) -> Service | None:
        """The only service; None if there are several."""
        repository: Repository = self.repository
        return repository.alone


def serve(
    joint: JointModel | JointConfig | Sequence[JointConfig],
    *,
    name: str = "joint",
    labels: Sequence[str] | None = None,
    trust: bool = False,
    **options: Any,
) -> None:
    """Serve joint models until the process is told to stop.

    Parameters
    ----------
    joint
        A joint model, or the configuration of one ``joint.toml`` or several. With a configuration
        the page shows the calibration's figures.
    name, labels
        The model's name for clients, and its class names; a ``joint.toml`` has its own.
    trust
        As in `load_joint`.
    **options
        As in `run_server`: `port` (default 8080), `host`, `token` and more.
    """
    if isinstance(joint, JointModel):
        served = [Served(joint, name, None if labels is None else tuple(labels))]
    else:
        configs = [joint] if isinstance(joint, JointConfig) else joint
        served = [served_of(config, trust=trust) for config in configs]
    options.setdefault("started", lambda url: print(f"serving {_names(served)} at {url}"))
    run_server(served, **options)


def run_server(
    served: Models,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    grpc_port: int | None = None,
    ssl_certfile: File | None = None,
    ssl_keyfile: File | None = None,
    ssl_keyfile_password: str | None = None,
    ssl_ca_certs: File | None = None,
    no_warm_up: bool = False,
    log: str = "words",
    otel: bool = False,
    started: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serve until the process is told to stop; open requests are answered first.

    HTTP listens at `host` and `port`, gRPC at `grpc_port` unless that is None; port 0 takes a free
    port. Both use TLS with `ssl_certfile`, and with `ssl_ca_certs` accept only clients whose
    certificates these authorities have signed. Certificates and token files are read again when
    they change. Unless `no_warm_up` is set, local models answer a first batch before the server
    accepts requests. `log` is the format of the log, see `start_logging`; in JSON each request has
    a line. `otel` sends OpenTelemetry traces. `started` is called with each address once it accepts
    requests. SIGHUP reloads the files of `served` and all secrets; what cannot be served is logged
    and the old model stays. `options` go to `build_app`.

    Raises
    ------
    OSError
        `port` or `grpc_port` is taken, or a certificate cannot be read.
    ValueError
        A certificate cannot be used, an option is out of range, or both ports are the same.
    ModelError
        A model fails on its first batch.
    """
    with needs("serve", "serving"):
        import uvicorn

        from ebjr.serving.http import Server, http_of
    tls = _tls(ssl_certfile, ssl_keyfile, ssl_keyfile_password, ssl_ca_certs)
    if grpc_port is not None:
        from ebjr.serving.grpc import grpc_server

        if grpc_port and grpc_port == port:
            raise ValueError(f"--port and --grpc-port must differ, but both are {port}")
        _listener(host, grpc_port, "--grpc-port").close()  # fail early, with a clear error
        how: Any = {"host": host, "port": grpc_port, "started": started, "tls": tls}
        beside = partial(grpc_server, log_requests=log == "json", **how)
        options["beside"] = (*options.get("beside", ()), beside)
    options["beside"] = (*options.get("beside", ()), _reloaded, _managed)
    start_logging(log)
    options["log_requests"] = log == "json"
    if otel:
        from ebjr.serving.tracing import Tracing

        options["tracing"] = Tracing.to_collector(_names(served))
    gc.collect()
    gc.freeze()  # the garbage collector need not scan what lives as long as the server
    with _listener(host, port, "--port") as listener:
        app = build_app(served, warm_up=not no_warm_up, **options)
        # asyncio sets it only for sockets that name their protocol; without it the second packet
        # of an answer waits 40 ms for the client's acknowledgment of the first
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app,
            proxy_headers=False,  # access goes by the socket's peer, see `doors`
            http=http_of(app),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            loop="auto" if tls is None else "ebjr.serving.tls:impatient_loop",
        )
        config.load()
        if tls is not None:
            config.ssl = tls.context()
            app.state.repository.shared.doors.kept.append(tls.kept)
            app.state.repository.shared.tls = tls
        where, own = listener.getsockname()[:2]
        started(f"http{'' if tls is None else 's'}://{where}:{own}")
        gc.set_threshold(FEWER_LOOKS, 10, 10)
        sys.setswitchinterval(SWITCH_SECONDS)
        return_large_blocks()
        Server(config, app.state.repository).run(sockets=[listener])


def _names(models: Models) -> str:
    """Return the models' names, joined."""
    if isinstance(models, Files | Folder):
        return models.names
    given = [models] if isinstance(models, Served) else models
    return ", ".join(served.name for served in given)


def _listener(host: str, port: int, option: str) -> socket.socket:
    """Listen at an address; an OSError names it, and the option that changes it."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            option = "--host"
        reason = str(error.strerror).partition(" (")[0]
        error.strerror = f"cannot listen at {host}:{port} ({reason}): choose another with {option}"
        raise


def _tls(
    certfile: File | None, keyfile: File | None, password: str | None, ca_certs: File | None
) -> Tls | None:
    if certfile is not None:
        return Tls(certfile, keyfile, password=password, ca_certs=ca_certs)
    if keyfile is not None or ca_certs is not None:
        raise ValueError("TLS needs a certificate: add --ssl-certfile")
    return None


@asynccontextmanager
async def _reloaded(repository: Repository) -> AsyncIterator[None]:
    """Reload all files and secrets at SIGHUP; errors are logged, and the old ones stay."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return

    async def look() -> None:
        for kept in repository.shared.doors.kept:
            await asyncio.to_thread(kept.look, again=True)
        _tell_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await repository.look()
        except Exception:  # a folder that has become unreadable
            log_of.exception("the reload failed; the served models stay as they were")
        finally:
            _tell_systemd("READY=1")

    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def begin() -> None:
        tasks.add(task := loop.create_task(look()))
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


@asynccontextmanager
async def _managed(_repository: Repository) -> AsyncIterator[None]:
    """Tell systemd when the server is ready, after all other protocols, and when it stops."""
    _tell_systemd("READY=1")
    try:
        yield
    finally:
        _tell_systemd("STOPPING=1")


def _tell_systemd(state: str) -> None:
    """Send a state to the service manager, if one listens, as ``sd_notify`` does."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place or not hasattr(socket, "AF_UNIX"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(f"\0{place[1:]}" if place.startswith("@") else place)
        manager.sendall(state.encode())


def _says(give: Callable[..., Any]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that answers with JSON, from the repository and the path's parameters."""

    async def handler(request: Request) -> Response:
        return JSONResponse(give(host_of(request), **request.path_params))

    return handler


async def _server_ready(request: Request) -> Response:
    return _readiness(host_of(request).not_ready)


async def _ready(request: Request) -> Response:
    return _readiness(host_of(request).of(**request.path_params).not_ready)


def _meant(request: Request) -> Service:
    """Return the service that ``?model=`` and ``&version=`` name."""
    asked = request.query_params
    check_keys(asked, ("model", "version"), "the address after '?'")
    service = host_of(request).meant(asked.get("model"), asked.get("version", ""))
    request.scope[HOST] = ref(service)
    return service


async def _index(request: Request) -> Response:
    asked = await _object(request, "ready")
    ready = asked.get("ready", False)
    if not isinstance(ready, bool):
        raise Refused(400, f"'ready' must be true or false, not {ready!r:.60}")
    return JSONResponse(host_of(request).index(ready))


async def _load(request: Request) -> Response:
    return await _change(request, host_of(request).load)


async def _unload(request: Request) -> Response:
    return await _change(request, host_of(request).unload)


async def _change(
    request: Request, change: Callable[[str, dict[str, Any]], Awaitable[None]]
) -> Response:
    check_loading(host_of(request).shared.doors, request.scope)
    asked = await _object(request, "parameters")
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused(400, "'parameters' must be a JSON object")
    await change(request.path_params["name"], parameters)
    return JSONResponse({})


async def _object(request: Request, key: str) -> dict[str, Any]:
    """Read a JSON object with a `key` or nothing from a body, which may be empty."""
    with host_of(request).admission.hold(client_of(request)) as hold:
        raw = await read_body(request, host_of(request).shared, hold)
    if len(raw) > MOST_WISH_BYTES:
        raise Refused(413, f"the JSON object may have at most {MOST_WISH_BYTES} bytes")
    with suppress(ValueError, RecursionError):  # of which `read_object` says more
        small_json(raw)
    found = read_object(raw) if raw else {}
    check_keys(found, (key,), "the request")
    return found


async def _page(request: Request) -> Response:
    return HTMLResponse(*page_and_headers())


async def _router(request: Request) -> Response:
    return JSONResponse(_meant(request).control.state())


async def _status(request: Request) -> Response:
    # in a thread: the monitor computes bounds, and late rows are counted on a disk
    known = await asyncio.to_thread(_meant(request).status)
    doors = host_of(request).shared.doors
    found = {**known, "token": bool(doors.moving or doors.asking)}
    return JSONResponse(found, headers={"Cache-Control": "no-store"})


async def _explain(request: Request) -> Response:
    service = _meant(request)
    with service.admission.hold(client_of(request)) as hold:
        raw = await read_body(request, host_of(request).shared, hold)
        asked = await read_aside(raw, dict(request.scope["headers"]), hold)
        return JSONResponse(await service.explain(asked, hold))


async def _metrics(request: Request) -> Response:
    body, kind = await asyncio.to_thread(host_of(request).prometheus)
    return Response(body, media_type=kind)


async def _late(request: Request) -> Response:
    service, id = _meant(request), request.path_params["id"]
    found = await asyncio.to_thread(service.late, id)
    waits = bool(found["waiting"])
    return JSONResponse(found, 202 if waits else 200, {"Retry-After": "1"} if waits else None)


async def _move_knob(request: Request) -> Response:
    host_of(request).shared.doors.check_moving(request.scope)
    service = _meant(request)
    with service.admission.hold(client_of(request)) as hold:
        raw = await read_body(request, host_of(request).shared, hold)
    who = request.client.host if request.client else "unknown"
    try:
        wish = small_json(raw if len(raw) <= MOST_WISH_BYTES else b"")
    except (ValueError, RecursionError) as error:
        raise Refused(400, WISHES) from error
    service = _meant(request)  # a reload may have replaced it while the body arrived
    try:  # in a thread: the audit log waits for the disk
        await asyncio.to_thread(service.control.ask, wish, who=who, request=request_id())
    except ValueError as error:
        raise Refused(400, str(error)) from error
    except OSError as error:
        raise Refused(503, f"the audit log cannot be written: {error}") from error
    return JSONResponse(service.control.state())


def _readiness(why_not: str | None) -> Response:
    """Answer a readiness probe; a 503 here does not count as a failed request."""
    if why_not is None:
        return JSONResponse({"ready": True})
    return JSONResponse({"ready": False, "error": why_not}, 503)


def _refused(repository: Repository, chats: Chats, scope: Scope, error: Refused) -> Response:
    """Answer a request that a door refuses, in the client's error format."""
    form = [chats.error] if chats.has(scope["path"]) else []
    return refusal(repository, error, *form)


async def _failed(request: Request, error: Exception) -> Response:
    """Answer a request without a handler, or whose handler failed."""
    if isinstance(error, HTTPException):
        error = _no_such(request, error)
    elif not isinstance(error, EbjrError | ClientDisconnect):
        error = Refused(500, BROKEN)  # Starlette raises the original again, and it is logged once
    chats: Chats = request.app.state.chats
    form = [chats.error] if chats.has(request.url.path) else []
    repository = host_of(request)
    return refusal(request.scope.get(HOST, lambda: None)() or repository, error, *form)


def _taken_by(routes: Sequence[Route], name: str) -> str | None:
    """Return an address of a model called `name` that belongs to another route; None if none."""

    def reached(path: str) -> list[bool]:
        return [route.path_regex.match(path) is not None for route in routes]

    for route in routes:
        own, other = (route.path_format.replace("{name}", one) for one in (name, "any"))
        if reached(own) != reached(other):
            return own
    return None


def _no_such(request: Request, error: HTTPException) -> Refused:
    """Explain a request without a handler: an unknown path, or another method."""
    path = request.url.path if len(request.url.path) <= 60 else f"{request.url.path[:57]}..."
    if error.status_code == 404:
        sentence = f"there is nothing at {path!r}; /openapi.json lists the routes"
        if path == COMPLETIONS:
            sentence = request.app.state.chats.why_not or sentence
        return Refused(404, sentence)
    if error.status_code == 405:  # Starlette names the methods of one matching route only
        routes = [r for r in request.app.routes if r.matches(request.scope)[0] != Match.NONE]
        allowed = ", ".join(sorted(set().union(*(route.methods for route in routes))))
        sentence = f"{path} takes {allowed}, not {request.method}"
        return Refused(405, sentence, {"Allow": allowed})
    return Refused(error.status_code, error.detail, error.headers)

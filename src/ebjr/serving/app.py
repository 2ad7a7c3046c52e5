"""The server: Open Inference Protocol v2 over HTTP in front of a pipeline, and the knob.

``GET /v2/health/live`` and ``/ready``, ``GET /v2`` and ``/v2/models/NAME``, ``POST
/v2/models/NAME/infer`` as the protocol says; ``GET/PUT /v1/router`` reads and moves the threshold;
``/metrics`` is Prometheus. A user's mistake is one sentence with a 4xx, and the server keeps
serving.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import logging
import math
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebjr.arrays import to_numpy
from ebjr.config import JointConfig
from ebjr.errors import EbjrError, MissingExtra, Overloaded, ProtocolError
from ebjr.joint import JointModel
from ebjr.preprocess import Preprocessed
from ebjr.protocol import (
    LENGTH_HEADER,
    InferRequest,
    InferResponse,
    read_request,
    tensor_metadata,
    write_response,
)
from ebjr.router import check_threshold
from ebjr.serving.metrics import Metrics
from ebjr.serving.pipeline import Pipeline

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtra("serve", "serving") from error

VERSION = "1"
MOST_BYTES = 64 * 2**20
"""The largest body, and the largest one after it has been decompressed."""

MOST_PIXELS = 64 * 2**20
"""The most pixels that one encoded image may hold."""

REQUEST_PARAMETERS = ("threshold", "deferral_rate", "operating_point", "timeout")

log = logging.getLogger("ebjr.serving")


@dataclass
class Served:
    """What is served: a joint model, its name, and what its calibration knows.

    Parameters
    ----------
    joint
        The joint model.
    name
        What clients call it.
    labels
        The classes' names, for the metadata.
    operating_points
        Thresholds by name.
    score_quantiles
        Of the scores on the calibration half, evenly spaced from 0 to 1: what turns a deferral
        rate into a threshold.
    calibration_id
        Of the calibration, for every answer.
    """

    joint: JointModel
    name: str = "joint"
    labels: tuple[str, ...] | None = None
    operating_points: Mapping[str, float] = field(default_factory=dict)
    score_quantiles: tuple[float, ...] = ()
    calibration_id: str | None = None

    def threshold_at(self, deferral_rate: float) -> float:
        """The threshold that defers this share of the calibration half.

        Raises
        ------
        ValueError
            A rate out of range, or nothing is known of the scores.
        """
        if not 0 <= deferral_rate <= 1:
            raise ValueError(f"deferral_rate must lie between 0 and 1, not {deferral_rate:g}")
        if not self.score_quantiles:
            raise ValueError(
                "deferral_rate needs a joint.toml with the scores' quantiles; calibrate again, or "
                "give a threshold"
            )
        if deferral_rate == 1:
            return math.inf
        grid = np.linspace(0, 1, len(self.score_quantiles))
        known = np.asarray(self.score_quantiles, np.float64)
        finite = np.where(np.isneginf(known), np.finfo(np.float64).min, known)
        return float(np.interp(deferral_rate, grid, finite))

    def score_deciles(self) -> list[float]:
        """The calibration's scores at 10, 20, ..., 90 %, each once; none where they are not known.

        Examples
        --------
        >>> Served(None, score_quantiles=(0.0, 1.0, 2.0)).score_deciles()[:2]
        [0.2, 0.4]
        """
        if not self.score_quantiles:
            return []
        found = {round(self.threshold_at(tenth / 10), 6) for tenth in range(1, 10)}
        return sorted(value for value in found if abs(value) < 1e300)

    def point(self, name: str) -> float:
        """The threshold of a named operating point.

        Raises
        ------
        ValueError
            There is none of that name.
        """
        if name not in self.operating_points:
            known = ", ".join(self.operating_points) or "none"
            raise ValueError(f"there is no operating point {name!r}; there are: {known}")
        return self.operating_points[name]

    def chosen(self, wish: Mapping[str, Any]) -> float | None:
        """The threshold that a request or the knob asks for; None where it asks for none.

        Raises
        ------
        ValueError
            It asks for two at once, or for one that is not possible.
        """
        asked = [name for name in REQUEST_PARAMETERS[:3] if name in wish]
        if len(asked) > 1:
            raise ValueError(f"give one of {' and '.join(asked)}, not both")
        if not asked:
            return None
        value = wish[asked[0]]
        if asked[0] == "operating_point":
            return self.point(str(value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{asked[0]} must be a number, not {value!r}")
        return check_threshold(value) if asked[0] == "threshold" else self.threshold_at(value)

    @property
    def takes_images(self) -> bool:
        """Whether inputs are images, which each model prepares for itself."""
        return isinstance(self.joint.student, Preprocessed)

    def inputs(self) -> list[dict[str, Any]]:
        """The metadata of the input."""
        if self.takes_images:
            return [tensor_metadata("image", np.uint8, (None, None, None, 3))]
        student = self.joint.student
        shape = getattr(student, "input_shape", None) or (None,)
        return [
            tensor_metadata(
                getattr(student, "input_name", "input"),
                getattr(student, "input_dtype", np.float32),
                (None, *shape[1:]),
            )
        ]

    def outputs(self) -> list[dict[str, Any]]:
        """The metadata of the outputs."""
        label = np.float64 if self.joint.task == "regression" else np.int64
        classes = None if self.labels is None else len(self.labels)
        return [
            tensor_metadata("prediction", label, (None,)),
            tensor_metadata("output", np.float32, (None, classes)),
            tensor_metadata("score", np.float32, (None,)),
            tensor_metadata("deferred", np.bool_, (None,)),
            tensor_metadata("degraded", np.bool_, (None,)),
        ]


def build_app(
    served: Served,
    *,
    token: str | None = None,
    timeout_seconds: float = 30.0,
    **options: Any,
) -> Starlette:
    """The server's application, for uvicorn or any other ASGI server.

    Parameters
    ----------
    served
        What is served.
    token
        Who moves the knob must show it, as ``Authorization: Bearer TOKEN``; without one the knob
        is moved from this machine alone.
    timeout_seconds
        How long a request may take that does not say so itself.
    **options
        Of the `Pipeline`.

    Raises
    ------
    MissingExtra
        Starlette or prometheus-client is not installed.
    ValueError
        The joint model's answers are no arrays: detectors are not served yet.
    """
    if served.joint.task == "detection":
        raise ValueError(
            "detectors cannot be served yet; `ebjr predict` answers a folder of images"
        )
    metrics = Metrics(served.name, served.score_deciles())
    pipeline = Pipeline(served.joint, observer=metrics, **options)
    metrics.watch(pipeline.waiting, lambda: served.joint.router.threshold)
    model = f"/v2/models/{served.name}"
    handlers = _Handlers(served, pipeline, metrics, token, timeout_seconds)
    routes = [
        Route("/v2/health/live", handlers.live),
        Route("/v2/health/ready", handlers.live),
        Route("/v2", handlers.server),
        *(
            route
            for prefix in (model, f"{model}/versions/{VERSION}")
            for route in (
                Route(prefix, handlers.metadata),
                Route(f"{prefix}/ready", handlers.live),
                Route(f"{prefix}/infer", handlers.infer, methods=["POST"]),
            )
        ),
        Route("/v2/models/{name}{rest:path}", handlers.unknown, methods=["GET", "POST"]),
        Route("/v1/router", handlers.read_knob, methods=["GET"]),
        Route("/v1/router", handlers.move_knob, methods=["PUT"]),
        Route("/metrics", handlers.metrics),
    ]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        pipeline.start()
        try:
            yield
        finally:
            await asyncio.get_running_loop().run_in_executor(None, pipeline.stop)

    return Starlette(routes=routes, lifespan=lifespan)


def served_of(config: JointConfig, **options: Any) -> Served:
    """What a ``joint.toml`` describes, loaded.

    Parameters
    ----------
    config
        The file, read.
    **options
        For `load_model`, such as threads.

    Raises
    ------
    ModelError
        A model file has changed, or cannot be loaded.
    """
    return Served(
        joint=config.load(**options),
        name=config.name,
        labels=config.labels,
        operating_points={
            name: float(point["threshold"]) for name, point in config.operating_points.items()
        },
        score_quantiles=tuple(config.calibration.get("score_quantiles", ())),
        calibration_id=config.calibration.get("outcomes"),
    )


def run_server(
    served: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    started: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serve until the process is told to end; what is asked by then is answered.

    Parameters
    ----------
    served
        What is served.
    host, port
        Where to listen; port 0 takes a free one.
    started
        Told the address once the server answers.
    **options
        Of `build_app`.

    Raises
    ------
    MissingExtra
        uvicorn is not installed.
    OSError
        The address is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("serve", "serving") from error
    with socket.create_server((host, port), backlog=1024) as listener:
        config = uvicorn.Config(
            build_app(served, **options), log_level="warning", access_log=False, lifespan="on"
        )
        where, own = listener.getsockname()[:2]
        started(f"http://{where}:{own}")
        uvicorn.Server(config).run(sockets=[listener])


class _Refused(Exception):
    """A request that gets an error: its status, sentence and headers."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


def _answering(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are answers: one sentence each."""

    async def wrapped(self: _Handlers, request: Request) -> Response:
        try:
            return await handler(self, request)
        except _Refused as error:
            status, sentence, headers = error.status, str(error), error.headers
        except ProtocolError as error:
            status, sentence, headers = 400, str(error), None
        except Overloaded as error:
            wait = {"Retry-After": str(math.ceil(error.retry_after_seconds))}
            status, sentence, headers = 429, str(error), wait
        except ClientDisconnect:
            return Response(status_code=499)
        except EbjrError as error:
            status, sentence, headers = 503, str(error), None
        self.observed.refused(status)
        return JSONResponse({"error": " ".join(sentence.split())}, status, headers)

    return wrapped


class _Handlers:
    """What is done for each route."""

    def __init__(
        self,
        served: Served,
        pipeline: Pipeline,
        observed: Metrics,
        token: str | None,
        timeout_seconds: float,
    ) -> None:
        self.served, self.pipeline, self.observed = served, pipeline, observed
        self.token, self.timeout_seconds = token, timeout_seconds
        (self.input,) = served.inputs()

    async def live(self, _request: Request) -> Response:
        return JSONResponse({})

    async def server(self, _request: Request) -> Response:
        from ebjr import __version__

        return JSONResponse(
            {"name": "ebjr", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def metadata(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "name": self.served.name,
                "versions": [VERSION],
                "platform": "ebjr_joint",
                "inputs": [self.input],
                "outputs": self.served.outputs(),
            }
        )

    async def unknown(self, request: Request) -> Response:
        name = request.path_params["name"]
        sentence = f"there is no model {name!r} here; the model is called {self.served.name!r}"
        return JSONResponse({"error": sentence}, 404)

    async def metrics(self, _request: Request) -> Response:
        body, kind = self.observed.text()
        return Response(body, media_type=kind)

    @_answering
    async def infer(self, request: Request) -> Response:
        with self.observed.request():
            body = await _body(request)
            asked = read_request(body, request.headers.get(LENGTH_HEADER))
            inputs = self._inputs(asked)
            threshold, timeout = self._wishes(asked)
            ticket = self.pipeline.submit(inputs, threshold=threshold)
            future = asyncio.wrap_future(ticket.future)
            try:
                found = await asyncio.wait_for(asyncio.shield(future), timeout)
            except TimeoutError:
                late = self.served.joint.when_unavailable == "student" and ticket.hurry()
                if not late:
                    ticket.future.cancel()
                    raise _Refused(
                        504, f"no answer within {timeout:g} s; try again, or give it longer"
                    ) from None
                found = await future
            except asyncio.CancelledError:  # the client has gone
                ticket.future.cancel()
                raise
            return self._respond(asked, found.answer, found.threshold)

    def _inputs(self, asked: InferRequest) -> Any:
        known = self.input
        if list(asked.inputs) != [known["name"]]:
            raise ProtocolError(
                f"this model has one input, {known['name']!r}, but the request brings "
                f"{', '.join(map(repr, asked.inputs))}"
            )
        (array,) = asked.inputs.values()
        if self.served.takes_images:
            return _images(array)
        shape, dtype = (
            known["shape"],
            np.dtype(getattr(self.served.joint.student, "input_dtype", array.dtype)),
        )
        fits = array.ndim == len(shape) and all(
            size in (-1, own) for size, own in zip(shape[1:], array.shape[1:], strict=True)
        )
        if len(shape) > 1 and not fits:
            raise ProtocolError(
                f"the input {known['name']!r} must have shape {shape}, not {list(array.shape)}"
            )
        if not array.ndim or not len(array):
            raise ProtocolError(f"the input {known['name']!r} must have at least one row")
        if array.dtype == object:
            raise ProtocolError(
                f"the input {known['name']!r} must be {known['datatype']}, not BYTES"
            )
        return array.astype(dtype, copy=False)

    def _wishes(self, asked: InferRequest) -> tuple[float | None, float]:
        unknown = set(asked.parameters) - set(REQUEST_PARAMETERS)
        if unknown:
            raise ProtocolError(
                f"there is no parameter {min(unknown)!r}; there are: "
                f"{', '.join(REQUEST_PARAMETERS)}"
            )
        timeout = asked.parameters.get("timeout", self.timeout_seconds)
        if isinstance(timeout, bool | str) or not 0 < timeout <= 3600:
            raise ProtocolError(f"timeout must be seconds, above 0 and up to 3600, not {timeout!r}")
        try:
            return self.served.chosen(asked.parameters), float(timeout)
        except ValueError as error:
            raise ProtocolError(str(error)) from error

    def _respond(self, asked: InferRequest, answer: Any, threshold: float) -> Response:
        parameters: dict[str, Any] = {"threshold": _finite(threshold)}
        if self.served.calibration_id is not None:
            parameters["calibration"] = self.served.calibration_id
        response = InferResponse(
            outputs={
                "prediction": to_numpy(answer.prediction),
                "output": to_numpy(answer.output).astype(np.float32),
                "score": to_numpy(answer.score).astype(np.float32),
                "deferred": to_numpy(answer.deferred),
                "degraded": to_numpy(answer.degraded),
            },
            model_name=self.served.name,
            model_version=VERSION,
            id=asked.id,
            parameters=parameters,
        )
        body, length = write_response(response, asked)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(
            body, media_type="application/octet-stream", headers={LENGTH_HEADER: str(length)}
        )

    async def read_knob(self, _request: Request) -> Response:
        return JSONResponse(self._knob())

    def _knob(self) -> dict[str, Any]:
        return {
            "score": str(self.served.joint.router.score),
            "threshold": _finite(self.served.joint.router.threshold),
            "operating_points": {
                name: _finite(value) for name, value in self.served.operating_points.items()
            },
            "calibration": self.served.calibration_id,
        }

    @_answering
    async def move_knob(self, request: Request) -> Response:
        self._authorize(request)
        body = await _body(request)
        try:
            wish = json.loads(body)
            if not isinstance(wish, dict) or len(wish) != 1:
                raise ValueError
            threshold = self.served.chosen(wish)
            if threshold is None:
                raise ValueError
        except (ValueError, RecursionError) as error:
            sentence = (
                str(error)
                if str(error) and not isinstance(error, json.JSONDecodeError)
                else (
                    'the knob takes JSON like {"threshold": 0.5}, {"deferral_rate": 0.2} or '
                    '{"operating_point": "match-teacher"}'
                )
            )
            raise _Refused(400, sentence) from error
        before = self.served.joint.router.threshold
        self.served.joint.router.threshold = threshold
        who = request.client.host if request.client else "unknown"
        log.info("knob moved from %r to %r by %s", before, threshold, who)
        return JSONResponse(self._knob())

    def _authorize(self, request: Request) -> None:
        if self.token is not None:
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Bearer {self.token}".encode()):
                raise _Refused(
                    401,
                    "the knob needs the header Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
            return
        host = request.client.host if request.client else ""
        if host not in ("127.0.0.1", "::1", "testclient"):
            raise _Refused(
                403, "without a token the knob is moved from this machine alone; serve with --token"
            )


async def _body(request: Request) -> bytes:
    """The body, decompressed, if it is not too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise _Refused(413, f"a body may have {MOST_BYTES} bytes, and this one has more")
        parts.append(part)
    body = b"".join(parts)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "deflate"):
        raise _Refused(415, f"bodies may be compressed by gzip or deflate, not by {encoding!r}")
    return _decompressed(body, encoding)


def _decompressed(body: bytes, encoding: str) -> bytes:
    engine = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    try:
        found = engine.decompress(body, MOST_BYTES + 1)
    except zlib.error as error:
        raise _Refused(400, f"the body is not what its encoding, {encoding}, says") from error
    if len(found) > MOST_BYTES:
        raise _Refused(
            413, f"a body may have {MOST_BYTES} bytes decompressed, and this one has more"
        )
    if not engine.eof:
        raise _Refused(400, f"the body ends before its {encoding} does")
    return found


def _images(array: np.ndarray) -> Any:
    """Images (n, h, w, 3) uint8, or n encoded ones."""
    if array.dtype == object:
        if array.ndim != 1 or not len(array):
            raise ProtocolError(
                f"encoded images must be a tensor BYTES of shape [n], not {list(array.shape)}"
            )
        return [_decoded(number, raw) for number, raw in enumerate(array.tolist())]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise ProtocolError(
            "the input 'image' must be UINT8 of shape [n, height, width, 3], or BYTES of shape [n] "
            f"with encoded images, not {array.dtype} {list(array.shape)}"
        )
    return array


def _decoded(number: int, raw: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ProtocolError(
                    f"image {number} has {image.width} x {image.height} pixels, and {MOST_PIXELS} "
                    "is the most"
                )
            return np.asarray(image.convert("RGB"))
    except ProtocolError:
        raise
    except Exception as error:  # whatever a broken image makes the decoder say
        raise ProtocolError(f"image {number} is no JPEG, PNG or WebP that can be read") from error


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)

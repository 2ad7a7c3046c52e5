"""What the protocols of a server share: a request is checked, asked and answered in one place.

Mistakes are raised as errors, and `status_of` gives their HTTP status.
"""

import asyncio
import base64
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebjr.arrays import row_count, to_numpy
from ebjr.data.examples import decode_image, image_formats, reason_of
from ebjr.data.preprocess import ImageFile, is_pixels
from ebjr.errors import (
    DeadlineExceeded,
    EbjrError,
    NothingKept,
    Overloaded,
    ProtocolError,
    UnknownModel,
)
from ebjr.files import json_number
from ebjr.link.far import FarTeacher
from ebjr.model import facts
from ebjr.protocol import InferRequest, InferResponse, TensorMetadata, write_response
from ebjr.router import is_deferred
from ebjr.serving.deadlines import Deadlines, FutureWaiter
from ebjr.serving.events import Expired, Observers
from ebjr.serving.explain import explain
from ebjr.serving.journal import Journal
from ebjr.serving.knob import Knob
from ebjr.serving.knob_control import KnobControl
from ebjr.serving.limits import Limits
from ebjr.serving.live_monitor import LiveMonitor
from ebjr.serving.logs import Faults, noted
from ebjr.serving.metrics import Metrics, add_sources
from ebjr.serving.periodic import Periodic
from ebjr.serving.pipeline import Pipeline, ServedAnswer
from ebjr.serving.recent import Recent
from ebjr.serving.served import KNOBS, Served
from ebjr.serving.status import describe

if TYPE_CHECKING:  # an extra
    from ebjr.serving.tracing import Tracing

VERSION = "1"  # the only version of a served model
STOP_SECONDS = 10.0  # for what waits in each model when the server ends
REQUEST_PARAMETERS = (*KNOBS, "timeout")

BROKEN = "the server failed on this request; its log says why"
"""What a client is told of our own mistake, over any protocol."""

STATUSES: tuple[tuple[type[EbjrError], int], ...] = (
    (UnknownModel, 404),
    (NothingKept, 404),
    (ProtocolError, 400),
    (Overloaded, 429),
    (DeadlineExceeded, 504),
    (EbjrError, 503),
)

log = logging.getLogger("ebjr.serving")


def status_of(error: EbjrError) -> int:
    """The HTTP status that an error is answered with; other protocols translate it."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


class Service:
    """A joint model behind any protocol.

    Defaults: `timeout_seconds` for requests that name none; the knob is moved by hand unless `hold`
    (and its bounds, `between`) switches the autopilot on; the monitor keeps its state in the folder
    of `audit_log` unless `state` names another. `chore_seconds` is how often autopilot and monitor
    look; `knob` is one shared with other services; `options` are those of the `Pipeline`.
    """

    def __init__(
        self,
        served: Served,
        *,
        timeout_seconds: float = 30.0,
        audit_log: str | os.PathLike[str] | None = None,
        hold: str | None = None,
        between: Sequence[float | str] | None = None,
        audit_rate: float = 0.0,
        state: str | os.PathLike[str] | None = None,
        tracing: "Tracing | None" = None,
        chore_seconds: float = 1.0,
        limits: Limits | None = None,
        knob: Knob | None = None,
        **options: Any,
    ) -> None:
        self.served, self.timeout_seconds = served, timeout_seconds
        self._tensors = served.tensors()
        self.limits = Limits() if limits is None else limits
        self.held_bytes = 0  # of all requests at work
        self.metrics = Metrics(served.name, served.score_deciles())
        self.recent = Recent(served.score_edges())
        self._journal = None if audit_log is None else Journal(audit_log)
        beside = None if audit_log is None else Path(audit_log).parent
        self.monitor = LiveMonitor(
            served, audit_rate=audit_rate, folder=beside if state is None else state
        )
        self.tracing = tracing
        self.observers = Observers(self.metrics, self.recent, self.monitor, Faults())
        if tracing is not None:
            self.observers.add(tracing)
        self.pipeline = Pipeline(
            served.joint, observer=self.observers, audit_rate=audit_rate, **options
        )
        self.deadlines = Deadlines()
        self.waiter = FutureWaiter(self.deadlines)
        self.knob = Knob(served, self._journal) if knob is None else knob
        self.control = KnobControl(self.knob, self.observers)
        if hold is not None:
            self.control.hold(hold, between, who="the server's start")
        elif between is not None:
            raise ValueError("between bounds the autopilot: say what it is to hold")
        self._periodic = Periodic(chore_seconds, self.control.look, self.monitor.look)
        add_sources(self.metrics, self.pipeline, self.control, self.monitor)
        (self.input,) = served.inputs()
        self._tensor = TensorMetadata(**{**self.input, "shape": tuple(self.input["shape"])})
        self._looking = ThreadPoolExecutor(1, "ebjr-both")  # one at a time: answering comes first
        self.outputs = served.outputs()
        self._output_names = tuple(output["name"] for output in self.outputs)

    def start(self) -> None:
        """Start to answer, and to fetch what was kept for later."""
        self.pipeline.start()
        self._periodic.start()
        if (late := self.served.joint.late) is not None:
            late.start(self.served.joint)

    def stop(self) -> None:
        """Answer what waits, and end."""
        self._periodic.stop()
        self.pipeline.stop(STOP_SECONDS)
        self._looking.shutdown(cancel_futures=True)
        if (late := self.served.joint.late) is not None:
            late.stop()
        self._periodic.do(self.monitor.look)
        self._periodic.do(self.monitor.save)
        if self._journal is not None:
            self._journal.close()
        if self.tracing is not None:
            self.tracing.close()

    def server_metadata(self) -> dict[str, Any]:
        """What the server says of itself."""
        from ebjr import __version__

        return {"name": "ebjr", "version": __version__, "extensions": ["binary_tensor_data"]}

    def index(self) -> list[dict[str, str]]:
        """Which models the server has."""
        return [{"name": self.served.name, "version": VERSION, "state": "READY"}]

    def model_metadata(self) -> dict[str, Any]:
        """What the server says of the model."""
        return {
            "name": self.served.name,
            "versions": [VERSION],
            "platform": "ebjr_joint",
            "inputs": [self.input],
            "outputs": self.outputs,
        }

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a request while it is in work: what this yields holds more of them."""
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            most = self.limits.held_bytes
            if self.held_bytes and self.held_bytes + size > most:
                raise Overloaded(
                    f"{self.held_bytes} bytes of requests are at work already, and {most} is the "
                    "most: try again in a second",
                    1.0,
                )
            mine += size
            self.held_bytes += size

        try:
            yield hold
        finally:
            self.held_bytes -= mine

    def check_model(self, name: str, version: str = "") -> None:
        """Raise UnknownModel unless this name, and version if any, is what is served."""
        if name != self.served.name:
            raise UnknownModel(
                f"there is no model {name!r} here; the model is called {self.served.name!r}"
            )
        if version not in ("", VERSION):
            raise UnknownModel(f"there is no version {version!r} of {name!r}; it has {VERSION!r}")

    async def infer(self, asked: InferRequest, *, within: float | None = None) -> InferResponse:
        """Answer a request, within the time that it asks for and at most `within` seconds.

        Raises ProtocolError, Overloaded, DeadlineExceeded (not even the student has answered), or
        ModelError.
        """
        inputs = await self._inputs(asked)
        asked.check_outputs(self._output_names)
        threshold, timeout = self._wishes(asked)
        if within is not None:
            timeout = min(timeout, within)
        ticket = self.pipeline.submit(inputs, threshold=threshold)
        try:
            await self.waiter.until_done(ticket.future, timeout)
        except TimeoutError:
            policy = self.served.joint.when_unavailable
            if policy == "error" or not await asyncio.to_thread(ticket.hurry):
                ticket.future.cancel()
                self.observers.observe(Expired(ticket, timeout))
                raise _too_late(timeout) from None
        except asyncio.CancelledError:  # the client has gone
            ticket.future.cancel()
            raise
        found = ticket.future.result()
        if (notes := noted()) is not None:
            _note(notes, found)
        return self._response(asked, found)

    async def explain(self, asked: InferRequest) -> dict[str, Any]:
        """What both models say of one input, not counted as load, see `ebjr.serving.explain`."""
        inputs = await self._inputs(asked)
        if row_count(inputs) != 1:
            raise ProtocolError(f"both models are asked of one input, not of {row_count(inputs)}")
        threshold, timeout = self._wishes(asked)
        at = self.knob.threshold if threshold is None else threshold
        asking = asyncio.get_running_loop().run_in_executor(
            self._looking, explain, self.served.joint, inputs, at, self.served.labels
        )
        try:
            return json_number(await asyncio.wait_for(asking, timeout))
        except TimeoutError:
            raise _too_late(timeout) from None

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self.metrics.refused(status)
        self.recent.refused()

    def status(self) -> dict[str, Any]:
        """The knob and its promise, what the calibration knows, and the last seconds."""
        return {
            **self._described,
            "router": self.control.state(),
            "monitor": self.monitor.status(),
            "far_teacher": self._far_teacher(),
            "live": {**self.recent.as_dict(), "waiting": self.pipeline.waiting()},
        }

    def _far_teacher(self) -> dict[str, Any] | None:
        joint = self.served.joint
        if not isinstance(joint.teacher, FarTeacher):
            return None
        late = None if joint.late is None else len(joint.late)
        return {"name": joint.teacher.name, "state": joint.teacher.state, "late_rows": late}

    @cached_property
    def _described(self) -> dict[str, Any]:
        return describe(self.served)

    def late(self, id: str) -> dict[str, Any]:
        """What is known of rows kept for later, like an answer's message; else NothingKept."""
        joint = self.served.joint
        if joint.late is None:
            raise NothingKept(
                "nothing is kept for later here: that takes when_unavailable = 'queue'"
            )
        found = joint.late.find(id, joint)
        if found is None:
            raise NothingKept(f"nothing is kept under {id[:40]!r}, or no longer")
        own = {name: tensor.of(found) for name, tensor in self._tensors.items()}
        outputs = {"row": found.rows, **own}
        body, _ = write_response(InferResponse(outputs, self.served.name, VERSION, id=id))
        return {**json.loads(body), "waiting": list(found.waiting), "errors": found.errors}

    async def _inputs(self, asked: InferRequest) -> Any:
        known = self.input
        if list(asked.inputs) != [known["name"]]:
            raise ProtocolError(
                f"this model has one input, {known['name']!r}, but the request brings "
                f"{', '.join(map(repr, asked.inputs))}"
            )
        (array,) = asked.inputs.values()
        if self.served.takes_images:
            return await self._images(array)
        if len(self._tensor.shape) > 1 and not self._tensor.fits(array.shape):
            raise ProtocolError(
                f"the input {known['name']!r} must have shape {known['shape']}, "
                f"not {list(array.shape)}"
            )
        if not array.ndim or not len(array):
            raise ProtocolError(f"the input {known['name']!r} must have at least one row")
        wanted = facts(self.served.joint.student).input_dtype
        texts = array.dtype == object
        if wanted is not None and texts != (wanted.kind in "OU"):
            came = "BYTES" if texts else array.dtype
            raise ProtocolError(
                f"the input {known['name']!r} must be {known['datatype']}, not {came}"
            )
        if texts:
            return _texts(array)
        return array if wanted is None else array.astype(wanted, copy=False)

    def _wishes(self, asked: InferRequest) -> tuple[float | None, float]:
        if not asked.parameters:
            return None, self.timeout_seconds
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

    def _response(self, asked: InferRequest, found: ServedAnswer) -> InferResponse:
        answer = found.answer
        told = {
            "threshold": json_number(found.threshold),
            "promise": self.knob.promise(found.threshold),
            "late": answer.late,
            "calibration": self.served.calibration_id,
        }
        parameters = {name: value for name, value in told.items() if value is not None}
        wanted = {name for name in self._output_names if asked.wants(name) is not None}
        outputs = {n: tensor.of(answer) for n, tensor in self._tensors.items() if n in wanted}
        outputs |= {n: give(found) for n, give in OUTPUTS.items() if n in wanted}
        return InferResponse(outputs, self.served.name, VERSION, asked.id, parameters)

    async def _images(self, array: np.ndarray) -> Any:
        """Images (n, h, w, 3) uint8, or n encoded ones."""
        if array.dtype == object:
            if array.ndim != 1 or not len(array):
                raise ProtocolError(
                    f"encoded images must be a tensor BYTES of shape [n], not {list(array.shape)}"
                )
            most = self.limits.image_pixels
            return await asyncio.to_thread(decoded_images, array.tolist(), most)
        if not is_pixels(array, 4) or not array.size:
            raise ProtocolError(
                "the input 'image' must be UINT8 of shape [n, height, width, 3], or BYTES of shape "
                f"[n] with encoded images, not {array.dtype} {list(array.shape)}"
            )
        return array


def _texts(array: np.ndarray) -> np.ndarray:
    try:
        return np.array([each.decode() for each in array.flat], object).reshape(array.shape)
    except UnicodeDecodeError as error:
        raise ProtocolError("texts must be BYTES in UTF-8") from error


def _note(notes: dict[str, Any], found: ServedAnswer) -> None:
    """Put figures into the line of a request."""
    deferred, degraded = found.answer.deferred, found.answer.degraded
    notes |= {"rows": len(deferred), "deferred": int(deferred.sum())}
    notes |= {"degraded": int(degraded.sum()), "threshold": json_number(found.threshold)}


def _too_late(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {seconds:g} s; try again, or give it longer")


def single_score(score: np.ndarray, threshold: float) -> np.ndarray:
    """Scores (n,) in single precision, on the side of the threshold on which they really are.

    Examples
    --------
    >>> bool(np.float32(0.7) >= np.float64(0.7))
    False
    >>> bool(single_score(np.array([0.7]), 0.7)[0] >= np.float64(0.7))
    True
    """
    with np.errstate(over="ignore"):
        single = score.astype(np.float32)
    deferred = is_deferred(score.astype(np.float64), threshold)
    crossed = is_deferred(single.astype(np.float64), threshold) != deferred
    if crossed.any():
        own_side = np.where(deferred, np.float32(-np.inf), np.float32(np.inf))
        single = np.where(crossed, np.nextafter(single, own_side), single)
    return single


OUTPUTS: Mapping[str, Callable[[ServedAnswer], np.ndarray]] = {
    "score": lambda found: single_score(to_numpy(found.answer.score), found.threshold),
    "deferred": lambda found: to_numpy(found.answer.deferred),
    "degraded": lambda found: to_numpy(found.answer.degraded),
}
"""How an answer of any task came about, each made where it is asked for."""


# What a container says of its picture's size may be false, and the limit on pixels with it.
_CONTAINERS = {"BLP", "ICNS", "ICO"}
_ANY_SERVER_READS = (b"\xff\xd8", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


def decoded_images(files: Sequence[bytes], most_pixels: int) -> list[np.ndarray]:
    """The pixels (h, w, 3) of image files, or of their base64, as `ebjr record` decodes them.

    They may have `most_pixels` together; else ProtocolError.
    """
    pixels = 0

    def check(more: int) -> None:  # before anything is decoded
        nonlocal pixels
        pixels += more
        if pixels > most_pixels:
            raise ProtocolError(
                f"the images of a request may have {most_pixels} pixels together, and with image "
                f"{number} they have {pixels}"
            )

    formats = [form for form in image_formats() if form not in _CONTAINERS]
    found: list[np.ndarray] = []
    for number, sent in enumerate(files):
        try:
            image, file = _decoded(sent, formats=formats, check=check)
        except ProtocolError:
            raise
        except Exception as error:  # whatever a broken image makes the decoder say
            raise ProtocolError(
                f"image {number} is no image that can be read ({reason_of(error)}): send the bytes "
                "of a JPEG, PNG, WebP, GIF, BMP or TIFF file, or in JSON their base64"
            ) from error
        whole = file.startswith(_ANY_SERVER_READS)  # a far teacher is sent the file itself
        found.append(ImageFile.of(image, file) if whole else image)
    return found


def _decoded(sent: bytes, **how: Any) -> tuple[np.ndarray, bytes]:
    """An image and its file, which may come as base64, with or without ``data:...;base64,``."""
    from PIL import UnidentifiedImageError

    try:
        return decode_image(sent, **how), sent
    except UnidentifiedImageError as error:
        text = sent.partition(b";base64,")[2] if sent.startswith(b"data:") else sent
        try:
            file = base64.b64decode(b"".join(text.split()), validate=True)
        except ValueError:
            raise error from None
        return decode_image(file, **how), file

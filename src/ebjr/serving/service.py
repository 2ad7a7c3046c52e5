"""What all protocols share: one place checks a request, asks the model, and makes the answer.

Errors are raised, and `status_of` gives their HTTP status.
"""

import asyncio
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ebjr.arrays import row_count, to_numpy
from ebjr.data.preprocess import is_pixels
from ebjr.errors import (
    MOST_SECONDS,
    DeadlineExceeded,
    EbjrError,
    NothingKept,
    Overloaded,
    ProtocolError,
    TooLarge,
    UnknownModel,
    check_choice,
    check_seconds,
    check_whole,
)
from ebjr.files import json_number
from ebjr.joint import models_of
from ebjr.joint_file import JointConfig
from ebjr.link.far import FarTeacher
from ebjr.model import facts
from ebjr.protocol import (
    REQUEST,
    InferRequest,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    TensorMetadata,
    best_classes,
    check_keys,
    is_whole,
    write_response,
)
from ebjr.router import is_deferred
from ebjr.serving.admission import Admission, Hold
from ebjr.serving.audits import check_rate
from ebjr.serving.call import Call, Question, Wishes, too_late
from ebjr.serving.engine import Engine, Ticket, check_priority, stages_of
from ebjr.serving.events import Observers
from ebjr.serving.explain import explain
from ebjr.serving.images import decoded_images, opened_images
from ebjr.serving.knob import Knob
from ebjr.serving.knob_control import KnobControl
from ebjr.serving.limits import Refused
from ebjr.serving.live_monitor import LiveMonitor
from ebjr.serving.logs import NOTES, Faults
from ebjr.serving.memory import return_ebbed
from ebjr.serving.metrics import Metrics, add_sources
from ebjr.serving.periodic import Periodic
from ebjr.serving.recent import Recent
from ebjr.serving.served import KNOBS, Served
from ebjr.serving.shared import Shared
from ebjr.serving.spending import Spending
from ebjr.serving.statistics import Statistics
from ebjr.serving.status import describe
from ebjr.task import Tensor

READY = ("student", "teacher")  # the models that readiness can require
LOOK_SECONDS = 5.0  # between looks at a remote teacher that readiness requires
SHORT_ID = 12  # digits of the model's hash in each answer
STOP_SECONDS = 20.0  # that a model may take to finish queued requests at shutdown
REQUEST_PARAMETERS = (*KNOBS, "timeout_seconds", "timeout", "priority")

BROKEN = "the server failed on this request; its log says why"
"""What a client reads of an internal error, over any protocol."""

STATUSES: tuple[tuple[type[EbjrError], int], ...] = (
    (UnknownModel, 404),
    (NothingKept, 404),
    (ProtocolError, 400),
    (TooLarge, 413),
    (Overloaded, 429),
    (DeadlineExceeded, 504),
    (EbjrError, 503),
)

log = logging.getLogger("ebjr.serving")


def status_of(error: EbjrError) -> int:
    """Return the HTTP status of an error; other protocols translate it."""
    if isinstance(error, Refused):
        return error.status
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def told_of(error: BaseException) -> tuple[int, str]:
    """Return the status of a request that ends in an error, and the sentence for its client."""
    if isinstance(error, EbjrError):
        return status_of(error), " ".join(str(error).split())
    log.error("a request failed", exc_info=error)
    return 500, BROKEN


class Service:
    """Answers requests to one joint model, whatever the protocol.

    `version` is the model's version, a number. All services of a server have `shared` in common.
    `after` is the service that this one replaces: it continues its monitor's state and autopilot.

    `timeout_seconds` holds for requests that set none. The knob is moved by hand unless `hold`
    turns the autopilot on, within the bounds `between`. The monitor keeps its state in the folder
    `state`, if given. With `ready` ``"teacher"`` the service is not ready while a remote teacher is
    away; with ``"student"`` it is. The autopilot and the monitor run every `chore_seconds`. At most
    `queue_rows` rows are in progress. `knob` is one shared with other servers. `options` go to
    `Engine`.
    """

    def __init__(
        self,
        served: Served,
        shared: Shared | None = None,
        *,
        version: str = "1",
        after: "Service | None" = None,
        timeout_seconds: float = 30.0,
        hold: str | None = None,
        between: Sequence[float | str] | None = None,
        audit_rate: float = 0.0,
        state: str | os.PathLike[str] | None = None,
        chore_seconds: float = 1.0,
        queue_rows: int = 4096,
        knob: Knob | None = None,
        ready: str = "student",
        **options: Any,
    ) -> None:
        check_seconds(timeout_seconds=timeout_seconds, chore_seconds=chore_seconds)
        check_whole(1, queue_rows=queue_rows)
        check_rate(audit_rate)
        self.served, self.version, self.timeout_seconds = served, version, timeout_seconds
        self._tensors = served.tensors()
        self._short_id = served.identity.get("model", "")[:SHORT_ID] or None
        self._no_wishes = Wishes(None, timeout_seconds)
        shared = Shared() if shared is None else shared
        self.limits, self.lanes = shared.limits, shared.lanes
        self.bell, self.tracing = shared.bell, shared.tracing
        self.metrics = Metrics(served.name, served.score_deciles(), stages_of(served.joint))
        self.recent = Recent(served.score_edges(), stages_of(served.joint))
        if after is not None:
            after.monitor.save()  # the new monitor resumes from this file
        self.monitor: LiveMonitor = LiveMonitor(served, audit_rate=audit_rate, folder=state)
        self.spending = Spending(stages_of(served.joint), served.about)
        self.statistics = Statistics()
        self.observers = Observers(
            *(self.metrics, self.recent, self.monitor, self.spending, self.statistics),
            Faults(served.about),
        )
        if self.tracing is not None:
            self.observers.add(self.tracing)
        self.engine = Engine(
            served.joint, observer=self.observers, audit_rate=audit_rate, **options
        )
        check_choice("ready", ready, READY)
        far = [one for one in models_of(served.joint) if isinstance(one, FarTeacher)]
        self._far = far if ready == "teacher" else []
        self._far_looks = Periodic(LOOK_SECONDS, *(one.look for one in far), at_once=True)
        self.admission = Admission(
            bytes=self.limits.held_bytes,
            rows=queue_rows,
            seconds=timeout_seconds * self.engine.workers,
            beside=shared.admission,
        )
        self.engine.bell = self.bell.ring
        self.forsaken: dict[Call, None] = {}  # calls whose clients may be gone: first to be dropped
        before = None if after is None else after.knob
        self.knob: Knob = Knob(served, shared.journal, before) if knob is None else knob
        self.control = KnobControl(self.knob, self.observers, lambda: self.spending.silence)
        if between is not None and hold is None:
            raise ValueError("between sets the autopilot's bounds: give hold, its target, too")
        if after is None and hold is not None:
            self.control.hold(hold, between, who="the server's start")
        elif after is not None and (pilot := after.control.pilot) is not None:
            self.control.hold(pilot.hold, pilot.between, who="joint.toml")
        ebbed = partial(return_ebbed, shared.admission)
        self._periodic = Periodic(
            chore_seconds, self.engine.tell, self.control.look, self.monitor.look, ebbed
        )
        add_sources(self.metrics, self.engine, self.control, self.monitor, self.spending)
        self.input = served.input()
        self._wanted = facts(models_of(served.joint)[0]).input_dtype
        self._looking = ThreadPoolExecutor(1, "ebjr-both")  # one: clients' requests come first
        self._outputs = served.outputs()
        self._outputs_of = {name: _made_by(tensor) for name, tensor in self._tensors.items()}
        self._outputs_of |= OUTPUTS
        rare = {name for name, tensor in self._tensors.items() if not tensor.usual} | RARE
        self._usual = tuple(one for one in self._outputs_of.items() if one[0] not in rare)
        self._said = lru_cache(maxsize=64)(self._said_of)
        self._described = cache(partial(describe, served))
        self.output_names = tuple(output.name for output in self._outputs)

    def start(self) -> None:
        """Start to answer, and to fetch late answers for kept rows."""
        self.engine.start()
        self._periodic.start()
        if self._far:
            self._far_looks.start()
        if (late := self.served.joint.late) is not None:
            late.start(self.served.joint)

    def stop(self) -> None:
        """Answer the queued requests, and stop."""
        self._periodic.stop()
        self._far_looks.stop()
        self.engine.stop(STOP_SECONDS)
        self._looking.shutdown(wait=False, cancel_futures=True)
        if (late := self.served.joint.late) is not None:
            late.stop()
        self._periodic.do(self.monitor.look)
        self._periodic.do(self.monitor.save)

    def rest(self) -> None:
        """Stop the autopilot and the monitor of a service that gets no new requests."""
        self._periodic.stop()

    def reload(self, config: JointConfig) -> None:
        """Adopt another calibration of the same models, and its threshold.

        If the autopilot is on, it keeps the knob and begins anew between the new bounds. ValueError
        if `config` differs in more than the calibration or does not allow what the autopilot holds,
        OSError if the audit log cannot be written; the service is then as it was.
        """
        before = self.served.config
        self.served.recalibrate(config)
        try:
            if config != before or self.control.pilot is None:
                self.control.follow(config.threshold, who="joint.toml", why="it was read again")
        except (OSError, ValueError):
            assert before is not None
            self.served.recalibrate(before)
            raise
        if config == before:
            return
        self.recent.count_between(self.served.score_edges())
        self.monitor.begin(self.served)
        for known in (self._said, self._described):
            known.cache_clear()

    def model_metadata(self, versions: Sequence[str] = ()) -> dict[str, Any]:
        """Return the model's metadata, which lists its `versions`."""
        tensors = (self.input,), self._outputs
        versions = tuple(versions) or (self.version,)
        about = ModelMetadata(self.served.name, versions, "ebjr_joint", *tensors).as_dict()
        own = self.served.identity
        return {**about, "parameters": dict(own)} if own else about

    @property
    def not_ready(self) -> str | None:
        """Why the model is not ready; None if it is."""
        return next((why for far in self._far if (why := far.away) is not None), None)

    def model_config(self) -> dict[str, Any]:
        """Return inputs and outputs as Triton's clients read them; shapes omit the rows."""

        def table(tensor: TensorMetadata) -> dict[str, Any]:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            return {
                "name": tensor.name,
                "data_type": f"TYPE_{kind}",
                "dims": [*tensor.shape[1:]],
            }

        return {
            "name": self.served.name,
            "platform": "ebjr_joint",
            "backend": "ebjr",
            "max_batch_size": self.engine.most_rows,
            "input": [table(self.input)],
            "output": [table(output) for output in self._outputs],
        }

    def model_statistics(self) -> dict[str, Any]:
        """Return the model's statistics as Triton's clients read them."""
        self.engine.tell()
        own = {"name": self.served.name, "version": self.version}
        return {**own, **self.statistics.as_dict()}

    def check_model(self, name: str) -> None:
        """Raise UnknownModel unless `name` is the served model."""
        if name != self.served.name:
            own = self.served.name
            raise UnknownModel(f"there is no model {name!r:.60} here; the model is called {own!r}")

    def question(
        self, asked: InferRequest, write: "Write" = lambda response, plan: response
    ) -> "Question":
        """Turn a request of the protocol into a question; `write` makes its answer."""
        inputs, plan = self.inputs(asked), self.plan(asked)
        return self.planned(plan, inputs, write)

    def planned(self, plan: "Plan", inputs: Any, write: "Write") -> "Question":
        """Make a question of inputs and a plan that are known already."""

        def written(ticket: Ticket) -> Any:
            return write(self.response(plan, ticket), plan)

        return Question(inputs, plan.wishes, written)

    async def ask(
        self,
        question: "Question",
        hold: Hold,
        *,
        within: float | None = None,
        began: "Callable[[Call], None]" = lambda call: None,
    ) -> Any:
        """Ask a question and return what its `write` makes of the answer; `began` gets the call."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(found: Any) -> None:
            if future.done():  # canceled in the meantime
                return
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

        call = Call(self, question, hold, done, within=within)
        call.start(question.inputs)
        began(call)
        try:
            found = await future
        finally:
            call.cancel()  # releases the rows if the client has gone
        if (notes := NOTES.get()) is not None and call.ticket is not None:
            said = call.ticket.result()
            notes |= {"rows": call.ticket.rows, "deferred": int(said.deferred.sum())}
            notes["degraded"] = int(said.degraded.sum())
            notes["threshold"] = json_number(call.ticket.threshold)
        return found

    def admit(self, hold: Hold, inputs: Any, size: int) -> None:
        """Hold a request's rows, bytes and expected seconds; drop forsaken calls to make room."""
        rows = row_count(inputs)
        # an estimate may be far off: alone, it must not fill the server
        seconds = min(self.engine.expected_seconds(rows), self.admission.limits[2] / 2)
        wishes = size, rows, seconds
        try:
            hold.add(*wishes)
        except Overloaded:
            if not self.forsaken:
                raise
            for call in list(self.forsaken):
                call.give_way()
            hold.add(*wishes)

    def plan(self, asked: InferRequest) -> "Plan":
        """Return what a request asks for, apart from its inputs."""
        asked.check_outputs(self.output_names)
        outputs = self._usual
        if asked.outputs is not None:
            both = ((name, asked.wants(name)) for name in self.output_names)
            outputs = tuple((name, self._output(wish)) for name, wish in both if wish is not None)
        return Plan(asked, outputs, self.wishes(asked.parameters))

    def _output(self, wanted: RequestedOutput) -> "Output":
        """Return the function that makes a requested output, perhaps its best classes alone."""
        make, count = self._outputs_of[wanted.name], wanted.classes
        if count is None:
            return make
        if wanted.name != "output" or not self.served.joint.kind.targets_are.startswith("label"):
            raise ProtocolError(
                f"'classification' ranks the classes of logits, and the output {wanted.name!r} of "
                "this model has no logits"
            )
        names = self.served.names or ()
        return lambda ticket: best_classes(make(ticket), count, names)

    async def explain(self, asked: InferRequest, hold: Hold) -> dict[str, Any]:
        """Return what both models say of one input, see `explain`; it does not count as load."""
        inputs = self.inputs(asked)
        if row_count(inputs) != 1:
            raise ProtocolError(f"send one input to ask both models, not {row_count(inputs)}")
        wishes = self.wishes(asked.parameters)
        ignored = {"outputs": asked.outputs, "id": asked.id, "priority": wishes.priority}
        ignored["binary_data_output"] = asked.binary
        if given := next((name for name, value in ignored.items() if value), None):
            raise ProtocolError(f"asking both models takes no {given!r}: all comes as one JSON")
        at = self.knob.threshold if wishes.threshold is None else wishes.threshold

        def look() -> dict[str, Any]:
            rows = inputs
            if isinstance(inputs, list):
                opened = opened_images(inputs, self.limits.image_pixels, hold)
                rows = decoded_images(opened, hold)
            joint, labels = self.served.joint, self.served.labels
            return explain(joint, rows, at, labels, self.observers.observe)

        asking = asyncio.get_running_loop().run_in_executor(self._looking, look)
        try:
            return json_number(await asyncio.wait_for(asking, wishes.timeout))
        except TimeoutError:
            raise too_late(wishes.timeout) from None

    def refuse(self, error: BaseException) -> tuple[int, str]:
        """Count a request that ends in an error; return its status and its client's sentence."""
        status, sentence = told_of(error)
        self.refused(status)
        return status, sentence

    def refused(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self.metrics.refused(status)
        self.recent.refused()
        self.statistics.failed += 1

    def status(self) -> dict[str, Any]:
        """Return the knob and its promise, the calibration's facts, and the last seconds."""
        self.engine.tell()
        return {
            **self._described(),
            "router": self.control.state(),
            "monitor": self.monitor.status(),
            "spending": self.spending.status(),
            "far_teacher": self._far_teacher(),
            "live": {**self.recent.as_dict(), "waiting": self.engine.waiting()},
        }

    def _far_teacher(self) -> dict[str, Any] | None:
        joint = self.served.joint
        if not isinstance(joint.teacher, FarTeacher):
            return None
        late = None if joint.late is None else len(joint.late)
        return {"name": joint.teacher.name, "state": joint.teacher.state, "late_rows": late}

    def late(self, id: str) -> dict[str, Any]:
        """Return the late answers kept under an id, as outputs; NothingKept if there are none."""
        joint = self.served.joint
        if joint.late is None:
            raise NothingKept(
                "this model keeps no rows for later: that needs when_unavailable = 'queue'"
            )
        found = joint.late.find(id, joint)
        if found is None:
            raise NothingKept(f"nothing is kept under {id[:40]!r}; it may have been deleted")
        own = {name: tensor.of(found) for name, tensor in self._tensors.items()}
        outputs = {"row": found.rows, **own}
        body, _ = write_response(InferResponse(outputs, self.served.name, self.version, id=id))
        return {**json.loads(body), "waiting": list(found.waiting), "errors": found.errors}

    def inputs(self, asked: InferRequest) -> Any:
        """Check and return the one input of a request; encoded images come as a list of files."""
        name, own = self.input.name, self.served.name
        check_keys(asked.extra, (*REQUEST, "model_name"), "a request")
        if (named := asked.extra.get("model_name", own)) != own:  # KServe's client repeats it
            raise ProtocolError(
                f"the address names the model {own!r}, but the request {named!r:.60}"
            )
        if list(asked.inputs) != [name]:
            raise ProtocolError(
                f"this model has one input, {name!r}, but the request has "
                f"{', '.join(map(repr, asked.inputs))}"
            )
        (array,) = asked.inputs.values()
        return self.inputs_of(array)

    def inputs_of(self, array: np.ndarray) -> Any:
        """Check and convert one input, as `inputs` does."""
        name = self.input.name
        if self.served.takes_images:
            return _images(array)
        shape, columns = self.input.shape, self.served.columns if self.served.takes_texts else None
        if len(columns or ()) == 1 and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if (len(shape) > 1 or columns) and not self.input.fits(array.shape):
            words = f" of {', '.join(columns)}" if columns else ""
            raise ProtocolError(
                f"the input {name!r} must have shape {list(shape)}{words}, not {list(array.shape)}"
            )
        if not array.ndim or not array.size:
            raise ProtocolError(
                f"the input {name!r} must have at least one row with values, not the shape "
                f"{list(array.shape)}"
            )
        wanted = self._wanted
        texts = array.dtype == object
        if wanted is not None and texts != (wanted.kind in "OU"):
            came = "BYTES" if texts else array.dtype
            raise ProtocolError(f"the input {name!r} must be {self.input.datatype}, not {came}")
        return _texts(array) if texts else self.cast(array)

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Return numbers in the model's type; ProtocolError if that would change a value.

        A float may lose digits; nothing else is lost.
        """
        wanted = self._wanted
        if wanted is None or array.dtype == wanted:
            return array
        with np.errstate(all="ignore"):
            found = array.astype(wanted)
        other = np.isfinite if wanted.kind == "f" else np.asarray  # what a cast may not change
        lost = other(found) != other(array)
        if lost.any():
            raise ProtocolError(
                f"the input {self.input.name!r} must be {self.input.datatype}, which has no "
                f"{array[lost][0]}"
            )
        return found

    def wishes(self, parameters: Mapping[str, Any]) -> "Wishes":
        """Return what a request's parameters ask for; ProtocolError if they are invalid."""
        if not parameters:
            return self._no_wishes
        unknown = set(parameters) - set(REQUEST_PARAMETERS)
        if unknown:
            raise ProtocolError(
                f"there is no parameter {min(unknown)!r}; there are: "
                f"{', '.join(REQUEST_PARAMETERS)}"
            )
        try:
            threshold = self.served.chosen(parameters)
            seconds = self._seconds(parameters)
            priority = check_priority(parameters.get("priority", 0))
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        return Wishes(threshold, seconds, priority)

    def _seconds(self, parameters: Mapping[str, Any]) -> float:
        """Return the timeout in seconds; Triton's ``timeout`` is in microseconds."""
        own, theirs = (parameters.get(name) for name in ("timeout_seconds", "timeout"))
        if own is not None and theirs is not None:
            raise ValueError("give one of timeout_seconds and timeout, not both")
        if own is not None:
            check_seconds(timeout_seconds=own)
            return float(own)
        if theirs is None or (is_whole(theirs) and theirs == 0):
            return self.timeout_seconds
        if not is_whole(theirs) or not 0 < theirs <= MOST_SECONDS * 10**6:
            raise ValueError(
                f"timeout must be microseconds, a whole number up to {MOST_SECONDS}000000, not "
                f"{theirs!r:.60}; timeout_seconds takes seconds"
            )
        return float(theirs / 10**6)

    def response(self, plan: "Plan", ticket: Ticket) -> InferResponse:
        """Return the outputs that a request asks for."""
        ticket.result()  # raises the error, if there is one
        outputs = {name: make(ticket) for name, make in plan.outputs}
        told = self.told(ticket)
        return InferResponse(outputs, self.served.name, self.version, plan.asked.id, told)

    def told(self, ticket: Ticket) -> dict[str, Any]:
        """Return the parameters of an answer: its threshold, promise and calibration."""
        assert ticket.threshold is not None
        told, late = self._said(ticket.threshold), ticket.result().late
        return told if late is None else {**told, "late": late}

    def _said_of(self, threshold: float) -> dict[str, Any]:
        """Return the parameters that all answers at one threshold share."""
        told = {
            "threshold": json_number(threshold),
            "promise": self.knob.promise(threshold),
            "calibration": self.served.calibration_id,
            "model": self._short_id,
        }
        return {name: value for name, value in told.items() if value is not None}


Output = Callable[[Ticket], np.ndarray]


class Plan(NamedTuple):
    """What a request asks for: the function that makes each output, and its parameters."""

    asked: InferRequest
    outputs: tuple[tuple[str, Output], ...]
    wishes: Wishes


Write = Callable[[InferResponse, Plan], Any]


def _images(array: np.ndarray) -> Any:
    """Return images (n, h, w, 3) uint8, or a list of n encoded ones."""
    if array.dtype == object:
        if array.ndim != 1 or not len(array):
            raise ProtocolError(
                f"encoded images must be a tensor BYTES of shape [n], not {list(array.shape)}"
            )
        return array.tolist()
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


def _made_by(tensor: Tensor) -> Output:
    return lambda ticket: tensor.of(ticket.result())


def single_score(score: np.ndarray, threshold: float) -> np.ndarray:
    """Round scores (n,) to single precision, each on its own side of the threshold."""
    with np.errstate(over="ignore"):
        single = score.astype(np.float32)
    if (single == score).all():  # the common case: single-precision models
        return single
    deferred = is_deferred(score.astype(np.float64), threshold)
    crossed = is_deferred(single.astype(np.float64), threshold) != deferred
    if crossed.any():
        own_side = np.where(deferred, np.float32(-np.inf), np.float32(np.inf))
        single = np.where(crossed, np.nextafter(single, own_side), single)
    return single


OUTPUTS: Mapping[str, Output] = {
    "score": lambda ticket: single_score(to_numpy(ticket.result().score), ticket.begin(math.nan)),
    "deferred": lambda ticket: to_numpy(ticket.result().deferred),
    "degraded": lambda ticket: to_numpy(ticket.result().degraded),
    "stage": lambda ticket: to_numpy(ticket.result().stage),
}
"""The outputs that tell how an answer of any task came about, each made on request."""

RARE = {"stage"}  # outputs that a request must name

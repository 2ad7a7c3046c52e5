"""KServe's V1 protocol: JSON rows in, one object per row out; and the list of models.

Source: KServe's V1 data plane, whose rows are those of TensorFlow Serving.
"""

import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ebjr.errors import ModelError, ProtocolError, needs
from ebjr.protocol import json_values, read_object, read_parameters, tensor_of
from ebjr.serving.admission import Hold
from ebjr.serving.call import Question
from ebjr.serving.chat import MODELS, PREDICT
from ebjr.serving.engine import Ticket
from ebjr.serving.infer import Headers, Written, answered, finished, host_of, parsed
from ebjr.serving.service import OUTPUTS, Service

with needs("serve", "serving"):
    import msgspec.json
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

SAID = ("score", "deferred", "degraded")  # added to each row's prediction


class KServe:
    """The V1 routes of every model; OpenAI's clients also read the list of models."""

    def __init__(self) -> None:
        self._began = int(time.time())

    def routes(self) -> list[Route]:
        """Return the routes."""
        model = Route(f"{MODELS}/{{name}}", self.model)
        model.path_regex = re.compile(rf"^{MODELS}/(?P<name>[^/]+)(?<!{PREDICT})$")
        predict = Route(f"{MODELS}/{{name}}{PREDICT}", self.predict, methods=["POST"])
        return [predict, Route(MODELS, self.models), model]

    async def predict(self, request: Request) -> Response:
        """Answer a prediction request."""
        repository = host_of(request)

        async def read(raw: bytes, headers: Headers, hold: Hold) -> tuple[Service, Question]:
            service = repository.of(**request.path_params)
            hold.move(service.admission)
            return service, await parsed(hold, len(raw), read_rows, service, raw, headers)

        return await answered(request, repository, read)

    async def models(self, request: Request) -> Response:
        """List all models."""
        repository = host_of(request)
        names = list(dict.fromkeys(one.served.name for one in repository.services))
        data = [self._about(repository.of(name)) for name in names]
        return JSONResponse({"object": "list", "data": data, "models": names})

    async def model(self, request: Request) -> Response:
        """Describe a model; 503 if it is not ready, as KServe's servers answer."""
        about = self._about(host_of(request).of(request.path_params["name"]))
        return JSONResponse(about, 200 if about["ready"] else 503)

    def _about(self, service: Service) -> dict[str, Any]:
        name, ready = service.served.name, service.not_ready is None
        openai = {"id": name, "object": "model", "created": self._began, "owned_by": "ebjr"}
        return {**openai, "name": name, "ready": ready}


def read_rows(service: Service, body: bytes, headers: Headers) -> Question:
    """Read a V1 request; ProtocolError if `body` is not one."""
    message = read_object(body)
    if unknown := message.keys() - {"instances", "parameters"}:
        raise ProtocolError(
            f"a V1 request has 'instances' and optionally 'parameters', not {min(unknown)!r:.60}"
        )
    instances = message.get("instances")
    if not isinstance(instances, list) or not instances:
        raise ProtocolError("'instances' must be a list with at least one row")
    wishes = service.wishes(read_parameters(message, "the request"))
    inputs = service.inputs_of(_array(service, [_row(service, one) for one in instances]))
    return Question(inputs, wishes, partial(_written, service, headers))


def _row(service: Service, instance: Any) -> Any:
    """Return the values of a row, which may be named; an image file comes as base64."""
    if not isinstance(instance, dict):
        return instance
    name, columns = service.input.name, service.served.columns or ()
    if instance.keys() == {name}:
        instance = instance[name]
        if not isinstance(instance, dict):
            return instance
    if instance.keys() == {"b64"} and service.served.takes_images:
        return instance["b64"]
    if columns and instance.keys() == {*columns}:
        return [instance[column] for column in columns]
    known = [f"the columns {', '.join(columns)}"] if columns else []
    known += ["'b64', an image file in base64"] if service.served.takes_images else []
    came = ", ".join(map(repr, instance)) or "nothing"
    raise ProtocolError(
        f"a row of 'instances' that is an object must have {' or '.join([repr(name), *known])}, "
        f"not {came:.60}"
    )


def _array(service: Service, rows: Sequence[Any]) -> np.ndarray:
    first = (row[0] if isinstance(row, list) and row else row for row in rows)
    texts = any(isinstance(cell, str) for cell in first)
    return tensor_of("BYTES" if texts else service.input.datatype, rows, "'instances'")


def _written(service: Service, headers: Mapping[bytes, bytes], ticket: Ticket) -> Written:
    answer, served = ticket.result(), service.served
    try:
        rows = served.joint.kind.plain(answer.prediction, served.names)
    except ValueError as error:  # fewer labels than classes
        raise ModelError(str(error)) from error
    marks = zip(*(json_values(name, OUTPUTS[name](ticket)) for name in SAID), strict=True)
    predictions = [
        {**row, **dict(zip(SAID, said, strict=True))} for row, said in zip(rows, marks, strict=True)
    ]
    found = {"predictions": predictions, "parameters": service.told(ticket)}
    return finished(msgspec.json.encode(found), headers)

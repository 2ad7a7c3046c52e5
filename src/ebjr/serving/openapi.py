"""The OpenAPI document at ``/openapi.json``, put together from the routes and what is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ebjr.errors import MissingExtra
from ebjr.protocol import DATATYPES, LENGTH_HEADER, MOST_DIMENSIONS
from ebjr.serving.service import REQUEST_PARAMETERS, VERSION, Service

try:
    from starlette.routing import BaseRoute, Route
except ImportError as error:
    raise MissingExtra("serve", "serving") from error

Json = dict[str, Any]

REFUSALS = {
    400: "The request is not what it should be.",
    401: "The bearer token is missing or wrong.",
    403: "Without a token the knob is moved from the server's machine alone.",
    404: "There is no such model or version, or nothing is kept under that id.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body's compression is not known.",
    429: "Too much waits already.",
    503: "A model cannot answer now.",
    504: "The request's time is over.",
}
"""What each status of an error means; its body is one sentence."""

BODY_REFUSALS = (400, 408, 413, 415, 429)


_FORM: Json = {
    "type": "object",
    "description": "Images as files, in their order; other fields are parameters.",
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        **{name: {"type": "string"} for name in REQUEST_PARAMETERS},
    },
    "required": ["image"],
}


def openapi(service: Service, routes: Sequence[BaseRoute], *, token: bool = False) -> Json:
    """The document.

    Parameters
    ----------
    service
        Whose model is described: its input, outputs and operating points.
    routes
        Of the application; one that nothing is known of here is described by its docstring.
    token
        Whether the knob wants one.

    Returns
    -------
    dict
        As JSON, of OpenAPI 3.1.
    """
    known = _operations(service, token)
    paths: dict[str, Json] = {}
    for route in routes:
        if not isinstance(route, Route):
            continue
        path = route.path_format
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            operation = known.get((method, path), _by_docstring(route))
            paths.setdefault(path, {})[method.lower()] = {
                "operationId": "_".join((method.lower(), *_words(path))),
                **operation,
            }
    for path, operations in paths.items():
        if parameters := _path_parameters(path, service):
            operations["parameters"] = parameters
    about = service.server_metadata()
    security: Json = (
        {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{service.served.name}, served by EBJR",
            "version": about["version"],
            "summary": "Two models behind one endpoint: Open Inference Protocol v2, and a knob.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(service),
            "responses": {f"Refused{status}": _refusal(status) for status in REFUSALS},
            **security,
        },
    }


def _operations(service: Service, token: bool) -> dict[tuple[str, str], Json]:
    """What is known of each method and path."""
    model = "/v2/models/{name}"
    infer: Json = {
        "summary": "Ask the joint model.",
        "parameters": [
            {
                "name": LENGTH_HEADER,
                "in": "header",
                "required": False,
                "description": "How many bytes of the body are JSON; the rest are tensors.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": _asked(service),
        "responses": {
            "200": {"description": "The answer.", **_bodies("InferResponse", required=False)},
            **_refused(404, *BODY_REFUSALS, 503, 504),
        },
    }
    if service.served.takes_images:
        infer["requestBody"]["content"]["multipart/form-data"] = {"schema": _FORM}
    secured: Json = {"security": [{"token": []}]} if token else {}
    move = {
        "summary": "Move the knob.",
        "requestBody": {"required": True, "content": _json("Wish")},
        "responses": {
            "200": {"description": "The knob as it is now.", "content": _json("Router")},
            **_refused(*BODY_REFUSALS, 401 if token else 403, 503),
        },
        **secured,
    }
    both = {
        "summary": "What each of both models says of one input.",
        "requestBody": _bodies("InferRequest"),
        "responses": {
            "200": {"description": "Both answers.", "content": _json("Both")},
            **_refused(*BODY_REFUSALS, 503, 504),
        },
    }
    found = {
        ("GET", "/v2/health/live"): _gets("Whether the server lives.", "Empty"),
        ("GET", "/v2/health/ready"): _gets("Whether the server answers.", "Empty"),
        ("GET", "/v2"): _gets("What the server is.", "ServerMetadata"),
        ("POST", "/v2/repository/index"): _gets("Which models there are.", "Index"),
        ("GET", "/v1/late/{id}"): _gets_late(),
        ("GET", "/v1/router"): _gets("The knob.", "Router"),
        ("PUT", "/v1/router"): move,
        ("GET", "/v1/status"): _gets("What the page shows.", "Status"),
        ("POST", "/v1/both"): both,
        ("GET", "/metrics"): _text("Metrics for Prometheus.", "text/plain"),
        ("GET", "/"): _text("The page.", "text/html"),
        ("GET", "/openapi.json"): _gets("This document.", "OpenApi"),
    }
    for prefix in (model, f"{model}/versions/{{version}}"):
        found["GET", prefix] = _gets("What the model takes and gives.", "ModelMetadata", 404)
        found["GET", f"{prefix}/ready"] = _gets("Whether the model answers.", "Empty", 404)
        found["POST", f"{prefix}/infer"] = infer
    return found


def _by_docstring(route: Route) -> Json:
    summary = (route.endpoint.__doc__ or route.name).strip().splitlines()[0]
    error = {"description": "One sentence.", "content": _json("Error")}
    return {"summary": summary, "responses": {"2XX": {"description": "Done."}, "default": error}}


def _path_parameters(path: str, service: Service) -> list[Json]:
    known: Json = {
        "name": {"enum": [service.served.name]},
        "version": {"enum": [VERSION]},
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", **known.get(name, {})},
        }
        for name in names
    ]


def _schemas(service: Service) -> Json:
    """Every schema, with the names of what is served."""
    text, number, truth = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
    whole = {"type": "integer", "minimum": 0}
    reach: Json = {"oneOf": [number, {"enum": ["inf"]}]}  # JSON has no infinity
    knobs: Json = {
        "threshold": number,
        "deferral_rate": {"type": "number", "minimum": 0, "maximum": 1},
        "operating_point": {"type": "string", "enum": [*service.served.operating_points]},
    }
    if not service.served.operating_points:
        del knobs["operating_point"]
    outputs = [output["name"] for output in service.outputs]
    shape = {"type": "array", "items": whole, "maxItems": MOST_DIMENSIONS}
    items = {"anyOf": [number, text, truth, {"type": "array"}]}
    tensor = {"datatype": {"enum": [*DATATYPES]}, "shape": shape}
    asked = {
        "name": {"enum": [service.input["name"]]},
        **tensor,
        "data": {"type": "array", "items": items},
        "parameters": _object({"binary_data_size": whole}),
    }
    given = {
        "name": {"enum": outputs},
        **tensor,
        "data": {"type": "array", "items": {"type": ["number", "string", "boolean", "null"]}},
        "parameters": _object({"binary_data_size": whole}, "binary_data_size"),
    }
    wanted = _object(
        {"name": {"enum": outputs}, "parameters": _object({"binary_data": truth})}, "name"
    )
    wishes = {
        **knobs,
        "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
        "binary_data_output": truth,
    }
    described = _object(
        {"name": text, "datatype": text, "shape": {"type": "array", "items": {"type": "integer"}}},
        *("name", "datatype", "shape"),
    )
    bound: Json = {"anyOf": [number, text]}  # a deferral rate, or an operating point's name
    between = {"type": ["array", "null"], "items": bound, "minItems": 2, "maxItems": 2}
    holds = [
        _object({"hold": text, "between": between}, "hold"),
        _object({"hold": {"type": "null"}}, "hold"),
    ]
    return {
        "Empty": _object({}),
        "Error": _object({"error": text}, "error"),
        "OpenApi": _object({"openapi": text}, "openapi"),
        "ServerMetadata": _object(
            {"name": text, "version": text, "extensions": {"type": "array", "items": text}},
            *("name", "version", "extensions"),
        ),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": {"type": "array", "items": text},
                "platform": text,
                "inputs": {"type": "array", "items": described},
                "outputs": {"type": "array", "items": described},
            },
            *("name", "versions", "platform", "inputs", "outputs"),
        ),
        "InferRequest": _object(
            {
                "id": text,
                "parameters": {**_object(wishes), "additionalProperties": False},
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": _object(asked, "name", "datatype", "shape"),
                },
                "outputs": {"type": "array", "items": wanted},
            },
            "inputs",
        ),
        "InferResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "parameters": _object(
                    {"threshold": reach, "calibration": text, "promise": text, "late": text},
                    "threshold",
                ),
                "outputs": {"type": "array", "items": _object(given, "name", "datatype", "shape")},
            },
            *("model_name", "model_version", "parameters", "outputs"),
        ),
        "Form": {**_object({"image": {}, **knobs, "timeout": wishes["timeout"]}, "image")},
        "Wish": {
            "oneOf": [
                *(
                    {**_object({name: schema}, name), "additionalProperties": False}
                    for name, schema in knobs.items()
                ),
                *({**hold, "additionalProperties": False} for hold in holds),
            ]
        },
        "Index": {
            "type": "array",
            "items": _object({"name": text, "version": text, "state": text}, "name"),
        },
        "Late": _object(
            {
                "id": text,
                "outputs": {"type": "array", "items": _object({"name": text}, "name")},
                "waiting": {"type": "array", "items": whole},
                "errors": {"type": "object", "additionalProperties": text},
            },
            *("id", "outputs", "waiting", "errors"),
        ),
        "Router": _object(
            {
                "score": text,
                "threshold": reach,
                "operating_points": {"type": "object", "additionalProperties": reach},
                "calibration": {"type": ["string", "null"]},
            },
            *("score", "threshold", "operating_points"),
        ),
        "Status": _object({"router": {"$ref": "#/components/schemas/Router"}}, "router"),
        "Both": _object({"score": reach, "threshold": reach, "deferred": truth}, "threshold"),
    }


def _object(properties: Json, *required: str) -> Json:
    found: Json = {"type": "object", "properties": properties}
    return {**found, "required": [*required]} if required else found


def _json(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _bodies(schema: str, *, required: bool = True) -> Json:
    """JSON, or JSON with the tensors' bytes after it."""
    content = {**_json(schema), "application/octet-stream": {}}
    return {"required": True, "content": content} if required else {"content": content}


def _asked(service: Service) -> Json:
    """What a request may be: a form too, where the input is images."""
    found = _bodies("InferRequest")
    if service.served.takes_images:
        found["content"]["multipart/form-data"] = {"schema": {"$ref": "#/components/schemas/Form"}}
    return found


def _gets(summary: str, schema: str, *refusals: int) -> Json:
    answer = {"description": summary, "content": _json(schema)}
    return {"summary": summary, "responses": {"200": answer, **_refused(*refusals)}}


def _gets_late() -> Json:
    """The answers to rows that were kept for later, some or all."""
    found = _gets("The teacher's answers to rows that were kept for later.", "Late", 404)
    some = {"description": "Some rows still wait.", "content": _json("Late")}
    return {**found, "responses": {**found["responses"], "202": some}}


def _text(summary: str, kind: str) -> Json:
    content = {kind: {"schema": {"type": "string"}}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}}}


def _refused(*statuses: int) -> Json:
    return {
        str(status): {"$ref": f"#/components/responses/Refused{status}"}
        for status in sorted(statuses)
    }


def _refusal(status: int) -> Json:
    found: Json = {"description": REFUSALS[status], "content": _json("Error")}
    if status == 429:
        wait = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}
        found["headers"] = {"Retry-After": {**wait, "required": True}}
    return found


def _words(path: str) -> list[str]:
    words = [part.strip("{}") for part in path.replace(".", "/").split("/")]
    return [word for word in words if word] or ["page"]

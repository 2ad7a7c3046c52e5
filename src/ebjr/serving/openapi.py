"""The OpenAPI document at ``/openapi.json``: ``openapi.json`` beside this, filled in and cut."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ebjr.errors import needs
from ebjr.files import packaged_text
from ebjr.protocol import DATATYPES, MOST_DIMENSIONS
from ebjr.serving.service import VERSION, Service

with needs("serve", "serving"):
    from starlette.routing import BaseRoute, Route

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
ANY_VERSION = "/versions/{version}"  # a path with it does as the path without it


def openapi(service: Service, routes: Sequence[BaseRoute], *, token: bool = False) -> Json:
    """The document, OpenAPI 3.1, of a service and its routes."""
    text = packaged_text("ebjr.serving", "openapi.json")
    values = {  # what stands for each ``<...>`` of the file
        "<title>": f"{service.served.name}, served by EBJR",
        "<release>": service.server_metadata()["version"],
        "<model>": service.served.name,
        "<labels>": [*(service.served.labels or ())],
        "<inputs>": [service.input.name],
        "<outputs>": [*service.output_names],
        "<operating points>": [*service.served.operating_points],
        "<datatypes>": [*DATATYPES],
        "<dimensions>": MOST_DIMENSIONS,
    }
    document = _filled(json.loads(text), values)
    if not service.served.operating_points:  # nobody can ask for one
        schemas, name = document["components"]["schemas"], "operating_point"
        del schemas["Form"]["properties"][name]
        del schemas["ChatRequest"]["properties"][name]
        del schemas["InferRequest"]["properties"]["parameters"]["properties"][name]
        wishes = schemas["Wish"]["oneOf"]
        schemas["Wish"]["oneOf"] = [wish for wish in wishes if name not in wish["properties"]]
    if not service.served.takes_images:
        asked = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]
        del asked["content"]["multipart/form-data"]
    move = document["paths"]["/v1/router"]["put"]
    del move["responses"]["403" if token else "401"]
    if not token:
        del move["security"], document["components"]["securitySchemes"]
    document["paths"] = _paths(document["paths"], routes, service)
    if CHAT not in document["paths"]:
        for name in ("ChatRequest", "ChatCompletion", "ChatModel"):
            del document["components"]["schemas"][name]
        del document["components"]["responses"]["ChatRefused"]
    return document


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(each, values) for key, each in node.items()}
    if isinstance(node, list):
        return [_filled(each, values) for each in node]
    return values.get(node, node) if isinstance(node, str) else node


def _paths(known: Json, routes: Sequence[BaseRoute], service: Service) -> Json:
    paths: Json = {}
    for route in routes:
        if not isinstance(route, Route):
            continue
        path = route.path_format
        about = known[path.replace(ANY_VERSION, "")]
        words = re.findall(r"[^/.{}]+", path) or ["page"]
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            key = method.lower()
            name = "_".join((key, *words))
            paths.setdefault(path, {})[key] = {"operationId": name, **about[key]}
        if parameters := _path_parameters(path, service):
            paths[path]["parameters"] = parameters
    return paths


def _path_parameters(path: str, service: Service) -> list[Json]:
    known = {"name": {"enum": [service.served.name]}, "version": {"enum": [VERSION]}}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    schemas = [{"type": "string", **known.get(name, {})} for name in names]
    both = zip(names, schemas, strict=True)
    return [{"name": name, "in": "path", "required": True, "schema": each} for name, each in both]

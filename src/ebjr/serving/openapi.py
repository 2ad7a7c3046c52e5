"""The OpenAPI document at ``/openapi.json``: the file ``openapi.json``, filled in and trimmed."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ebjr.errors import needs
from ebjr.files import packaged_text
from ebjr.protocol import DATATYPES, MOST_DIMENSIONS
from ebjr.serving.chat import NO_EFFECT, WHOLE
from ebjr.serving.repository import Repository

with needs("serve", "serving"):
    from starlette.routing import BaseRoute, Route

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
MOVES = {
    "/v1/router": "put",
    "/v2/repository/models/{name}/load": "post",
    "/v2/repository/models/{name}/unload": "post",
}
"""Operations that need the token, if there is one."""
QUERIED = re.compile("/v1/(router|status|both|late/.+)")  # paths that take ?model=
ANY_VERSION = "/versions/{version}"  # such a path behaves as the path without it


def openapi(repository: Repository, routes: Sequence[BaseRoute]) -> Json:
    """Return the OpenAPI 3.1 document of the served models and the routes."""
    text = packaged_text("ebjr.serving", "openapi.json")
    services = repository.services
    names = _all([service.served.name] for service in services)
    points = _all(service.served.operating_points for service in services)
    columns = [service.served.columns or () for service in services]
    files = ["b64"] if any(service.served.takes_images for service in services) else []
    values = {  # replaces each ``<...>`` of the file
        "<title>": f"{', '.join(names) or 'No model'}, served by EBJR",
        "<release>": repository.server_metadata()["version"],
        "<models>": names,
        "<versions>": _all([service.version] for service in services),
        "<labels>": _all(service.served.labels or () for service in services),
        "<inputs>": (inputs := _all([service.input.name] for service in services)),
        "<row>": _all([inputs, *columns, files]),
        "<conversations>": ("messages",) in columns,  # whose messages are passed on whole
        "<outputs>": _all(service.output_names for service in services),
        "<operating points>": points,
        "<datatypes>": [*DATATYPES],
        "<dimensions>": MOST_DIMENSIONS,
    }
    document = _filled(json.loads(text), values)
    schemas = document["components"]["schemas"]
    if not points:  # an empty enum would be invalid
        name = "operating_point"
        for schema in ("ChatRequest", "Parameters"):
            del schemas[schema]["properties"][name]
        wishes = schemas["Wish"]["oneOf"]
        schemas["Wish"]["oneOf"] = [wish for wish in wishes if name not in wish["properties"]]
    words = dict.fromkeys(NO_EFFECT, "No effect.") | {
        name: said for name, (_, said) in WHOLE.items()
    }
    more = {name: {"description": said} for name, said in words.items()}
    schemas["ChatRequest"]["properties"] |= more
    asked = schemas["InferRequest"]["properties"]["parameters"]["properties"]
    asked |= schemas["Parameters"]["properties"]
    if not any(service.served.takes_images for service in services):
        infer = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]
        del infer["content"]["multipart/form-data"]
    doors = repository.shared.doors
    for path, method in MOVES.items():
        move = document["paths"][path][method]
        del move["responses"]["403" if doors.moving else "401"]
        if not doors.moving:
            del move["security"]
    if doors.asking:
        _guard(document["paths"])
    elif not doors.moving:
        del document["components"]["securitySchemes"]
    document["paths"] = _paths(document["paths"], routes, values)
    if CHAT not in document["paths"]:
        for name in ("ChatRequest", "ChatCompletion"):
            del schemas[name]
    return document


def _guard(paths: Json) -> None:
    """Mark every operation that queries a model as needing a token."""
    for path, about in paths.items():
        if "post" in about and not path.startswith("/v2/repository/"):
            refused = "ChatRefused" if path == CHAT else "Refused401"
            about["post"]["security"] = [{"token": []}]
            about["post"]["responses"]["401"] = {"$ref": f"#/components/responses/{refused}"}


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(each, values) for key, each in node.items()}
    if isinstance(node, list):
        return [_filled(each, values) for each in node]
    return values.get(node, node) if isinstance(node, str) else node


def _all(parts: Iterable[Iterable[str]]) -> list[str]:
    return [*dict.fromkeys(each for part in parts for each in part)]


def _paths(known: Json, routes: Sequence[BaseRoute], values: Mapping[str, Any]) -> Json:
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
        if parameters := _path_parameters(path, values):
            paths[path]["parameters"] = parameters
    return paths


def _path_parameters(path: str, values: Mapping[str, Any]) -> list[Json]:
    known = {"name": {"enum": values["<models>"]}, "version": {"enum": values["<versions>"]}}
    found = [
        {"name": name, "in": "path", "required": True}
        | {"schema": {"type": "string", **known.get(name, {})}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if QUERIED.fullmatch(path):
        several = len(values["<models>"]) > 1
        allowed = {"model": values["<models>"], "version": [*values["<versions>"], ""]}
        for name, choices in allowed.items():
            about = {"name": name, "in": "query", "required": several and name == "model"}
            found.append({**about, "schema": {"type": "string", "enum": choices}})
    return found

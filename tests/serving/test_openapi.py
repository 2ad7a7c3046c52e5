"""The OpenAPI document says what the server does; whatever it allows, the server does not fail."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import CHECKS, load_all_checks
from small import NAME, request, running, served
from starlette.routing import Route
from starlette.testclient import TestClient
from texts import served_texts

from ebjr import JointClassifier, Preprocess, Preprocessed, Router
from ebjr.serving.app import Served, build_app
from ebjr.serving.service import REQUEST_PARAMETERS

load_all_checks()


@pytest.fixture(scope="module")
def document() -> dict:
    with TestClient(build_app(served(), token="sesame")) as client:
        return client.get("/openapi.json").json()


def test_the_document_is_openapi(document):
    OpenAPIV31SpecValidator(document).validate()
    OpenAPIV31SpecValidator(build_app(served_texts()).state.described()).validate()
    assert document["openapi"] == "3.1.0"


def test_a_model_of_images_takes_a_form_too():
    model = Preprocessed(lambda x: x.mean((2, 3)), Preprocess(size=4))
    app = build_app(Served(JointClassifier(model, model, Router("max_logit", 1.0))))
    document = app.state.described()
    OpenAPIV31SpecValidator(document).validate()
    content = document["paths"][f"{NAME.replace('joint', '{name}')}/infer"]["post"]["requestBody"]
    assert "multipart/form-data" in content["content"]


@pytest.mark.parametrize("pair", [served, served_texts])
def test_every_route_is_in_the_document(pair):
    app = build_app(pair())
    document = app.state.described()
    routes = {
        (route.path_format, method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods - {"HEAD"}
    }
    known = {(path, method) for path, about in document["paths"].items() for method in about}
    assert routes == {pair for pair in known if pair[1] != "parameters"}


def test_the_document_names_what_is_served(document):
    schemas = document["components"]["schemas"]
    asked = schemas["InferRequest"]["properties"]
    assert asked["inputs"]["items"]["properties"]["name"] == {"enum": ["x"]}
    assert asked["parameters"]["properties"]["operating_point"]["enum"] == ["careful"]
    assert set(asked["parameters"]["properties"]) == {*REQUEST_PARAMETERS, "binary_data_output"}
    assert document["paths"]["/v1/router"]["put"]["security"] == [{"token": []}]
    assert not [line for line in json.dumps(document, indent=0).splitlines() if '"<' in line]


PAIRS = {"numbers": served, "texts": served_texts, "gone": served}  # this one is unloaded


@pytest.fixture(scope="module")
def addresses():
    with ExitStack() as stack:
        yield {
            name: "http://{}:{}".format(
                *stack.enter_context(running(build_app(pair(), timeout_seconds=5.0)))
            )
            for name, pair in PAIRS.items()
        }


MODES = schemathesis.GenerationMode
OPERATIONS = [
    pytest.param(name, method, path, mode, id=f"{method.upper()} {path} {mode.value} {name}")
    for name, pair in PAIRS.items()
    for path, about in build_app(pair()).state.described()["paths"].items()
    for method in about
    if name != "texts" or path.startswith(("/v1/chat", "/v1/models")) or "infer" in path
    if (name == "gone") == ("unload" in path)
    if method != "parameters"
    for mode in MODES
    if mode is MODES.POSITIVE or "requestBody" in about[method] or "{name}" in path
]
# data that the schema allows need not be a tensor of its shape
CHECKS = [CHECKS.get_one(name) for name in CHECKS.get_all_names()]
CHECKS = [check for check in CHECKS if check.__name__ != "positive_data_acceptance"]


@pytest.fixture(scope="module")
def apis(addresses):
    from_url = schemathesis.openapi.from_url
    return {name: from_url(f"{address}/openapi.json") for name, address in addresses.items()}


@pytest.mark.parametrize(("name", "method", "path", "mode"), OPERATIONS)
def test_whatever_the_document_allows_or_not_is_answered_as_it_says(apis, name, method, path, mode):
    operation = apis[name][path][method]

    @settings(
        max_examples=25 if operation.body else 4,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def answered(case):
        case.call_and_validate(checks=CHECKS, session=session)

    with requests.Session() as session:
        answered()


def test_after_all_of_it_the_server_answers(addresses):
    import httpx2

    answer = httpx2.post(f"{addresses['numbers']}{NAME}/infer", json=request())
    assert answer.status_code == 200

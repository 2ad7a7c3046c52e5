"""The OpenAPI document says what the server does; whatever it allows, the server does not fail."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from functools import partial, reduce

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from PIL import Image
from schemathesis.checks import CHECKS, load_all_checks
from small import NAME, request, running, served
from starlette.routing import Route
from starlette.testclient import TestClient
from texts import Texts, served_texts

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
    document = build_app(images()).state.described()
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


def images() -> Served:
    model = Preprocessed(lambda x: x.mean((2, 3)), Preprocess(size=4))
    return Served(JointClassifier(model, model, Router("max_logit", 1.0)))


def test_every_parameter_of_an_answer_is_in_the_document(document):
    about = served()
    vars(about)["identity"] = {"model": "0123456789abcdef"}
    with TestClient(build_app(about)) as client:
        message = {"inputs": [TENSOR]}
        told = client.post(f"{NAME}/infer", json=message).json()["parameters"]
    known = document["components"]["schemas"]["Told"]["properties"]
    assert told["model"] == "0123456789ab"
    assert told.keys() <= known.keys()


def objects(value, path=()):
    """The places of all JSON objects in a value."""
    if isinstance(value, dict):
        yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, dict | list):
            yield from objects(each, (*path, key))


def put(value, path, more):
    """A copy of a value, with more in the object at a place."""
    found = json.loads(json.dumps(value))
    reduce(lambda inner, key: inner[key], path, found).update(more)
    return found


TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.0], "parameters": {}}
WANTED = [{"name": "output", "parameters": {"classification": 1}}]
TEXT = [{"type": "text", "text": "why"}]
CHAT = {"model": "joint", "messages": [{"role": "user", "content": TEXT}], "temperature": 1}
PLAIN = {"model": "joint", "messages": [{"role": "user", "content": "why"}]}
TABLE = {"role": "user", "content": '{"title": "a", "text": "b"}'}
REQUESTS = [
    (served, "post", "/v2/models/joint/infer", {"inputs": [TENSOR], "parameters": {}}),
    (served, "post", "/v2/models/joint/infer", {"inputs": [TENSOR], "outputs": WANTED}),
    (served, "post", "/v1/both", {"inputs": [TENSOR], "parameters": {}}),
    (served, "post", "/v2/repository/index", {"ready": True}),
    (served, "put", "/v1/router", {"hold": "deferral_rate=0.2", "between": [0.1, 0.5]}),
    (served, "put", "/v1/router", {"threshold": 0.5}),
    (served, "post", "/v1/models/joint:predict", {"instances": [{"x": [0, 1]}], "parameters": {}}),
    (served_texts, "post", "/v1/models/joint:predict", {"instances": ["why"], "parameters": {}}),
    (served_texts, "post", "/v1/chat/completions", CHAT),
    (partial(served_texts, Texts(columns=("messages",)), Texts(-1.0, columns=("messages",))),
     "post", "/v1/chat/completions", CHAT),
    (partial(served_texts, Texts(columns=("title", "text")), Texts(-1.0)),
     "post", "/v1/chat/completions", {**PLAIN, "messages": [TABLE]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "method", "path", "body"),
    REQUESTS,
    ids=[f"{number} {path}" for number, (_, _, path, _) in enumerate(REQUESTS)],
)
def test_a_field_that_an_object_does_not_list_is_refused_where_the_document_says_so(
    pair, method, path, body
):
    with TestClient(build_app(pair()), client=("127.0.0.1", 1)) as client:
        document = client.get("/openapi.json").json()
        about = document["paths"][path.replace("joint", "{name}")][method]
        (schema,) = (about["requestBody"]["content"]["application/json"]["schema"],)
        known = Draft202012Validator({**schema, "components": document["components"]})
        ask = partial(getattr(client, method), path)
        assert (known.is_valid(body), ask(json=body).status_code) == (True, 200)
        for place in objects(body):
            wrong = put(body, place, {"nonsense": 1})
            answer = ask(json=wrong)
            assert known.is_valid(wrong) == (answer.status_code == 200), (place, answer.text)


@pytest.mark.parametrize("what", ["load", "unload"])
def test_so_it_is_for_what_loads_and_unloads_a_model(what, tmp_path):
    path = f"/v2/repository/models/joint/{what}"
    with TestClient(build_app(served()), client=("127.0.0.1", 1)) as client:
        document = client.get("/openapi.json").json()
        about = document["paths"][path.replace("joint", "{name}")]["post"]["requestBody"]
        known = Draft202012Validator(about["content"]["application/json"]["schema"])
        for wrong in ({"nonsense": 1}, {"parameters": {"nonsense": 1}}):
            assert not known.is_valid(wrong)
            assert client.post(path, json=wrong).status_code == 400


def test_fields_that_mean_something_to_infer_alone_are_refused_of_both_models(document):
    schema = {"$ref": "#/components/schemas/BothRequest", "components": document["components"]}
    known = Draft202012Validator(schema)
    with TestClient(build_app(served())) as client:
        for more, takes in (
            ({}, True),
            ({"model_name": "joint"}, True),
            ({"id": "a"}, False),
            ({"outputs": [{"name": "score"}]}, False),
            ({"parameters": {"priority": 2}}, False),
            ({"parameters": {"binary_data_output": True}}, False),
            ({"parameters": {"threshold": 0.5}}, True),
        ):
            body = {"inputs": [TENSOR], **more}
            assert known.is_valid(body) is takes
            assert (client.post("/v1/both", json=body).status_code == 200) is takes


def test_a_form_takes_files_of_any_name_and_no_other_text():
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "teal").save(file, "PNG")
    with TestClient(build_app(images())) as client:
        document = client.get("/openapi.json").json()
        about = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
        more = about["multipart/form-data"]["schema"]["additionalProperties"]
        assert more["format"] == "binary"
        for name, sent, status in (
            ("image", {}, 200),
            ("photo", {}, 200),
            ("image", {"nonsense": "1"}, 400),
            ("image", {"threshold": "1"}, 200),
        ):
            files = {name: ("a.png", file.getvalue())}
            answer = client.post(f"{NAME}/infer", files=files, data=sent)
            assert answer.status_code == status, answer.text


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

"""KServe's V1: rows in JSON of every kind are answered as the joint model answers them."""

from __future__ import annotations

import base64
import gzip
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import detector, files_of, images, joint_detector, request, served
from starlette.testclient import TestClient
from texts import Texts, served_texts

from ebjr import JointClassifier, JointRegressor, Router
from ebjr.errors import ProtocolError
from ebjr.serving.app import Served, build_app
from ebjr.serving.kserve import read_rows
from ebjr.serving.service import Service
from ebjr.tasks.multilabel import MultilabelJointClassifier

PREDICT = "/v1/models/joint:predict"
LABELS = ("cat", "dog", "owl")


def named() -> Served:
    return Served(served().joint, labels=LABELS, operating_points={"careful": 3.0})


def said(about: Served, instances: list, **more) -> list[dict]:
    with TestClient(build_app(about)) as client:
        answer = client.post(PREDICT, json={"instances": instances, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def b64(file: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(file).decode()}


def test_rows_of_numbers_get_an_object_each():
    rows = [[0.5, 0.0], [5.0, 0.0]]
    answers = [
        {"prediction": 2, "label": "owl", "score": 0.5, "deferred": True, "degraded": False},
        {"prediction": 0, "label": "cat", "score": 5.0, "deferred": False, "degraded": False},
    ]
    assert said(named(), rows) == answers
    assert said(named(), [{"x": row} for row in rows]) == answers
    assert said(served(), rows)[0].keys() == {"prediction", "score", "deferred", "degraded"}


def test_parameters_are_those_of_every_protocol():
    with TestClient(build_app(named())) as client:
        for wish, threshold in (({"threshold": 6.0}, 6.0), ({"operating_point": "careful"}, 3.0)):
            wish |= {"priority": 2, "timeout": 5_000_000}
            message = {"instances": [[5.0, 0.0]], "parameters": wish}
            found = client.post(PREDICT, json=message).json()
            assert found["parameters"]["threshold"] == threshold
            assert found["predictions"][0]["deferred"] == (threshold == 6.0)


def test_texts_and_rows_of_several_texts():
    rows = ["hi", "hello you"]
    found = said(served_texts(), rows)
    assert [row["deferred"] for row in found] == [True, False]
    assert said(served_texts(), [{"input": row} for row in rows]) == found
    columns = ("title", "body")
    about = served_texts(Texts(columns=columns), Texts(-1.0, columns=columns))
    row = dict(zip(columns, ("a longer title", "text"), strict=True))
    assert said(about, [row, dict(reversed(row.items()))]) == said(about, [[*row.values()]] * 2)


@pytest.mark.parametrize("form", ["b64", "named", "text", "pixels"])
def test_images_come_as_base64_or_as_pixels(form):
    joint, batch = joint_detector(), images((12, 20), (12, 20))
    files = [b64(file) for file in files_of(batch)]
    rows = {
        "b64": files,
        "named": [{"image": file} for file in files],
        "text": [file["b64"] for file in files],
        "pixels": [image.tolist() for image in batch],
    }[form]
    found, answer = said(Served(joint, labels=LABELS), rows), joint(batch)
    for row, boxes, score in zip(found, answer.prediction, answer.score, strict=True):
        assert [one["class"] for one in row["prediction"]] == boxes.labels.tolist()
        assert [one["label"] for one in row["prediction"]] == [LABELS[k] for k in boxes.labels]
        assert row["score"] == pytest.approx(max(score, np.finfo(np.float32).min))


def test_an_image_without_boxes_has_a_score_that_json_has():
    batch = images(*[(9, 9)] * 40)
    blank = next(image for image in batch if not len(detector(1)([image])[0]))
    (row,) = said(Served(joint_detector()), [b64(*files_of([blank]))])
    assert row["score"] == np.finfo(np.float32).min


def test_other_tasks_say_what_they_predict():
    joint = JointRegressor(lambda x: x[:, None], lambda x: 2 * x[:, None], Router("random", 2.0))
    assert [row["prediction"] for row in said(Served(joint), [1.5, 2.5])] == [3.0, 5.0]

    def model(x):
        return np.stack([x, -x, x - 1], axis=1)

    joint = MultilabelJointClassifier(model, model, Router("smallest_margin", 0.5))
    found = said(Served(joint, labels=LABELS), [3.0, -2.0])
    assert [row["prediction"] for row in found] == [[0, 2], [1]]
    assert [row["label"] for row in found] == [["cat", "owl"], ["dog"]]


REFUSED = [
    ({}, "'instances' must be a list with at least one row"),
    ({"instances": []}, "at least one row"),
    ({"instances": "x"}, "at least one row"),
    ({"inputs": {}}, "has 'instances' and optionally 'parameters', not 'inputs'"),
    ({"instances": [[1, 2]], "signature": ""}, "not 'signature'"),
    ({"instances": [[1, 2]], "parameters": []}, "'parameters' of the request must be a JSON obj"),
    ({"instances": [[1, 2]], "parameters": {"timeout": 5.5}}, "timeout_seconds takes seconds"),
    ({"instances": [[1, 2]], "parameters": {"colour": 1}}, "no parameter 'colour'"),
    ({"instances": [[1, 2], [3]]}, "'instances' must be one list, or lists of equal lengths"),
    ({"instances": [[1, 2, 3]]}, "must have shape [-1, 2], not [1, 3]"),
    ({"instances": [1, 2]}, "must have shape [-1, 2], not [2]"),
    ({"instances": ["a"]}, "must have shape [-1, 2], not [1]"),
    ({"instances": [["a", "b"]]}, "must be FP32, not BYTES"),
    ({"instances": [[1, "b"]]}, "'instances' must hold only FP32 numbers"),
    ({"instances": [[1, None]]}, "must hold only FP32 numbers"),
    ({"instances": [[1, 10**40]]}, "'instances' exceeds FP32"),
    ({"instances": [{"b64": "eA=="}]}, "that is an object must have 'x', not 'b64'"),
    ({"instances": [{"y": [1, 2]}]}, "must have 'x', not 'y'"),
    ({"instances": [{"x": {"b64": "eA=="}}]}, "must have 'x', not 'b64'"),
    ({"instances": [{}]}, "must have 'x', not "),
]


@pytest.mark.parametrize(("message", "says"), REFUSED)
def test_a_mistake_is_a_400_in_one_sentence_and_the_server_goes_on(message, says):
    with TestClient(build_app(served())) as client:
        answer = client.post(PREDICT, json=message)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
        assert says in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
        assert client.post(PREDICT, json={"instances": [[1, 2]]}).status_code == 200


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"b64": "no image"}], "image 0 cannot be read"),
        ([{"b64": 3}], "of shape [n, height, width, 3], or BYTES"),
        ([{"b64": "eA==", "x": 1}], "must have 'image' or 'b64', an image file in base64, not"),
        (["eA==", [[[1, 2, 3]]]], "'instances' must be one list, or lists of equal lengths"),
        ([[[[1, 2, 256]]]], "'instances' exceeds UINT8"),
    ],
)
def test_what_is_no_image_is_refused(rows, says):
    with TestClient(build_app(Served(joint_detector()))) as client:
        answer = client.post(PREDICT, json={"instances": rows})
    assert (answer.status_code, says in answer.json()["error"]) == (400, True), answer.text


def test_labels_that_are_too_few_fail_in_a_sentence():
    with TestClient(build_app(Served(served().joint, labels=("cat", "dog")))) as client:
        answer = client.post(PREDICT, json={"instances": [[0.5, 0.0]]})
    assert (answer.status_code, "than the 2 labels name" in answer.json()["error"]) == (503, True)


def test_what_is_not_there_is_a_404_that_says_so():
    with TestClient(build_app(served())) as client:
        other = client.post("/v1/models/other:predict", json={"instances": [[1, 2]]})
        assert (other.status_code, other.json()) == (
            404,
            {"error": "there is no model 'other' here; the model is called 'joint'"},
        )
        assert client.get("/v1/models/other").status_code == 404
        assert client.put(PREDICT).status_code == 405


def test_models_are_listed_for_both_kinds_of_clients():
    other = served()
    other.name = "other"
    with TestClient(build_app([served(), other])) as client:
        listed, one = client.get("/v1/models").json(), client.get("/v1/models/other").json()
        rows = {"instances": [[5.0, 0.0]]}
        assert client.post("/v1/models/other:predict", json=rows).status_code == 200
    assert (listed["object"], listed["models"]) == ("list", ["joint", "other"])
    assert [each["id"] for each in listed["data"]] == listed["models"]
    assert listed["data"][1] == one
    assert (one["object"], one["name"], one["ready"]) == ("model", "other", True)


def test_who_may_not_ask_may_not_predict():
    with TestClient(build_app(served(), infer_token="sesame")) as client:
        rows = {"instances": [[5.0, 0.0]]}
        answer = client.post(PREDICT, json=rows)
        shown = client.post(PREDICT, json=rows, headers={"Authorization": "Bearer sesame"})
    assert (answer.status_code, list(answer.json())) == (401, ["error"])
    assert shown.status_code == 200


def test_bodies_are_compressed_in_both_directions():
    sent = gzip.compress(json.dumps({"instances": [[5.0, 0.0]] * 50}).encode())
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    with TestClient(build_app(named())) as client:
        answer = client.post(PREDICT, content=sent, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()["predictions"]) == 50


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["b64", "x", "image", "title", "y"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def services():
    columns = ("title", "body")
    several = served_texts(Texts(columns=columns), Texts(-1.0, columns=columns))
    return [Service(one) for one in (served(), served_texts(), several, Served(joint_detector()))]


@given(
    st.fixed_dictionaries(
        {"instances": st.lists(JSON, max_size=3) | JSON},
        optional={"parameters": JSON, "x": JSON},
    )
    | JSON
)
def test_whatever_comes_is_read_or_refused(services, message):
    try:
        raw = json.dumps(message).encode()
    except (UnicodeEncodeError, ValueError):
        return
    for service in services:
        with suppress(ProtocolError):
            assert len(read_rows(service, raw, {}).inputs) == len(message["instances"])


def test_the_request_of_v2_is_no_request_of_v1():
    with TestClient(build_app(served())) as client:
        answer = client.post(PREDICT, json=request())
    assert (answer.status_code, "not 'inputs'" in answer.json()["error"]) == (400, True)


def test_a_pair_of_any_python_functions_takes_texts():
    def length(batch):
        return np.stack([np.array([len(each) for each in batch], float)] * 2, axis=1)

    joint = JointClassifier(length, length, Router("max_logit", 0.0))
    assert [row["score"] for row in said(Served(joint), ["abc", "de"])] == [3.0, 2.0]
    with TestClient(build_app(Served(joint))) as client:
        for empty in ([[]], [[[]]], [[], []]):
            answer = client.post(PREDICT, json={"instances": empty})
            words = answer.json()["error"]
            assert (answer.status_code, "at least one row with values" in words) == (400, True)

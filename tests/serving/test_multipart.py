"""Images as a form: answered like any other images, and mistakes are one sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest
from tiny import write_pair

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from PIL import Image
from starlette.testclient import TestClient

import ebjr
from ebjr.serving.app import Served, build_app
from ebjr.serving.limits import Limits

INFER = "/v2/models/joint/infer"


def served(folder) -> Served:
    models = (
        ebjr.Preprocessed(ebjr.load_model(path), ebjr.Preprocess(size=8))
        for path in write_pair(folder)
    )
    joint = ebjr.JointClassifier(*models, ebjr.Router("softmax", 0.5))
    return Served(joint, operating_points={"careful": 0.9})


@pytest.fixture
def client(tmp_path):
    with TestClient(build_app(served(tmp_path))) as opened:
        yield opened


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
FILES = [("image", (f"{n}.png", png(image), "image/png")) for n, image in enumerate(IMAGES)]


def test_files_of_a_form_are_answered_like_pixels(client):
    tensor = {"name": "image", "shape": [3, 8, 8, 3], "datatype": "UINT8"}
    plain = {"inputs": [{**tensor, "data": IMAGES.ravel().tolist()}]}
    expected = client.post(INFER, json=plain).json()
    found = client.post(INFER, files=FILES).json()
    assert found == expected
    assert len(found["outputs"][0]["data"]) == 3


def test_fields_of_a_form_are_parameters(client):
    own = client.post(INFER, files=FILES, data={"threshold": "0.99", "timeout_seconds": "5"}).json()
    assert own["parameters"]["threshold"] == 0.99
    whole = client.post(INFER, files=FILES, data={"timeout": "5000000", "priority": "2"})
    assert whole.status_code == 200
    document = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    assert "multipart/form-data" in document["requestBody"]["content"]
    named = client.post(INFER, files=FILES, data={"operating_point": "careful"}).json()
    assert named["parameters"]["threshold"] == 0.9


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (["deferred"], ["deferred"]),
        (["output, prediction"], ["prediction", "output"]),
        (["output", "prediction,output"], ["prediction", "output"]),
    ],
)
def test_a_form_names_the_outputs_that_it_asks_for(client, fields, names):
    found = client.post(INFER, files=FILES, data={"outputs": fields}).json()
    assert [one["name"] for one in found["outputs"]] == names


@pytest.mark.parametrize(
    ("data", "files", "says"),
    [
        ({"color": "red"}, FILES, "not 'color'"),
        ({"threshold": "high"}, FILES, "threshold must be a number, not 'high'"),
        ({"threshold": "nan"}, FILES, "above -inf"),
        ({"threshold": "1e400"}, FILES, "threshold is too large for a float: '1e400'"),
        ({"timeout": "5.0"}, FILES, "not '5.0'; timeout_seconds takes seconds"),
        ({"timeout": "9" * 4000}, FILES, "up to 3600000000, not 9999"),
        ({"priority": "high"}, FILES, "priority must be a whole number from 0"),
        ({"priority": ["2", "3"]}, FILES, "the form has two values of 'priority': send one"),
        ({"outputs": "logits"}, FILES, "there is no output 'logits'"),
        ({"outputs": ""}, FILES, "there is no output ''"),
        ({"outputs": "prediction,"}, FILES, "there is no output ''"),
        ({"operating_point": "wild"}, FILES, "no operating point 'wild'"),
        ({"threshold": "1"}, [("x", (None, b"1"))], "files and the fields outputs, threshold"),
        ({"threshold": "1"}, [("timeout", (None, b"1"))], "at least one image"),
        ({}, [("image", ("x.png", b"no image"))], "image 0 cannot be read"),
        ({}, [("image", ("x.png", b""))] * 300, "Too many files"),
        ({"timeout_seconds": "1" * 5000}, FILES, "maximum size"),
    ],
)
def test_a_form_with_a_mistake_is_a_400_in_one_sentence(client, data, files, says):
    answer = client.post(INFER, data=data, files=files)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b"--b\r\n\r\n"),
        ("multipart/form-data; boundary=a", b""),
        ("multipart/mixed; boundary=a", b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--"),
    ],
)
def test_what_is_no_form_is_a_400_in_one_sentence(client, kind, body):
    answer = client.post(INFER, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]
    assert client.post(INFER, files=FILES).status_code == 200


def test_a_form_is_as_large_as_any_other_body_may_be(tmp_path):
    with TestClient(build_app(served(tmp_path), limits=Limits(body_bytes=5_000))) as client:
        large = [("image", ("x.png", bytes(20_000)))]
        assert client.post(INFER, files=large).status_code == 413
        assert client.post(INFER, files=FILES).status_code == 200


def test_the_files_of_a_form_are_counted_beside_it(tmp_path):
    with TestClient(build_app(served(tmp_path), limits=Limits(held_bytes=30_000))) as client:
        answer = client.post(INFER, files=[("image", ("x.png", bytes(20_000)))])
        assert (answer.status_code, "bytes of requests" in answer.json()["error"]) == (413, True)


def test_a_model_of_plain_tensors_takes_no_form():
    from small import served as plain

    with TestClient(build_app(plain())) as client:
        answer = client.post(INFER, files=FILES)
    assert (answer.status_code, "takes no images" in answer.json()["error"]) == (415, True)

"""tritonclient over HTTP, unchanged: bytes and JSON in and out, mixed, compressed, some outputs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

import tritonclient.http as triton
from small import running, served

from ebjr.serving.app import build_app

ROWS = np.linspace(-9, 9, 600).reshape(-1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def address():
    with running(build_app(served())) as (host, port):
        yield f"{host}:{port}"


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as opened:
        yield opened


def tensor(binary=True, name="x", rows=ROWS):
    found = triton.InferInput(name, list(rows.shape), "FP32")
    found.set_data_from_numpy(rows, binary_data=binary)
    return found


def wanted(**binary: bool):
    return [triton.InferRequestedOutput(name, binary_data=how) for name, how in binary.items()]


def assert_right(found, *names):
    answer = served().joint(ROWS)
    for name in names:
        np.testing.assert_array_equal(found.as_numpy(name), getattr(answer, name))
    seen = [output["name"] for output in found.get_response()["outputs"]]
    assert sorted(seen) == sorted(names)


@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize(
    "out",
    [
        {"score": True, "deferred": True},
        {"score": False, "deferred": False},
        {"prediction": True, "score": False, "deferred": True, "degraded": False},
        {"degraded": True, "stage": False},
        {"stage": True},
    ],
)
def test_bytes_and_json_mix_in_both_directions(client, into, out):
    assert_right(client.infer("joint", [tensor(into)], outputs=wanted(**out)), *out)


def test_numbers_of_another_type_are_cast_again_by_what_is_remembered_of_a_request(client):
    for rows in (ROWS, ROWS[::-1], -ROWS):  # the JSON is the same, the bytes are not
        given = triton.InferInput("x", list(rows.shape), "FP64")
        given.set_data_from_numpy(rows.astype(np.float64))
        found = client.infer("joint", [given])
        expected = served().joint(rows.astype(np.float32)).score
        np.testing.assert_array_equal(found.as_numpy("score"), expected)


def test_without_outputs_the_usual_ones_come_and_no_raw_output(client):
    names = ("prediction", "score", "deferred", "degraded")
    assert_right(client.infer("joint", [tensor()]), *names)
    known = {output["name"] for output in client.get_model_metadata("joint")["outputs"]}
    assert known == {*names, "output", "stage"}


@pytest.mark.parametrize("request_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_bodies_are_compressed_in_both_directions(
    client, request_encoding, response_encoding, binary
):
    found = client.infer(
        "joint",
        [tensor(binary)],
        outputs=wanted(score=binary, deferred=binary),
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=response_encoding,
    )
    assert_right(found, "score", "deferred")


def test_the_version_may_be_named(client):
    assert client.is_model_ready("joint", "1")
    assert client.get_model_metadata("joint", "1")["versions"] == ["1"]
    found = client.infer("joint", [tensor()], model_version="1", outputs=wanted(score=True))
    assert_right(found, "score")


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        (lambda c: c.infer("other", [tensor()]), "404", "no model 'other' here"),
        (lambda c: c.infer("joint", [tensor()], model_version="3"), "404", "no version '3'"),
        (lambda c: c.get_model_metadata("other"), "404", "the model is called 'joint'"),
        (lambda c: c.infer("joint", [tensor(name="y")]), "400", "one input, 'x'"),
        (lambda c: c.infer("joint", [tensor(rows=ROWS[:, :1])]), "400", "shape [-1, 2], not"),
        (
            lambda c: c.infer("joint", [tensor()], outputs=wanted(logits=True)),
            "400",
            "no output 'logits'; the model has prediction",
        ),
        (
            lambda c: c.infer(
                "joint",
                [tensor()],
                outputs=[triton.InferRequestedOutput("score", class_count=2)],
            ),
            "400",
            "'classification' ranks the classes of logits, and the output 'score' of this",
        ),
        (lambda c: c.infer("joint", [tensor()], priority=-2), "400", "priority must be a whole"),
        (
            lambda c: c.infer("joint", [tensor()], timeout=5.0),
            "400",
            "timeout must be microseconds, a whole number up to 3600000000, not 5.0",
        ),
        (lambda c: c.get_inference_statistics("other"), "404", "no model 'other' here"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(client, call, status, says):
    with pytest.raises(triton.InferenceServerException) as caught:
        call(client)
    assert (caught.value.status(), says in caught.value.message()) == (status, True)
    assert "\n" not in caught.value.message()
    assert_right(client.infer("joint", [tensor()], outputs=wanted(score=True)), "score")

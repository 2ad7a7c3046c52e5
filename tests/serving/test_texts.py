"""Texts come as BYTES, a column each: a request with other columns is refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import NAME
from starlette.testclient import TestClient
from texts import Texts, served_texts

from ebjr.protocol import InferRequest, write_request
from ebjr.serving.app import build_app

TWO = ("question", "answer")


def infer(client, shape, data):
    tensor = {"name": "input", "shape": shape, "datatype": "BYTES", "data": data}
    return client.post(f"{NAME}/infer", json={"inputs": [tensor]})


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("columns", [("text",), None])
def test_texts_of_one_column_come_as_they_are(shape, columns):
    student = Texts(columns=columns)
    with TestClient(build_app(served_texts(student))) as client:
        assert infer(client, shape, ["hello world", "grüß dich"]).status_code == 200
    if columns:
        assert student.asked == ["hello world", "grüß dich"]


def test_texts_of_several_columns_are_rows():
    student = Texts(columns=TWO)
    with TestClient(build_app(served_texts(student, Texts(-1.0, columns=TWO)))) as client:
        about = client.get(NAME).json()["inputs"]
        assert about == [{"name": "input", "datatype": "BYTES", "shape": [-1, 2]}]
        found = infer(client, [2, 2], ["is it?", "yes, it is", "a", "b"])
        body, length = write_request(
            InferRequest({"input": np.array([["is it?", "no, it is not"]], object)}), binary=True
        )
        headers = {"Inference-Header-Content-Length": str(length)}
        again = client.post(f"{NAME}/infer", content=body, headers=headers)
    outputs = {one["name"]: one["data"] for one in found.json()["outputs"]}
    assert outputs["deferred"] == [False, True]
    assert again.status_code == 200
    assert student.asked == [("is it?", "yes, it is"), ("a", "b"), ("is it?", "no, it is not")]


@pytest.mark.parametrize(
    ("columns", "shape", "sentence"),
    [
        (TWO, [2], "must have shape [-1, 2] of question, answer, not [2]"),
        (TWO, [2, 1], "must have shape [-1, 2] of question, answer, not [2, 1]"),
        (TWO, [1, 3], "must have shape [-1, 2] of question, answer, not [1, 3]"),
        (("text",), [1, 2], "must have shape [-1] of text, not [1, 2]"),
    ],
)
def test_other_columns_are_refused_in_one_sentence(columns, shape, sentence):
    with TestClient(build_app(served_texts(Texts(columns=columns)))) as client:
        found = infer(client, shape, ["x"] * int(np.prod(shape)))
    assert found.status_code == 400
    assert sentence in found.json()["error"]

"""What an answer holds: little unless asked for, names of labels, and the best classes by name."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import NAME, assert_boxes, files_of, images, joint_detector, request, served
from starlette.testclient import TestClient

from ebjr import JointRegressor, Router, SpecializedJointClassifier
from ebjr.protocol import LENGTH_HEADER, InferRequest, RequestedOutput, read_response, write_request
from ebjr.serving.app import Served, build_app
from ebjr.tasks.multilabel import MultilabelJointClassifier

USUAL = ["prediction", "score", "deferred", "degraded"]
LABELS = ("cat", "dog", "ülk")


def named(joint=None, labels=LABELS) -> Served:
    return Served(joint or served().joint, labels=labels)


def asked(about: Served, tensor: dict, wanted=None):
    """What a server says to a JSON request: the tensors by name."""
    message = {"inputs": [tensor]}
    if wanted is not None:
        message["outputs"] = [{"name": name, "parameters": how} for name, how in wanted.items()]
    with TestClient(build_app(about)) as client:
        answer = client.post(f"{NAME}/infer", json=message)
        outputs = client.get(NAME).json()["outputs"]
    known = {one["name"]: one["shape"] for one in outputs}
    types = {one["name"]: one["datatype"] for one in outputs}
    for one in answer.json().get("outputs", ()):
        if not (wanted or {}).get(one["name"]):  # the best classes come as texts
            assert one["datatype"] == types[one["name"]], one["name"]
    return answer, known


def said(about: Served, tensor: dict, wanted=None) -> dict[str, np.ndarray]:
    answer, known = asked(about, tensor, wanted)
    assert answer.status_code == 200, answer.text
    found = read_response(answer.content).outputs
    assert found.keys() <= known.keys()
    return found


(ROWS,) = request(((0.5, 0.0), (5.0, 0.0), (-5.0, 0.0)))["inputs"]


def numbers(*values: float) -> dict:
    return {"name": "input", "shape": [len(values)], "datatype": "FP32", "data": list(values)}


def texts(array: np.ndarray) -> list[str]:
    return [text.decode() for text in array.ravel().tolist()]


def test_an_answer_is_small_and_names_the_label():
    found = said(named(), ROWS)
    assert list(found) == ["prediction", "label", *USUAL[1:]]
    assert (
        texts(found["label"]) == [LABELS[k] for k in found["prediction"]] == ["ülk", "cat", "dog"]
    )
    whole = said(named(), ROWS, {"stage": {}, "output": {}, "label": {}})
    assert list(whole) == ["label", "output", "stage"]


@pytest.mark.parametrize("labels", [None, ("0", "1", "2")])
def test_numbers_are_no_names(labels):
    assert list(said(named(labels=labels), ROWS)) == USUAL


def test_the_names_come_as_bytes_too():
    sent = InferRequest({"x": np.array(ROWS["data"], np.float32)}, binary=True)
    body, length = write_request(sent)
    with TestClient(build_app(named())) as client:
        answer = client.post(f"{NAME}/infer", content=body, headers={LENGTH_HEADER: str(length)})
    found = read_response(answer.content, answer.headers[LENGTH_HEADER]).outputs
    assert texts(found["label"]) == ["ülk", "cat", "dog"]


def test_a_specialized_student_is_named_in_the_teachers_labels():
    def some(x):  # two classes and "other"
        return np.stack([x, 0 * x - 9, -x], axis=1)

    def every(x):
        return np.stack([-x, x, 0 * x], axis=1)

    joint = SpecializedJointClassifier(
        some, every, Router("specialized_softmax", 0.0), known_classes=(2, 0), classes=3
    )
    found = said(named(joint), numbers(3.0, -1.0))
    assert texts(found["label"]) == ["ülk", "cat"]


def test_of_many_labels_the_names_come_in_one_tensor_and_their_counts():
    def model(x):
        return np.stack([x, -x, x - 1], axis=1)

    joint = MultilabelJointClassifier(model, model, Router("smallest_margin", 0.5))
    found = said(named(joint), numbers(3.0, -2.0, 0.0))
    assert list(found) == ["prediction", "label_names", "count", *USUAL[1:]]
    assert found["count"].tolist() == [2, 1, 0] == found["prediction"].sum(axis=1).tolist()
    assert texts(found["label_names"]) == ["cat", "ülk", "dog"]
    best = said(named(joint), numbers(3.0), {"output": {"classification": 2}})["output"]
    assert texts(best) == ["3.0:0:cat", "2.0:2:ülk"]
    assert list(said(named(joint, None), numbers(3.0))) == USUAL


def test_each_box_has_the_name_of_its_label():
    joint, batch = joint_detector(), images()
    sent = InferRequest({"image": files_of(batch)}, binary=True)
    body, length = write_request(sent)
    with TestClient(build_app(named(joint))) as client:
        answer = client.post(f"{NAME}/infer", content=body, headers={LENGTH_HEADER: str(length)})
    found = read_response(answer.content, answer.headers[LENGTH_HEADER]).outputs
    assert_boxes(found, joint(batch))
    assert texts(found["label_names"]) == [LABELS[k] for k in found["labels"]]
    assert list(found)[:5] == ["boxes", "labels", "label_names", "scores", "count"]


def test_regression_has_no_names():
    joint = JointRegressor(lambda x: x[:, None], lambda x: x[:, None], Router("random", 0.5))
    assert list(said(named(joint, None), numbers(1.0))) == USUAL
    answer, _ = asked(named(joint, None), numbers(1.0), {"output": {"classification": 1}})
    assert (answer.status_code, "ranks the classes of logits" in answer.text) == (400, True)


def test_labels_that_are_too_few_fail_in_a_sentence_and_the_classes_may_still_be_asked_for():
    answer, _ = asked(named(labels=("cat", "dog")), ROWS)
    assert (answer.status_code, answer.json()["error"]) == (
        503,
        "a model answers more classes than the 2 labels name",
    )
    assert said(named(labels=("cat", "dog")), ROWS, {"prediction": {}})["prediction"].tolist() == [
        2,
        0,
        1,
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 99])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_best_classes_are_tritons_value_index_and_label(count, labels):
    wanted = {"output": {"classification": count}, "score": {}}
    found = said(named(labels=labels), ROWS, wanted)
    logits = said(named(labels=labels), ROWS, {"output": {}})["output"]
    assert found["output"].shape == (3, min(count, 3))
    for row, best in zip(logits, found["output"], strict=True):
        pieces = [text.split(":") for text in texts(best)]
        assert [int(piece[1]) for piece in pieces] == np.argsort(-row, kind="stable")[
            :count
        ].tolist()
        for value, k, *name in pieces:
            assert np.float32(value) == row[int(k)]
            assert name == ([] if labels is None else [labels[int(k)]])


@pytest.mark.parametrize("name", ["prediction", "label", "score", "deferred", "stage"])
def test_what_has_no_classes_is_not_ranked(name):
    answer, _ = asked(named(), ROWS, {name: {"classification": 2}})
    assert answer.status_code == 400
    says = f"ranks the classes of logits, and the output '{name}' of this model has no logits"
    assert says in answer.json()["error"]


def test_an_output_that_a_client_ranks_is_read_as_any_other():
    wanted = (RequestedOutput("output", binary=True, classes=1),)
    body, length = write_request(InferRequest({"x": np.ones((1, 2), np.float32)}, wanted))
    with TestClient(build_app(named())) as client:
        answer = client.post(f"{NAME}/infer", content=body, headers={LENGTH_HEADER: str(length)})
    found = read_response(answer.content, answer.headers[LENGTH_HEADER]).outputs["output"]
    assert texts(found) == ["1.0:0:cat"]

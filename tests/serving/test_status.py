"""What a server tells of itself, and both models' answers to one input."""

from __future__ import annotations

import numpy as np
import pytest
from small import request, student, teacher

from ebjr import JointClassifier, JointConfig, JointRegressor, Router, TeacherUnavailable

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from starlette.testclient import TestClient

from ebjr.serving.app import Served, build_app, served_of
from ebjr.serving.explain import explain
from ebjr.serving.status import describe, shares_between


def classifier(teacher=teacher, **how) -> JointClassifier:
    return JointClassifier(student, teacher, Router("max_logit", 1.0), **how)


def test_the_curve_that_is_told_is_that_of_the_held_out_half(calibrated):
    config = JointConfig.read(calibrated)
    found = describe(served_of(config))["calibration"]
    kept = config.calibration
    assert found["curve"]["deferral_rate"] == kept["curve"]["deferral_rate"]
    assert found["curve"]["quality"] == pytest.approx([100 * q for q in kept["curve"]["quality"]])
    assert found["curve"]["threshold"][-1] == "inf"
    assert found["curve"]["cost"][-1] == pytest.approx(100 * (1 + 1 / 8))
    assert found["teacher"]["quality"] == 100 * kept["held_out"]["teacher_quality"]
    assert found["examples"] == 200
    assert found["id"] == kept["outcomes"]


def test_the_calibrations_histogram_has_all_of_its_scores(calibrated):
    found = describe(served_of(JointConfig.read(calibrated)))["calibration"]["histogram"]
    assert sum(found["shares"]) == pytest.approx(1)
    assert len(found["edges"]) == len(found["shares"]) + 1
    scores = np.random.default_rng(0).gamma(2, 1, 100_000)
    quantiles, edges = np.quantile(scores, np.linspace(0, 1, 101)), np.linspace(0.2, 6, 31)
    exact = np.histogram(scores.clip(0.2, 6), edges)[0] / len(scores)
    np.testing.assert_allclose(shares_between(quantiles, edges), exact, atol=0.005)


def test_a_score_of_one_value_has_no_histogram():
    served = Served(classifier(), score_quantiles=(1.0,) * 101)
    assert describe(served)["calibration"]["histogram"] == {"edges": [], "shares": []}


def test_without_a_calibration_the_knob_and_the_load_are_told():
    with TestClient(build_app(Served(classifier()), token="sesame")) as client:
        client.post("/v2/models/joint/infer", json=request([(0.5, 0.0)]))
        client.post("/v2/models/joint/infer", json={})
        found = client.get("/v1/status").json()
    assert found["calibration"] == {}
    assert (found["router"]["threshold"], found["token"]) == (1.0, True)
    assert found["router"]["promise"] is None
    live = found["live"]
    assert [live[name] for name in ("rows", "deferred", "requests", "refused")] == [1, 1, 1, 1]
    assert live["deferral_rate"] == 1.0
    assert live["latency"]["teacher"]["p50"] > 0
    assert live["waiting"] == {"student": 0, "teacher": 0, "audit": 0}


def test_live_scores_are_counted_in_the_calibrations_bins(calibrated):
    config = JointConfig.read(calibrated)
    images = np.random.default_rng(0).integers(0, 200, (7, 8, 8, 3), np.uint8)
    tensor = {"name": "image", "shape": [7, 8, 8, 3], "datatype": "UINT8"}
    with TestClient(build_app(served_of(config))) as client:
        client.post(
            "/v2/models/joint/infer", json={"inputs": [{**tensor, "data": images.ravel().tolist()}]}
        )
        found = client.get("/v1/status").json()
    edges = found["calibration"]["histogram"]["edges"]
    score = config.load()(images).score
    expected = np.histogram(np.clip(score, edges[0], edges[-1]), edges)[0]
    assert found["live"]["scores"] == expected.tolist()


@pytest.mark.parametrize("value", [0.5, 1.0, 7.0])
def test_both_models_answer_and_the_joint_answer_is_the_joint_models(value):
    joint = classifier(blend=0.3)
    with TestClient(build_app(Served(joint, labels=("a", "b", "c")))) as client:
        found = client.post("/v1/both", json=request([(value, 0.0)])).json()
        assert client.get("/v1/status").json()["live"]["rows"] == 0
    inputs = np.array([[value, 0.0]], np.float32)
    answer = joint(inputs)
    assert found["score"] == answer.score[0]
    assert found["deferred"] == answer.deferred[0]
    assert found["student"]["label"] == "a"
    assert found["teacher"]["label"] == "c"
    assert found["answer"]["prediction"] == answer.prediction[0]
    shares = np.exp(student(inputs)[0]) / np.exp(student(inputs)[0]).sum()
    assert [row["prediction"] for row in found["student"]["top"]] == [0, 2, 1]
    assert found["student"]["top"][0]["probability"] == pytest.approx(shares[0])
    assert found["student"]["seconds"] > 0


def test_a_request_for_both_may_bring_its_threshold():
    with TestClient(build_app(Served(classifier()))) as client:
        found = client.post("/v1/both", json=request([(5.0, 0.0)], threshold=9.0)).json()
    assert (found["deferred"], found["threshold"]) == (True, 9.0)


def test_a_teacher_that_is_away_is_said_to_be():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    inputs = np.array([[0.5, 0.0]], np.float32)
    found = explain(classifier(away), inputs, 1.0)
    assert found["teacher"] == {"error": "the cloud is gone"}
    assert (found["deferred"], found["degraded"]) == (False, True)
    assert found["answer"]["prediction"] == 0
    assert explain(classifier(away, when_unavailable="error"), inputs, 1.0)["answer"] is None
    kept = explain(classifier(away), 10 * inputs, 1.0)
    assert (kept["degraded"], kept["answer"]["prediction"]) == (False, 0)


def test_regressors_say_numbers_and_what_is_no_number_in_json_is_a_word():
    def spread(x):
        return np.stack([x[:, 0], np.full(len(x), np.nan)], axis=1)

    spread.input_shape, spread.input_name = (None, 2), "x"
    joint = JointRegressor(spread, lambda x: x[:, 0] + 1, Router("predicted_std", -1.0))
    with TestClient(build_app(Served(joint))) as client:
        found = client.post("/v1/both", json=request([(5.0, 0.0)])).json()
    assert (found["score"], found["deferred"]) == ("nan", True)
    assert found["student"]["prediction"] == 5.0
    assert found["answer"] == {"prediction": 6.0}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({}, "'inputs' must be a list"),
        (request([(0.5, 0.0)]) | {"parameters": {"threshold": "x"}}, "threshold must be a number"),
        (
            {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]},
            "send one input to ask both models, not 2",
        ),
        *(
            (request([(0.5, 0.0)]) | more, f"asking both models takes no {name!r}: all comes as")
            for name, more in {
                "id": {"id": "7"},
                "outputs": {"outputs": [{"name": "score"}]},
                "priority": {"parameters": {"priority": 2}},
                "binary_data_output": {"parameters": {"binary_data_output": True}},
            }.items()
        ),
    ],
)
def test_a_mistake_is_a_400_in_one_sentence(message, says):
    with TestClient(build_app(Served(classifier()))) as client:
        answer = client.post("/v1/both", json=message)
    assert (answer.status_code, says in answer.json()["error"]) == (400, True)


def test_the_page_may_run_its_own_script_and_load_nothing():
    with TestClient(build_app(Served(classifier()))) as client:
        answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for word in ('src="http', "@import", "url("):
        assert word not in answer.text

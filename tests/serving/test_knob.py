"""The knob: written down before it moves, honest about the promise, and never torn."""

from __future__ import annotations

import json
import logging
import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr import JointClassifier, Router
from ebjr.calibration.guarantee import Certificate

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from starlette.testclient import TestClient

from ebjr.serving.app import Served, build_app
from ebjr.serving.journal import Journal
from ebjr.serving.knob import Knob
from ebjr.serving.service import single_score

INFER = "/v2/models/joint/infer"


def student(x):
    return np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)


def teacher(x):
    return np.stack([-x[:, 0], 0 * x[:, 0], 3 * x[:, 0]], axis=1)


student.input_shape, student.input_name, student.input_dtype = (None, 2), "x", np.float32


def certificate(promise="harm", threshold=2.0) -> Certificate:
    figures = {"row": 7, "deferral_rate": 0.2, "observed": 0.006, "bound": 0.0099}
    return Certificate(
        promise,
        0.01,
        0.1,
        2000,
        threshold=threshold,
        naive_deferral_rate=0.1,
        test="exact binomial",
        **figures,
    )


def served(promise="harm", threshold=2.0) -> Served:
    return Served(
        JointClassifier(student, teacher, Router("max_logit", threshold)),
        operating_points={"careful": 3.0},
        score_quantiles=tuple(np.linspace(0, 10, 101)),
        calibration_id="abc",
        certificate=certificate(promise, threshold),
    )


def request(*values, **parameters) -> dict:
    rows = [[value, 0.0] for value in values]
    tensor = {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}
    return {"inputs": [tensor], "parameters": parameters}


@pytest.mark.parametrize(
    ("promise", "threshold", "state"),
    [
        ("harm", 2.0, "in force"),
        ("harm", 5.0, "in force"),
        ("harm", float("inf"), "in force"),
        ("harm", 1.9, "suspended"),
        ("excess", 1.9, "suspended"),
        ("rate", 2.0, "in force"),
        ("rate", 1.0, "in force"),
        ("rate", 2.1, "suspended"),
    ],
)
def test_the_promise_is_in_force_where_the_certifying_walk_has_passed(promise, threshold, state):
    assert Knob(served(promise)).promise(threshold) == state


def test_a_suspended_promise_is_said_in_answers_router_metrics_and_log(caplog):
    caplog.set_level(logging.INFO, "ebjr.serving")
    with TestClient(build_app(served())) as client:

        def said() -> tuple:
            answer = client.post(INFER, json=request(1.0)).json()["parameters"]["promise"]
            router = client.get("/v1/router").json()["promise"]["state"]
            return answer, router, "promise_in_force{" in client.get("/metrics").text

        assert said() == ("in force", "in force", True)
        assert 'ebjr_promise_in_force{model="joint"} 1.0' in client.get("/metrics").text
        client.put("/v1/router", json={"threshold": 1.0})
        assert said() == ("suspended", "suspended", True)
        assert 'ebjr_promise_in_force{model="joint"} 0.0' in client.get("/metrics").text
        client.put("/v1/router", json={"operating_point": "careful"})
        assert said() == ("in force", "in force", True)
        assert 'ebjr_knob_moves_total{model="joint",who="hand"} 2.0' in client.get("/metrics").text
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text.split(":")[0] for text in warnings] == [
        "the promise is suspended",
        "the promise is in force again",
    ]


def test_a_request_with_its_own_threshold_is_told_of_its_own_promise():
    with TestClient(build_app(served())) as client:
        own = client.post(INFER, json=request(1.0, threshold=0.5)).json()["parameters"]
        other = client.post(INFER, json=request(1.0)).json()["parameters"]
    assert (own["threshold"], own["promise"]) == (0.5, "suspended")
    assert (other["threshold"], other["promise"]) == (2.0, "in force")


def test_each_move_is_written_down_who_when_from_to_and_why(tmp_path):
    path = tmp_path / "audit.jsonl"
    with TestClient(build_app(served(), audit_log=path)) as client:
        client.put("/v1/router", json={"deferral_rate": 0.1})
        client.put("/v1/router", json={"deferral_rate": 1})
        client.put("/v1/router", json={"deferral_rate": 7})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    started, first, second = found
    assert (started["who"], started["to"], started["promise"]) == ("server", 2.0, "in force")
    assert (first["who"], first["from"], first["to"]) == ("testclient", 2.0, 1.0)
    assert (first["why"], first["promise"]) == ("asked for deferral_rate 0.1", "suspended")
    assert (second["from"], second["to"]) == (1.0, "inf")
    assert all("time" in entry for entry in found)


def test_a_move_that_cannot_be_written_down_is_not_made(tmp_path):
    journal = Journal(tmp_path / "audit.jsonl")
    knob = Knob(served(), journal)
    journal.close()
    with pytest.raises(OSError, match="descriptor"):
        knob.move(1.0, who="somebody", why="a try")
    assert knob.threshold == 2.0


@given(st.lists(st.floats(-1e30, 1e30), max_size=5), st.floats(-1e30, 1e30))
def test_a_score_in_single_precision_is_on_the_same_side_of_the_threshold(scores, threshold):
    exact = np.array([*scores, threshold, np.inf, -np.inf, np.nan])  # the hardest case among them
    single = single_score(exact, threshold)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact.astype(np.float32), rtol=3e-7, atol=1e-44)
    np.testing.assert_array_equal(single.astype(np.float64) >= threshold, exact >= threshold)


def test_no_answer_is_torn_while_the_knob_moves_a_thousand_times_a_second():
    rng = np.random.default_rng(0)
    app = build_app(served())
    done = threading.Event()
    knob = app.state.service.knob
    moves = 0

    def turn() -> None:
        nonlocal moves
        began = time.perf_counter()
        while not done.is_set():
            knob.move(float(rng.choice([-1.0, 0.5, 2.0, 4.0])), who="test", why="a thousand")
            moves += 1
            time.sleep(max(0.0, began + moves / 1000 - time.perf_counter()))

    mover = threading.Thread(target=turn)
    seen = set()
    with TestClient(app) as client:
        mover.start()
        try:
            for number in range(300):
                values = rng.uniform(-2, 5, 1 + number % 7).astype(np.float32).tolist()
                answer = client.post(INFER, json=request(*values)).json()
                said = {output["name"]: output["data"] for output in answer["outputs"]}
                threshold = answer["parameters"]["threshold"]
                seen.add(threshold)
                covered = knob.promise(threshold)
                assert answer["parameters"]["promise"] == covered
                late = [not score >= threshold for score in said["score"]]
                assert said["deferred"] == late
        finally:
            done.set()
            mover.join()
    assert len(seen) == 4
    assert moves > 300


def test_the_autopilot_flies_until_a_hand_takes_the_knob(tmp_path):
    path = tmp_path / "audit.jsonl"
    app = build_app(served(), hold="deferral_rate=0.3", audit_log=path, chore_seconds=0.005)
    values = np.random.default_rng(0).uniform(0, 5, 500).astype(np.float32).tolist()
    with TestClient(app) as client:
        assert client.get("/v1/router").json()["autopilot"]["hold"] == "deferral_rate=0.3"
        while client.get("/v1/router").json()["threshold"] == 3.0:  # 60 % are below it
            client.post(INFER, json=request(*values))
        text = client.get("/metrics").text
        assert 'ebjr_autopilot_target{model="joint",quantity="deferral_rate"} 0.3' in text
        moved = client.put("/v1/router", json={"hold": "deferral_rate=0.5", "between": [0.2, 1]})
        assert moved.json()["autopilot"]["between"] == [0.2, 1]
        wrong = client.put("/v1/router", json={"hold": "deferral_rate=0.5", "between": [0.9, 0.2]})
        assert (wrong.status_code, "rising" in wrong.json()["error"]) == (400, True)
        for wish in ({"threshold": "x"}, {"hold": 5}, {"hold": "p99=1s", "between": 5}):
            assert client.put("/v1/router", json=wish).status_code == 400
        assert client.get("/v1/router").json()["autopilot"]["hold"] == "deferral_rate=0.5"
        by_hand = client.put("/v1/router", json={"threshold": 4.5}).json()
        assert (by_hand["autopilot"], by_hand["threshold"]) == (None, 4.5)
        assert "ebjr_autopilot_target{" not in client.get("/metrics").text
        client.put("/v1/router", json={"hold": "p99=10s"})
        off = client.put("/v1/router", json={"hold": None}).json()
        assert off["autopilot"] is None
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {entry["who"] for entry in entries} == {"server", "autopilot", "testclient"}
    assert any("asked for threshold 4.5; the autopilot is off" in e["why"] for e in entries)
    followed = [entry["from"] for entry in entries[2:]]
    assert followed == [entry["to"] for entry in entries[1:-1]]


@pytest.mark.parametrize(
    "wish",
    [
        {"threshold": 10**400},
        {"threshold": True},
        {"deferral_rate": 10**400},
        {"deferral_rate": -(10**400)},
        {"deferral_rate": math.nan},
        {"operating_point": 10**400},
        {"hold": "p99=10ms", "between": [10**400, 2]},
        {"hold": "p99=10ms", "between": [0, -(10**400)]},
        {"hold": "p99=10ms", "between": [math.nan, math.inf]},
        {"hold": "p99=10ms", "between": ["1e400", "nan"]},
        {"hold": "p99=1e400ms"},
        {"hold": f"flops={'9' * 400}"},
        {"hold": 10**400},
    ],
    ids=lambda wish: f"{wish!r:.40}",
)
def test_a_wish_of_a_number_that_no_float_holds_is_refused_in_one_sentence(wish):
    body = json.dumps(wish)
    with TestClient(build_app(served())) as client:
        answer = client.put("/v1/router", content=body)
        assert (answer.status_code, len(answer.json()["error"]) < 300) == (400, True)
        assert client.get("/v1/router").json()["threshold"] == 2.0


@pytest.mark.parametrize("name", ["threshold", "deferral_rate", "operating_point", "timeout"])
@pytest.mark.parametrize("value", [10**400, -(10**400), True])
def test_a_request_of_a_number_that_no_float_holds_is_refused_in_one_sentence(name, value):
    with TestClient(build_app(served())) as client:
        answer = client.post(INFER, json=request(1.0, **{name: value}))
    assert (answer.status_code, len(answer.json()["error"]) < 300) == (400, True)


def test_bounds_without_anything_to_hold_are_refused():
    with pytest.raises(ValueError, match="give hold"):
        build_app(served(), between=(0.1, 0.5))

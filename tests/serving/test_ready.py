"""A server is ready when its models are; with `ready="teacher"` while the teacher is there, too."""

from __future__ import annotations

import time

import numpy as np
import pytest
from small import NAME, request, served, student

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
pytest.importorskip("stamina", reason="the extra `remote` is not installed")

from starlette.testclient import TestClient

from ebjr import FarTeacher, Link, load_model
from ebjr.serving.app import build_app

QUICK = Link(retries=0, failures=1, probe_seconds=0.05)
PROBES = ("/v2/health/ready", f"{NAME}/ready", f"{NAME}/versions/1/ready")


TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
SAID = {"name": "logits", "datatype": "FP32", "shape": [-1, 3]}
ABOUT = {"name": "teacher", "versions": [], "inputs": [TENSOR], "outputs": [SAID]}


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("ebjr.serving.service.LOOK_SECONDS", 0.05)


def until(client, status) -> str:
    """Wait for all probes to have a status: what they say then."""
    end = time.monotonic() + 30
    while True:
        found = [client.get(path) for path in PROBES]
        if all(answer.status_code == status for answer in found):
            return found[-1].text
        assert time.monotonic() < end
        time.sleep(0.02)


def far_pair(far, known=None):
    about = load_model(far.url).metadata.as_dict() if known is None else known
    model = load_model(far.url, metadata=about, timeout_seconds=0.5)
    return served(teacher=FarTeacher(model, QUICK))


def test_a_server_is_ready_with_its_teacher_and_not_ready_without_it(far):
    with TestClient(build_app(far_pair(far), ready="teacher")) as client:
        until(client, 200)
        asked = far.seen()["rows"]
        far.behave("error")  # and nobody asks for answers
        said = until(client, 503)
        assert "teacher at 127.0.0.1" in said
        assert "is not called until it is back" in said
        assert client.get("/v2/health/live").status_code == 200
        one = client.get("/v1/models/joint")
        assert (one.status_code, one.json()["ready"]) == (503, False)
        far.behave("right")
        until(client, 200)
        assert far.seen()["rows"] == asked  # a probe costs no answer
        answer = client.post(f"{NAME}/infer", json=request()).json()
        outputs = {one["name"]: one["data"] for one in answer["outputs"]}
        assert outputs["deferred"] == [True, False]


def test_a_teacher_that_was_never_there_is_not_ready_until_it_comes(far):
    known = load_model(far.url).metadata.as_dict()
    far.behave("error")
    with TestClient(build_app(far_pair(far, known), ready="teacher")) as client:
        until(client, 503)
        far.behave("right")
        until(client, 200)


def test_probes_that_are_told_no_are_no_failed_requests(far):
    known = load_model(far.url).metadata.as_dict()
    far.behave("error")
    with TestClient(build_app(far_pair(far, known), ready="teacher")) as client:
        until(client, 503)
        assert 'status="503"' not in client.get("/metrics").text
    far.behave("right")


def test_a_student_alone_is_ready_unless_told_otherwise(far):
    far.behave("error")
    with TestClient(build_app(far_pair(far, ABOUT))) as client:
        for path in PROBES:
            assert client.get(path).status_code == 200
    far.behave("right")
    with pytest.raises(ValueError, match="ready must be one of student, teacher, not 'both'"):
        build_app(served(), ready="both")


def test_models_answer_before_clients_ask_and_nothing_is_counted():
    seen = []

    def first(x):
        seen.append(len(x))
        return student(x)

    vars(first).update(vars(student))
    pair = served(student=first, teacher=lambda x: np.ones((len(x), 3)))
    app = build_app(pair, warm_up=True)
    assert seen == [1, 1, 64]
    with TestClient(app) as client:
        assert 'ebjr_rows_total{model="joint"} 0.0' in client.get("/metrics").text

"""A served student with its teacher in another process that fails in every way there is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from urllib.request import Request, urlopen

import numpy as np
import pytest
from far import teach
from small import running
from tiny import write_pair

from ebjr import (
    FarTeacher,
    JointClassifier,
    LateAnswers,
    Link,
    Router,
    TeacherUnavailable,
    load_model,
)
from ebjr.errors import OutputWarning
from ebjr.link.far import MANY

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
pytest.importorskip("stamina", reason="the extra `remote` is not installed")

from starlette.testclient import TestClient

from ebjr.serving.app import Served, build_app
from ebjr.serving.engine import Engine
from ebjr.serving.explain import explain
from ebjr.serving.served import served_alone


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine's disk may take a while."""
    monkeypatch.setattr("ebjr.link.late.PATIENCE_SECONDS", 20.0)


HARD, EASY = [0.5, 0.0], [5.0, 0.0]
QUICK = Link(retries=1, failures=2, probe_seconds=0.1, retry_seconds=0.2)


def student(x):
    return np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)


student.input_shape = (None, 2)
student.input_name = "x"
student.input_dtype = np.float32


def joint_of(far, link=QUICK, seconds=0.3, **how) -> JointClassifier:
    teacher = FarTeacher(load_model(far.url, timeout_seconds=seconds), link)
    return JointClassifier(student, teacher, Router("max_logit", 1.0), **how)


@pytest.mark.parametrize(
    "behavior",
    [
        *("hung", "drip", "error", "busy", "garbage", "page", "cut", "missing", "refuse"),
        *("classes", "rows", "fewer", "text", "version"),
        *("head", "nan", "infinity", "bool", "absurd"),
    ],
)
def test_a_teacher_that_fails_fails_no_request_and_every_row_is_marked(far, behavior):
    with Engine(joint_of(far)) as engine:
        far.behave(behavior)
        for _ in range(4):
            x = np.array([HARD, EASY], np.float32)
            answer = engine.ask(x).result(30).answer
            assert answer.degraded.tolist() == [True, False]
            assert not answer.deferred.any()
            np.testing.assert_array_equal(answer.output, student(x))
        far.behave("right")
        until = time.monotonic() + 5
        while True:
            found = engine.ask(np.array([HARD], np.float32)).result(30).answer
            if found.deferred[0]:
                break
            assert time.monotonic() < until, f"it did not recover from {behavior}"
            time.sleep(0.02)
        np.testing.assert_array_equal(found.output, teach(np.array([HARD])))


def test_a_slow_teacher_is_waited_for(far):
    far.behave("slow")
    with Engine(joint_of(far, seconds=5.0)) as engine:
        answer = engine.ask(np.array([HARD], np.float32)).result(30).answer
    assert answer.deferred.tolist() == [True]


def test_a_cloud_unplugged_under_load_fails_no_request_and_is_back_within_seconds(far):
    rows: list[tuple[float, bool, bool, bool]] = []
    failed, stop = [], threading.Event()
    lock = threading.Lock()

    def ask(engine, seed):
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            x = rng.uniform(0.1, 2.0, (2, 2)).astype(np.float32)
            try:
                answer = engine.ask(x).result(30).answer
            except Exception as error:
                failed.append(error)
                return
            right = [
                np.array_equal(
                    answer.output[row], (teach if late else student)(x[row : row + 1])[0]
                )
                for row, late in enumerate(answer.deferred)
            ]
            with lock:
                rows.extend(
                    zip(
                        [time.monotonic()] * 2,
                        answer.score < 1.0,
                        answer.degraded,
                        right,
                        strict=True,
                    )
                )
            time.sleep(0.002)

    with Engine(joint_of(far)) as engine:
        askers = [threading.Thread(target=ask, args=(engine, seed)) for seed in range(8)]
        for asker in askers:
            asker.start()
        time.sleep(0.5)
        far.kill()
        unplugged = time.monotonic()
        time.sleep(1.5)
        far.start()
        back = time.monotonic()
        while time.monotonic() < back + 5:
            time.sleep(0.05)
            with lock:
                recovered = any(at > back and hard and not worse for at, hard, worse, _ in rows)
            if recovered:
                break
        time.sleep(0.3)
        stop.set()
        for asker in askers:
            asker.join()
    assert not failed
    assert recovered, "it was not asked again within 5 s of its return"
    assert all(right for *_, right in rows)
    during = [row for row in rows if unplugged + 0.5 < row[0] < back]
    assert sum(hard for _, hard, _, _ in during) > 20
    assert all(bool(worse) == bool(hard) for _, hard, worse, _ in during)
    assert not any(worse for at, _, worse, _ in rows if at < unplugged)


def request(*rows) -> dict:
    tensor = {
        "name": "x",
        "shape": [len(rows), 2],
        "datatype": "FP32",
        "data": [list(r) for r in rows],
    }
    return {"inputs": [tensor]}


def outputs(message: dict) -> dict:
    return {output["name"]: output["data"] for output in message["outputs"]}


def test_a_late_answer_is_fetched_over_http(far, tmp_path):
    late = LateAnswers(tmp_path / "late.sqlite")
    joint = joint_of(far, when_unavailable="queue", late=late)
    with TestClient(build_app(Served(joint))) as client:
        far.behave("error")
        message = client.post("/v2/models/joint/infer", json=request(HARD, EASY)).json()
        assert outputs(message)["degraded"] == [True, False]
        where = f"/v1/late/{message['parameters']['late']}"
        waiting = client.get(where)
        assert (waiting.status_code, waiting.json()["waiting"]) == (202, [0])
        assert waiting.headers["Retry-After"]
        far.behave("right")
        until = time.monotonic() + 10
        while (answer := client.get(where)).status_code == 202:
            assert time.monotonic() < until
            time.sleep(0.02)
        found = answer.json()
        assert (found["waiting"], found["errors"]) == ([], {})
        assert outputs(found)["row"] == [0]
        assert outputs(found)["prediction"] == [2]
        np.testing.assert_array_equal(outputs(found)["output"], teach(np.array([HARD]))[0])
        missing = client.get("/v1/late/nothing")
        assert (missing.status_code, "nothing is kept" in missing.json()["error"]) == (404, True)
        fine = client.post("/v2/models/joint/infer", json=request(HARD)).json()
        assert "late" not in fine["parameters"]
        shown = client.get("/metrics").text
        assert 'ebjr_late_rows{model="joint"} 0.0' in shown
        assert 'ebjr_teacher_away{model="joint"} 0.0' in shown
    late.close()


def test_a_queue_that_cannot_be_read_is_a_503_and_holds_up_no_request(far, tmp_path):
    late = LateAnswers(tmp_path / "late.sqlite")
    joint = joint_of(far, when_unavailable="queue", late=late)
    with (
        TestClient(build_app(Served(joint))) as client,
        closing(sqlite3.connect(late.path)) as base,
    ):
        far.behave("error")
        client.post("/v2/models/joint/infer", json=request(HARD))
        base.execute("ALTER TABLE rows RENAME TO other")
        found = client.get("/v1/late/1")
        assert (found.status_code, "cannot be read now" in found.json()["error"]) == (
            503,
            True,
        )
        answer = client.post("/v2/models/joint/infer", json=request(HARD)).json()
        assert outputs(answer)["degraded"] == [True]
        assert "late" not in answer["parameters"]
        assert client.get("/v1/status").json()["far_teacher"]["late_rows"] == 1
    late.close()


@pytest.mark.parametrize("behavior", ["nan", "bool", "error"])
def test_what_both_models_say_names_what_is_wrong_with_the_teacher(far, behavior):
    joint = joint_of(far)
    far.behave(behavior)
    found = explain(joint, np.array([HARD], np.float32), threshold=1.0)
    assert "teacher" in found["teacher"]["error"]
    assert (found["deferred"], found["degraded"]) == (False, True)
    assert found["answer"]["prediction"] == found["student"]["prediction"] == 0


def test_without_a_queue_there_are_no_late_answers(far):
    with TestClient(build_app(Served(joint_of(far)))) as client:
        answer = client.get("/v1/late/1")
    assert (answer.status_code, "when_unavailable" in answer.json()["error"]) == (404, True)


def test_a_deadline_keeps_its_rows_for_later_too(far, tmp_path):
    late = LateAnswers(tmp_path / "late.sqlite")
    joint = joint_of(far, seconds=5.0, when_unavailable="queue", late=late)
    with TestClient(build_app(Served(joint))) as client:
        far.behave("hung")
        message = {**request(HARD, EASY), "parameters": {"timeout_seconds": 0.2}}
        answer = client.post("/v2/models/joint/infer", json=message).json()
        far.behave("right")
        assert outputs(answer)["degraded"] == [True, False]
        where = f"/v1/late/{answer['parameters']['late']}"
        until = time.monotonic() + 10
        while (found := client.get(where)).status_code == 202:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert outputs(found.json())["row"] == [0]
    late.close()


def post(url: str, message: dict) -> dict:
    body = json.dumps(message).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=20) as answer:
        return json.load(answer)


class Edge:
    """`ebjr serve` in a process of its own."""

    def __init__(self, path):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ebjr", "serve", str(path), "--port", "0", "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        line = self._process.stdout.readline()
        self.url = line.split(" at ")[1].strip()

    def end(self, how):
        self._process.send_signal(how)
        self._process.communicate(timeout=30)


@pytest.fixture
def pair(far, tmp_path):
    """A joint.toml with the student on disk and the teacher far away, and what the teacher says."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper

    from ebjr import save_joint

    weight = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["logits"])],
        "student",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "student.onnx"))
    late = LateAnswers(tmp_path / "late.sqlite")
    joint = JointClassifier(
        load_model(tmp_path / "student.onnx"),
        FarTeacher(load_model(far.url, timeout_seconds=0.5), QUICK),
        Router("max_logit", 1.0),
        when_unavailable="queue",
        late=late,
    )
    save_joint(tmp_path / "joint.toml", joint)
    late.close()
    return tmp_path / "joint.toml"


def test_an_edge_server_starts_without_its_cloud_and_killed_forgets_no_row_it_promised(far, pair):
    far.kill()
    edge, ids = Edge(pair), {}
    try:
        rng = np.random.default_rng(0)
        for _ in range(30):
            row = rng.uniform(0.1, 0.9, 2).astype(np.float32).tolist()
            message = post(f"{edge.url}/v2/models/joint/infer", request(row))
            assert outputs(message)["degraded"] == [True]
            if "late" in message["parameters"]:  # a busy disk may miss one
                ids[message["parameters"]["late"]] = row
        assert len(ids) > 20
    finally:
        edge.end(signal.SIGKILL)
    edge = Edge(pair)
    try:
        url = f"{edge.url}/v2/models/joint/infer"
        assert outputs(post(url, request(HARD)))["degraded"] == [True]
        far.start()
        until = time.monotonic() + 5
        while outputs(post(url, request(HARD)))["degraded"] != [False]:
            assert time.monotonic() < until, "it did not find the cloud"
            time.sleep(0.05)
        until = time.monotonic() + 20
        for id, row in ids.items():
            while True:
                with urlopen(f"{edge.url}/v1/late/{id}", timeout=20) as answer:
                    status, found = answer.status, json.load(answer)
                if status == 200:
                    break
                assert time.monotonic() < until
                time.sleep(0.05)
            expected = teach(np.array([row], np.float32))[0]
            np.testing.assert_allclose(outputs(found)["output"], expected, rtol=1e-6)
    finally:
        edge.end(signal.SIGTERM)


def test_a_classifier_alone_of_tensors_is_sent_tensors(tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    _, path = write_pair(tmp_path)
    pixels = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    with running(build_app(served_alone(path, threads=1))) as (host, port):
        remote = load_model(f"http://{host}:{port}")
        assert (remote.input_name, remote.send) == ("image", "tensor")
        np.testing.assert_allclose(remote(pixels), load_model(path)(pixels), rtol=1e-5)


POISON = [0.5, 1.0]


def picky(x):
    if (x[:, 1] > 0).any():
        raise ZeroDivisionError("poison")
    return teach(x)


picky.input_shape, picky.input_name, picky.input_dtype = (None, 2), "x", np.float32


@pytest.fixture
def picky_cloud():
    """An EBJR server of a model that raises on some rows: its address."""
    every = Router("max_logit", float(np.finfo(np.float64).min))
    with running(build_app(Served(JointClassifier(picky, picky, every)))) as (host, port):
        yield f"http://{host}:{port}"


PATIENT = Link(retries=0, failures=2, probe_seconds=20.0)


@pytest.mark.parametrize("policy", ["student", "error"])
def test_a_row_that_a_far_model_raises_on_keeps_no_other_row_from_it(picky_cloud, policy):
    teacher = FarTeacher(load_model(picky_cloud, timeout_seconds=20.0), PATIENT)
    joint = JointClassifier(student, teacher, Router("max_logit", 1.0), when_unavailable=policy)
    with Engine(joint, max_wait_seconds=0.3) as engine:
        for _ in range(4):
            asked = {
                name: engine.ask(np.array([row], np.float32))
                for name, row in (("poison", POISON), ("good", HARD), ("more", [0.25, 0.0]))
            }
            assert asked["good"].result(60).result().deferred.tolist() == [True]
            assert asked["more"].result(60).result().deferred.tolist() == [True]
            if policy == "student":
                assert asked["poison"].result(60).result().degraded.tolist() == [True]
            else:
                with pytest.raises(TeacherUnavailable, match="failed on a batch: ZeroDivision"):
                    asked["poison"].result(60)
        assert teacher.state == "closed"
    teacher.close()


def test_a_kept_row_that_a_far_model_raises_on_holds_up_no_other(picky_cloud, tmp_path):
    late = LateAnswers(tmp_path / "late.sqlite")
    teacher = FarTeacher(load_model(picky_cloud, timeout_seconds=20.0), PATIENT)
    how = {"when_unavailable": "queue", "late": late}
    joint = JointClassifier(student, teacher, Router("max_logit", 1.0), **how)
    x = np.array([HARD, POISON, [0.25, 0.0]], np.float32)
    with pytest.warns(OutputWarning, match="failed on a batch: ZeroDivisionError"):
        answer = joint(x)
    assert answer.degraded.all()
    assert late.deliver(joint) == 2
    found = late.find(answer.late, joint)
    assert (found.rows.tolist(), found.waiting, found.errors) == ([0, 2], (1,), {})
    for _ in range(MANY):
        late.deliver(joint)
    found = late.find(answer.late, joint)
    assert (found.waiting, list(found.errors)) == ((), [1])
    assert "ZeroDivisionError: poison" in found.errors[1]
    alone = joint(x[1:2])
    for _ in range(2 * MANY):  # no row at all is answered: that may be the server's fault
        late.deliver(joint)
    assert late.find(alone.late, joint).waiting == (0,)
    assert teacher.state == "half-open"
    teacher(x[:1])
    assert teacher.state == "closed"
    teacher.close()
    late.close()

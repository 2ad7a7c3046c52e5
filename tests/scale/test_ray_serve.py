"""Ray Serve: the server's routes and answers from any number of replicas, whatever dies."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebjr import JointConfig, load_joint
from ebjr.data.open import open_data
from ebjr.joint_file import ModelEntry
from ebjr.protocol import (
    LENGTH_HEADER,
    InferRequest,
    RequestedOutput,
    read_response,
    write_request,
)

pytest.importorskip("ray", reason="the extra `scale` is not installed")

import ray
from cluster import inputs, write_joint, write_stages
from ray import serve
from tiny import write_coco, write_detectors

from ebjr.scale import app, build_app
from ebjr.scale.ray_serve import SharedKnob

pytestmark = pytest.mark.ray
STUDENT = {
    "num_replicas": 2,
    "ray_actor_options": {"num_cpus": 0, "resources": {"student": 1}},
    "graceful_shutdown_timeout_s": 20,
}
TEACHER = {
    "autoscaling_config": {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 0.5,
        "upscale_delay_s": 0.0,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 0.5,
    },
    "ray_actor_options": {"num_cpus": 0, "resources": {"teacher": 1}},
    "graceful_shutdown_timeout_s": 20,
}


BOXES = ("boxes", "labels", "scores", "count", "score", "deferred", "degraded")
WANTED = ("prediction", "output", "score", "deferred", "degraded", "stage")


class Server:
    """The application at a port of its own."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        # all nodes are this machine: a proxy on each would share the port
        serve.start("HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
        self._runs: Any = None

    def run(self, joint: Path) -> None:
        """Make it the joint model that runs, unless it is."""
        if self._runs != joint:
            self._runs = None
            serve.run(build_app(joint, student=STUDENT, teacher=TEACHER, threads=1))
            self._runs = joint

    def call(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str):
        url = f"http://127.0.0.1:{self.port}{path}"
        asked = urllib.request.Request(url, body, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def infer(self, rows: np.ndarray, name: str = "x", wanted: Any = WANTED) -> Any:
        """The outputs for some rows of the tensor of that name."""
        wanted = tuple(RequestedOutput(one, True) for one in wanted)
        body, length = write_request(InferRequest({name: rows}, wanted))
        status, found, headers = self.call(
            "/v2/models/joint/infer", body, **{LENGTH_HEADER: str(length)}
        )
        assert status == 200, found
        return read_response(found, headers[LENGTH_HEADER]).outputs

    @contextmanager
    def load(self, data: np.ndarray, clients: int = 4) -> Iterator[list[Any]]:
        """Ask all the time, 16 rows a request, as long as the block lasts: (rows, outputs)."""
        ended = threading.Event()
        answered: list[Any] = []

        def ask(client: int) -> None:
            random = np.random.default_rng(client)
            while not ended.is_set():
                rows = random.integers(0, len(data), 16)
                answered.append((rows, self.infer(data[rows])))

        with ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(ask, client) for client in range(clients)]
            try:
                yield answered
            finally:
                ended.set()
        for future in futures:
            future.result()  # no request has failed


@pytest.fixture(scope="module")
def far(nodes) -> list[Any]:
    return [nodes.add(teacher=1, student=1), nodes.add(teacher=1)]


@pytest.fixture(scope="module")
def server(nodes, far) -> Iterator[Server]:
    server = Server()
    yield server
    serve.shutdown()


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> Path:
    return write_joint(tmp_path_factory.mktemp("serve"))


@pytest.fixture
def pair(server, joint) -> Server:
    """The application with two students, and as many teachers as it takes."""
    server.run(joint)
    return server


@pytest.fixture
def knob(pair) -> Iterator[dict[str, Any]]:
    """What the knob says; it is put back."""
    before = json.loads(pair.call("/v1/router")[1])
    yield before
    back = json.dumps({"threshold": before["threshold"]}).encode()
    assert pair.call("/v1/router", back, "PUT")[0] == 200


def wait_for(true: Any, seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.2)


def replicas(deployment: str) -> list[str]:
    """The names of a deployment's actors."""
    named = ray.util.list_named_actors(all_namespaces=True)
    found = [actor["name"] for actor in named if actor["namespace"] == "serve"]
    return [name for name in found if f"#{deployment}#" in name]


def kill_one(deployment: str) -> None:
    """End a replica's process as the kernel would."""
    ray.kill(ray.get_actor(replicas(deployment)[0], namespace="serve"))


def check_all(server: Server, joint: Path) -> None:
    """Ten thousand rows are answered as by the local model."""
    data = inputs()
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(server.infer, np.array_split(data, 100)))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    local = load_joint(joint)(data)
    np.testing.assert_array_equal(found["prediction"], local.prediction)
    np.testing.assert_array_equal(found["deferred"], local.deferred)
    np.testing.assert_allclose(found["output"], local.output, rtol=1e-4, atol=1e-5)
    assert not found["degraded"].any()


def test_teachers_scale_with_their_queue_and_however_many_answer_as_the_local_model(pair, joint):
    assert [len(replicas(name)) for name in ("Student", "Teacher")] == [2, 1]
    check_all(pair, joint)
    with pair.load(inputs(500), clients=8):
        wait_for(lambda: len(replicas("Teacher")) == 2)
    check_all(pair, joint)


def test_the_students_of_three_stages_hold_the_first_two_models(server, tmp_path_factory):
    stages = write_stages(tmp_path_factory.mktemp("stages"))
    server.run(stages)
    found, local = server.infer(inputs(500)), load_joint(stages)(inputs(500))
    for name in ("prediction", "deferred", "degraded", "stage"):
        np.testing.assert_array_equal(found[name], getattr(local, name))
    assert set(local.stage.tolist()) == {0, 1, 2}


def test_routes_and_mistakes_are_those_of_the_server(pair, joint):
    from starlette.testclient import TestClient

    from ebjr.serving.app import build_app as build_server
    from ebjr.serving.served import served_of

    bodies = [b"{", b'{"inputs": []}', b'{"inputs": [{"name": "y"}]}']
    with TestClient(build_server(served_of(JointConfig.read(joint)))) as local:
        for path in ("/v2", "/v2/models/joint", "/v2/models/other", "/v2/health/ready"):
            status, body, _ = pair.call(path)
            known = local.get(path)
            assert (status, json.loads(body)) == (known.status_code, known.json())
        for bad in bodies:
            status, body, _ = pair.call("/v2/models/joint/infer", bad)
            known = local.post("/v2/models/joint/infer", content=bad)
            assert (status, json.loads(body)) == (known.status_code, known.json())
            assert status == 400
        known = local.get("/v1/router").json()
    found = json.loads(pair.call("/v1/router")[1])
    assert found == {**known, "version": found["version"]}


def test_the_knob_moves_for_all_replicas_at_once(pair, knob):
    data = inputs(64)
    states = [json.loads(pair.call("/v1/router")[1]) for _ in range(8)]
    assert all(state == knob for state in states)
    for version, (wish, value) in enumerate(
        [("threshold", 1e9), ("operating_point", "careful"), ("threshold", 1e-9)],
        knob["version"] + 1,
    ):
        body = json.dumps({wish: value}).encode()
        status, moved, _ = pair.call("/v1/router", body, "PUT")
        assert (status, json.loads(moved)["version"]) == (200, version)
        states = [json.loads(pair.call("/v1/router")[1]) for _ in range(8)]
        assert all(state == states[0] for state in states)
        shares = [pair.infer(data)["deferred"].mean() for _ in range(6)]
        assert len(set(shares)) == 1
    assert shares == [0.0] * 6
    status, said, _ = pair.call("/v1/router", b'{"threshold": "nan"}', "PUT")
    assert (status, "threshold must be a number" in said.decode()) == (400, True)


def test_a_killed_knob_is_replaced_by_one_that_knows_what_it_knew(pair, knob):
    (old,) = replicas("Knob")
    kill_one("Knob")
    status, said, _ = pair.call("/v1/router", b'{"threshold": 0.25}', "PUT")
    assert status == 200 or (status == 503 and b"the knob cannot be reached" in said)
    wait_for(lambda: replicas("Knob") not in ([], [old]))

    def moved() -> bool:
        return pair.call("/v1/router", b'{"threshold": 0.5}', "PUT")[0] == 200

    wait_for(moved)
    states = [json.loads(pair.call("/v1/router")[1]) for _ in range(8)]
    assert all(state == states[0] for state in states)
    assert states[0]["threshold"] == 0.5
    assert states[0]["version"] > knob["version"]


@pytest.mark.parametrize("known", [1, 2, 5])
def test_what_a_new_knob_was_told_holds_over_what_a_student_knows_of_the_lost_one(known):
    async def told() -> tuple[int, float]:
        knob = SharedKnob(1.0, "epoch")
        assert await knob.move(0.5, known=0, students=0) == 1
        return await knob.watch("epoch", "student", known, 0.25)

    assert asyncio.run(told()) == (known + 1, 0.5)


def test_a_move_ends_when_as_many_students_know_it_as_there_are():
    async def order() -> list[str]:
        knob, ended = SharedKnob(1.0, "epoch"), []

        async def watch(student: str, epoch: str = "epoch") -> None:
            version, threshold = await knob.watch(epoch, student, 0, 1.0)
            ended.append(f"{student} is told {threshold:g}")
            await knob.watch(epoch, student, version, threshold)

        async def move() -> None:
            await knob.move(0.5, known=0, students=3)
            ended.append("moved")

        tasks = [asyncio.create_task(watch("one")), asyncio.create_task(move())]
        tasks += [asyncio.create_task(watch("of another calibration", "other"))]
        await asyncio.sleep(0.2)
        assert ended == ["one is told 0.5"]
        tasks += [asyncio.create_task(watch("two"))]
        await asyncio.wait(tasks, timeout=0.5)
        for task in tasks:
            task.cancel()
        return ended

    assert asyncio.run(order()) == ["one is told 0.5", "two is told 0.5", "moved"]


def test_metrics_are_in_rays_endpoint_under_the_same_names(pair):
    pair.infer(inputs(32))
    names = ("rows_total", "deferred_rows_total", "requests_total", "threshold")
    buckets = ("batch_rows", "batch_seconds", "request_seconds", "score", "wait_seconds")
    expected = {f"ray_ebjr_{name}" for name in (*names, *(f"{name}_bucket" for name in buckets))}

    def exported() -> set[str]:
        found = set()
        for node in ray.nodes():
            if node["Alive"]:
                address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with urllib.request.urlopen(address, timeout=10) as answer:
                    lines = answer.read().decode().splitlines()
                found |= {line.split("{")[0] for line in lines if line.startswith("ray_ebjr_")}
        return found

    wait_for(lambda: expected <= exported())


def test_a_killed_node_fails_no_request_and_a_lost_teacher_degrades(pair, joint, nodes, far):
    data = inputs(500)
    assert len(replicas("Student")) == 2
    local = load_joint(joint)(data)
    student = local.score >= load_joint(joint).router.threshold
    with pair.load(data, clients=8) as answered:
        wait_for(lambda: len(answered) > 20)
        nodes.kill(far[0])  # with a student and a teacher
        reached = len(answered)
        wait_for(lambda: len(answered) > reached + 40)
        nodes.kill(far[1])
        wait_for(lambda: answered[-1][1]["degraded"].any())
        nodes.add(teacher=2, student=1)
        wait_for(lambda: answered[-1][1]["deferred"].any())
        wait_for(lambda: len(replicas("Student")) == 2)
        kill_one("Student")
        reached = len(answered)
        wait_for(lambda: len(answered) > reached + 40)
    for rows, outputs in answered:
        asked = outputs["deferred"] | outputs["degraded"]
        np.testing.assert_array_equal(asked, ~student[rows])
        right = ~outputs["degraded"]
        np.testing.assert_array_equal(outputs["prediction"][right], local.prediction[rows][right])
    check_all(pair, joint)


def test_a_new_teacher_comes_without_a_failed_request(pair, joint, tmp_path):
    data = inputs(500)
    newer = write_joint(tmp_path, teacher_seed=5)
    before, after = load_joint(joint)(data), load_joint(newer)(data)
    assert (before.prediction != after.prediction).any()
    with pair.load(data) as answered:
        wait_for(lambda: len(answered) > 10)
        pair.run(newer)
        settled = len(answered)
        wait_for(lambda: len(answered) > settled + 20)
    assert not any(outputs["degraded"].any() for _, outputs in answered)
    for rows, outputs in answered[settled + 10 :]:
        np.testing.assert_array_equal(outputs["prediction"], after.prediction[rows])


def test_detectors_find_the_boxes_of_the_local_model(server, tmp_path):
    layout = {"layout": "detr", "classes": 3}
    entries = [ModelEntry.of_file(path, options=layout) for path in write_detectors(tmp_path)]
    data = open_data(write_coco(tmp_path, 40))
    pictures = data.take(range(40))[0].inputs
    config = JointConfig(*entries, score="max_confidence", threshold=0.6, task="detection")
    middle = float(np.median(config.load()(pictures).score))
    joint = tmp_path / "joint.toml"
    replace(config, threshold=middle).save(joint)
    local = load_joint(joint)(pictures)
    assert 10 < local.deferred.sum() < 30
    server.run(joint)
    files = [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda file: server.infer(np.array([file], object), "image", BOXES), files)
        )
    for outputs, boxes, deferred in zip(found, local.prediction, local.deferred, strict=True):
        assert (outputs["deferred"], outputs["degraded"]) == (deferred, False)
        assert outputs["labels"].tolist() == boxes.labels.tolist()
        np.testing.assert_allclose(outputs["boxes"], boxes.boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(outputs["scores"], boxes.scores, rtol=1e-5, atol=1e-6)


def test_what_serve_run_is_given_is_checked(joint, tmp_path):
    assert app({"joint": str(joint), "student_batch": "32"}) is not None
    for args, words in [
        ({}, "joint must be among them"),
        ({"joint": str(joint), "batch": 3}, "not 'batch'"),
        ({"joint": str(joint), "teacher_calls": 0}, "teacher_calls must be at least 1"),
        (
            {"joint": str(joint), "when_unavailable": "wait"},
            "when_unavailable must be student or error",
        ),
        (
            {"joint": str(joint), "teacher_wait_seconds": 30},
            r"teacher_wait_seconds must be at least 0 and below teacher_timeout_seconds \(10\)",
        ),
        (
            {"joint": str(joint), "teacher": {"autoscaling_config": {"max_replicas": 0}}},
            "max_replicas",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            app(args)
    with pytest.raises(FileNotFoundError, match="ebjr calibrate"):
        app({"joint": str(tmp_path / "none.toml")})

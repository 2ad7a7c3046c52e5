"""A real process: drains at SIGTERM, is whole after SIGKILL, and logs what it does."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from small import NAME, request
from tiny import write_joint

from ebjr import JointConfig

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx2", reason="httpx2 is not installed")

SERVER = """
import json, sys, time
import numpy as np
from ebjr import JointClassifier, Router
from ebjr.serving.app import Served, run_server

about = json.loads(sys.argv[1])

def student(x):
    return np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)

def teacher(x):
    time.sleep(about.pop("teacher_seconds", 0))
    if about.get("broken"):
        raise ValueError("the teacher is broken")
    return -student(x)

student.input_shape, student.input_name, student.input_dtype = (None, 2), "x", np.float32
joint = JointClassifier(student, teacher, Router("max_logit", 1.0))
served = Served(joint, score_quantiles=tuple(np.linspace(0, 10, 101)))
options = {key: about[key] for key in about if key not in ("teacher_seconds", "broken")}
options.setdefault("port", 0)
options.setdefault("no_warm_up", True)  # whose teacher may be slow or broken once
run_server(served, started=lambda url: print(url, flush=True), **options)
"""


@contextmanager
def server(**about):
    """A server in a process of its own: the process and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, json.dumps(about)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_sigterm_answers_what_was_asked_and_takes_nothing_more():
    found = []
    with server(teacher_seconds=1.5) as (process, url), httpx.Client(base_url=url) as client:
        client.get("/v2/health/ready")

        def ask() -> None:
            answer = httpx.post(f"{url}{NAME}/infer", json=request(), timeout=60)
            outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
            found.append((answer.status_code, outputs["deferred"], outputs["degraded"]))

        callers = [threading.Thread(target=ask) for _ in range(8)]
        for caller in callers:
            caller.start()
        while "ebjr_rows_total{" not in (text := client.get("/metrics").text) or (
            float(re.search(r"ebjr_rows_total\{.*\} (\S+)", text)[1]) < 16
        ):
            time.sleep(0.01)
        client.close()
        process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join()
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/v2/health/live")
    assert found == [(200, [True, False], [False, False])] * 8


def test_a_server_that_stops_says_what_it_waits_for():
    with server(teacher_seconds=8) as (process, url), httpx.Client(base_url=url) as client:
        asked = threading.Thread(
            target=lambda: httpx.post(f"{url}{NAME}/infer", json=request(), timeout=60)
        )
        asked.start()
        while not re.search(r"ebjr_rows_total\{.*\} 2", client.get("/metrics").text):
            time.sleep(0.01)
        client.close()
        process.send_signal(signal.SIGTERM)
        asked.join()
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert (
            "the server stops: it takes no new requests, and answers the open ones first (1)"
            in (process.stderr.read())
        )


def refused(**about):
    """What a server that does not start says last."""
    given = [sys.executable, "-c", SERVER, json.dumps(about)]
    return subprocess.run(given, capture_output=True, text=True).stderr.splitlines()[-1]


def test_a_taken_port_is_named_with_the_option_that_changes_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("port", "grpc_port"):
            option = name.replace("_", "-")
            assert refused(**{name: port}).endswith(
                f"cannot listen at 127.0.0.1:{port} (Address already in use): choose another with "
                f"--{option}"
            )
    assert refused(host="nowhere.invalid").endswith("choose another with --host")


def test_http_and_grpc_cannot_share_a_port():
    words = "--port and --grpc-port must differ, but both are 18941"
    assert refused(port=18941, grpc_port=18941) == f"ValueError: {words}"


def test_after_a_sigkill_the_audit_log_has_every_move_that_was_acknowledged(tmp_path):
    path = tmp_path / "audit.jsonl"
    told = []
    with server(audit_log=str(path)) as (process, url), httpx.Client(base_url=url) as client:
        killer = threading.Timer(0.5, process.kill)
        killer.start()
        try:
            for number in range(10**6):
                client.put("/v1/router", json={"threshold": number / 1000}).raise_for_status()
                told.append(number / 1000)
        except httpx.TransportError:
            pass
        killer.join()
        process.wait(30)
    with path.open("ab") as file:
        file.write(b'{"time": "2026-')  # as if the last write had been cut off
    with server(audit_log=str(path)) as (process, url):
        router = httpx.put(f"{url}/v1/router", json={"threshold": 7.5}).json()
        assert router["threshold"] == 7.5
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    moves = [entry["to"] for entry in entries if entry["who"] == "127.0.0.1"]
    assert len(told) > 3
    assert moves[: len(told)] == told
    assert len(moves) <= len(told) + 2
    assert moves[-1] == 7.5
    assert [entry["who"] for entry in entries].count("journal") == 1


def test_json_logs_have_a_line_for_each_request_with_its_id():
    with server(log="json", broken=True) as (process, url), httpx.Client(base_url=url) as client:
        kept = request([(5.0, 0.0), (4.0, 0.0)], threshold=2.0)
        sane = client.post(f"{NAME}/infer", json=kept, headers={"X-Request-Id": "abc-1"})
        hard = client.post(f"{NAME}/infer", json=request(), headers={"X-Request-Id": "abc-2"})
        other = client.get("/v2", headers={"X-Request-Id": 'no "quotes"\tplease'})
        moved = client.put("/v1/router", json={"threshold": 3}, headers={"X-Request-Id": "mover"})
        client.close()
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert sane.headers["X-Request-Id"] == "abc-1"
    made = other.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    requests = {line["request"]: line for line in lines if "status" in line}
    assert set(requests) == {"abc-1", "abc-2", made, "mover"}
    assert [requests[name]["status"] for name in ("abc-1", "abc-2", "mover")] == [200, 200, 200]
    assert [answer.status_code for answer in (sane, hard, moved)] == [200, 200, 200]
    line = requests["abc-1"]
    assert line["message"] == f"POST {NAME}/infer"
    assert [line[key] for key in ("rows", "deferred", "threshold")] == [2, 0, 2.0]
    (move,) = [line for line in lines if "the knob was moved" in line["message"]]
    assert (move["request"], move["level"]) == ("mover", "info")
    (fault,) = [line for line in lines if line["level"] == "error"]
    assert "teacher failed with ValueError: the teacher is broken" in fault["message"]


def test_logs_in_words_tell_of_moves_and_not_of_requests():
    with server() as (process, url), httpx.Client(base_url=url) as client:
        client.post(f"{NAME}/infer", json=request())
        client.put("/v1/router", json={"threshold": 3})
        client.close()
        process.send_signal(signal.SIGTERM)
        text = process.stderr.read()
    assert "INFO the knob was moved from 1 to 3 by 127.0.0.1: asked for threshold 3" in text
    assert "infer" not in text


@contextmanager
def served_file(*paths, **options):
    """`ebjr serve` of joint.toml files: the process and its address."""
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "ebjr", "serve", *map(str, paths), "--port", "0", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def until(found, seconds=20.0):
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def test_sighup_takes_over_what_the_file_says_now_without_a_failed_request(tmp_path):
    path = write_joint(tmp_path, tolerance=0.05, delta=0.1)
    config = JointConfig.read(path)
    failed, stop = [], threading.Event()
    with served_file(path) as (process, url), httpx.Client(base_url=url) as client:

        def router():
            return client.get("/v1/router").json()

        def ask():
            pixels = [[[[200, 30, 30]] * 8] * 8]
            tensor = {"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": pixels}
            while not stop.is_set():
                answer = httpx.post(f"{url}/v2/models/joint/infer", json={"inputs": [tensor]})
                if answer.status_code != 200:
                    failed.append(answer.text)

        asking = threading.Thread(target=ask)
        asking.start()
        before = router()
        points = {"fast": {**next(iter(config.operating_points.values())), "threshold": 0.4}}
        known = {**config.calibration, "outcomes": "another"}
        new = replace(config, threshold=0.55, operating_points=points, calibration=known)
        new.save(path)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: router()["threshold"] == 0.55)
        after = router()
        assert after["operating_points"] == {"fast": 0.4}
        assert (before["calibration"], after["calibration"]) == (
            config.calibration["outcomes"],
            "another",
        )
        assert until(lambda: client.get("/v1/status").json()["calibration"]["id"] == "another")
        assert client.put("/v1/router", json={"operating_point": "fast"}).status_code == 200
        document = client.get("/openapi.json").text
        assert "fast" in document
        assert "match-teacher" not in json.dumps(json.loads(document)["components"])

        replace(new, score="margin", threshold=0.1).save(path)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: router()["score"] == "margin")
        assert router()["threshold"] == 0.1
        path.write_text("threshold = ")
        process.send_signal(signal.SIGHUP)
        index = "/v2/repository/index"
        assert until(lambda: "not a TOML file" in client.post(index).text)
        assert router()["score"] == "margin"
        stop.set()
        asking.join()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert not failed
    assert "joint is served, version 1" in said
    assert "joint stays as it was: " in said
    assert "Traceback" not in said


def test_two_files_are_served_and_a_wrong_one_among_them_is_said_before_anything_is(tmp_path):
    first = write_joint(tmp_path / "a", tolerance=0.05)
    second = write_joint(tmp_path / "b", tolerance=0.05)
    command = [sys.executable, "-m", "ebjr", "serve", str(first), str(second), "--port", "0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "two models are called 'joint': give each its own name" in found.stderr
    assert "Traceback" not in found.stderr
    replace(JointConfig.read(second), name="second").save(second)
    with served_file(first, second) as (_, url), httpx.Client(base_url=url) as client:
        names = [one["name"] for one in client.post("/v2/repository/index").json()]
        assert names == ["joint", "second"]
        second.write_text("threshold = ")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "is not a TOML file" in " ".join(found.stderr.split())
    assert "serving" not in found.stdout


def test_sighup_finds_what_is_new_in_a_folder_and_what_has_gone(tmp_path):
    shop = tmp_path / "shop"
    write_joint(shop / "first", tolerance=0.05)
    with served_file(shop) as (process, url), httpx.Client(base_url=url) as client:

        def names():
            return [one["name"] for one in client.post("/v2/repository/index").json()]

        assert names() == ["first"]
        (shop / "first").rename(shop / "second")
        process.send_signal(signal.SIGHUP)
        assert until(lambda: names() == ["second"])
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()

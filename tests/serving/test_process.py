"""A real process: drains at SIGTERM, is whole after SIGKILL, and logs what it does."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from small import NAME, request

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
run_server(served, port=0, started=lambda url: print(url, flush=True), **options)
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

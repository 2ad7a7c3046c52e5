"""What a client repeats does not fill the log: a line of its kind now and then, with a count."""

from __future__ import annotations

import logging
import subprocess
import sys
from subprocess import PIPE

import pytest

from ebjr.serving import logs
from ebjr.serving.events import Failed
from ebjr.serving.logs import Faults, Quiet, request_line


@pytest.fixture
def lines(caplog):
    """What is logged, of which nothing has been said before."""
    caplog.set_level(logging.INFO, "ebjr.serving")
    quiet = next(one for one in logs.log.filters if isinstance(one, Quiet))
    quiet.told.clear()
    return lambda: [record.getMessage() for record in caplog.records]


def answered(status, path="/v1/router", method="PUT"):
    with request_line(method, path) as figures:
        figures["status"] = status


def test_of_refused_requests_one_line_each_while_is_written_and_the_others_are_counted(
    lines, monkeypatch
):
    monkeypatch.setattr(logs, "QUIET_SECONDS", 0.0)
    answered(403)
    monkeypatch.setattr(logs, "QUIET_SECONDS", 60.0)
    for number in range(5):
        answered(403, f"/{number}", f"M{number}")
        answered(400)
        answered("NOT_FOUND")
    quiet = next(one for one in logs.log.filters if isinstance(one, Quiet))
    for kind, (_, others) in quiet.told.items():
        quiet.told[kind] = 0.0, others
    answered(403)
    assert lines() == [
        "PUT /v1/router",
        "M0 /0",
        "PUT /v1/router",
        "PUT /v1/router",
        "PUT /v1/router (4 others since the last line)",
    ]


def test_of_answered_and_failed_requests_each_has_its_line(lines):
    for status in (200, 200, "OK", "OK", 503, 503, None, None):
        answered(status)
    assert len(lines()) == 8


def test_the_kinds_of_lines_are_few_whatever_clients_send(lines):
    quiet = next(one for one in logs.log.filters if isinstance(one, Quiet))
    for number in range(1000):
        answered(404, f"/{number}", f"METHOD{number}")
    assert len(quiet.told) == 1


def test_a_model_that_keeps_failing_has_a_line_for_each_stage_now_and_then(lines):
    one, other = Faults("one"), Faults("other")
    for _ in range(3):
        for faults in (one, other):
            for stage in ("student", "teacher"):
                faults.handlers[Failed](Failed(stage, ValueError("no")))
    assert sorted(lines()) == [
        "the student failed on a batch: ValueError: no",
        "the student failed on a batch: ValueError: no",
        "the teacher failed on a batch: ValueError: no",
        "the teacher failed on a batch: ValueError: no",
    ]


def test_lines_without_a_kind_are_limited_where_a_kind_is_given_for_them():
    quiet = Quiet("http")
    record = logging.makeLogRecord({"msg": "Invalid %s", "args": ("HTTP",)})
    assert [quiet.filter(record) for _ in range(3)] == [True, False, False]
    assert record.getMessage() == "Invalid HTTP"


def test_what_is_asked_all_day_is_at_debug_and_its_failures_are_not(lines, caplog):
    polled = ["/v2/health/live", "/v2/health/ready", "/v2/models/joint/ready", "/v1/status"]
    polled += ["/metrics", "/inference.GRPCInferenceService/ServerLive"]
    for path in polled:
        answered("OK" if "GRPC" in path else 200, path, "GET")
    assert lines() == []
    answered(503, "/v2/health/ready", "GET")
    for path in ("/v2/models/joint", "/inference.GRPCInferenceService/ModelInfer"):
        answered(200, path, "GET")
    assert len(lines()) == 3
    caplog.set_level(logging.DEBUG, "ebjr.serving")
    for path in polled:
        answered(200, path, "GET")
    assert len(lines()) == 3 + len(polled)
    assert {record.levelname for record in caplog.records[3:]} == {"DEBUG"}


FAR = """
import sys
import numpy as np
from ebjr import FarTeacher, Link, load_model
from ebjr.errors import TeacherUnavailable
from ebjr.serving.logs import start_logging

start_logging("words")
teacher = FarTeacher(load_model(sys.argv[1]), Link(retries=2, retry_seconds=30, failures=100))
print("loaded", flush=True)
sys.stdin.readline()
for _ in range(3):
    try:
        teacher(np.zeros((1, 2), np.float32))
    except TeacherUnavailable:
        pass
"""


def test_an_attempt_at_a_far_teacher_that_fails_is_told_with_host_and_reason_now_and_then(far):
    command = [sys.executable, "-c", FAR, far.url]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout.readline() == "loaded\n"
        far.behave("error")
        _, said = process.communicate("go\n", timeout=60)
    host = far.url.split("/")[2]
    (line,) = said.splitlines()  # of nine attempts
    assert f"INFO teacher at {host}, attempt 1 of 3: teacher at {host} answered" in line
    assert "status 500" in line

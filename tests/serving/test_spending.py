"""Tokens and dollars are counted by stage, and a model that falls silent raises an alarm."""

from __future__ import annotations

import logging
import re
import time

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from starlette.testclient import TestClient
from texts import Texts, served_texts

from ebjr.serving.app import build_app
from ebjr.serving.events import Asked, Batched
from ebjr.serving.spending import Spending

PATH = "/v1/chat/completions"


def ask(client, text):
    messages = [{"role": "user", "content": text}]
    return client.post(PATH, json={"model": "joint", "messages": messages})


def metrics(client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {
        re.sub('model="joint",?', "", name): float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def test_tokens_and_dollars_are_counted_by_stage():
    with TestClient(build_app(served_texts())) as client:
        for text in ("hello world", "abc", "hello again"):
            assert ask(client, text).status_code == 200
        found = metrics(client)
        status = client.get("/v1/status").json()["spending"]
    assert found['ebjr_tokens_total{direction="in",stage="student"}'] == 30
    assert found['ebjr_tokens_total{direction="out",stage="student"}'] == 3
    assert found['ebjr_tokens_total{direction="in",stage="teacher"}'] == 20
    assert found['ebjr_dollars_total{stage="student"}'] == pytest.approx(3e-6)
    assert found['ebjr_dollars_total{stage="teacher"}'] == pytest.approx(1e-3)
    assert found['ebjr_unpriced_rows_total{stage="teacher"}'] == 0
    assert status["teacher"] == {
        "tokens_in": 20.0,
        "tokens_out": 1.0,
        "dollars": 1e-3,
        "unpriced_rows": 0,
        "unanswered_rows": 0,
        "alarm": None,
    }


def test_dollars_that_are_not_known_are_no_dollars():
    teacher = Texts(-1.0, spent=(20.0, 1.0, np.nan))
    with TestClient(build_app(served_texts(teacher=teacher))) as client:
        assert ask(client, "abc").json()["ebjr"]["dollars"] is None
        found = metrics(client)
        status = client.get("/v1/status").json()["spending"]
    assert 'ebjr_dollars_total{stage="teacher"}' not in found
    assert found['ebjr_unpriced_rows_total{stage="teacher"}'] == 1
    assert status["teacher"]["dollars"] is None


def test_models_that_run_here_have_no_bill():
    with TestClient(build_app(served_texts(Texts(), Texts(-1.0)))) as client:
        ask(client, "abc")
        assert client.get("/v1/status").json()["spending"] == {}
        assert not [name for name in metrics(client) if "tokens" in name or "dollars" in name]


def test_what_audits_and_looks_cost_is_counted_apart():
    with TestClient(build_app(served_texts(), audit_rate=1.0)) as client:
        ask(client, "hello world")
        row = {"name": "input", "shape": [1], "datatype": "BYTES", "data": ["hello"]}
        assert client.post("/v1/both", json={"inputs": [row]}).status_code == 200
        for _ in range(2000):
            found = metrics(client)
            if found.get('ebjr_dollars_total{stage="audit"}'):
                break
            time.sleep(0.005)
    assert found['ebjr_dollars_total{stage="audit"}'] == pytest.approx(1e-3)
    assert found['ebjr_dollars_total{stage="both"}'] == pytest.approx(1.001e-3)


def test_a_model_that_falls_silent_raises_one_alarm_within_100_requests(caplog):
    loud = lambda batch: np.tile([0.0, 0.0, 9.0], (len(batch), 1))  # noqa: E731
    with TestClient(build_app(served_texts(teacher=loud))) as client:
        for _ in range(200):
            ask(client, "hello world")
        assert metrics(client)['ebjr_unanswered_alarm{stage="student"}'] == 0
        caplog.clear()
        for _ in range(100):
            ask(client, "silent")
        found = metrics(client)
        status = client.get("/v1/status").json()["spending"]["student"]
        ask(client, "silent")
        metrics(client)
    assert found['ebjr_unanswered_rows_total{stage="student"}'] == 100
    assert found['ebjr_unanswered_alarm{stage="student"}'] == 1
    assert "the student gave no usable answer" in status["alarm"]
    told = [r for r in caplog.records if r.levelno == logging.ERROR and "alarm" in r.getMessage()]
    assert len(told) == 1


def batch(rows: int) -> Batched:
    return Batched("student", rows, (), (), 0.0, 0.0)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.1])
def test_the_alarm_takes_100_requests_at_most_whatever_the_share(share):
    rng, spending, silent = np.random.default_rng(0), Spending(("student", "teacher")), 0
    while not spending.alarms()["student"]:
        missed = int(rng.random() < share)
        silent += missed
        if missed:
            spending.observe(Asked("student", 1, None))
        spending.observe(batch(1))
        assert silent <= 130 if share == 0.1 else silent <= 100


def test_now_and_then_a_row_without_an_answer_raises_none():
    rng, spending = np.random.default_rng(0), Spending(("student", "teacher"))
    for missed in rng.random(100_000) < 0.02:
        if missed:
            spending.observe(Asked("student", 1, None))
        spending.observe(batch(1))
        assert not spending.alarms()["student"]


def test_an_alarm_ends_once_the_model_answers_again(caplog):
    spending = Spending(("student", "teacher"))
    for _ in range(100):
        spending.observe(Asked("student", 1, None))
    assert spending.alarms() == {"student": 1.0, "teacher": 0.0}
    for _ in range(2000):
        spending.observe(batch(1))
    assert spending.alarms()["student"] == 0
    assert spending.status()["student"]["alarm"] is None
    assert "answers again" in caplog.text

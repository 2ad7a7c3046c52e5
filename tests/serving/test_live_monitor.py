"""The live monitor: alarms when the world has changed, keeps quiet when it has not, and resumes."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from ebjr import JointClassifier, JointConfig, JointRegressor, Router, TeacherUnavailable
from ebjr.backends.entry import ModelEntry
from ebjr.calibration.guarantee import Certificate
from ebjr.model import Answer
from ebjr.monitor import DriftMonitor
from ebjr.recalibration import recalibrate_audits
from ebjr.serving.engine import Engine
from ebjr.serving.events import Audited, Failed, Observer
from ebjr.serving.live_monitor import LiveMonitor
from ebjr.serving.served import Served

SECONDS = 30


def student(x):
    """Class 0, and as sure as x is large."""
    return np.stack([np.abs(x), -np.abs(x)], axis=1)


def teacher(x):
    """Class 0 where x is not negative."""
    return np.stack([x, -x], axis=1)


def served(teacher=teacher, *, tolerance=None, promise="harm", **calibration) -> Served:
    rng = np.random.default_rng(1)
    scores = np.abs(rng.normal(2, 1, 2000))
    about = {
        "drift": DriftMonitor(scores, threshold=0.5).reference,
        "disagreement": {"threshold": 0.5, "rows": 2000, "kept_and_contradicted": 20},
        **calibration,
    }
    figures = {"row": 7, "deferral_rate": 0.2, "observed": 0.006, "bound": 0.0099}
    certificate = None
    if tolerance is not None:
        known = {"threshold": 0.5, "naive_deferral_rate": 0.1, "test": "exact", "labeled": False}
        certificate = Certificate(promise, tolerance, 0.1, 2000, **figures, **known)
    joint = JointClassifier(student, teacher, Router("max_logit", 0.5))
    return Served(joint, calibration=about, certificate=certificate, calibration_id="abc")


def serve(about: Served, monitor: LiveMonitor, batches) -> None:
    """Answer batches one after the other, with every audit done."""
    with Engine(about.joint, observer=monitor, audit_rate=1.0) as engine:
        for x in batches:
            engine.ask(x).result(SECONDS)
            audited(engine)
    monitor.look()


def audited(engine: Engine) -> None:
    """Wait until nothing waits for an audit."""
    while engine.busy or engine.waiting()["audit"]:
        time.sleep(0.0005)
    engine.tell()


def inputs(n: int, mean=2.0, seed=0, negative=0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.abs(rng.normal(mean, 1, n))
    return np.array_split(np.where(rng.random(n) < negative, -x, x), max(1, n // 100))


def test_while_nothing_has_changed_nothing_is_alarmed():
    about = served()
    monitor = LiveMonitor(about, audit_rate=1.0)
    serve(about, monitor, inputs(3000, negative=0.005))
    status = monitor.status()
    assert status["drift"]["status"] == "steady"
    assert status["disagreement"]["status"] in ("kept", "undecided")
    assert status["audits"]["rows"] > 2500
    assert status["disagreement"]["tolerance"] == pytest.approx(0.0163, abs=2e-3)


def test_a_teacher_that_contradicts_more_than_at_calibration_is_an_alarm_in_words(caplog):
    about = served()
    monitor = LiveMonitor(about, audit_rate=1.0)
    serve(about, monitor, inputs(2000, negative=0.2))
    assert monitor.status()["disagreement"]["status"] == "broken"
    assert monitor.readings()["alarm"] == {"drift": 0.0, "disagreement": 1.0}
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "the monitor of disagreement: Broken: by row" in record.getMessage()


def test_scores_that_drift_are_an_alarm():
    about = served()
    monitor = LiveMonitor(about)
    serve(about, monitor, inputs(2000, mean=0.8))
    assert monitor.status()["drift"]["status"] == "drifted"
    assert "not watched" in monitor.status()["disagreement"]


def test_a_promise_made_without_labels_is_watched_itself():
    about = served(tolerance=0.3)
    monitor = LiveMonitor(about, audit_rate=1.0)
    serve(about, monitor, inputs(3000, negative=0.1))
    status = monitor.status()["disagreement"]
    assert (status["tolerance"], status["status"]) == (0.3, "kept")
    assert "2,000 calibration examples" in status["about"]


def test_a_promised_deferral_rate_is_watched_without_audits():
    about = served(tolerance=0.2, promise="rate")
    monitor = LiveMonitor(about)
    with Engine(about.joint, observer=monitor) as engine:
        for x in inputs(2000, mean=0.1):
            engine.ask(x).result(SECONDS)
    monitor.look()
    assert monitor.status()["deferral_rate"]["status"] == "broken"
    assert "deferral rate had exceeded" in monitor.status()["deferral_rate"]["statement"]


def test_rows_under_a_threshold_that_was_not_certified_were_promised_nothing():
    about = served()
    about.joint.router.threshold = 0.1
    monitor = LiveMonitor(about, audit_rate=1.0)
    serve(about, monitor, inputs(2000, negative=0.5))
    assert monitor.status()["disagreement"]["rows"] == 0
    assert monitor.status()["audits"]["contradicted"] > 500


def test_audits_wait_until_neither_model_has_anything_else_to_do():
    gate = threading.Event()
    asked = []

    def slow(x):
        asked.append(len(x))
        assert gate.wait(SECONDS)
        return teacher(x)

    about = served(slow)
    monitor = LiveMonitor(about, audit_rate=1.0)
    with Engine(about.joint, observer=monitor, audit_rate=1.0) as engine:
        kept = engine.ask(np.full(3, 2.0))
        assert kept.result(SECONDS).answer.deferred.tolist() == [False] * 3
        while not asked:
            time.sleep(0.001)
        hard = [engine.ask(np.full(2, 0.1)) for _ in range(5)]
        while engine.waiting()["teacher"] < 10:
            time.sleep(0.001)
        gate.set()
        for ticket in hard:
            ticket.result(SECONDS)
        audited(engine)
    assert asked == [1, 10, 1, 1]


def test_a_teacher_with_workers_of_its_own_is_asked_for_audits_though_nothing_is_deferred():
    with Engine(served(teacher).joint, audit_rate=1.0, teacher_workers=1) as engine:
        for _ in range(5):
            engine.ask(np.full(2, 2.0)).result(SECONDS)
        audited(engine)


def away(x):
    raise TeacherUnavailable("the cloud is gone")


def limited(x):
    return Answer(np.zeros((0, 2)), answered=np.zeros(len(x), bool))


def unsure(x):
    return Answer(teacher(x), degraded=np.ones(len(x), bool))


@pytest.mark.parametrize("teacher", [away, limited, unsure])
def test_an_audit_that_fails_is_left_out_and_nobody_notices(teacher):
    heard = []

    class Listener(Observer):
        def observe(self, event):
            if isinstance(event, Failed | Audited):
                heard.append(event.stage if isinstance(event, Failed) else "audited")

    about = served(teacher)
    with Engine(about.joint, observer=Listener(), audit_rate=1.0) as engine:
        answer = engine.ask(np.full(3, 2.0)).result(SECONDS).answer
        audited(engine)
    assert not answer.degraded.any()
    assert heard == ["audit"]


def test_of_a_small_rate_about_so_many_are_audited():
    about = served()
    monitor = LiveMonitor(about, audit_rate=0.05)
    with Engine(about.joint, observer=monitor, audit_rate=0.05) as engine:
        for x in inputs(4000):
            engine.ask(x).result(SECONDS)
            audited(engine)
    monitor.look()
    assert 100 < monitor.status()["audits"]["rows"] < 320


def test_audits_of_answers_that_are_no_labels_are_refused():
    joint = JointRegressor(lambda x: np.stack([x, x], axis=1), abs, Router("predicted_std", 0))
    with pytest.raises(ValueError, match="an audit compares labels"):
        Engine(joint, audit_rate=0.1)


def test_the_state_is_taken_up_where_it_was_left(tmp_path):
    about = served()
    whole = LiveMonitor(about, audit_rate=1.0)
    serve(about, whole, inputs(1000, seed=0) + inputs(1000, seed=1, negative=0.01))
    first = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    serve(about, first, inputs(1000, seed=0))
    first.save()
    second = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    serve(about, second, inputs(1000, seed=1, negative=0.01))
    assert second.status() == whole.status()


@pytest.mark.parametrize("damage", ["other", "cut", "empty"])
def test_a_state_that_does_not_fit_is_set_aside(tmp_path, damage, caplog):
    about = served()
    first = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    first.save()
    file = tmp_path / "monitor.json"
    if damage == "cut":
        file.write_text(file.read_text()[:100])
    if damage == "empty":
        file.write_text("{}")
    if damage == "other":
        about = replace(about, calibration_id="other")
    LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    assert "starts again" in caplog.text
    assert (tmp_path / "monitor.json.old").exists()


def test_the_server_shows_the_monitor_and_keeps_its_state(tmp_path):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    pytest.importorskip("httpx2", reason="httpx2 is not installed")
    from starlette.testclient import TestClient

    from ebjr.serving.app import build_app

    about = served()
    body = {"inputs": [{"name": "input", "shape": [3], "datatype": "FP32", "data": [2, 3, -2]}]}
    with TestClient(build_app(about, audit_rate=1.0, state=tmp_path, chore_seconds=0.01)) as client:
        client.post("/v2/models/joint/infer", json=body)
        while client.get("/v1/status").json()["monitor"]["audits"]["rows"] < 3:
            time.sleep(0.01)
        status = client.get("/v1/status").json()["monitor"]
        text = client.get("/metrics").text
    assert status["audits"] == {"rows": 3, "contradicted": 1}
    assert status["drift"]["rows"] == 3
    assert 'ebjr_audited_rows_total{model="joint"} 3.0' in text
    assert 'ebjr_monitor_alarm{model="joint",monitor="drift"} 0.0' in text
    assert 'ebjr_monitor_rows{model="joint",monitor="disagreement"} 3.0' in text
    assert json.loads((tmp_path / "monitor.json").read_text())["audits"] == 3


def test_windows_judge_the_promise_and_room_is_told_once(caplog, tmp_path):
    caplog.set_level(logging.INFO, "ebjr.serving")
    about = served(tolerance=0.3)
    monitor = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    serve(about, monitor, inputs(2400))
    serve(about, monitor, inputs(600, seed=2))
    windows = monitor.status()["disagreement"]["windows"]
    assert len(windows) == 5  # of 500 audits: a tenth of the rows is deferred
    assert sum(window["rows"] for window in windows) <= 3000
    assert {window["status"] for window in windows} == {"kept"}
    (why,) = monitor.status()["recalibrate"]
    assert why.startswith("the promise is kept with room: at most ")
    told = [r.getMessage() for r in caplog.records if "would pay to recalibrate" in r.getMessage()]
    assert told == [f"it would pay to recalibrate: {told[0].partition(': ')[2]}"]
    last = monitor.windows.past[-1]
    readings = monitor.readings()
    assert readings["upper"]["window"] == last.upper
    assert readings["alarm"]["window"] == 0.0
    monitor.save()
    assert LiveMonitor(about, audit_rate=1.0, folder=tmp_path).windows.past == monitor.windows.past


def test_a_window_that_broke_the_promise_is_told_and_recalibrate_reads_it(tmp_path):
    about = served()
    monitor = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    serve(about, monitor, inputs(6000))
    assert monitor.readings()["alarm"]["window"] == 0.0
    serve(about, monitor, inputs(6000, negative=0.3))
    assert monitor.readings()["alarm"]["window"] == 1.0
    monitor.save()
    entries = ModelEntry("absent.onnx", "0"), ModelEntry("absent.onnx", "1")
    own = {"outcomes": "abc", "goal": "match-teacher"}
    config = JointConfig(*entries, "max_logit", 0.5, calibration=own)
    found = recalibrate_audits(config, tmp_path)
    assert found.status == "broken"
    assert "broken" in [window.status for window in found.windows.past]
    assert found.risk.rows == monitor.status()["disagreement"]["rows"]


def test_a_state_of_before_there_were_windows_goes_on(tmp_path):
    about = served(tolerance=0.3)
    monitor = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    serve(about, monitor, inputs(500))
    monitor.save()
    file = tmp_path / "monitor.json"
    kept = json.loads(file.read_text())
    del kept["windows"], kept["calibration"]
    file.write_text(json.dumps(kept))
    again = LiveMonitor(about, audit_rate=1.0, folder=tmp_path)
    assert again.audits == monitor.audits
    assert again.windows.past == []

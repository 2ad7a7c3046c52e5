"""A far student takes no answer of another model that has come to its teacher's address."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from pages import free_port
from small import running
from tiny import write_linear

import ebjr
from ebjr import FarTeacher, JointClassifier, Link, ModelError, Router, load_model
from ebjr.backends.entry import entries_of
from ebjr.serving.engine import Engine
from ebjr.serving.served import served_alone

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
pytest.importorskip("stamina", reason="the extra `remote` is not installed")

from starlette.testclient import TestClient

from ebjr.serving.app import build_app
from ebjr.serving.sources import source_of

LINK = Link(retries=0, failures=1, probe_seconds=0.05)
X = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)


@pytest.fixture
def models(tmp_path):
    """The teacher's file, and that of another model of the same form."""
    names = {"teacher": np.eye(3), "other": np.eye(3)[::-1]}
    return [write_linear(tmp_path / f"{name}.onnx", 9 * weight) for name, weight in names.items()]


def serving(path, port=0):
    served = served_alone(path, threads=1)
    served.name = "teacher"  # by the same name, in the same form
    return running(build_app(served), port=port)


@pytest.fixture
def port():
    return int(free_port())


@pytest.fixture
def saved(models, port, tmp_path):
    """A joint.toml whose teacher is at an address."""
    student = load_model(write_linear(tmp_path / "student.onnx", np.eye(3)), threads=1)
    with serving(models[0], port):
        teacher = FarTeacher(load_model(f"http://127.0.0.1:{port}"), LINK)
        joint = JointClassifier(student, teacher, Router("max_logit", 1e9))
        ebjr.save_joint(tmp_path / "joint.toml", joint)
    return tmp_path / "joint.toml"


def test_joint_toml_keeps_the_hash_that_the_server_says(models, saved, port):
    entry = ebjr.JointConfig.read(saved).teacher
    assert entry.sha256 == served_alone(models[0], threads=1).identity["model"]
    assert re.search(rf'^sha256 = "{entry.sha256}"$', saved.read_text(), re.MULTILINE)
    with serving(models[0], port):
        assert ebjr.load_joint(saved)(X).deferred.all()


def test_another_model_at_the_address_is_refused_as_another_file_would_be(models, saved, port):
    with serving(models[1], port):
        with pytest.raises(ModelError, match=r"its hash was \w{12} and is \w{12}; record and cal"):
            ebjr.load_joint(saved)
        entry = ebjr.JointConfig.read(saved).teacher
        saved.write_text(saved.read_text().replace(f'sha256 = "{entry.sha256}"\n', ""))
        assert ebjr.load_joint(saved)(X).deferred.all()  # of an older file nobody knows it


def test_outcomes_of_another_model_are_not_calibrated_with_this_one(models, saved, port, tmp_path):
    student = tmp_path / "student.onnx"
    with serving(models[0], port):
        table = ebjr.record(load_model(student), load_model(f"http://127.0.0.1:{port}"), X, [0] * 4)
        assert table.models["teacher"]["sha256"] == ebjr.JointConfig.read(saved).teacher.sha256
    address = {"student": None, "teacher": f"http://127.0.0.1:{port}"}
    with serving(models[0], port):
        assert entries_of(table, tmp_path / "o.npz", address)["teacher"].sha256
    with serving(models[1], port), pytest.raises(ModelError, match="is not the teacher whose ans"):
        entries_of(table, tmp_path / "o.npz", address)


def test_while_it_serves_another_models_answers_are_not_taken(models, saved, port, caplog):
    def until(deferred):
        end = time.monotonic() + 30
        while (found := engine.ask(X).result(30).answer).deferred.all() != deferred:
            assert time.monotonic() < end
            time.sleep(0.02)
        return found

    with serving(models[0], port):
        joint = ebjr.load_joint(saved)
    with Engine(joint) as engine:
        with serving(models[0], port):
            np.testing.assert_array_equal(until(True).output, load_model(models[0])(X))
        caplog.clear()
        with serving(models[1], port):
            for _ in range(5):
                found = engine.ask(X).result(30).answer
                assert found.degraded.all()
                np.testing.assert_array_equal(found.output, joint.student(X))
            end = time.monotonic() + 30
            while "is not the model that was recorded" not in (joint.teacher.away or ""):
                assert time.monotonic() < end
                time.sleep(0.02)
            assert joint.teacher.state == "open"  # it is not asked again and again
        with serving(models[0], port):
            until(True)
    joint.teacher.close()


def test_an_answer_alone_gives_another_model_away(models, port):
    """As where two servers share an address."""
    with serving(models[0], port) as (host, _):
        model = load_model(f"http://{host}:{port}")
        teacher = FarTeacher(model, Link(retries=0, probe_seconds=60))
        assert len(teacher(X)) == 4
        model.sha256 = "0" * 64
        with pytest.raises(ebjr.OtherModel, match=r"its hash was 0{12} and is \w{12}"):
            teacher(X)
        with pytest.raises(ebjr.TeacherUnavailable, match=r"until it is back: .* is not the model"):
            teacher(X)
    teacher.close()


def test_a_calibration_with_the_new_hash_brings_the_teacher_back(models, saved, port):
    def deferred(client) -> bool:
        tensor = {"name": "image", "shape": list(X.shape), "datatype": "FP32"}
        asked = {"inputs": [{**tensor, "data": X.ravel().tolist()}]}
        answer = client.post("/v2/models/joint/infer", json=asked).json()
        return all({one["name"]: one["data"] for one in answer["outputs"]}["deferred"])

    stack = ExitStack()
    with serving(models[0], port):
        client = stack.enter_context(TestClient(build_app(source_of([saved]))))
        assert deferred(client)
    with serving(models[1], port):
        assert not deferred(client)
        new = served_alone(models[1], threads=1).identity["model"]
        config = ebjr.JointConfig.read(saved)
        replace(config, teacher=replace(config.teacher, sha256=new)).save(saved)
        assert client.post("/v2/repository/models/joint/load").status_code == 200
        assert deferred(client)
    stack.close()

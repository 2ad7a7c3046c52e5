"""The command line and joint.toml with a teacher far away."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from far import FarTeacherProcess
from tiny import write_images, write_pair

import ebjr
from ebjr import FarTeacher, Link, ModelError, PromiseWarning

for name in ("onnxruntime", "starlette", "aiohttp", "stamina"):
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def far():
    process = FarTeacherProcess()
    yield process
    process.kill()


@pytest.fixture
def student(tmp_path):
    """A student of the far teacher's inputs, two numbers: its own file."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.array([[1.0, -1.0, 0.0], [0.2, 0.0, 0.1]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["logits"])],
        "student",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, str(tmp_path / "student.onnx"))
    x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=x, targets=np.where(x[:, 0] > 0, 2, 0))
    return "student.onnx"


@pytest.fixture
def config(far, student, run, tmp_path):
    """joint.toml of that student and the far teacher."""
    far.behave("right")
    code, _, err = run(
        *("record", "--student", student, "--teacher", far.url, "--data", "data.npz"),
        *("-o", "far.npz", "--link", "timeout_seconds=0.5,retries=0"),
    )
    assert code == 0, err
    code, _, err = run(
        *("calibrate", "far.npz", "--goal", "budget", "--bytes", "20", "--score", "softmax"),
        *("--blend", "0", "-o", "joint.toml"),
    )
    assert code == 0, err
    return tmp_path / "joint.toml"


def test_a_far_teacher_is_recorded_calibrated_and_asked(far, config, run):
    text = tomllib.loads(config.read_text())
    assert text["teacher"]["url"] == far.url
    assert text["teacher"]["metadata"]["versions"] == ["7"]
    assert (text["teacher"]["timeout_seconds"], text["teacher"]["retries"]) == (0.5, 0)
    assert text["calibration"]["bytes"] == 20
    assert 20 < text["teacher"]["cost"]["bytes"] < 60
    assert text["student"]["cost"]["bytes"] == 0
    assert "joules" not in text["student"]["cost"]
    code, out, _ = run("evaluate", "far.npz", "--joint", "joint.toml")
    assert code == 0
    assert "kB moved" in out
    code, out, err = run("predict", config, "--data", "data.npz", "-o", "answers.jsonl", "--json")
    assert code == 0, err
    counts = json.loads(out)
    assert 0 < counts["deferral_rate"] < 0.6
    assert counts["degraded"] == 0


def test_outcomes_of_another_far_teacher_are_not_evaluated(far, config, run):
    far.behave("version")
    words = ("record", "--student", "student.onnx", "--teacher", far.url, "--data", "data.npz")
    code, _, err = run(*words, "-o", "later.npz")
    far.behave("right")
    assert code == 0, err
    code, _, err = run("evaluate", "later.npz", "--joint", "joint.toml")
    assert code == 2
    assert "of another teacher (metadata) than joint.toml" in err


def test_what_joint_toml_says_comes_back_as_it_was(far, config, tmp_path):
    read = ebjr.JointConfig.read(config)
    read.save(tmp_path / "copy.toml")
    assert ebjr.JointConfig.read(tmp_path / "copy.toml") == read
    joint = ebjr.load_joint(config, threads=1)
    assert isinstance(joint.teacher, FarTeacher)
    assert joint.teacher.link.retries == 0
    late = ebjr.LateAnswers(tmp_path / "kept.sqlite")
    queued = ebjr.JointClassifier(
        joint.student, joint.teacher, joint.router, when_unavailable="queue", late=late
    )
    late.close()
    ebjr.save_joint(tmp_path / "queued.toml", queued)
    table = tomllib.loads((tmp_path / "queued.toml").read_text())["teacher"]
    assert (table["when_unavailable"], table["queue"]) == ("queue", "kept.sqlite")
    again = ebjr.load_joint(tmp_path / "queued.toml")
    assert again.late.path == str((tmp_path / "kept.sqlite").resolve())
    again.late.close()


def test_rows_of_predict_are_kept_for_later_and_say_so(far, config, run):
    text = config.read_text().replace("retries = 0", 'retries = 0\nwhen_unavailable = "queue"')
    config.write_text(text)
    far.kill()
    try:
        code, _, err = run("predict", config, "--data", "data.npz", "-o", "answers.jsonl")
    finally:
        far.start()
    assert code == 0, err
    rows = [json.loads(line) for line in (config.parent / "answers.jsonl").read_text().splitlines()]
    degraded = [row for row in rows if row["degraded"]]
    assert degraded
    assert all(row["late"] for row in degraded)
    joint = ebjr.load_joint(config)
    assert joint.late.deliver(joint) == len(degraded)
    joint.late.close()


def test_another_model_at_the_address_is_not_taken_for_the_teacher(far, config):
    far.behave("version")
    with pytest.raises(ModelError, match=r"its versions was \['7'\] and is \['8'\]; record"):
        ebjr.load_joint(config)
    far.behave("right")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("retries = 0", "retry = 0", "teacher has an unknown key 'retry'; did you mean 'retries'?"),
        ("retries = 0", "retries = -1", "retries must be a whole number from 0 to 100, not -1"),
        ("retries = 0", 'when_unavailable = "hope"', "must be one of student, error, queue"),
        ('platform = "tests"', "platform = 1", "teacher.metadata is not a model's metadata"),
        ("url = ", "path = ", "teacher has an unknown key 'send'"),
    ],
)
def test_a_mistake_in_joint_toml_is_one_sentence(config, run, old, new, says):
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    code, _, err = run("predict", config, "--data", "data.npz", "-o", "answers.jsonl")
    assert code == 2
    assert says in " ".join(err.split())
    assert not (config.parent / "answers.jsonl").exists()


def test_a_remote_student_is_refused(far, run, student):
    run(
        *("record", "--student", far.url, "--teacher", far.url, "--data", "data.npz"),
        *("-o", "far.npz"),
    )
    code, _, err = run("calibrate", "far.npz", "-o", "joint.toml", "--score", "softmax")
    assert code == 2
    assert "so that all its stages must be files" in err


def test_a_calibrated_pair_is_taken_apart_by_one_flag(far, config, run, tmp_path):
    code, _, err = run(
        *("calibrate", "far.npz", "--goal", "budget", "--bytes", "20", "--score", "softmax"),
        *("--teacher", far.server, "--link", "send=tensor,rows_per_second=5", "-o", "other.toml"),
    )
    assert code == 0, err
    teacher = ebjr.JointConfig.read(tmp_path / "other.toml").teacher
    assert teacher.link == Link(rows_per_second=5, queue=str(tmp_path.resolve() / "late.sqlite"))
    for flag, value, says in (
        ("--link", "send", "a link must be key=value"),
        ("--link", "colour=red", "a link has an unknown key 'colour'"),
        ("--over-link", "bytes", "--over-link must be like bytes=3000"),
        ("--over-link", "bytes=-1", "--over-link must be like bytes=3000"),
    ):
        code, _, err = run("calibrate", "far.npz", flag, value, "-o", "never.toml")
        assert code == 2, flag
        assert says in " ".join(err.split())


def test_a_threshold_moved_by_hand_is_still_only_warned_of(config):
    text = config.read_text()
    config.write_text(text.replace('score = "softmax"', 'score = "margin"', 1))
    with pytest.warns(PromiseWarning, match="has changed since it was calibrated"):
        ebjr.load_joint(config)


def test_a_classifier_alone_is_a_teacher_for_students_elsewhere(tmp_path):
    from starlette.testclient import TestClient

    from ebjr.data.open import open_data
    from ebjr.data.preprocess import Preprocess, Preprocessed
    from ebjr.serving.app import build_app
    from ebjr.serving.served import served_alone

    _, path = write_pair(tmp_path)
    folder = write_images(tmp_path / "images", n=6)
    served = served_alone(path, Preprocess(size=8), threads=1)
    (batch,) = open_data(folder).batches(6)
    pixels = np.stack(batch.inputs)
    tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8"}
    with TestClient(build_app(served)) as client:
        found = client.post(
            "/v2/models/teacher/infer",
            json={"inputs": [{**tensor, "data": pixels.ravel().tolist()}]},
        ).json()
    outputs = {output["name"]: output["data"] for output in found["outputs"]}
    alone = Preprocessed(ebjr.load_model(path), Preprocess(size=8))
    assert outputs["prediction"] == alone(pixels).argmax(axis=1).tolist()
    assert not any(outputs["deferred"])

"""A joint.toml whose student is a joint model: kept, read, checked, evaluated and asked."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from tiny import write_images, write_linear, write_pair

import ebjr
from ebjr import JointClassifier, JointConfig, ModelError, Preprocess, Preprocessed, Router
from ebjr.backends.entry import JointEntry
from ebjr.cli import main
from ebjr.files import sha256_of
from ebjr.joint import models_of

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture
def joint(tmp_path: Path) -> JointClassifier:
    """A student, its mirrored look where it is neither sure nor hopeless, and a teacher."""
    student, teacher = (
        Preprocessed(ebjr.load_model(path), Preprocess(size=8)) for path in write_pair(tmp_path)
    )
    inner = Router("softmax", 0.8, skip=0.4)
    return JointClassifier(
        JointClassifier(student, ebjr.mirrored(student), inner, blend=1.0),
        teacher,
        Router("margin", 0.6),
        blend=0.5,
    )


def images(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)


def same(one: ebjr.JointAnswer, other: ebjr.JointAnswer) -> bool:
    columns = ("output", "score", "deferred", "stage")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["ebjr", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return capsys.readouterr().out


def test_stages_survive_the_file_with_their_router_blend_and_skip(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    again = ebjr.load_joint(tmp_path / "joint.toml")
    first, second = joint(images()), again(images())
    assert same(first, second)
    assert set(first.stage.tolist()) == {0, 1, 2}
    assert again.student.router.skip == 0.4
    assert again.student.blend == 1.0


def test_a_second_look_shares_the_weights_of_the_first(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    once, again, teacher = models_of(ebjr.load_joint(tmp_path / "joint.toml"))
    assert once.model is again.model
    assert once.model is not teacher.model
    other = ebjr.load_joint(tmp_path / "joint.toml")
    assert models_of(other)[0].model is once.model


def by_path(folder: Path, joint: JointClassifier) -> Path:
    """Two files: the inner joint model in one of its own."""
    inner = folder / "inner.toml"
    ebjr.save_joint(inner, joint.student)
    ebjr.save_joint(folder / "joint.toml", joint)
    config = JointConfig.read(folder / "joint.toml")
    table = {
        "router": {"score": config.score, "threshold": config.threshold, "blend": 0.5},
        "student": {"path": "inner.toml", "sha256": sha256_of(inner)},
        "teacher": config.teacher.as_table(folder),
    }
    (folder / "outer.toml").write_text(tomli_w.dumps(table))
    return folder / "outer.toml"


def test_a_student_may_be_another_joint_toml(joint, tmp_path):
    assert same(joint(images()), ebjr.load_joint(by_path(tmp_path, joint))(images()))


def test_an_inner_joint_toml_that_has_changed_is_refused(joint, tmp_path):
    outer = by_path(tmp_path, joint)
    inner = tmp_path / "inner.toml"
    inner.write_text(inner.read_text().replace("threshold = 0.8", "threshold = 0.7"))
    with pytest.raises(ModelError, match=r"inner\.toml has changed since it became a stage"):
        ebjr.load_joint(outer)


def test_a_model_of_an_inner_stage_that_has_changed_is_refused(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    write_linear(tmp_path / "student.onnx", np.eye(3))
    with pytest.raises(ModelError, match=r"student\.onnx has changed"):
        ebjr.load_joint(tmp_path / "joint.toml")


def test_a_cycle_of_joint_tomls_is_one_sentence(joint, tmp_path):
    outer = by_path(tmp_path, joint)
    table = outer.read_text().replace('"inner.toml"', '"outer.toml"')
    outer.write_text(table)
    with pytest.raises(ValueError, match=r"outer\.toml: a joint model cannot be its own stage"):
        JointConfig.read(outer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "regression"}, "of task regression, but this one is of classification"),
        ({"task": "detection"}, "a joint model of task detection cannot be a stage"),
        ({"router": {"score": "softmax"}}, "lacks threshold"),
        ({"router": {"score": "softmax", "threshold": 0.5, "knob": 1}}, "unknown key 'knob'"),
        ({"router": {"score": "soft", "threshold": 0.5}}, "no score named 'soft'"),
        ({"preprocess": {"size": 8}}, "unknown key 'preprocess'"),
    ],
)
def test_what_is_no_stage_is_one_sentence(joint, tmp_path, change, words):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    config = JointConfig.read(tmp_path / "joint.toml")
    table = {
        "router": {"score": "margin", "threshold": 0.5},
        "student": {**config.student.as_table(tmp_path), **change},
        "teacher": config.teacher.as_table(tmp_path),
    }
    (tmp_path / "bad.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ValueError, match=words):
        JointConfig.read(tmp_path / "bad.toml")


def test_only_the_last_stage_may_be_far(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    config = JointConfig.read(tmp_path / "joint.toml")
    assert isinstance(config.student, JointEntry)
    metadata = {
        "name": "m",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
    }
    far = {"url": "http://127.0.0.1:9/v2/models/m", "metadata": metadata}
    inside = {**config.student.as_table(tmp_path), "teacher": far}
    table = {
        "router": {"score": "margin", "threshold": 0.5},
        "student": inside,
        "teacher": config.teacher.as_table(tmp_path),
    }
    (tmp_path / "far.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ValueError, match="only the last teacher may be remote"):
        JointConfig.read(tmp_path / "far.toml")


def test_from_images_to_answers_by_the_command_line(tmp_path, monkeypatch, capsys):
    write_pair(tmp_path)
    middle = 9 * np.array([[0.0, 0.2, 1.0], [0.0, 1.0, 0.4], [1.0, 0.0, 0.0]])
    write_linear(tmp_path / "middle.onnx", middle)
    data, zoo, toml = write_images(tmp_path / "images"), tmp_path / "zoo.npz", tmp_path / "j.toml"
    models = [f"--model={tmp_path / name}.onnx" for name in ("student", "middle", "teacher")]

    def ebjr_(*arguments: object) -> str:
        return run(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    ebjr_("record", *models, "--look", "mirror", "--data", data, "-o", zoo)
    roles = "student,model-2,model-3,teacher"
    found = json.loads(
        ebjr_("calibrate", zoo, "--stages", roles, "--unit", "flops", "-o", toml, "--json")
    )
    assert [stage["role"] for stage in found["stages"]] == roles.split(",")
    joint = ebjr.load_joint(toml)
    assert len(models_of(joint)) == 4
    again = json.loads(ebjr_("evaluate", zoo, "--joint", toml, "--json"))
    assert again["held_out"]["quality"] == found["held_out"]["quality"]
    assert again["held_out"]["cost"]["flops"] == found["held_out"]["cost"]["flops"]
    answers = tmp_path / "answers.jsonl"
    ebjr_("predict", toml, "--data", data, "-o", answers)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 120
    assert {row["stage"] for row in rows} <= {0, 1, 2, 3}
    assert all((row["stage"] == 3) == row["deferred"] for row in rows)
    ebjr_("export", toml, "-o", tmp_path / "one.onnx")
    exported = ebjr.load_joint(tmp_path / "one.onnx")
    pixels = images(9)
    assert np.array_equal(exported(pixels).stage, joint(pixels).stage)


def test_outcomes_without_a_stage_are_refused(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    config = JointConfig.read(tmp_path / "joint.toml")
    student, _, teacher = models_of(joint)
    pair = ebjr.record(student, teacher, images(12), teacher(images(12)).argmax(1))
    with pytest.raises(ValueError, match=r"student\.onnx \(size=8,mirror=true\); record all"):
        config.study(pair)


def test_a_calibrated_chain_is_told_by_its_routers_and_its_numbers(tmp_path, monkeypatch, capsys):
    write_pair(tmp_path)
    write_linear(tmp_path / "middle.onnx", 9 * np.eye(3)[::-1])
    models = [f"--model={tmp_path / name}.onnx" for name in ("student", "middle", "teacher")]
    data, toml = write_images(tmp_path / "images"), tmp_path / "j.toml"

    def ebjr_(*arguments: object) -> str:
        return run(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    ebjr_("record", *models, "--data", data, "-o", tmp_path / "zoo.npz")
    ebjr_("calibrate", tmp_path / "zoo.npz", "--stages", "student,model-2,teacher", "-o", toml)
    config = JointConfig.read(toml)
    assert not config.changes
    edited = {**config.student.router, "blend": 7.0}
    changed = replace(config, student=replace(config.student, router=edited))
    assert changed.changes == ["a router between the first stages has changed"]
    bare = replace(ebjr.Outcomes.load(tmp_path / "zoo.npz"), models={})
    assert config.unchecked(bare) is None  # the numbers that it was calibrated on
    other = config.unchecked(bare.take(np.arange(len(bare))[::-1]))
    assert "do not name their student and model-2 and teacher" in other


def test_classes_in_another_order_inside_are_refused(joint, tmp_path):
    ebjr.save_joint(tmp_path / "inner.toml", joint.student, labels=("r", "g", "b"))
    outer = by_path(tmp_path, joint)
    text = (tmp_path / "inner.toml").read_text()
    (tmp_path / "inner.toml").write_text('labels = ["r", "g", "b"]\n' + text)
    table = outer.read_text().replace(outer.read_text().split('sha256 = "')[1][:64], "0" * 64, 1)
    outer.write_text('labels = ["b", "g", "r"]\n' + table)
    with pytest.raises(ValueError, match=r"inner\.toml"):
        JointConfig.read(outer)


def test_a_stage_in_a_file_of_its_own_keeps_its_skip(joint, tmp_path):
    ebjr.save_joint(tmp_path / "inner.toml", joint.student)
    again = ebjr.load_joint(tmp_path / "inner.toml")
    assert again.router.skip == 0.4
    assert same(joint.student(images()), again(images()))
    rows = ebjr.Outcomes(np.eye(3), np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match=r"with skip is a stage"):
        JointConfig.read(tmp_path / "inner.toml").study(rows)


def test_outcomes_that_name_no_models_must_be_of_as_many(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    rows, targets = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 3
    table = ebjr.record_all([lambda x: x, lambda x: 2 * x, lambda x: x, lambda x: x], rows, targets)
    with pytest.raises(ValueError, match=r"but lack .*; record all of them at once"):
        JointConfig.read(tmp_path / "joint.toml").study(replace(table, models={}))

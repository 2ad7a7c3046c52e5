"""Whatever a model was loaded with survives ``joint.toml``, on every backend, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from far import FarTeacherProcess
from sklearn.linear_model import LogisticRegression
from tiny import write_coco, write_detectors, write_linear

from ebjr import JointClassifier, JointDetector, Preprocess, Router, load_joint, load_model
from ebjr.backends.entry import OPTIONS
from ebjr.data.open import open_data
from ebjr.data.preprocess import prepared
from ebjr.joint_file import save_joint
from ebjr.link.far import FarTeacher, Link
from ebjr.model import ModelFacts

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(20)]
ARRAYS = RNG.normal(size=(20, 3, 8, 8)).astype(np.float32)


def survives(folder, joint, inputs):
    """The joint model that a file gives back, after it has answered alike."""
    save_joint(folder / "joint.toml", joint)
    loaded = load_joint(folder / "joint.toml")
    wanted, found = joint(inputs), loaded(inputs)
    assert 0 < np.sum(wanted.deferred) < len(inputs)
    for name in ("score", "deferred", "degraded"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert np.array_equal(np.asarray(found.output), np.asarray(wanted.output))
    return loaded


def classifier(student, teacher, inputs, score="max_logit"):
    threshold = float(np.median(Router(score, 0.0).score(np.asarray(student(inputs)))))
    return JointClassifier(student, teacher, Router(score, threshold))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": "logits"},
        {"batch_size": 3},
        {"threads": 1},
        {"providers": ["CPUExecutionProvider"]},
        {"output_kind": "logits"},
    ],
)
@pytest.mark.parametrize("batch", ["n", 8])
def test_an_onnx_file(tmp_path, options, batch):
    if batch == 8 and "batch_size" in options:
        options = {"batch_size": 8}
    write_linear(tmp_path / "student.onnx", RNG.normal(size=(3, 4)), batch)
    write_linear(tmp_path / "teacher.onnx", RNG.normal(size=(3, 4)))
    student = load_model(tmp_path / "student.onnx", **options)
    joint = classifier(student, load_model(tmp_path / "teacher.onnx"), ARRAYS)
    loaded = survives(tmp_path, joint, ARRAYS)
    assert loaded.student.facts.options == options


@pytest.mark.parametrize("text", ["size=8", "size=8,resize=crop,color=bgr,mean=0.5/0.4/0.3"])
def test_a_preprocessing(tmp_path, text):
    made = []
    for role in ("student", "teacher"):
        path = write_linear(tmp_path / f"{role}.onnx", RNG.normal(size=(3, 4)))
        made.append(prepared(load_model(path), Preprocess.parse(text)))
    loaded = survives(tmp_path, classifier(*made, PIXELS), PIXELS)
    assert loaded.teacher.preprocess.as_text() == Preprocess.parse(text).as_text()


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"dtype": "float64"}, {"batch_size": 3}]
)
def test_a_program(tmp_path, options):
    torch.manual_seed(0)
    for role in ("student", "teacher"):
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).eval()
        if "dtype" in options:
            module = module.to(dtype=getattr(torch, str(options["dtype"]).split(".")[-1]))
        example = next(module.parameters()).new_zeros((2, 3, 8, 8))
        free = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
        program = torch.export.export(module, (example,), **free)
        torch.export.save(program, tmp_path / f"{role}.pt2")
    made = [load_model(tmp_path / f"{role}.pt2", **options) for role in ("student", "teacher")]
    loaded = survives(tmp_path, classifier(*made, ARRAYS), ARRAYS)
    assert loaded.student.dtype == made[0].dtype
    assert loaded.student.batch_size == made[0].batch_size


def test_a_detector(tmp_path):
    write_detectors(tmp_path)
    images = next(open_data(write_coco(tmp_path / "data", n=20)).batches(20)).inputs
    options = {"classes": 3, "limit": 5, "above": 0.2}
    student, teacher = (
        load_model(tmp_path / f"{role}.onnx", layout="detr", **options)
        for role in ("student", "teacher")
    )
    router = Router("max_confidence", 0.0)
    router.threshold = float(np.median(router.score(student(images))))
    joint = JointDetector(student, teacher, router)
    save_joint(tmp_path / "joint.toml", joint)
    loaded = load_joint(tmp_path / "joint.toml")
    wanted, found = joint(images), loaded(images)
    assert 0 < wanted.deferred.sum() < len(images)
    assert np.array_equal(found.score, wanted.score)
    for one, other in zip(found.prediction, wanted.prediction, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)


def test_a_far_teacher(tmp_path):
    process = FarTeacherProcess()
    try:
        weight = RNG.normal(size=(2, 3))
        path = write_rows(tmp_path / "student.onnx", weight)
        teacher = FarTeacher(
            load_model(process.url, batch_size=3, gzip=True, timeout_seconds=5.0), Link(retries=1)
        )
        rows = RNG.normal(size=(20, 2)).astype(np.float32)
        loaded = survives(tmp_path, classifier(load_model(path), teacher, rows), rows)
        assert loaded.teacher.link.retries == 1
        assert loaded.teacher.teacher.facts.options == teacher.teacher.facts.options
    finally:
        process.kill()


def write_rows(path, weight):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("kind", ["module", "estimator", "callable", "reshaped"])
def test_what_no_file_holds_is_refused(tmp_path, kind):
    known = write_linear(tmp_path / "teacher.onnx", RNG.normal(size=(3, 4)))
    flat = ARRAYS.reshape(20, -1)
    model = {
        "module": lambda: load_model(torch.nn.Linear(192, 4), batch_size=2),
        "estimator": lambda: load_model(LogisticRegression().fit(flat, np.arange(20) % 4)),
        "callable": lambda: load_model(lambda batch: np.asarray(batch)[:, :4]),
        "reshaped": lambda: load_model(lambda batch: batch, output_kind="logits"),
    }[kind]()
    joint = JointClassifier(model, load_model(known), Router("max_logit", 0.0))
    with pytest.raises(TypeError, match=r"needs a model's file, address or import path.*has none"):
        save_joint(tmp_path / "joint.toml", joint)
    assert not (tmp_path / "joint.toml").exists()


def test_an_option_that_a_file_cannot_store_is_refused(tmp_path):
    class Scaled:
        """A backend of one's own, with an option that changes its answers."""

        def __call__(self, batch):
            return 2.0 * batch

        @property
        def facts(self):
            return ModelFacts(name="scaled", path=known, options={"scale": 2.0})

    known = write_linear(tmp_path / "teacher.onnx", RNG.normal(size=(3, 4)))
    joint = JointClassifier(Scaled(), load_model(known), Router("max_logit", 0.0))
    with pytest.raises(TypeError, match="cannot store scaled's option 'scale'"):
        save_joint(tmp_path / "joint.toml", joint)
    assert not (tmp_path / "joint.toml").exists()


def test_the_command_line_takes_every_option_of_a_model():
    from ebjr.backends.entry import parse_options

    text = ",".join(f"{name}=1" for name in OPTIONS)
    assert parse_options(text).keys() == {*OPTIONS}
    with pytest.raises(ValueError, match="a list of options has an unknown key 'thread'; did you"):
        parse_options("thread=1")

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from slices import write_slice
from tiny import write_detectors, write_linear

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ebjr import (
    JointClassifier,
    JointDetector,
    ModelError,
    Preprocess,
    Router,
    SpecializedJointClassifier,
    load_joint,
    load_model,
)
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import OnnxModel
from ebjr.blend import Blend
from ebjr.data.preprocess import prepared
from ebjr.export import export_joint

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 20)).astype(np.float32)
LEAST = -3e38


def slices(folder, count=3, **more):
    """Models of x (n, 20): each says five columns of its own."""
    return [
        OnnxModel(write_slice(folder / f"{n}.onnx", range(5 * n, 5 * n + 5), 20, **more))
        for n in range(count)
    ]


def chain(models, routers, blends=(0.0, 0.0, 0.0)):
    """A joint model whose student is a joint model, and so on."""
    joint = models[0]
    for teacher, router, blend in zip(models[1:], routers, blends, strict=False):
        joint = JointClassifier(joint, teacher, router, blend=blend)
    return joint


def check_same(exported, joint, inputs=ROWS, thresholds=None):
    """The same answers, by the same models, with none, some and all deferred."""
    score = np.sort(np.asarray(joint(inputs).score, np.float64))
    between = [float(score[n - 1] + score[n]) / 2 for n in (len(score) // 3, len(score) // 2)]
    chosen, stages = joint.router.threshold, set()
    for threshold in thresholds or (LEAST, *between, np.inf):
        joint.router.threshold = exported.router.threshold = threshold
        found, wanted = exported(inputs), joint(inputs)
        np.testing.assert_allclose(found.score, wanted.score, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.deferred, wanted.deferred)
        np.testing.assert_array_equal(found.stage, wanted.stage)
        np.testing.assert_allclose(found.output, wanted.output, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(found.prediction, wanted.prediction)
        stages |= set(found.stage.tolist())
    joint.router.threshold = chosen
    return stages


def export(folder, joint, **options):
    found = export_joint(joint, folder / "joint.onnx", **options)
    onnx.checker.check_model(str(found.path), full_check=True)
    return ExportedJoint(found.path, threads=1)


BLENDS = [(0.0, 0.0), (0.4, 0.0), (0.0, 0.3), (Blend(0.3, 2.0), 0.5)]


@pytest.mark.parametrize("blend", BLENDS, ids=str)
@pytest.mark.parametrize(("inner", "threshold", "outer"), [
    ("softmax", 0.45, "margin"), ("margin", 0.25, "softmax"), ("energy", 2.0, "max_logit"),
])  # fmt: skip
def test_three_models_in_one_file_answer_as_the_joint_model(
    tmp_path, inner, threshold, outer, blend
):
    joint = chain(slices(tmp_path), [Router(inner, threshold), Router(outer, 0.0)], blend)
    assert check_same(export(tmp_path, joint), joint) == {0, 1, 2}


def test_the_outer_score_may_be_the_energy_of_what_the_inner_model_says(tmp_path):
    joint = chain(slices(tmp_path), [Router("softmax", 0.45), Router("energy", 0.0)])
    assert check_same(export(tmp_path, joint), joint) == {0, 1, 2}


def test_four_models_are_one_file_too(tmp_path):
    routers = [Router("softmax", 0.4), Router("margin", 0.3), Router("max_logit", 1.0)]
    joint = chain(slices(tmp_path, 4), routers)
    assert check_same(export(tmp_path, joint), joint) == {0, 1, 2, 3}


def test_an_inner_skip_leaves_hopeless_rows_to_the_next_router(tmp_path):
    inner = Router("softmax", 0.6, skip=0.35)
    joint = chain(slices(tmp_path), [inner, Router("max_logit", 1.2)])
    score = np.asarray(joint.student(ROWS).score)
    skipped = score < 0.35
    assert 0 < skipped.sum() < 60
    exported = export(tmp_path, joint)
    assert check_same(exported, joint) == {0, 1, 2}
    exported.router.threshold = LEAST
    np.testing.assert_array_equal(exported(ROWS).stage == 1, (score < 0.6) & ~skipped)
    exported.router.threshold = np.inf
    assert (exported(ROWS).stage == 2).all()


def test_a_row_that_is_no_number_is_deferred_by_every_router_skip_or_not(tmp_path):
    joint = chain(slices(tmp_path), [Router("softmax", 0.1, skip=0.05), Router("softmax", 0.1)])
    exported, rows = export(tmp_path, joint), ROWS.copy()
    rows[3, 0] = np.nan
    assert exported(rows).stage[3] == joint(rows).stage[3] == 1
    rows[3, 5] = np.nan
    assert exported(rows).stage[3] == 2


def test_an_outer_skip_is_in_the_file(tmp_path):
    joint = chain(slices(tmp_path, 2), [Router("softmax", 0.6, skip=0.35)])
    exported = export(tmp_path, joint)
    assert exported.router.skip == 0.35
    assert check_same(exported, joint) == {0, 1}


def test_models_of_several_precisions_are_one_file(tmp_path):
    kinds = (np.float32, np.float64, np.float32)
    models = [
        OnnxModel(write_slice(tmp_path / f"{n}.onnx", range(5 * n, 5 * n + 5), 20, dtype=dtype))
        for n, dtype in enumerate(kinds)
    ]
    joint = chain(models, [Router("softmax", 0.45), Router("margin", 0.0)])
    assert check_same(export(tmp_path, joint), joint, ROWS.astype(np.float64)) == {0, 1, 2}


def test_a_specialized_joint_model_can_be_the_student(tmp_path):
    parts = {"a": range(4), "b": range(4, 10), "c": range(10, 16)}
    a, b, c = (OnnxModel(write_slice(tmp_path / f"{n}.onnx", p, 20)) for n, p in parts.items())
    inner = SpecializedJointClassifier(
        a, b, Router("known_softmax", 0.4), known_classes=(4, 0, 3), classes=6
    )
    joint = JointClassifier(inner, c, Router("softmax", 0.0), blend=0.2)
    assert check_same(export(tmp_path, joint), joint) == {0, 1, 2}


def test_no_node_of_a_model_is_run_where_nothing_reaches_it(tmp_path):
    """From here on the models in branches fail whenever they are run."""
    for name in ("1", "2"):
        graph = helper.make_graph(
            [helper.make_node("Gather", ["x", "rows"], ["y"], axis=1)],
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 20])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
            [numpy_helper.from_array(np.arange(5) + int(name), "rows")],
        )
        sets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=sets, ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    student = OnnxModel(write_slice(tmp_path / "0.onnx", range(5), 20))
    models = [student, *(OnnxModel(tmp_path / f"{n}.onnx") for n in "12")]
    joint = chain(models, [Router("max_logit", -50.0), Router("max_logit", 0.0)])
    export(tmp_path, joint)
    model = onnx.load(tmp_path / "joint.onnx")
    branches = [node for node in model.graph.node if node.op_type == "If"]
    assert len(branches) == 2
    for attribute in (attribute for node in branches for attribute in node.attribute):
        for weight in attribute.g.initializer:
            if weight.name.endswith("/rows"):
                weight.CopyFrom(numpy_helper.from_array(np.full(5, 99), weight.name))
    onnx.save(model, tmp_path / "joint.onnx")
    broken = ExportedJoint(tmp_path / "joint.onnx")
    check_same(broken, joint, thresholds=[-50.0])
    for rows, threshold in ((ROWS, 50.0), (np.full_like(ROWS, -99), -1e9)):
        broken.router.threshold = threshold
        with pytest.raises(ModelError, match="failed on a batch of shape"):
            broken(rows)


# The same weights once


LOOK = Preprocess(size=8, resize="crop", color="bgr", mirror=True, shift=(2, 1))


def wide(path, seed, way=None):
    """A model whose weights are most of its file, of images."""
    if not path.exists():
        write_linear(path, np.random.default_rng(seed).normal(size=(3, 20_000)))
    return prepared(OnnxModel(path), way or Preprocess(size=8))


@pytest.mark.parametrize("again", [0, 1], ids=["the student", "the second"])
def test_the_weights_of_two_looks_are_in_the_file_once(tmp_path, again):
    """Whether they are the weights of the student, or those of a model in a branch."""
    models = [wide(tmp_path / f"{n}.onnx", n) for n in range(2)]
    look = wide(tmp_path / f"{again}.onnx", again, LOOK)
    routers = [Router("margin", 1e-5), Router("max_logit", 0.0)]
    pair = export_joint(chain(models, routers), tmp_path / "pair.onnx")
    joint = chain([*models[: again + 1], look, *models[again + 1 :]], routers)
    three = export_joint(joint, tmp_path / "three.onnx")
    assert three.bytes - pair.bytes < pair.bytes // 20 < (tmp_path / "0.onnx").stat().st_size // 2
    images = RNG.integers(0, 256, (30, 9, 12, 3), np.uint8)
    assert check_same(ExportedJoint(three.path, threads=1), joint, images) == {0, 1, 2}


@pytest.mark.parametrize("opset", [13, 20])
def test_shared_weights_are_converted_once_and_fit_every_look(tmp_path, opset):
    models = [wide(tmp_path / f"{n}.onnx", n) for n in range(2)]
    look = wide(tmp_path / "0.onnx", 0, LOOK)
    joint = chain([models[0], look, models[1]], [Router("margin", 1e-5), Router("margin", 0.0)])
    exported = export(tmp_path, joint, opset=opset, external_data=True)
    images = RNG.integers(0, 256, (30, 9, 12, 3), np.uint8)
    assert check_same(exported, joint, images) == {0, 1, 2}
    assert onnx.load(tmp_path / "joint.onnx").opset_import[0].version == opset


def test_copies_of_one_file_share_their_weights(tmp_path):
    models = [wide(tmp_path / "0.onnx", 0)]
    for name in ("1.onnx", "2.onnx"):
        shutil.copyfile(tmp_path / "0.onnx", tmp_path / name)
        models.append(wide(tmp_path / name, 0))
    joint = chain(models, [Router("max_logit", 0.1), Router("max_logit", 0.1)])
    found = export_joint(joint, tmp_path / "joint.onnx")
    assert found.bytes < 1.3 * (tmp_path / "0.onnx").stat().st_size


# What the file says, and what is no file


def test_the_file_names_every_stage_and_its_router(tmp_path):
    joint = chain(
        slices(tmp_path), [Router("softmax", 0.6, skip=0.2), Router("margin", 0.1)], (0.5, 0)
    )
    export_joint(joint, tmp_path / "joint.onnx", threshold=0.3)
    about = ExportedJoint(tmp_path / "joint.onnx").about
    files = [one["file"] for one in about["stages"]]
    assert files == ["0.onnx", "1.onnx", "2.onnx"]
    assert [one.get("router") for one in about["stages"]] == [
        {"score": "softmax", "threshold": 0.6, "blend": 0.5, "skip": 0.2},
        {"score": "margin", "threshold": 0.3, "blend": 0.0},
        None,
    ]
    assert (about["student"]["file"], about["teacher"]["file"]) == ("0.onnx", "2.onnx")
    assert about["threshold"] == 0.3
    assert joint.router.threshold == 0.1
    assert joint.student.router.threshold == 0.6


def test_a_teacher_that_is_a_joint_model_is_to_be_a_stage(tmp_path):
    a, b, c = slices(tmp_path)
    joint = JointClassifier(a, chain([b, c], [Router("softmax", 0.5)]), Router("softmax", 0.5))
    with pytest.raises(
        ModelError, match=r"a joint model cannot be exported: nest on the student's"
    ):
        export_joint(joint, tmp_path / "joint.onnx")
    assert not (tmp_path / "joint.onnx").exists()


def test_an_exported_file_is_no_models_own_file(tmp_path):
    a, b, c = slices(tmp_path)
    export_joint(chain([a, b], [Router("softmax", 0.5)]), tmp_path / "pair.onnx")
    joint = JointClassifier(load_joint(tmp_path / "pair.onnx"), c, Router("softmax", 0.5))
    with pytest.raises(ModelError, match=r"pair.onnx is wrapped in ExportedJoint, which cannot"):
        export_joint(joint, tmp_path / "joint.onnx")


def test_a_nested_detector_is_refused(tmp_path):
    models = [load_model(p, layout="detr", classes=3) for p in write_detectors(tmp_path)]
    inner = JointDetector(*models, Router("box_count", -2.5))
    joint = JointDetector(inner, models[1], Router("box_count", -2.5))
    with pytest.raises(ModelError, match="a joint detector of 3 models cannot be exported"):
        export_joint(joint, tmp_path / "joint.onnx")


def test_stages_that_take_other_inputs_are_named(tmp_path):
    models = slices(tmp_path, 2)
    other = OnnxModel(write_slice(tmp_path / "other.onnx", range(5), 12))
    joint = chain([*models, other], [Router("softmax", 0.5), Router("softmax", 0.5)])
    with pytest.raises(
        ModelError, match=r"0.onnx takes rows of shape \(20,\) and .*other.*\(12,\)"
    ):
        export_joint(joint, tmp_path / "joint.onnx")


def test_a_file_from_before_has_no_stage_and_says_who_was_asked(tmp_path):
    joint = chain(slices(tmp_path, 2), [Router("softmax", 0.45)])
    export_joint(joint, tmp_path / "joint.onnx")
    model = onnx.load(tmp_path / "joint.onnx")
    names = [output.name for output in model.graph.output]
    assert names.pop() == "stage"
    del model.graph.output[-1]
    onnx.save(model, tmp_path / "before.onnx")
    before = load_joint(tmp_path / "before.onnx")
    assert before.output_names == tuple(names)
    assert check_same(before, joint) == {0, 1}


def test_an_inner_decision_that_differs_is_found_before_the_file_takes_its_place(tmp_path):
    class Odd(Router):
        """A router that does not do what its threshold says."""

        def deferred(self, score, threshold):
            return super().deferred(score, 0.9 if threshold == 0.45 else threshold)

    joint = chain(slices(tmp_path), [Odd("softmax", 0.45), Router("margin", 0.0)])
    with pytest.raises(ModelError, match="does not answer like the joint model"):
        export_joint(joint, tmp_path / "joint.onnx")
    assert not (tmp_path / "joint.onnx").exists()

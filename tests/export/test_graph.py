from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from slices import check_same, joint_of_slices, write_joint, write_slice
from tiny import write_linear, write_pair

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ebjr import JointClassifier, ModelError, Outcomes, Router, load_model, run_study
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import OnnxModel, open_session
from ebjr.data.preprocess import Preprocess, prepared
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.demo.fetch import DataUnavailable
from ebjr.export import export_joint

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 10)).astype(np.float32)


def write_graph(path, nodes, weights=(), *, opset=17, ir_version=8, width=10, **more):
    """A classifier y (n, 5) of x (n, width)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights],
    )
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=ir_version, **more)
    onnx.save(model, str(path))
    return path


def write_product(path, seed, **more):
    """A linear classifier whose names are everybody's."""
    weight = np.random.default_rng(seed).normal(size=(10, 5)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "score"], ["output"], name="node"),
        helper.make_node("Identity", ["output"], ["threshold"], name="node_1"),
        helper.make_node("Identity", ["threshold"], ["y"], name="joint/threshold"),
    ]
    return write_graph(path, nodes, [("score", weight)], **more)


def export(folder, student, teacher, score="softmax", blend=0.0, threshold=0.6, **options):
    """A joint classifier of two files, and what is exported of it."""
    joint = JointClassifier(
        OnnxModel(student), OnnxModel(teacher), Router(score, threshold), blend=blend
    )
    found = export_joint(write_joint(folder, joint), folder / "joint.onnx", **options)
    onnx.checker.check_model(str(folder / "joint.onnx"), full_check=True)
    return joint, ExportedJoint(folder / "joint.onnx", threads=1), found


def check_all(exported, joint, inputs=ROWS):
    score = np.sort(np.asarray(joint(inputs).score, np.float64))
    for threshold in (
        -3e38,
        float(score[len(score) // 2] + score[len(score) // 2 - 1]) / 2,
        np.inf,
    ):
        joint.router.threshold = threshold
        check_same(exported, joint, inputs)


@pytest.fixture(scope="module")
def calibrated():
    """Real images as both shipped models take them, and the point that the demo calibrates."""
    try:
        images, _ = load_cifar10("test")
    except DataUnavailable as error:
        pytest.skip(str(error))
    with shipped("outcomes.npz") as path:
        point = run_study(Outcomes.load(path)).point
    return np.ascontiguousarray(images[:128].transpose(0, 3, 1, 2), np.float32) / 255, point


@pytest.mark.network
@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_the_shipped_pair_answers_alike_on_real_images_in_any_batches(tmp_path, calibrated, blend):
    inputs, point = calibrated
    with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
        joint, exported, _ = export(
            tmp_path, student, teacher, point.score, blend, threshold=point.threshold
        )
        assert exported.router.threshold == pytest.approx(point.threshold)
        for batch_size in (1, 7, 64, 128):
            for start in range(0, min(128, 12 * batch_size), batch_size):
                check_same(exported, joint, inputs[start : start + batch_size])
        check_all(exported, joint, inputs[:32])


def test_the_teacher_is_not_run_where_nothing_is_deferred(tmp_path):
    fails = [
        helper.make_node("Gather", ["x", "rows"], ["beyond"], axis=1),
        helper.make_node("Slice", ["beyond", "zero", "five", "one"], ["y"]),
    ]
    ready = [("rows", np.arange(5)), ("zero", [0]), ("five", [5]), ("one", [1])]
    write_graph(tmp_path / "teacher.onnx", fails, ready)
    joint, _, _ = export(
        tmp_path, write_product(tmp_path / "student.onnx", 0), tmp_path / "teacher.onnx"
    )
    model = onnx.load(tmp_path / "joint.onnx")
    (branch,) = [node for node in model.graph.node if node.op_type == "If"]
    for attribute in branch.attribute:  # from here on the teacher fails whenever it is run
        for weight in attribute.g.initializer:
            if weight.name == "teacher/rows":
                weight.CopyFrom(numpy_helper.from_array(np.full(5, 99), weight.name))
    onnx.save(model, str(tmp_path / "joint.onnx"))
    broken = ExportedJoint(tmp_path / "joint.onnx")
    broken.threshold = joint.router.threshold = -1.0
    check_same(broken, joint, ROWS)
    broken.router.threshold = 2.0
    with pytest.raises(ModelError, match="failed on a batch of shape"):
        broken(ROWS)


def test_the_threshold_has_its_default_and_is_overridden_by_an_input(tmp_path):
    joint, exported, found = export(
        tmp_path,
        write_product(tmp_path / "student.onnx", 0),
        write_product(tmp_path / "teacher.onnx", 1),
        threshold=0.7,
    )
    session = open_session(tmp_path / "joint.onnx")
    (deferred,) = session.run(["deferred"], {"x": ROWS})
    np.testing.assert_array_equal(deferred, joint(ROWS).deferred)
    assert deferred.any()
    assert not deferred.all()
    knob = np.array(2.0, np.float32)
    assert session.run(["deferred"], {"x": ROWS, "threshold": knob})[0].all()
    assert found.threshold == exported.router.threshold == 0.7


@pytest.mark.parametrize("given", [-np.inf, np.nan])
def test_no_threshold_keeps_a_row_that_the_score_marks(tmp_path, given):
    joint = joint_of_slices(
        tmp_path, "specialized_energy", 4, 6, task="specialized", known_classes=(0, 1, 2), classes=6
    )
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    session = open_session(tmp_path / "joint.onnx")
    rows = ROWS.copy()
    rows[:5, 3] = 50  # "other" wins
    feed = {"x": rows, "threshold": np.array(given, np.float32)}
    score, deferred = session.run(["score", "deferred"], feed)
    assert np.isneginf(score[:5]).all()
    assert deferred[:5].all()


def test_names_that_clash_are_kept_apart(tmp_path):
    joint, exported, _ = export(
        tmp_path,
        write_product(tmp_path / "student.onnx", 0),
        write_product(tmp_path / "teacher.onnx", 1),
        blend=0.5,
    )
    check_all(exported, joint)


def test_an_input_that_is_called_like_one_of_ours_is_renamed(tmp_path):
    for name, seed in (("student", 0), ("teacher", 1)):
        model = onnx.load(write_product(tmp_path / f"{name}.onnx", seed))
        model.graph.input[0].name = model.graph.node[0].input[0] = "deferred"
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
    joint, exported, found = export(tmp_path, tmp_path / "student.onnx", tmp_path / "teacher.onnx")
    assert exported.input_name == found.input["name"] == "input"
    check_all(exported, joint)


def write_centered(path, opset, seed, ir_version=8):
    """Means are subtracted; their axes are an attribute before opset 18 and an input after."""
    weight = np.random.default_rng(seed).normal(size=(10, 5)).astype(np.float32)
    weights = [("w", weight)] + ([("axes", np.array([1]))] if opset >= 18 else [])
    mean = (
        helper.make_node("ReduceMean", ["x", "axes"], ["m"])
        if opset >= 18
        else helper.make_node("ReduceMean", ["x"], ["m"], axes=[1])
    )
    nodes = [
        mean,
        helper.make_node("Sub", ["x", "m"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    return write_graph(path, nodes, weights, opset=opset, ir_version=ir_version)


@pytest.mark.parametrize(
    ("one", "other", "wished", "expected"),
    [
        (17, 17, None, 17),
        (11, 12, None, 13),
        (12, 18, None, 18),
        (21, 13, None, 21),
        (19, 23, None, 23),
        (13, 13, 20, 20),
        (18, 18, 17, 17),
    ],
)
def test_opsets_are_brought_together(tmp_path, one, other, wished, expected):
    paths = [
        write_centered(tmp_path / "student.onnx", one, 0),
        write_centered(tmp_path / "teacher.onnx", other, 1, ir_version=10),
    ]
    joint, exported, found = export(tmp_path, *paths, opset=wished)
    assert found.opset == expected
    assert found.ir_version == max(10, 11 if expected == 23 else 0)
    assert {entry.domain: entry.version for entry in onnx.load(found.path).opset_import}[
        ""
    ] == expected
    check_all(exported, joint)


@pytest.mark.parametrize(
    ("opset", "error", "says"),
    [
        (17, ModelError, "has opset 20 and cannot be converted to opset 17"),
        (12, ValueError, r"opset must be from 13 to \d+, .* not 12"),
        (99, ValueError, r"opset must be from 13 to \d+, the newest in onnx .*, not 99"),
    ],
)
def test_an_opset_that_cannot_be_is_one_sentence(tmp_path, opset, error, says):
    for name, seed in (("student", 0), ("teacher", 1)):
        weight = np.random.default_rng(seed).normal(size=(10, 5)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Gelu", ["p"], ["y"]),
        ]
        write_graph(tmp_path / f"{name}.onnx", nodes, [("w", weight)], opset=20, ir_version=9)
    with pytest.raises(error, match=says):
        export(tmp_path, tmp_path / "student.onnx", tmp_path / "teacher.onnx", opset=opset)
    assert not (tmp_path / "joint.onnx").exists()


def test_functions_of_one_name_are_taken_in_each_as_it_is(tmp_path):
    for name, factor, seed in (("student", 0.5, 0), ("teacher", 3.0, 1)):
        weight = np.random.default_rng(seed).normal(size=(10, 5)).astype(np.float32)
        scale = helper.make_function(
            "local",
            "Scale",
            ["a"],
            ["b"],
            [
                helper.make_node("Constant", [], ["f"], value_float=factor),
                helper.make_node("Mul", ["a", "f"], ["b"]),
            ],
            [helper.make_opsetid("", 17)],
        )
        nodes = [
            helper.make_node("Scale", ["x"], ["s"], domain="local"),
            helper.make_node("MatMul", ["s", "w"], ["y"]),
        ]
        write_graph(tmp_path / f"{name}.onnx", nodes, [("w", weight)], functions=[scale])
    joint, exported, _ = export(tmp_path, tmp_path / "student.onnx", tmp_path / "teacher.onnx")
    check_all(exported, joint)


def test_branches_and_constants_of_a_model_keep_their_meaning(tmp_path):
    def branch(name, factor):
        nodes = [
            helper.make_node("Constant", [], ["f"], value_float=factor),
            helper.make_node("Mul", ["product", "f"], ["scaled"]),
        ]
        made = helper.make_tensor_value_info("scaled", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [made])

    for name, seed in (("student", 0), ("teacher", 1)):
        weight = np.random.default_rng(seed).normal(size=(10, 5)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
            helper.make_node("Greater", ["top", "limit"], ["high"]),
            helper.make_node(
                "If", ["high"], ["y"], then_branch=branch("a", 1.0), else_branch=branch("b", -1.0)
            ),
        ]
        weights = [("w", weight), ("limit", np.float32(1.5 + seed))]
        write_graph(tmp_path / f"{name}.onnx", nodes, weights)
    joint, exported, _ = export(tmp_path, tmp_path / "student.onnx", tmp_path / "teacher.onnx")
    for row in range(12):
        joint.router.threshold = 0.6
        check_same(exported, joint, ROWS[row : row + 1])


def test_weights_that_an_old_file_lists_as_inputs_are_none(tmp_path):
    for name, seed in (("student", 0), ("teacher", 1)):
        model = onnx.load(write_product(tmp_path / f"{name}.onnx", seed))
        model.graph.input.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [10, 5]))
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
    joint, exported, found = export(tmp_path, tmp_path / "student.onnx", tmp_path / "teacher.onnx")
    names = [entry.name for entry in onnx.load(found.path).graph.input]
    assert names == ["x", "threshold"]
    check_all(exported, joint)


def test_outputs_that_nobody_reads_are_left_out(tmp_path):
    student = write_product(tmp_path / "student.onnx", 0)
    model = onnx.load(write_product(tmp_path / "teacher.onnx", 1))
    model.graph.node.append(helper.make_node("Exp", ["output"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    onnx.save(model, str(tmp_path / "teacher.onnx"))
    _, _, found = export(tmp_path, student, tmp_path / "teacher.onnx", score="max_logit")
    assert "teacher/other" not in onnx.load(found.path).SerializeToString().decode("latin-1")


@pytest.mark.parametrize("external_data", [None, True])
def test_weights_outside_of_the_files_are_found_and_written_together(tmp_path, external_data):
    for name in ("student", "teacher"):
        model = onnx.load(write_linear(tmp_path / f"{name}.onnx", RNG.normal(size=(3, 500))))
        onnx.save(
            model,
            str(tmp_path / f"{name}.onnx"),
            save_as_external_data=True,
            location=f"{name}.weights",
            size_threshold=100,
        )
    (tmp_path / "out").mkdir()
    joint = JointClassifier(
        OnnxModel(tmp_path / "student.onnx"),
        OnnxModel(tmp_path / "teacher.onnx"),
        Router("softmax", 0.2),
    )
    path = tmp_path / "out" / "joint.onnx"
    found = export_joint(write_joint(tmp_path, joint), path, external_data=external_data)
    names = {entry.name for entry in (tmp_path / "out").iterdir()}
    assert names == ({"joint.onnx", "joint.onnx.data"} if external_data else {"joint.onnx"})
    assert found.bytes == sum(entry.stat().st_size for entry in (tmp_path / "out").iterdir())
    (tmp_path / "student.weights").unlink()  # the file stands on its own
    images = RNG.random((20, 3, 8, 8)).astype(np.float32)
    joint.router.threshold = float(np.median(joint(images).score))
    check_same(ExportedJoint(path), joint, images)


def test_a_fixed_batch_of_one_is_the_joint_graphs(tmp_path):
    write_linear(tmp_path / "student.onnx", RNG.normal(size=(3, 4)), batch=1)
    write_linear(tmp_path / "teacher.onnx", RNG.normal(size=(3, 4)))
    joint = JointClassifier(
        load_model(tmp_path / "student.onnx", batch_size=1),
        load_model(tmp_path / "teacher.onnx"),
        Router("margin", 0.1),
    )
    found = export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    assert found.input["shape"][0] == 1
    images = RNG.random((9, 3, 8, 8)).astype(np.float32)
    joint.router.threshold = float(np.median(joint(images).score))
    check_same(ExportedJoint(tmp_path / "joint.onnx"), joint, images)


def test_inputs_have_the_wider_of_both_types(tmp_path):
    write_slice(tmp_path / "student.onnx", range(5), 10, dtype=np.float16)
    write_slice(tmp_path / "teacher.onnx", range(5, 10), 10)
    joint, exported, found = export(tmp_path, tmp_path / "student.onnx", tmp_path / "teacher.onnx")
    assert found.input["dtype"] == "float32"
    check_all(exported, joint)


def test_the_file_says_what_it_is(tmp_path):
    write_pair(tmp_path)
    models = [OnnxModel(tmp_path / f"{role}.onnx") for role in ("student", "teacher")]
    images = RNG.integers(0, 256, (300, 8, 8, 3), np.uint8)
    way = Preprocess(size=8)
    labels = prepared(models[1], way)(images).argmax(axis=1)
    outcomes = Outcomes(prepared(models[0], way)(images), prepared(models[1], way)(images), labels)
    study = run_study(outcomes)
    joint = JointClassifier(
        *(prepared(model, way) for model in models), study.point.router, blend=study.point.blend
    )
    config = write_joint(tmp_path, joint)
    export_joint(config, tmp_path / "joint.onnx", threshold=0.5)
    model = onnx.load(tmp_path / "joint.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["ebjr.task"] == "classification"
    assert facts["ebjr.score"] == str(study.point.score)
    assert float(facts["ebjr.threshold"]) == 0.5
    assert json.loads(facts["ebjr.student"])["sha256"] == config.student.sha256
    assert json.loads(facts["ebjr.preprocess"])["teacher"] == {"size": 8}
    texts = {value.name: value.doc_string for value in [*model.graph.input, *model.graph.output]}
    assert set(texts) == {
        *("image", "threshold", "prediction", "output", "score", "deferred", "stage")
    }
    assert all(texts.values())
    assert "default 0.5" in texts["threshold"]
    assert model.producer_name == "ebjr"
    assert str(tmp_path) not in model.SerializeToString().decode("latin-1")

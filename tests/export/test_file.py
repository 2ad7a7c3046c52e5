from __future__ import annotations

import importlib.util
import json
import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from slices import check_same, joint_of_slices, write_joint, write_slice
from tiny import write_images, write_linear, write_pair

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ebjr import JointClassifier, ModelError, Router, load_joint
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import OnnxModel
from ebjr.export import export_joint, export_triton
from ebjr.joint_file import JointConfig, ModelEntry, RemoteEntry

RNG = np.random.default_rng(0)


def config_of(folder, score="softmax", threshold=0.5, **more):
    """A joint.toml of two files that need not be models."""
    entries = [ModelEntry.of_file(folder / f"{role}.onnx") for role in ("student", "teacher")]
    return JointConfig(*entries, score=score, threshold=threshold, **more)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        ({}, {"columns": range(5, 9)}, r"must answer alike, but student returned rows of \(5,\)"),
        ({}, {"width": 12}, r"must take the same inputs, .*rows of shape \(10,\) and .*\(12,\)"),
        ({}, {"dtype": np.int64, "width": 10}, None),
    ],
)
def test_models_that_cannot_be_one_graph_are_one_sentence(tmp_path, student, teacher, says):
    for name, columns, more in (
        ("student", range(5), student),
        ("teacher", range(5, 10), teacher),
    ):
        known = {"columns": columns, "width": 10, **more}
        write_slice(tmp_path / f"{name}.onnx", known.pop("columns"), known.pop("width"), **known)
    before = names(tmp_path)
    if says is None:
        found = export_joint(config_of(tmp_path), tmp_path / "joint.onnx")
        assert found.input["dtype"] == "int64"
        return
    with pytest.raises(ModelError, match=says) as error:
        export_joint(config_of(tmp_path), tmp_path / "joint.onnx")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == before


def test_graphs_of_fixed_batches_join_as_one_of_any_batch(tmp_path):
    write_slice(tmp_path / "student.onnx", range(5), 10, batch=4)
    write_slice(tmp_path / "teacher.onnx", range(5, 10), 10, batch=3)
    config = config_of(tmp_path)
    export_joint(config, tmp_path / "joint.onnx")
    rows = np.random.default_rng(0).normal(size=(7, 10)).astype(np.float32)
    found, wanted = load_joint(tmp_path / "joint.onnx")(rows), config.load()(rows)
    assert 0 < wanted.deferred.sum() < 7
    for name in ("prediction", "output", "deferred"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))


def test_a_graph_that_is_built_for_its_batch_says_so(tmp_path):
    shape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph(
        [shape],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 10])],
        [onnx.numpy_helper.from_array(np.array([3, 10]), "shape")],
    )
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), tmp_path / "teacher.onnx")
    write_slice(tmp_path / "student.onnx", range(10), 10)
    with pytest.raises(ModelError, match=r"teacher.onnx has a fixed batch of 3.*dynamic first dim"):
        export_joint(config_of(tmp_path), tmp_path / "joint.onnx")


def save_graph(path, node, shape, opset=17, domain=""):
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("example.org", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), str(path))


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (
            (helper.make_node("Flatten", ["x"], ["y"]), [3, 8, 8]),
            r"must take the same inputs, .*student.onnx takes rows of shape \(8, 8\)",
        ),
        (
            (helper.make_node("Identity", ["x"], ["y"]), []),
            "no batch dimension in its input x; exp",
        ),
        ((helper.make_node("Identity", ["x"], ["y"]), None), "no batch dimension"),
        (
            (helper.make_node("Guess", ["x"], ["y"], domain="example.org"), ["n", 10]),
            r"ONNX Runtime cannot load .*: \w[^\[\]]*Guess",
        ),
        (
            (helper.make_node("Identity", ["x"], ["y"]), ["n", 10], 999),
            r"the opset is 999, but this ONNX Runtime supports up to \d+; exp",
        ),
    ],
)
def test_a_graph_that_no_runtime_can_join_is_one_sentence(tmp_path, graph, says):
    save_graph(tmp_path / "student.onnx", *graph)
    write_slice(tmp_path / "teacher.onnx", range(5), 10)
    with pytest.raises(ModelError, match=says) as error:
        export_joint(config_of(tmp_path), tmp_path / "joint.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "joint.onnx").exists()


def test_a_program_of_pytorch_is_to_be_exported_to_onnx_first(tmp_path):
    (tmp_path / "student.pt2").write_bytes(b"a program")
    write_slice(tmp_path / "teacher.onnx", range(5), 10)
    student = ModelEntry.of_file(tmp_path / "student.pt2")
    teacher = ModelEntry.of_file(tmp_path / "teacher.onnx")
    config = JointConfig(student, teacher, score="softmax", threshold=0.5)
    with pytest.raises(ModelError, match=r"student.pt2 is not an ONNX graph: export it to ONNX"):
        export_joint(config, tmp_path / "joint.onnx")


def test_a_remote_teacher_cannot_be_part_of_a_file(tmp_path):
    write_slice(tmp_path / "student.onnx", range(5), 10)
    student = ModelEntry.of_file(tmp_path / "student.onnx")
    teacher = RemoteEntry("http://127.0.0.1:9/v2/models/teacher", {"name": "teacher"})
    config = JointConfig(student, teacher, score="softmax", threshold=0.5)
    with pytest.raises(
        ModelError, match=r"the teacher http://.* is a remote model, which cannot be"
    ):
        export_joint(config, tmp_path / "joint.onnx")


@pytest.mark.parametrize("external_data", [None, True])
def test_a_full_disk_leaves_nothing(tmp_path, external_data):
    weight = RNG.normal(size=(3, 50_000))
    for name in ("student", "teacher"):
        write_linear(tmp_path / f"{name}.onnx", weight)
    out = tmp_path / "out"
    out.mkdir()
    (out / "joint.onnx").write_text("what was there")
    config = config_of(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"[Ff]ile too large"):
            export_joint(config, out / "joint.onnx", external_data=external_data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(out) == ["joint.onnx"]
    assert (out / "joint.onnx").read_text() == "what was there"


def test_weights_over_the_limit_go_into_a_second_file(tmp_path):
    for name in ("student", "teacher"):
        write_linear(tmp_path / f"{name}.onnx", RNG.normal(size=(3, 2_000)))
    config, out = config_of(tmp_path), tmp_path / "out"
    out.mkdir()
    whole = export_joint(config, out / "joint.onnx")
    assert (whole.data, names(out)) == (None, ["joint.onnx"])
    same = export_joint(config, out / "joint.onnx", most_bytes=whole.bytes)
    assert same.data is None
    parted = export_joint(config, out / "joint.onnx", most_bytes=whole.bytes // 2)
    assert parted.data == out / "joint.onnx.data"
    assert names(out) == ["joint.onnx", "joint.onnx.data"]
    assert (out / "joint.onnx").stat().st_size < whole.bytes // 2 < parted.data.stat().st_size
    images = RNG.normal(size=(20, 3, 8, 8)).astype(np.float32)
    check_same(load_joint(out / "joint.onnx"), config.load(), images)


def test_a_joint_model_in_a_file_is_a_model_and_can_be_a_teacher(tmp_path):
    joint = joint_of_slices(tmp_path, "softmax", 5, 5)
    joint.router.threshold = 0.6
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    exported = load_joint(tmp_path / "joint.onnx", threads=1)
    assert isinstance(exported, ExportedJoint)
    assert (exported.task, exported.blend) == (joint.task, joint.blend)
    assert repr(exported.router) == repr(joint.router)
    inputs = RNG.normal(size=(50, 10)).astype(np.float32)
    check_same(exported, joint, inputs)
    three = JointClassifier(lambda x: x[:, 3:8], exported, Router("margin", 0.3))
    same = JointClassifier(lambda x: x[:, 3:8], joint, Router("margin", 0.3))
    np.testing.assert_array_equal(three(inputs).prediction, same(inputs).prediction)
    logits = OnnxModel(tmp_path / "joint.onnx", output="output")
    np.testing.assert_allclose(logits(inputs), joint(inputs).output, atol=1e-6)


def test_another_graph_is_no_joint_model(tmp_path):
    write_slice(tmp_path / "other.onnx", range(5), 10)
    with pytest.raises(ModelError, match="is not a joint model; `ebjr export` writes one"):
        ExportedJoint(tmp_path / "other.onnx")


@pytest.fixture
def calibrated(run, tmp_path):
    """A joint.toml of the tiny pair and its images."""
    write_pair(tmp_path)
    write_images(tmp_path / "images")
    run("record", "--student", "student.onnx", "--teacher", "teacher.onnx", "--data", "images",
        *("-o", "outcomes.npz"))  # fmt: skip
    code, _, said = run("calibrate", "outcomes.npz", "-o", "joint.toml")
    assert code == 0, said
    return tmp_path


def test_the_command_writes_the_file_and_says_what_is_in_it(run, calibrated):
    code, printed, _ = run("export", "joint.toml", "-o", "joint.onnx")
    assert code == 0
    for words in ("joint.onnx", "uint8 ['n', 'height', 'width', 3]", "same decisions", "unless gi"):
        assert words in printed
    code, printed, _ = run(
        *("export", "joint.toml", "-o", "knob.onnx", "--operating-point", "best-accuracy"),
        *("--external-data", "--opset", 18, "--json"),
    )
    found = json.loads(printed)
    points = JointConfig.read(calibrated / "joint.toml").operating_points
    assert found["threshold"] == points["best-accuracy"]["threshold"]
    assert found["opset"] == 18
    assert found["difference"] < 1e-4
    assert found["data"] == "knob.onnx.data"
    assert (calibrated / "knob.onnx.data").is_file()


@pytest.mark.parametrize(
    "knob", [(), ("--threshold", 0.9), ("--operating-point", "best-accuracy")], ids=str
)
def test_predict_answers_by_the_file_as_by_the_joint_toml(run, calibrated, knob):
    run("export", "joint.toml", "-o", "joint.onnx")
    answers = {}
    for joint in ("joint.toml", "joint.onnx"):
        output = calibrated / f"{joint}.jsonl"
        code, _, said = run("predict", joint, "--data", "images", "-o", output.name, *knob)
        assert code == 0, said
        answers[joint] = [json.loads(line) for line in output.read_text().splitlines()]
    for by_file, by_both in zip(answers["joint.onnx"], answers["joint.toml"], strict=True):
        assert by_file.pop("score") == pytest.approx(by_both.pop("score"), abs=1e-5)
        assert by_file == by_both
    assert {"label", "prediction"} <= set(by_file)


def test_predicts_mistakes_with_an_exported_file_are_one_sentence(run, calibrated):
    for joint, more, says in (
        ("student.onnx", (), "student.onnx is not a joint model; `ebjr export` writes one"),
        ("missing.onnx", (), "missing.onnx"),
        ("joint.onnx", ("--ray",), "give the joint.toml from which joint.onnx was exported"),
    ):
        run("export", "joint.toml", "-o", "joint.onnx")
        code, _, said = run("predict", joint, "--data", "images", "-o", "answers.jsonl", *more)
        assert code == 2
        assert says in said
        assert not (calibrated / "answers.jsonl").exists()


def test_the_commands_mistakes_are_one_sentence(run, calibrated):
    for words, says in (
        (("joint.toml",), "give either --output (an .onnx file) or --triton (a folder)"),
        (("joint.toml", "-o", "nowhere/joint.onnx"), "the folder nowhere does not exist"),
        (("missing.toml", "-o", "joint.onnx"), "missing.toml does not exist"),
        (
            ("joint.toml", "-o", "joint.bin"),
            "must end in .onnx, but is joint.bin",
        ),
        (
            ("joint.toml", "-o", "joint.onnx", "--operating-point", "none"),
            "no operating point 'none'",
        ),
    ):
        code, _, said = run("export", *words)
        assert code == 2
        assert says in said
    (calibrated / "teacher.onnx").write_bytes(b"something else")
    code, _, said = run("export", "joint.toml", "-o", "joint.onnx")
    assert code == 2
    assert "has changed since the threshold was calibrated" in said
    assert not (calibrated / "joint.onnx").exists()


# Triton


def triton_messages():
    """Triton's own definition of a configuration, from the client that it publishes."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("tritonclient is not installed")
    path = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(path):
    from google.protobuf import text_format

    messages = triton_messages()
    return messages, text_format.Parse(path.read_text(), messages.ModelConfig())


def test_the_model_repository_is_what_triton_defines(run, calibrated):
    code, printed, said = run("export", "joint.toml", "--triton", "models", "--json")
    assert code == 0, said
    assert json.loads(printed)["path"] == "models/joint/1/model.onnx"
    assert names(calibrated / "models" / "joint") == ["1", "config.pbtxt"]
    messages, config = read_config(calibrated / "models" / "joint" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("joint", "onnxruntime", 64)
    assert config.HasField("dynamic_batching")
    (image,) = config.input
    assert (image.name, image.data_type) == ("image", messages.TYPE_UINT8)
    assert list(image.dims) == [-1, -1, 3]
    outputs = {output.name: output for output in config.output}
    assert {name: messages.DataType.Name(o.data_type) for name, o in outputs.items()} == {
        "prediction": "TYPE_INT64",
        "output": "TYPE_FP32",
        "score": "TYPE_FP32",
        "deferred": "TYPE_BOOL",
        "stage": "TYPE_INT64",
    }
    assert list(outputs["output"].dims) == [3]
    assert list(outputs["score"].dims) == [1]
    assert list(outputs["score"].reshape.shape) == []
    assert outputs["score"].HasField("reshape")
    threshold = JointConfig.read(calibrated / "joint.toml").threshold
    assert float(config.parameters["threshold"].string_value) == threshold
    images = RNG.integers(0, 256, (20, 8, 8, 3), np.uint8)
    model = JointConfig.read(calibrated / "joint.toml").load()
    check_same(ExportedJoint(calibrated / "models/joint/1/model.onnx"), model, images)


def test_a_second_export_is_a_new_version(tmp_path):
    config = write_joint(tmp_path, joint_of_slices(tmp_path, "softmax", 5, 5))
    repository = tmp_path / "models"
    export_triton(config, repository, threshold=0.3)
    found = export_triton(config, repository, threshold=0.4, external_data=True, max_batch_size=8)
    assert names(repository / "joint") == ["1", "2", "config.pbtxt"]
    assert names(repository / "joint" / "2") == ["model.onnx", "model.onnx.data"]
    assert found.path == repository / "joint" / "2" / "model.onnx"
    _, written = read_config(repository / "joint" / "config.pbtxt")
    assert written.max_batch_size == 8
    assert written.parameters["threshold"].string_value == "0.4"


def test_a_failed_export_leaves_no_repository(tmp_path):
    joint = joint_of_slices(tmp_path, "random", 5, 5)
    before = names(tmp_path)
    config = write_joint(tmp_path, joint)
    with pytest.raises(ValueError, match="cannot be exported"):
        export_triton(config, tmp_path / "a" / "models")
    assert names(tmp_path) == sorted([*before, "joint.toml"])


def test_a_graph_of_one_row_is_not_batched(tmp_path):
    for name, columns in (("student", range(5)), ("teacher", range(5, 10))):
        write_slice(tmp_path / f"{name}.onnx", columns, 10, batch=1)
    export_triton(config_of(tmp_path), tmp_path / "models")
    _, config = read_config(tmp_path / "models" / "joint" / "config.pbtxt")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(entry.dims) for entry in (*config.input, *config.output)] == [
        *([1, 10], [1], [1, 5], [1], [1], [1]),
    ]

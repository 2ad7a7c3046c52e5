from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from slices import check_same, write_joint
from tiny import write_linear, write_pair

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

import onnx_ir as ir

from ebjr import JointClassifier, RecordingNote, Router, record
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import OnnxModel
from ebjr.data.preprocess import Preprocess, prepared
from ebjr.export import export_joint
from ebjr.export.images import prepare_images
from ebjr.export.operators import Operators

RNG = np.random.default_rng(0)


def in_graph(preprocess, images, opset=17):
    """What the graph makes of images."""
    import onnxruntime

    op = Operators(opset, np.float32, "images")
    given = ir.val("image", ir.DataType.UINT8, ["n", "height", "width", 3])
    made = prepare_images(op, given, preprocess)
    made.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(preprocess.dtype)))
    made.shape = ir.Shape([None] * 4)
    graph = ir.Graph(
        [given], [made], nodes=op.nodes, initializers=op.constants, opset_imports={"": opset},
        name="images",
    )  # fmt: skip
    proto = ir.to_proto(ir.Model(graph, ir_version=8))
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {"image": images})[0]


SIDES = st.integers(1, 70)


@settings(max_examples=40)
@given(
    image=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    resize=st.sampled_from(["squash", "crop", "letterbox"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    opset=st.sampled_from([13, 17, 18, 21]),
    seed=st.integers(0, 2**32 - 1),
)
@example((30, 33), (26, 42), "squash", "bicubic", 17, 0)
@example((7, 9), (7, 9), "letterbox", "bilinear", 17, 0)
def test_resizing_is_pillows_to_the_last_bit(image, size, resize, interpolation, opset, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, *image, 3), np.uint8)
    way = Preprocess(size=size, resize=resize, interpolation=interpolation, dtype="uint8")
    np.testing.assert_array_equal(in_graph(way, images, opset), way(images))


@settings(max_examples=40)
@given(
    image=st.tuples(SIDES, SIDES),
    size=st.sampled_from([None, 9, (5, 12), (31, 8)]),
    mirror=st.booleans(),
    shift=st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
    opset=st.sampled_from([13, 18, 21]),
    seed=st.integers(0, 2**32 - 1),
)
@example((3, 2), None, True, (-70, 80), 17, 0)
def test_an_image_is_mirrored_and_shifted_as_outside(image, size, mirror, shift, opset, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, *image, 3), np.uint8)
    way = Preprocess(size=size, resize="crop", mirror=mirror, shift=shift, color="bgr")
    np.testing.assert_array_equal(in_graph(way, images, opset), way(images))


@pytest.mark.parametrize(
    "way",
    [
        Preprocess(),
        Preprocess(mirror=True, shift=(1, -2), color="gray", mean=0.1307, std=0.3081),
        Preprocess(size=(5, 9), mirror=True, layout="nhwc", dtype="uint8"),
        Preprocess(range=(0, 255), layout="nhwc"),
        Preprocess(size=6, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), color="bgr"),
        Preprocess(size=(5, 9), range=(-1, 1), layout="nhwc", std=(0.5, 0.6, 0.7)),
        Preprocess(size=8, dtype="float16", resize="letterbox"),
        Preprocess(color="bgr", dtype="uint8", layout="nhwc"),
        Preprocess(color="gray", dtype="uint8"),
        Preprocess(size=5, color="gray", mean=0.1307, std=0.3081, resize="letterbox"),
        Preprocess(size=(4, 9), color="gray", range=(-1, 1), layout="nhwc", resize="crop"),
    ],
    ids=lambda way: way.as_text() or "plain",
)
def test_pixels_become_the_same_numbers(way):
    images = RNG.integers(0, 256, (3, 12, 7, 3), np.uint8)
    found = in_graph(way, images)
    assert found.dtype == way(images).dtype
    np.testing.assert_array_equal(found, way(images))


def test_student_and_teacher_see_one_image_at_their_own_sizes(tmp_path):
    write_pair(tmp_path)
    models = [OnnxModel(tmp_path / f"{role}.onnx") for role in ("student", "teacher")]
    ways = [
        Preprocess(size=8, resize="crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        Preprocess(size=8, resize="letterbox", interpolation="bicubic", color="bgr"),
    ]
    joint = JointClassifier(
        *(prepared(model, way) for model, way in zip(models, ways, strict=True)),
        Router("margin", 0.2),
        blend=0.3,
    )
    found = export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    assert found.input == {
        "name": "image", "dtype": "uint8", "shape": ["n", "height", "width", 3]
    }  # fmt: skip
    exported = ExportedJoint(tmp_path / "joint.onnx")
    for height, width in ((8, 8), (31, 17), (5, 40)):
        images = RNG.integers(0, 256, (12, height, width, 3), np.uint8)
        joint.router.threshold = float(np.sort(joint(images).score)[5:7].mean())
        check_same(exported, joint, images)
    mixed = [RNG.integers(0, 256, (side, 9, 3), np.uint8) for side in (4, 9, 30)]
    np.testing.assert_array_equal(exported(mixed).deferred, joint(mixed).deferred)


def test_images_of_the_models_own_size_may_not_be_of_another(tmp_path):
    write_pair(tmp_path)
    models = [OnnxModel(tmp_path / f"{role}.onnx") for role in ("student", "teacher")]
    joint = JointClassifier(
        *(prepared(model, Preprocess(range=(-1, 1))) for model in models), Router("softmax", 0.7)
    )
    found = export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    assert found.input["shape"] == ["n", 8, 8, 3]
    images = RNG.integers(0, 256, (30, 8, 8, 3), np.uint8)
    check_same(ExportedJoint(tmp_path / "joint.onnx"), joint, images)


def test_real_photographs_are_decided_alike_at_two_resolutions(tmp_path, shared_data):
    with zipfile.ZipFile(shared_data / "imagenet" / "nips1000.zip") as archive:
        members = [name for name in archive.namelist() if name.endswith((".png", ".jpg"))][:24]
        photographs = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
                for name in members
            ]
        )
    rng = np.random.default_rng(3)
    write_linear(tmp_path / "student.onnx", 30 * rng.normal(size=(3, 6)))
    write_linear(tmp_path / "teacher.onnx", 30 * rng.normal(size=(3, 6)))
    joint = JointClassifier(
        prepared(OnnxModel(tmp_path / "student.onnx"), Preprocess(size=8, range=(-1, 1))),
        prepared(
            OnnxModel(tmp_path / "teacher.onnx"),
            Preprocess(size=8, resize="crop", interpolation="bicubic"),
        ),
        Router("softmax", 0.9),
    )
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    joint.router.threshold = float(np.sort(joint(photographs).score)[11:13].mean())
    check_same(ExportedJoint(tmp_path / "joint.onnx"), joint, photographs)


def test_models_of_gray_images_are_recorded_and_exported_as_they_answer(tmp_path):
    """Of one channel each, the channel first and last: the images stay RGB around them."""
    paths = [write_gray(tmp_path / "student.onnx", [8, 8]), write_gray(tmp_path / "t.onnx", [9, 9])]
    images = RNG.integers(0, 256, (6, 20, 30, 3), np.uint8)
    models = [OnnxModel(path) for path in paths]
    with pytest.warns(RecordingNote, match=r"size [89], color gray, .*pixels in 0..1"):
        outcomes = record(*models, list(images), np.arange(6) % 2, flops=False)
    ways = [Preprocess(size=8, color="gray"), Preprocess(size=9, color="gray", layout="nhwc")]
    np.testing.assert_array_equal(outcomes.student, models[0](ways[0](images)))
    np.testing.assert_array_equal(outcomes.teacher, models[1](ways[1](images)))
    joint = JointClassifier(*map(prepared, models, ways), Router("margin", 0.2))
    joint.router.threshold = float(np.median(joint(images).score)) + 1e-4
    saved = write_joint(tmp_path, joint)
    assert (saved.student.preprocess, saved.teacher.preprocess) == tuple(ways)
    export_joint(saved, tmp_path / "joint.onnx")
    check_same(ExportedJoint(tmp_path / "joint.onnx"), joint, images)


def write_gray(path, sides):
    """A linear model of one gray channel: it stands first where the sides are even, else last."""
    row = [1, *sides] if sides[0] % 2 == 0 else [*sides, 1]
    weights = RNG.normal(size=(int(np.prod(row)), 2)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Flatten", ["x"], ["f"]),
         onnx.helper.make_node("MatMul", ["f", "w"], ["y"])],
        "gray",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *row])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    sets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=sets, ir_version=8), path)
    return path

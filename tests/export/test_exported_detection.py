from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import pytest
from PIL import Image
from scipy.special import logit
from slices import write_joint
from tiny import CELL, CELLS, write_detectors

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ebjr import JointDetector, ModelError, Router, load_model
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.layouts import LAYOUTS, Decoded, Fixed, Layout
from ebjr.data.preprocess import Preprocess
from ebjr.export import export_joint
from ebjr.tasks.detection.scale import CommonScale, ConfidenceMap

SIDE = CELLS * CELL
SCALE = CommonScale(ConfidenceMap(1.2, 0.8, 0.3), ConfidenceMap(0.9, 1.1, -0.2))
SCORES = [
    *("box_count", "box_count(above=0.5, top=3)", "expected_errors", "max_confidence"),
    *("mean_confidence(empty=0.25)", "detection_energy(part='classes')"),
    "detection_energy(part='classes', reduce='sum', above=0.1)",
]


def scenes(count, height=SIDE, width=SIDE):
    """Dark images with some bright squares; the first is empty."""
    rng = np.random.default_rng(count)
    images = rng.uniform(0, 90, (count, height, width, 3))
    for image in images[1:]:
        for _ in range(rng.integers(1, 5)):
            y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
            image[y : y + CELL, x : x + CELL, rng.integers(3)] += rng.uniform(60, 150)
    return images.clip(0, 255).astype(np.uint8)


def detectors(folder, way=None, **options):
    pair = []
    for path, limit in zip(write_detectors(folder), (6, 10), strict=True):
        model = load_model(path, layout="detr", classes=3, limit=limit, **options)
        pair.append(model if way is None else model.with_preprocess(way))
    return pair


def check_same_boxes(exported, joint, images):
    """The same images deferred, the same boxes, ties in score apart."""
    exported.router.threshold = joint.router.threshold
    found, wanted = exported(images), joint(list(images))
    score = np.asarray(wanted.score)
    np.testing.assert_allclose(found.score, score, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.deferred, wanted.deferred)
    for one, other in zip(found.prediction, wanted.prediction, strict=True):
        assert len(one) == len(other)
        assert one.classes == other.classes
        assert one.size == other.size
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-6)
        gaps = np.abs(np.diff(other.scores, prepend=2, append=-1))
        apart = (gaps[:-1] > 1e-5) & (gaps[1:] > 1e-5)
        np.testing.assert_array_equal(one.labels[apart], other.labels[apart])
        np.testing.assert_allclose(one.boxes[apart], other.boxes[apart], atol=2e-3)


@pytest.mark.parametrize("rescale", [None, SCALE], ids=["plain", "rescaled"])
@pytest.mark.parametrize("score", SCORES)
def test_a_joint_detector_decides_and_finds_the_same(tmp_path, score, rescale):
    joint = JointDetector(*detectors(tmp_path), Router(score, 0.0), rescale=rescale)
    found = export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    assert found.input == {"name": "image", "dtype": "uint8", "shape": [1, "height", "width", 3]}
    exported = ExportedJoint(tmp_path / "joint.onnx", threads=1)
    images = scenes(16)
    known = np.unique(np.asarray(joint(list(images)).score))
    known = np.unique(known[np.isfinite(known)])
    between = (known[1:] + known[:-1])[len(known) // 2 : len(known) // 2 + 1] / 2
    for threshold in (-1e30, *between.tolist(), np.inf):
        joint.router.threshold = threshold
        check_same_boxes(exported, joint, images)


@pytest.mark.parametrize("move", [{}, {"mirror": True}, {"mirror": True, "shift": (3, -2)}])
@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_boxes_are_in_pixels_of_the_image(tmp_path, resize, move):
    way = Preprocess(size=SIDE, resize=resize, **move)
    joint = JointDetector(*detectors(tmp_path, way), Router("box_count", -2.5))
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    exported = ExportedJoint(tmp_path / "joint.onnx", threads=1)
    for height, width in ((SIDE, SIDE), (50, 33), (21, 60)):
        check_same_boxes(exported, joint, scenes(4, height, width))


def test_rows_beyond_the_count_are_empty(tmp_path):
    joint = JointDetector(*detectors(tmp_path), Router("box_count", -2.5))
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    model = onnx.load(tmp_path / "joint.onnx")
    assert [value.name for value in model.graph.output] == [
        *("boxes", "labels", "scores", "score", "deferred", "stage")
    ]
    session = ExportedJoint(tmp_path / "joint.onnx")._session
    feed = {"image": scenes(3)[1:2], "threshold": np.array(-1e30)}  # the student's six at most
    boxes, labels, scores, _, deferred, stage = session.run(None, feed)
    assert boxes.shape == (1, 10, 4)
    real = labels[0] >= 0
    assert real.any()
    assert not real[6:].any()
    assert (scores[0][~real] == 0).all()
    assert (boxes[0][~real] == 0).all()
    assert not deferred.any()
    assert not stage.any()
    dark = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    score, deferred = session.run(["score", "deferred"], {**feed, "image": dark})
    assert np.isneginf(score).all()
    assert deferred.all()


def test_what_has_no_form_is_one_sentence(tmp_path):
    pair = detectors(tmp_path)
    blended = JointDetector(*pair, Router("box_count", -2.5), blend=0.5)
    with pytest.raises(ValueError, match=r"a blend of 0.5 fuses both detectors' boxes, .*blend 0"):
        export_joint(write_joint(tmp_path, blended), tmp_path / "joint.onnx")
    suppressing = JointDetector(*detectors(tmp_path, nms=0.5), Router("box_count", -2.5))
    with pytest.raises(ModelError, match="only detectors like DETR, with a fixed number of boxes"):
        export_joint(write_joint(tmp_path, suppressing), tmp_path / "joint.onnx")
    other = JointDetector(*pair, Router("random", 0.5))
    with pytest.raises(ValueError, match="the score random cannot be exported; for det"):
        export_joint(write_joint(tmp_path, other), tmp_path / "joint.onnx")
    assert not (tmp_path / "joint.onnx").exists()


NODES = {
    "rtdetr": [("Sigmoid", ["logits"], ["scores"]), ("Concat", ["boxes", "scores"], ["out"])],
    "end2end": [
        *(("Slice", ["boxes", n, m, "2"], [name]) for n, m, name in ("02c", "24w")),
        ("Mul", ["w", "half"], ["h"]),
        *(("Sub", ["c", "h"], ["first"]), ("Add", ["c", "h"], ["last"])),
        ("Concat", ["first", "last"], ["corners"]),
        ("Mul", ["corners", "side"], ["pixels"]),
        ("Sigmoid", ["logits"], ["scores"]),
        ("ReduceMax", ["scores"], ["best"]),
        *(("ArgMax", ["scores"], ["label"]), ("Cast", ["label"], ["number"])),
        ("Concat", ["pixels", "best", "number"], ["out"]),
    ],
}
NODES["end2end_normalized"] = [
    (kind, ["corners" if name == "pixels" else name for name in given], out)
    for kind, given, out in NODES["end2end"]
    if out != ["pixels"]
]
NODES["corners"] = [
    *(step for step in NODES["end2end_normalized"] if step[2][0] in ("c", "w", "h", "first")),
    *(step for step in NODES["end2end_normalized"] if step[2][0] in ("last", "corners", "scores")),
    ("Concat", ["corners", "scores"], ["out"]),
]
ABOUT = {
    "Concat": {"axis": 2}, "ReduceMax": {"axes": [2]}, "ArgMax": {"axis": 2}, "Cast": {"to": 1},
}  # fmt: skip


def in_one_output(path, layout):
    """A detector like DETR whose outputs are put together as another family's are."""
    model = onnx.load(path)
    graph = model.graph
    graph.node.extend(
        onnx.helper.make_node(kind, given, out, **ABOUT.get(kind, {}))
        for kind, given, out in NODES[layout]
    )
    numbers = {"0": [0], "2": [2], "4": [4], "half": np.float32(0.5), "side": np.float32(SIDE)}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()
    )
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)


def check_family(folder, layout, score, asked="auto", label_ids=None):
    pair = []
    for path, limit in zip(write_detectors(folder), (6, 40), strict=True):
        in_one_output(path, layout)
        pair.append(load_model(path, layout=asked, classes=3, limit=limit, label_ids=label_ids))
        assert pair[-1].facts.options["layout"] == layout
    joint = JointDetector(*pair, Router(score, -1e30))
    images = scenes(12, 40, 50)
    scores = np.asarray(joint(list(images)).score)
    joint.router.threshold = float(np.median(scores[np.isfinite(scores)])) + 1e-4
    export_joint(write_joint(folder, joint), folder / "joint.onnx")
    check_same_boxes(ExportedJoint(folder / "joint.onnx", threads=1), joint, images)


@pytest.mark.parametrize("layout", sorted({*NODES} - {"corners"}))
@pytest.mark.parametrize("label_ids", [None, [2, 0]], ids=["all classes", "two of them"])
@pytest.mark.parametrize("score", ["max_confidence", "detection_energy(part='classes')"])
def test_families_that_answer_in_one_output_are_exported(tmp_path, layout, label_ids, score):
    check_family(tmp_path, layout, score, label_ids=label_ids)


def decode_corners(outputs, size, classes):
    """(n, q, 4 + classes): corners from 0 to 1, then scores."""
    rows, sides = outputs["out"], np.array([*size[::-1]] * 2, np.float32)
    parts = rows[:, :, :4] * sides, logit(rows[:, :, 4:])
    return [Decoded(*one) for one in zip(*parts, strict=True)]


def test_one_declaration_is_all_that_a_layout_needs_to_be_exported(tmp_path, monkeypatch):
    fixed = Fixed(lambda outputs, classes: ("out",), corners=True)
    monkeypatch.setitem(LAYOUTS, "corners", Layout(decode_corners, None, fixed=fixed))
    check_family(tmp_path, "corners", "max_confidence", asked="corners")


@pytest.mark.parametrize("softmax", [False, True])
def test_classes_that_are_not_reported_are_left_out_inside_too(tmp_path, softmax):
    """Of three columns two are ours, in another order; with a softmax the last is nothing."""
    ids = [1, 0] if softmax else [2, 0]
    how = {"layout": "detr", "classes": 2 if softmax else 3, "label_ids": ids}
    joint = JointDetector(
        *(load_model(path, **how) for path in write_detectors(tmp_path)),
        Router("detection_energy(part='classes')", -1e30),
    )
    images = scenes(12)
    scores = np.asarray(joint(list(images)).score)
    joint.router.threshold = float(np.median(scores[np.isfinite(scores)])) + 1e-4
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    check_same_boxes(ExportedJoint(tmp_path / "joint.onnx", threads=1), joint, images)


def test_real_detectors_find_the_same_on_real_photographs(tmp_path, shared_data):
    folder = shared_data / "detection"
    with zipfile.ZipFile(folder / "coco669_images.zip") as archive:
        members = [
            name for name in archive.namelist() if name.lower().endswith((".jpg", ".webp", ".png"))
        ][:6]
        images = [
            np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            for name in members
        ]
    pair = [
        load_model(folder / "weights" / f"{name}.onnx", layout="detr", threads=1)
        for name in ("deimv2_atto_320", "deimv2_femto_416")
    ]
    joint = JointDetector(*pair, Router("detection_energy", -1e30), rescale=SCALE)
    joint.router.threshold = float(np.median(joint(images).score)) + 1e-4
    export_joint(write_joint(tmp_path, joint), tmp_path / "joint.onnx")
    exported = ExportedJoint(tmp_path / "joint.onnx", threads=1)
    for image in images:
        check_same_boxes(exported, joint, image[None])

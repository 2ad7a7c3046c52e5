"""Detectors on outputs made here, and the real ones where they are at hand."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from heads import (
    BOX,
    CLASSES,
    MADE,
    NAMES,
    SIZE,
    detr_outputs,
    graph,
    nanodet_outputs,
    sides_of,
    softmax_detr_outputs,
    torchvision_outputs,
    yolov5_outputs,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit

from ebjr import Preprocess
from ebjr.backends.detectors import LAYOUTS, Layout, OnnxDetector
from ebjr.backends.layouts import decode_detr, decode_nanodet, decode_torchvision
from ebjr.data.coco import read_coco
from ebjr.errors import ModelError
from ebjr.tasks.detection.boxes import box_iou
from ebjr.tasks.detection.precision import average_precision, match_detections


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", range(CLASSES))
def test_a_box_is_read_from_every_layout(name, label):
    decode, make = MADE[name]
    (decoded,) = decode(make(label=label), SIZE, CLASSES)
    scores = expit(decoded.logits).max(axis=1) if decoded.scores is None else decoded.scores
    best = int(scores.argmax())
    np.testing.assert_allclose(decoded.boxes[best], BOX, atol=1e-3)
    assert decoded.logits[best].argmax() == label
    assert decoded.logits.shape[1] == CLASSES


def test_the_score_of_a_softmax_head_counts_what_is_nothing():
    (decoded,) = decode_detr(softmax_detr_outputs(), SIZE, CLASSES)
    expected = np.exp(3) / (np.exp(3) + 1 + 2 * np.exp(-12))
    assert decoded.scores.max() == pytest.approx(expected)


def test_bins_belong_to_their_boxes_and_sides():
    (decoded,) = decode_detr(detr_outputs(bins=7), SIZE, CLASSES)
    np.testing.assert_array_equal(decoded.bins, np.arange(5 * 4 * 7).reshape(5, 4, 7))
    (decoded,) = decode_nanodet(nanodet_outputs(), SIZE, CLASSES)
    row = int(decoded.logits.max(axis=1).argmax())
    expected = sides_of(np.array([24.0, 24.0]), 16, 8).reshape(4, 8)
    np.testing.assert_array_equal(decoded.bins[row], expected)
    assert decoded.bin_width[row] == 16


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_another_layout_are_refused_with_their_shapes(name):
    decode, _ = MADE[name]
    with pytest.raises(ModelError, match=r"\(1, 5, 6, 7\)"):
        decode({"odd": np.zeros((1, 5, 6, 7), np.float32)}, SIZE, 9)


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(ModelError, match=r"labels must lie in 1\.\.3, but one is 91"):
        decode_torchvision(torchvision_outputs(label=90), SIZE, CLASSES)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_box_comes_back_to_where_it_was_painted(resize, data):
    """White on black, found again in the model's input, and taken back to the image."""
    tall, wide = (data.draw(st.integers(40, 120), label=side) for side in ("tall", "wide"))
    size = tuple(data.draw(st.integers(40, 120), label=side) for side in ("height", "width"))
    x1, y1 = wide // 2 - 8, tall // 2 - 8
    image = np.zeros((tall, wide, 3), np.uint8)
    image[y1 : y1 + 16, x1 : x1 + 16] = 255
    preprocess = Preprocess(size=size, resize=resize)
    seen = preprocess([image])[0, 0] > 0.5
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], float)
    if resize == "crop" and (box[0, :2].min() <= 0 or (box[0, 2:] >= size[::-1]).any()):
        return
    back = preprocess.boxes_to_image(box, size, (tall, wide))
    coarse = max(tall / size[0], wide / size[1], 1)
    np.testing.assert_allclose(back, [[x1, y1, x1 + 16, y1 + 16]], atol=1.5 * coarse)


def test_boxes_end_at_the_edges_of_the_image():
    boxes = np.array([[-99.0, -99.0, 199.0, 199.0]])
    for resize in ("squash", "letterbox", "crop"):
        preprocess = Preprocess(size=64, resize=resize)
        np.testing.assert_array_equal(
            preprocess.boxes_to_image(boxes, SIZE, (32, 48)), [[0, 0, 48, 32]]
        )
    np.testing.assert_array_equal(Preprocess().boxes_to_image(boxes, SIZE, SIZE), [[0, 0, 64, 64]])


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_takes_images_of_any_size_and_gives_their_boxes(name, tmp_path):
    _, make = MADE[name]
    layout = name.partition(",")[0]
    detector = OnnxDetector(graph(tmp_path / "net.onnx", make()), layout, classes=CLASSES)
    images = [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 128, 3), np.uint8)]
    square, wide = detector(images)
    for found, scale, size in ((square, [1, 1], (64, 64)), (wide, [2, 0.5], (32, 128))):
        np.testing.assert_allclose(found.boxes[0], BOX * np.array(scale * 2), atol=1e-2)
        assert found.labels[0] == 2
        assert found.size == size
        assert (np.diff(found.scores) <= 0).all()


def test_a_graph_with_a_fixed_batch_of_one_is_looped_over_and_says_so(tmp_path):
    detector = OnnxDetector(graph(tmp_path / "net.onnx", detr_outputs()), "detr", classes=CLASSES)
    assert detector.loops
    assert "one image at a time" in repr(detector)
    assert len(detector([np.zeros((8, 8, 3), np.uint8)] * 3)) == 3
    assert detector([]) == []
    outputs = {name: np.repeat(value, 4, axis=0) for name, value in yolov5_outputs().items()}
    four = OnnxDetector(graph(tmp_path / "four.onnx", outputs, batch=4), "yolov5", classes=CLASSES)
    assert not four.loops
    assert len(four([np.zeros((8, 8, 3), np.uint8)] * 6)) == 6


def test_the_worse_of_two_boxes_of_a_class_is_dropped_where_the_family_does_so(tmp_path):
    outputs = yolov5_outputs()
    outputs["output0"][0, 8] = outputs["output0"][0, 7] * np.float32(0.99)
    path = graph(tmp_path / "net.onnx", outputs)
    image = np.zeros((64, 64, 3), np.uint8)
    counts = {
        nms: len(OnnxDetector(path, "yolov5", classes=CLASSES, nms=nms)([image])[0])
        for nms in ("default", None, 0.999)
    }
    assert counts == {"default": 1, None: 2, 0.999: 2}
    assert len(OnnxDetector(path, "yolov5", classes=CLASSES, nms=None, limit=1)([image])[0]) == 1


def test_a_box_is_reported_for_each_class_it_may_be_and_no_more_than_the_limit(tmp_path):
    outputs = detr_outputs()
    outputs["cls_logits"][0, 1] = [1.0, 0.0, 2.0]
    path = graph(tmp_path / "net.onnx", outputs)
    image = np.zeros((64, 64, 3), np.uint8)
    (found,) = OnnxDetector(path, "detr", classes=CLASSES)([image])
    assert found.labels.tolist() == [2, 0, 1]
    (found,) = OnnxDetector(path, "detr", classes=CLASSES, limit=2)([image])
    assert found.labels.tolist() == [2, 0]


def test_a_layout_of_your_own_is_a_function(tmp_path):
    path = graph(tmp_path / "net.onnx", detr_outputs())
    own = Layout(lambda outputs, size, classes: decode_detr(outputs, size, classes), nms=0.5)
    (found,) = OnnxDetector(path, own, classes=CLASSES)([np.zeros((64, 64, 3), np.uint8)])
    np.testing.assert_allclose(found.boxes[0], BOX, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layout": "ssd"},
            "layout must be one of auto, nanodet, yolov8, yolov5, detr, torchvision",
        ),
        ({"layout": 3}, "layout must be one of auto, nanodet"),
        ({"above": 1.0}, "above must lie in"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"nms": 1.5}, "nms must lie in"),
        ({"nms": "off"}, "nms must lie in"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(change, message, tmp_path):
    path = graph(tmp_path / "net.onnx", detr_outputs())
    with pytest.raises(ValueError, match=message):
        OnnxDetector(path, **{"layout": "detr", "classes": CLASSES} | change)


def test_every_layout_has_a_test():
    assert {name.partition(",")[0] for name in NAMES} == set(LAYOUTS)


REAL = {
    "nanodet_m_320": (
        "nanodet",
        Preprocess(
            size=320,
            range=(0.0, 255.0),
            mean=(103.53, 116.28, 123.675),
            std=(57.375, 57.12, 58.395),
            color="bgr",
        ),
        0.231,
    ),
    "deimv2_atto_320": ("detr", Preprocess(size=320), 0.260),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_detector_reaches_the_precision_that_is_known_of_it(name, shared_data):
    """On 40 of the 328 images, so within 0.08; `experiments/detection` compares on all."""
    layout, preprocess, known = REAL[name]
    folder = shared_data / "detection"
    labels = read_coco(folder / "coco669_boxes.json")
    rows = [row for row, image in enumerate(labels.images) if image["split"] == "val2017"][::8][:40]
    detector = OnnxDetector(folder / "weights" / f"{name}.onnx", layout, preprocess)
    with zipfile.ZipFile(folder / "coco669_images.zip") as archive:
        names = {entry.rpartition("/")[2]: entry for entry in archive.namelist()}
        images = [
            np.asarray(
                Image.open(io.BytesIO(archive.read(names[labels.files[row]]))).convert("RGB")
            )
            for row in rows
        ]
    found = detector(images)
    matches = match_detections(found, [labels.truth[row] for row in rows])
    assert average_precision(matches) == pytest.approx(known, abs=0.08)
    assert found[0].bins is not None
    best = found[0].top(1)
    assert box_iou(best.boxes, labels.truth[rows[0]].boxes).max() > 0.3

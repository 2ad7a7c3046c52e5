"""A file's layout is known by its number of boxes, its values and its metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from heads import (
    BOX,
    CELLS,
    CLASSES,
    MADE,
    NAMES,
    SIDE,
    detr_outputs,
    end2end_normalized,
    end2end_outputs,
    graph,
    nanodet_outputs,
    rtdetr_outputs,
    yolov5_outputs,
    yolov8_decoded,
    yolov8_normalized,
    yolov8_outputs,
    yolox_decoded,
    yolox_outputs,
)
from scipy.special import expit

from ebjr.backends.detectors import OnnxDetector
from ebjr.backends.layouts import LAYOUTS
from ebjr.errors import ModelError

PAGE = np.zeros((SIDE, SIDE, 3), np.uint8)


NOISE = np.random.default_rng(0).integers(0, 256, PAGE.shape, np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_found_by_itself(name, tmp_path):
    check_found(name, graph(tmp_path / "net.onnx", MADE[name][1]()))


@pytest.mark.parametrize("name", ["yolov8, one output", "yolov5", "yolox", "end2end"])
def test_noise_tells_what_an_image_without_boxes_does_not(name, tmp_path):
    check_found(name, graph(tmp_path / "net.onnx", MADE[name][1](), blank=False))


def check_found(name, path):
    detector = OnnxDetector(path, classes=CLASSES)
    assert detector.facts.options["layout"] == name.partition(",")[0]
    (found,) = detector([NOISE])
    np.testing.assert_allclose(found.boxes[0], BOX, atol=1e-2)
    assert found.labels[0] == 2


@pytest.mark.parametrize("classes", [1, 2, 3, 80])
@pytest.mark.parametrize("label", [0, -1])
def test_an_end_to_end_export_is_none_of_those_of_its_shape(classes, label, tmp_path):
    """(n, 300, 6) is the shape of YOLOv5 with one class, and of RT-DETR with two."""
    path = graph(tmp_path / "net.onnx", end2end_outputs(label % classes))
    assert OnnxDetector(path, classes=classes).facts.options["layout"] == "end2end"


@pytest.mark.parametrize(("strides", "side"), [((8, 16, 32, 64), 128), ((16, 32), 96)])
@pytest.mark.parametrize("per_cell", [1, 3])
def test_maps_on_other_strides_are_known_by_their_cells(strides, side, per_cell, tmp_path):
    boxes = per_cell * sum((side // stride) ** 2 for stride in strides)
    path = graph(tmp_path / "net.onnx", yolov5_outputs(boxes=boxes), side=side)
    assert OnnxDetector(path, classes=CLASSES).facts.options["layout"] == "yolov5"
    path = graph(tmp_path / "odd.onnx", yolov5_outputs(boxes=boxes - 1), side=side)
    with pytest.raises(ModelError, match="no layout fits the outputs of odd for 3 classes"):
        OnnxDetector(path, classes=CLASSES)
    assert OnnxDetector(path, "yolov5", classes=CLASSES)([PAGE])[0].labels[0] == 2


def test_real_grids_are_told_from_decoded_ones(tmp_path):
    """Offsets and logarithms everywhere, as a network gives them, and the same decoded."""
    rng = np.random.default_rng(0)
    raw = rng.normal(0.4, 0.8, (1, CELLS, 5 + CLASSES)).astype(np.float32)
    raw[0, :, 4:] = expit(raw[0, :, 4:] - 6)
    assert layout_of(tmp_path, raw) == "yolox"
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    decoded = raw.copy()
    for row, (x, y, stride) in enumerate(cells):
        decoded[0, row, :2] = (raw[0, row, :2] + [x, y]) * stride
        decoded[0, row, 2:4] = np.exp(raw[0, row, 2:4]) * stride
    assert layout_of(tmp_path, decoded) == "yolov5"
    one, other = (
        OnnxDetector(graph(tmp_path / "net.onnx", {"out": out}), layout, classes=CLASSES)([PAGE])[0]
        for out, layout in ((raw, "yolox"), (decoded, "yolov5"))
    )
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-4, atol=1e-4)
    decoded[0, :, :4] /= SIDE
    with pytest.raises(ModelError, match="no layout fits"):
        layout_of(tmp_path, decoded)


def layout_of(folder, output, classes=CLASSES):
    detector = OnnxDetector(graph(folder / "net.onnx", {"out": output}), classes=classes)
    return detector.facts.options["layout"]


def test_corners_stand_in_order_and_labels_are_whole_numbers(tmp_path):
    """Else RT-DETR with two classes, or a class before its score, would be end to end."""
    outputs = np.zeros((1, 300, 6), np.float32)
    outputs[0, 0] = [0.6, 0.5, 0.3, 0.2, 0.9, 0]
    assert layout_of(tmp_path, outputs, 2) == "rtdetr"
    swapped = end2end_outputs(label=0)["output0"][:, :, [0, 1, 2, 3, 5, 4]]
    with pytest.raises(ModelError, match="no layout fits"):
        layout_of(tmp_path, swapped, 3)


def test_two_that_fit_are_named_with_the_flags(tmp_path):
    path = graph(tmp_path / "net.onnx", {"out": np.zeros((1, CELLS, 8), np.float32)})
    with pytest.raises(
        ModelError, match=r"yolov5 and yolox all fit .*say which with --student-lay"
    ):
        OnnxDetector(path, classes=CLASSES)


@pytest.mark.parametrize(
    ("outputs", "classes", "words"),
    [
        (rtdetr_outputs(), 2, r"output0 \(1, 300, 7\); with 3 classes rtdetr does"),
        (yolov5_outputs(), 80, r"for 80 classes \(as given\): .*; with 3 classes yolov5 does"),
        (
            yolov8_decoded(),
            None,
            r"for 80 classes \(COCO's, since none .*; with 3 classes yolov8 does",
        ),
        (detr_outputs(), 4, "; with 2 classes detr does; with 3 classes detr does"),
        (end2end_outputs(label=5), 3, r"no layout fits .* output0 \(1, 300, 6\); say which"),
    ],
)
def test_the_number_of_classes_that_would_fit_is_said(outputs, classes, words, tmp_path):
    path = graph(tmp_path / "net.onnx", outputs)
    with pytest.raises(ModelError, match=words):
        OnnxDetector(path, classes=classes)


@pytest.mark.parametrize(
    ("layout", "outputs", "words"),
    [
        ("yolov8", yolov8_normalized(), "boxes must be in pixels of the input of 64 x 64, but end"),
        ("yolov8_normalized", yolov8_decoded(), "most boxes lie outside the input of 64 x 64"),
        ("yolov5", yolox_outputs(), "boxes must be in pixels"),
        ("yolox", yolox_decoded(), "most boxes lie outside"),
        ("yolox", yolov5_outputs(), "64 x 64 does not have 252 cells, one for each box"),
        ("end2end", end2end_normalized(), "boxes must be in pixels"),
        ("end2end_normalized", end2end_outputs(), "most boxes lie outside"),
        ("end2end", end2end_outputs(label=1.5), r"labels must lie in 0\.\.2, but one is 1\.5"),
        ("yolov8", {"out": 7 * yolov8_decoded()["output0"]}, r"scores must lie in 0\.\.1, but ran"),
        (
            "detr",
            {"logits": detr_outputs()["cls_logits"], "boxes": np.full((1, 5, 4), 30.0)},
            "most boxes lie outside",
        ),
    ],
)
def test_values_that_a_layout_cannot_have_are_refused_at_the_first_image(
    layout, outputs, words, tmp_path
):
    detector = OnnxDetector(graph(tmp_path / "net.onnx", outputs), layout, classes=CLASSES)
    with pytest.raises(ModelError, match=words) as refused:
        detector([PAGE])
    assert (
        "--student-layout" in str(refused.value)
        or "classes=" in str(refused.value)
        or layout == "yolox"
    )


@pytest.mark.parametrize(
    ("layout", "outputs"),
    [("nanodet", nanodet_outputs()), ("yolov8", yolov8_outputs()), ("detr", detr_outputs())],
)
def test_probabilities_are_not_taken_for_logits(layout, outputs, tmp_path):
    if layout == "nanodet":
        outputs = {k: v.copy() for k, v in outputs.items()}
        for value in outputs.values():
            value[:, :CLASSES] = expit(value[:, :CLASSES])
    else:
        name = "cls" if layout == "yolov8" else "cls_logits"
        outputs = {**outputs, name: expit(outputs[name])}
    detector = OnnxDetector(graph(tmp_path / "net.onnx", outputs), layout, classes=CLASSES)
    with pytest.raises(ModelError, match="class outputs must be logits"):
        detector([PAGE])


def test_a_file_that_names_its_classes_says_how_many_there_are(tmp_path):
    names = {0: "cat", 1: "dog", 2: "bird"}
    path = graph(tmp_path / "net.onnx", rtdetr_outputs(), names=names, task="detect")
    detector = OnnxDetector(path)
    assert (detector.classes, detector.facts.labels) == (3, ("cat", "dog", "bird"))
    with pytest.raises(
        ModelError, match=r"net.onnx names 3 classes \(cat, dog, bird\), not 2: leave"
    ):
        OnnxDetector(path, classes=2)
    odd = graph(tmp_path / "odd.onnx", rtdetr_outputs(), names="all of COCO's")
    assert OnnxDetector(odd, classes=3).facts.labels is None


def test_what_a_file_says_of_its_task_and_its_end_is_believed(tmp_path):
    path = graph(tmp_path / "net.onnx", yolov8_decoded(), task="segment")
    with pytest.raises(ModelError, match="must be a detector, but its metadata has task 'segment'"):
        OnnxDetector(path, classes=CLASSES)
    zero = {"out": np.zeros((1, CELLS, 6), np.float32)}
    with pytest.raises(ModelError, match="yolov5 and yolox and end2end all fit"):
        OnnxDetector(graph(tmp_path / "silent.onnx", zero), classes=1)
    said = OnnxDetector(graph(tmp_path / "said.onnx", zero, end2end=True), classes=1)
    assert said.facts.options["layout"] == "end2end"


def test_few_boxes_and_images_of_another_shape_raise_no_false_alarm(tmp_path):
    small = end2end_outputs()
    small["output0"][0, 0, :4] = [1, 1, 4, 3]
    path = graph(tmp_path / "net.onnx", small)
    (found,) = OnnxDetector(path, classes=CLASSES)([np.zeros((30, 200, 3), np.uint8)])
    assert len(found) == 1
    none = {"out": np.zeros((1, 300, 6), np.float32)}
    detector = OnnxDetector(graph(tmp_path / "none.onnx", none), classes=CLASSES)
    assert (len(detector([PAGE])[0]), detector.facts.options["layout"]) == (0, "end2end")


def test_every_layout_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    assert [name for name in LAYOUTS if f"| `{name}` |" not in page] == []

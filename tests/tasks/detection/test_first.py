"""What the first batch tells: whether boxes can be right, and how a detector numbers classes."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from heads import (
    BOX,
    SIDE,
    detr_outputs,
    end2end_outputs,
    graph,
    rtdetr_outputs,
    softmax_detr_outputs,
    torchvision_outputs,
)
from PIL import Image

import ebjr
from ebjr import Detections, GroundTruth, ModelError, RecordingNote, load_model
from ebjr.data.open import open_data
from ebjr.tasks.detection import TASK

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

COCO = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
"""Its category ids: the 12th of them is 13."""


def write_data(folder, ids, label, boxes=(BOX,), names=None, count=4):
    """Images with the same box, and labels in COCO's format; `label` is the category's id."""
    for number in range(count):
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(folder / f"{number}.png")
    boxes = [[float(v) for v in (x, y, right - x, below - y)] for x, y, right, below in boxes]
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(count)
        ],
        "annotations": [
            {"id": count * k + n, "image_id": n, "category_id": label, "bbox": box}
            for n in range(count)
            for k, box in enumerate(boxes)
        ],
        "categories": [
            {"id": n, "name": name}
            for n, name in zip(ids, names or [f"class {n}" for n in ids], strict=True)
        ],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return open_data(folder / "labels.json")


def recorded(folder, data, **options):
    """What is recorded, its quality, and what was said of the numbers of classes."""
    model = load_model(folder / "net.onnx", **{"layout": "auto", **options})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ebjr.record(model, model, data, task="detection", flops=False)
    assert all(said.category is RecordingNote for said in caught)
    return found, found.quality("student"), [str(said.message) for said in caught]


def both(words):
    """What is said of both models."""
    return [f"the {role}'s labels are {words}" for role in ("student", "teacher")]


BY_ID = "the json's category ids"


# Numbers of classes


@pytest.mark.parametrize("layout", ["auto", "torchvision"])
@pytest.mark.parametrize("number", [13, 18, 90])
def test_labels_that_are_category_ids_are_read_as_such(layout, number, tmp_path):
    """13 may be a rank too, and the boxes tell; 90 may not."""
    graph(tmp_path / "net.onnx", torchvision_outputs(label=number - 1))
    data = write_data(tmp_path, COCO, number)
    how = {"layout": layout, "classes": 80, "class_ids": data.class_ids}
    outcomes, quality, said = recorded(tmp_path, data, **how)
    assert quality == 1.0
    assert said == both(f"{BY_ID} (90 is class 90)")
    assert outcomes.models["student"]["label_ids"] == COCO


def test_labels_that_are_ranks_stay_so_without_a_word(tmp_path):
    graph(tmp_path / "net.onnx", torchvision_outputs(label=11))  # the rank of 13
    outcomes, quality, said = recorded(tmp_path, write_data(tmp_path, COCO, 13), classes=80)
    assert (quality, said) == (1.0, [])
    assert "label_ids" not in outcomes.models["student"]


def test_where_no_box_tells_labels_are_ranks_and_it_is_said(tmp_path):
    graph(tmp_path / "net.onnx", torchvision_outputs(label=11))
    data = write_data(tmp_path, COCO, 13, boxes=[(50, 50, 60, 60)])
    outcomes, _, said = recorded(tmp_path, data, classes=80)
    assert "no box of the first batch shows whether the student's labels are the ranks" in said[0]
    assert "label_ids" not in outcomes.models["student"]


def test_ids_without_gaps_are_ranks_where_no_box_tells(tmp_path):
    graph(tmp_path / "net.onnx", end2end_outputs(label=1))
    data = write_data(tmp_path, [1, 2, 3], 1, boxes=[(50, 50, 60, 60)])
    outcomes, _, said = recorded(tmp_path, data, classes=3)
    assert not any("labels" in words for words in said)  # but that no box is right
    assert "label_ids" not in outcomes.models["student"]


def test_an_end_to_end_export_may_answer_ids(tmp_path):
    graph(tmp_path / "net.onnx", end2end_outputs(label=7))
    data = write_data(tmp_path, [2, 5, 7], 7)
    _, quality, said = recorded(tmp_path, data, classes=3, class_ids=data.class_ids)
    assert (quality, said) == (1.0, both(f"{BY_ID} (7 is class 7)"))


def columns_of(outputs, column, count):
    """A DETR's outputs with as many columns, of which one is sure."""
    logits = np.full((*outputs["cls_logits"].shape[:2], count), -12, np.float32)
    logits[0, 1, column] = 3
    return {"logits": logits, "boxes": outputs["boxes"]}


@pytest.mark.parametrize("columns", [91, 92])
def test_as_many_columns_as_the_largest_id_needs_are_numbered_by_id(columns, tmp_path):
    """The original DETR has a column for each number to 90, and one more for nothing."""
    outputs = columns_of(detr_outputs(), 90, columns)
    outputs["logits"][0, 1, 12] = 1  # 12 is none of the categories
    outputs["logits"][:, [0, 2, 3, 4], 91:] = 9
    graph(tmp_path / "net.onnx", outputs)
    data = write_data(tmp_path, COCO, 90)
    for how in ({"classes": 80, "class_ids": data.class_ids}, {"classes": 91}):
        outcomes, quality, said = recorded(tmp_path, data, **how)
        assert (quality, said) == (1.0, both(f"{BY_ID} (90 is class 90)"))
        assert outcomes.student[0].classes == 80
    with pytest.raises(ModelError, match=r"for 80 classes .*; with 9[01] classes detr does"):
        recorded(tmp_path, data, classes=80)


def test_a_gap_at_the_first_of_few_ids_is_one_too(tmp_path):
    graph(tmp_path / "net.onnx", rtdetr_outputs(label=2))
    data = write_data(tmp_path, [0, 2], 2)
    _, quality, said = recorded(tmp_path, data, classes=2, class_ids=data.class_ids)
    assert (quality, said) == (1.0, both(f"{BY_ID} (2 is class 2)"))


def test_more_columns_than_ids_without_gaps_are_refused(tmp_path):
    graph(tmp_path / "net.onnx", rtdetr_outputs())
    data = write_data(tmp_path, [1, 2], 1)
    words = r"for 2 classes \(as the data list\).*; with 3 classes rtdetr does"
    with pytest.raises(ModelError, match=words):
        recorded(tmp_path, data, classes=2, class_ids=data.class_ids)


def test_columns_that_fit_neither_rank_nor_ids_are_refused(tmp_path):
    """365 classes of another data set are no ids of COCO's."""
    graph(tmp_path / "net.onnx", columns_of(detr_outputs(), 13, 365))
    data = write_data(tmp_path, COCO, 13)
    with pytest.raises(ModelError, match=r"; with 36[45] classes detr does"):
        recorded(tmp_path, data, classes=80, class_ids=data.class_ids)
    with pytest.raises(ModelError, match="the model must have the output class logits"):
        recorded(tmp_path, data, layout="detr", classes=80)


def test_names_in_the_file_tell_which_class_is_which(tmp_path):
    """In another order than the json's, and more of them than the json has."""
    names = {0: "dog", 1: "bird", 2: "cat"}
    graph(tmp_path / "net.onnx", rtdetr_outputs(label=0), names=names)
    data = write_data(tmp_path, [4, 6], 6, names=["cat", "dog"])
    outcomes, quality, said = recorded(tmp_path, data, classes=2, class_ids=data.class_ids)
    assert (quality, said) == (1.0, both("matched with the data's classes by name (0 is dog)"))
    assert outcomes.models["student"]["label_ids"] == [2, 0]
    other = write_data(tmp_path, [4, 6], 6, names=["cow", "dog"])
    with pytest.raises(ModelError, match="file names 3 classes but not cow, one of the"):
        recorded(tmp_path, other, classes=2, class_ids=other.class_ids)


def test_names_that_are_spelled_otherwise_are_the_same_and_others_refused(tmp_path):
    names = {0: "Dog", 1: "bird", 2: "cat"}
    graph(tmp_path / "net.onnx", rtdetr_outputs(label=0), names=names)
    data = write_data(tmp_path, [1, 2, 3], 1, names=["dog", "bird", "cat"])
    _, quality, said = recorded(tmp_path, data, class_ids=data.class_ids)
    assert (quality, said) == (1.0, [])
    data = write_data(tmp_path, [1, 2, 3], 1, names=["hound", "bird", "cat"])
    with pytest.raises(ModelError, match=r"but not hound, one of the data's 3.*--classes"):
        recorded(tmp_path, data)
    data.named_by = "given"  # by the user, who knows the model's order
    _, quality, said = recorded(tmp_path, data, class_ids=data.class_ids)
    assert quality == 1.0
    assert "1 of 3 classes differently from --classes, first Dog and hound: they are" in said[0]
    data = write_data(tmp_path, [1, 2, 3], 1, names=["dog", "cat", "bird"])
    with pytest.raises(ModelError, match="file names 3 classes but not dog"):
        recorded(tmp_path, data)


@pytest.mark.parametrize("ids", [[0, 1, 2], [5, 7, 4_000_000]])
def test_ids_that_a_detector_cannot_have_are_ranks(ids, tmp_path):
    """Labels of torchvision's begin with 1, and no detector has millions of classes."""
    graph(tmp_path / "net.onnx", torchvision_outputs(label=1))
    data = write_data(tmp_path, ids, ids[1])
    outcomes, quality, said = recorded(tmp_path, data, classes=3, class_ids=data.class_ids)
    assert (quality, said) == (1.0, [])
    assert "label_ids" not in outcomes.models["student"]


def test_two_files_that_name_the_same_classes_otherwise_are_refused(tmp_path):
    """Where the data say no names by which one could be put in the other's order."""
    pair = [
        load_model(graph(tmp_path / f"{n}.onnx", rtdetr_outputs(), names=names), layout="auto")
        for n, names in enumerate([["a", "b", "c"], ["a", "c", "b"]])
    ]
    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 4
    truth = [GroundTruth([BOX], [2])] * 4
    with pytest.raises(
        ValueError, match="in another order: class 1 is 'b' for the student and 'c'"
    ):
        ebjr.record(*pair, images, truth, task="detection")
    pair[1] = pair[1].with_label_ids([0, 2, 1])
    assert len(ebjr.record(*pair, images, truth, task="detection", flops=False)) == 4


def test_numbers_of_classes_survive_joint_toml_and_the_command_line(run, tmp_path):
    graph(tmp_path / "net.onnx", torchvision_outputs(label=12))
    data = write_data(tmp_path, COCO, 13, count=24)
    words = "record --task detection --student net.onnx --teacher net.onnx --data labels.json"
    code, _, said = run(*words.split(), "-o", "found.npz")
    assert code == 0, said
    assert "the student's labels are the json's category ids (90 is class 90)" in said
    outcomes = ebjr.Outcomes.load("found.npz")
    assert outcomes.quality("student") == outcomes.quality("teacher") == 1.0
    detector = load_model("net.onnx", layout="torchvision", classes=90, label_ids=COCO)
    joint = ebjr.JointDetector(detector, detector, ebjr.Router("box_count", -1.5))
    ebjr.save_joint("joint.toml", joint)
    assert ebjr.JointConfig.read("joint.toml").student.options["label_ids"] == COCO
    (answer,) = ebjr.load_joint("joint.toml")([np.zeros((SIDE, SIDE, 3), np.uint8)]).prediction
    assert answer.labels.tolist() == [data.class_ids.index(13)]
    assert answer.classes == 80


def test_a_softmax_over_ids_reports_no_class_that_is_none_of_ours(tmp_path):
    path = graph(tmp_path / "net.onnx", softmax_detr_outputs(label=1))
    detector = load_model(path, layout="detr", classes=3, label_ids=[0, 2])
    (found,) = detector([np.zeros((SIDE, SIDE, 3), np.uint8)])
    assert not (found.scores > 0.5).any()
    detector = load_model(path, layout="detr", classes=3, label_ids=[2, 1])
    (found,) = detector([np.zeros((SIDE, SIDE, 3), np.uint8)])
    assert (found.labels[0], found.classes) == (1, 2)


@pytest.mark.parametrize("ids", [[], [0, 0], [0, 3], [-1, 2]])
def test_numbers_that_the_model_cannot_have_are_refused(ids, tmp_path):
    path = graph(tmp_path / "net.onnx", detr_outputs())
    with pytest.raises(ValueError, match="label_ids must be distinct numbers from 0 to 2 for 3"):
        load_model(path, layout="detr", classes=3, label_ids=ids)


# Boxes


def detector_of(*boxes, score=0.9, size=(480, 640)):
    """A model that finds the same boxes on every image."""
    return lambda images: [
        Detections.of_scores(list(boxes), [score] * len(boxes), size, labels=[0] * len(boxes),
                             classes=1)
        for _ in images
    ]  # fmt: skip


GOOD = detector_of((8, 8, 200, 200))
TRUTH = [GroundTruth([(8, 8, 200, 200)], [0])] * 8


def record(student, teacher):
    return ebjr.record(student, teacher, list(range(8)), TRUTH, task="detection")


@pytest.mark.parametrize(
    "student",
    [
        detector_of((0.1, 0.1, 0.4, 0.9), (0.2, 0.3, 0.9, 1.0)),
        detector_of((640, 480, 640, 480), (640, 30, 640, 480), (5, 5, 90, 90)),
        detector_of((700, 500, 900, 800)),
        detector_of((638, 478, 640, 480)),
    ],
    ids=["from 0 to 1", "cut off at the edge", "beyond the edge", "in the last corner"],
)
def test_boxes_that_are_not_on_the_images_are_refused_at_the_first_batch(student):
    with pytest.raises(ModelError, match=r"the student's confident boxes lie outside .* 8 of 8 im"):
        record(student, GOOD)
    with pytest.raises(
        ModelError, match=r"the teacher's confident .* check the layout \(--teacher"
    ):
        record(GOOD, student)


@pytest.mark.parametrize(
    "student",
    [
        detector_of((0, 0, 1, 1), score=0.2),
        detector_of((0, 0, 1, 1), (4, 4, 90, 90)),
        detector_of((620, 460, 640, 480)),
        detector_of((0, 0, 2, 2), size=(2, 2)),
        detector_of(),
    ],
    ids=["not confident", "one of two", "near a corner", "a tiny image", "no boxes"],
)
def test_boxes_that_may_be_right_are_not_refused(student):
    TASK.check_first("student", student(range(8)))


def test_two_images_are_too_few_to_tell():
    lost = detector_of((0.1, 0.1, 0.4, 0.9))
    TASK.check_first("student", lost(range(2)))
    TASK.check_first("student", [*lost(range(4)), *GOOD(range(4))])
    with pytest.raises(ModelError, match="on 5 of 8 images; on the first, of 640 x 480"):
        TASK.check_first("student", [*lost(range(5)), *GOOD(range(3))])

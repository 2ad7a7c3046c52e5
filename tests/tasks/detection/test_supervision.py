"""Boxes go to supervision and come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebjr

supervision = pytest.importorskip("supervision")

SIZE, NAMES = (40, 60), ("cat", "dog", "bird")


def detector(sure: float, boxes: int):
    def find(images):
        corners = [[k, 0, k + 4, 8] for k in range(boxes)]
        scores = [sure * (k + 1) / boxes for k in range(boxes)]
        labels = [k % 3 for k in range(boxes)]
        about = {"labels": labels, "classes": 3}
        return [ebjr.Detections.of_scores(corners, scores, SIZE, **about) for _ in images]

    return find


def answer_of(images: int = 2, sure: float = 0.4):
    router = ebjr.Router("max_confidence", 0.5)
    return ebjr.JointDetector(detector(sure, 2), detector(0.9, 5), router)(["image"] * images)


def test_each_image_of_an_answer_is_supervisions_detections():
    answer = answer_of()
    first, second = ebjr.to_supervision(answer, NAMES)
    assert isinstance(first, supervision.Detections)
    assert len(first) == len(second) == 5
    assert np.array_equal(first.xyxy, answer.prediction[0].boxes)
    assert first.class_id.tolist() == [0, 1, 2, 0, 1]
    assert first["class_name"].tolist() == ["cat", "dog", "bird", "cat", "dog"]
    assert first["deferred"].all()
    assert not first["degraded"].any()
    assert len(first[first["class_name"] == "cat"]["deferred"]) == 2
    kept = ebjr.to_supervision(answer_of(sure=0.8))[0]
    assert len(kept) == 2
    assert not kept["deferred"].any()
    assert "class_name" not in kept.data


def test_supervision_works_with_them():
    [found] = ebjr.to_supervision(answer_of(1), NAMES)
    assert len(found.with_nms(threshold=0.1, class_agnostic=True)) < 5
    merged = supervision.Detections.merge([found, found])
    assert len(merged) == 10
    zone = supervision.PolygonZone(np.array([[0, 0], [30, 0], [30, 30], [0, 30]]))
    assert zone.trigger(found).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 2), st.floats(0, 1, width=32)), max_size=9
    )
)
def test_boxes_come_back_as_they_went(rows):
    boxes = [[place, 1, place + 3, 9] for place, _, _ in rows]
    labels, scores = [row[1] for row in rows], np.array([row[2] for row in rows], np.float32)
    before = ebjr.Detections.of_scores(
        np.array(boxes).reshape(-1, 4), scores, SIZE, labels=labels, classes=3
    )
    one = ebjr.JointDetector(
        lambda images: [before], lambda images: [before], ebjr.Router("box_count", 0.0)
    )
    [sent] = ebjr.to_supervision(one(["image"]))
    after = ebjr.from_supervision(sent, SIZE, 3)
    assert np.array_equal(after.boxes, before.boxes)
    assert np.array_equal(after.labels, before.labels)
    assert np.allclose(after.scores, before.scores)
    assert (after.size, after.classes) == (before.size, before.classes)


def test_a_detector_that_supervision_reads_is_a_student():
    def read(image):
        return supervision.Detections(
            np.array([[0, 0, 4, 4]], float), confidence=np.array([0.3]), class_id=np.array([2])
        )

    def student(images):
        return [ebjr.from_supervision(read(image), image.shape[:2], 3) for image in images]

    joint = ebjr.JointDetector(student, detector(0.9, 5), ebjr.Router("max_confidence", 0.5))
    answer = joint([np.zeros((*SIZE, 3), np.uint8)])
    assert answer.deferred.all()
    assert student([np.zeros((*SIZE, 3), np.uint8)])[0].logits[0, 2] == pytest.approx(-0.8472979)


def test_boxes_without_a_class_or_a_score_are_no_detectors():
    plain = supervision.Detections(np.array([[0, 0, 4, 4]], float))
    with pytest.raises(ValueError, match=r"labeled boxes use ebjr\.GroundTruth"):
        ebjr.from_supervision(plain, SIZE, 3)
    assert len(ebjr.from_supervision(supervision.Detections.empty(), SIZE, 3)) == 0
    classed = supervision.Detections(
        np.array([[0, 0, 4, 4]], float), confidence=np.array([0.3]), class_id=np.array([7])
    )
    with pytest.raises(ValueError, match="7"):
        ebjr.from_supervision(classed, SIZE, 3)
    with pytest.raises(ValueError, match="a box has class 2, but there are only 1 labels"):
        ebjr.to_supervision(answer_of(), NAMES[:1])
    logits = ebjr.JointClassifier(np.asarray, np.asarray, ebjr.Router("margin", 0.1))
    with pytest.raises(TypeError, match="only the answers of a JointDetector have boxes"):
        ebjr.to_supervision(logits(np.array([[0.0, 9.0]])))

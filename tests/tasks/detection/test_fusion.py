from __future__ import annotations

import numpy as np
import pytest
from boxes import random_detections
from hypothesis import given
from hypothesis import strategies as st

from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.fusion import fuse_detections

SEEDS = st.integers(0, 2**32 - 1)
WEIGHTS = st.floats(0, 4)


def pair(seed, n=6, m=5):
    rng = np.random.default_rng(seed)
    return tuple(random_detections(rng, k, classes=2, side=12, bins=3) for k in (n, m))


@given(seed=SEEDS)
def test_weight_0_is_the_teacher_alone(seed):
    student, teacher = pair(seed)
    fused, best = fuse_detections(student, teacher, 0.0), teacher.top(5)
    for name in ("boxes", "logits", "labels", "scores"):
        np.testing.assert_array_equal(getattr(fused, name), getattr(best, name))


@given(seed=SEEDS, weight=WEIGHTS)
def test_a_model_fused_with_itself_is_itself(seed, weight):
    found = pair(seed)[0].nms(0.3)
    found = found.take((found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1))
    fused = fuse_detections(found, found, weight)
    np.testing.assert_allclose(fused.boxes, found.boxes, atol=1e-9)
    np.testing.assert_allclose(fused.scores, found.scores)


@given(seed=SEEDS, weight=WEIGHTS, n=st.integers(0, 6), m=st.integers(0, 6))
def test_every_box_is_in_the_answer_once_and_the_scores_add_up(seed, weight, n, m):
    student, teacher = pair(seed, n, m)
    fused = fuse_detections(student, teacher, weight)
    assert max(m, 1 if n and weight else 0) <= len(fused) <= n + m
    expected = (teacher.scores.sum() + weight * student.scores.sum()) / (1 + weight)
    assert fused.scores.sum() == pytest.approx(expected)
    assert (np.diff(fused.scores) <= 0).all()


def test_a_box_takes_the_one_it_overlaps_most_and_only_of_its_class():
    boxes = [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]]
    student = Detections.of_scores(boxes, [0.5, 0.9, 0.9], (16, 16), labels=[0, 0, 1], classes=2)
    teacher = Detections.of_scores(boxes[:1], [0.5], (16, 16), labels=[0], classes=2)
    fused = fuse_detections(student, teacher, 1.0)
    assert len(fused) == 3
    assert sorted(fused.scores.tolist()) == [0.45, 0.45, 0.5]


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0"):
        fuse_detections(*pair(0), weight)


def test_boxes_of_two_images_are_not_fused():
    student, _ = pair(0)
    with pytest.raises(ValueError, match="the same image and know the same classes"):
        fuse_detections(student, Detections.none(2, (5, 5)), 1.0)

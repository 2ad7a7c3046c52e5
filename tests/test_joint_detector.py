from __future__ import annotations

import numpy as np
import pytest
from boxes import random_detections
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from ebjr import ModelError, TeacherUnavailable
from ebjr.detection_scores import box_count, max_confidence
from ebjr.detections import Detections
from ebjr.evaluation.detection import ConfidenceMap
from ebjr.fusion import fuse_detections
from ebjr.joint_detector import JointDetector


def detector(seed):
    """An image is a number; what is on it depends on the number alone."""

    def answer(images):
        made = []
        for image in images:
            rng = np.random.default_rng([seed, image])
            made.append(random_detections(rng, int(rng.integers(0, 6))))
        return made

    return answer


STUDENT, TEACHER = detector(1), detector(2)
IMAGES = list(range(12))


def same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_the_teacher_sees_the_deferred_images_alone_and_answers_them():
    seen = []

    def teacher(images):
        seen.extend(images)
        return TEACHER(images)

    answer = JointDetector(STUDENT, teacher, max_confidence, 0.8)(IMAGES)
    assert 0 < answer.deferred.sum() < 12
    assert seen == np.flatnonzero(answer.deferred).tolist()
    expected = [(TEACHER if late else STUDENT)([n])[0] for n, late in enumerate(answer.deferred)]
    same(answer.prediction, expected)
    np.testing.assert_array_equal(answer.deferred, ~(answer.score >= 0.8))


def test_an_image_without_boxes_is_deferred_at_every_threshold():
    def blind(images):
        return [Detections.none(4, (64, 64)) for _ in images]

    for score in (max_confidence, box_count):
        assert JointDetector(blind, TEACHER, score, -1e300)(IMAGES).deferred.all()


def test_an_infinite_threshold_is_the_teacher_alone_and_a_low_one_spares_it():
    answer = JointDetector(STUDENT, TEACHER, max_confidence, np.inf)(IMAGES)
    same(answer.prediction, TEACHER(IMAGES))
    keep = JointDetector(STUDENT, lambda _: 1 / 0, lambda found: np.zeros(len(found)), -1)
    same(keep(IMAGES).prediction, STUDENT(IMAGES))


@given(parts=cuts(12), threshold=st.floats(0, 1))
def test_any_split_into_batches_gives_the_same_answers(parts, threshold):
    joint = JointDetector(STUDENT, TEACHER, max_confidence, threshold, blend=0.5)
    whole = joint(IMAGES)
    split = [joint(IMAGES[part]) for part in parts]
    same(whole.prediction, [one for answer in split for one in answer.prediction])
    np.testing.assert_array_equal(whole.deferred, np.concatenate([one.deferred for one in split]))


def test_a_deferred_answer_is_fused_from_boxes_on_one_scale():
    maps = ConfidenceMap(0.5, 1.0, 0.0), ConfidenceMap(2.0, 1.0, 0.0)
    joint = JointDetector(STUDENT, TEACHER, max_confidence, np.inf, blend=0.5, rescale=maps)
    own, other = (
        [one.with_scores(change(one.scores)) for one in model(IMAGES)]
        for model, change in zip((STUDENT, TEACHER), maps, strict=True)
    )
    expected = [fuse_detections(one, two, 0.5) for one, two in zip(own, other, strict=True)]
    same(joint(IMAGES).prediction, expected)
    kept = JointDetector(STUDENT, TEACHER, lambda found: np.ones(len(found)), 0, rescale=maps)
    same(kept(IMAGES).prediction, own)


def test_a_joint_detector_is_a_teacher_and_its_degraded_images_are_marked():
    def away(images):
        raise TeacherUnavailable("the link is down")

    inner = JointDetector(TEACHER, away, max_confidence, 0.99)
    outer = JointDetector(STUDENT, inner, max_confidence, 0.8)
    answer = outer(IMAGES)
    rows = np.flatnonzero(answer.deferred)
    np.testing.assert_array_equal(answer.degraded[rows], inner(rows.tolist()).degraded)
    assert not answer.degraded[~answer.deferred].any()
    assert answer.degraded.any()


def test_a_teacher_that_is_away_leaves_the_students_boxes_marked():
    def away(images):
        raise TeacherUnavailable("the link is down")

    answer = JointDetector(STUDENT, away, max_confidence, np.inf)(IMAGES)
    same(answer.prediction, STUDENT(IMAGES))
    assert answer.degraded.all()
    assert not answer.deferred.any()
    with pytest.raises(TeacherUnavailable):
        JointDetector(STUDENT, away, max_confidence, np.inf, when_unavailable="error")(IMAGES)


@pytest.mark.parametrize(
    "wrong", [lambda images: [], lambda images: np.ones(3), lambda _: [1] * 12]
)
def test_what_is_no_list_of_detections_is_refused(wrong):
    with pytest.raises(ModelError, match="given 12 images and must return a list"):
        JointDetector(wrong, TEACHER, max_confidence, 0.5)(IMAGES)
    with pytest.raises(ModelError, match="one number for each of 12 images"):
        JointDetector(STUDENT, TEACHER, lambda found: 1.0, 0.5)(IMAGES)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threshold": -np.inf}, ValueError, "threshold must be"),
        ({"threshold": np.nan}, ValueError, "threshold must be"),
        ({"blend": -1.0}, ValueError, "blend must be"),
        ({"when_unavailable": "cry"}, ValueError, "when_unavailable must be one of"),
        ({"teacher": None}, TypeError, "the teacher must be callable, not NoneType"),
        ({"score": "energy"}, TypeError, "the score must be callable, not str"),
    ],
)
def test_a_joint_detector_that_cannot_be_is_refused(change, error, message):
    given = {"student": STUDENT, "teacher": TEACHER, "score": max_confidence, "threshold": 0.5}
    with pytest.raises(error, match=message):
        JointDetector(**given | change)

"""Detection through outcomes, curve and joint loop: the mechanism of classification."""

from __future__ import annotations

import json

import numpy as np
import pytest
from boxes import random_detections
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from ebjr import Detections, JointClassifier, JointDetector, ModelError, Router, TeacherUnavailable
from ebjr.detection_scores import FEATURES, learned_gain
from ebjr.fusion import fuse_detections
from ebjr.precision import CommonScale, ConfidenceMap
from ebjr.scores import as_score


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


def joint_of(student=STUDENT, teacher=TEACHER, score="max_confidence", threshold=0.8, **options):
    return JointDetector(student, teacher, Router(score, threshold), **options)


def same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_the_teacher_sees_the_deferred_images_alone_and_answers_them():
    seen = []

    def teacher(images):
        seen.extend(images)
        return TEACHER(images)

    answer = joint_of(teacher=teacher)(IMAGES)
    assert 0 < answer.deferred.sum() < 12
    assert seen == np.flatnonzero(answer.deferred).tolist()
    expected = [(TEACHER if late else STUDENT)([n])[0] for n, late in enumerate(answer.deferred)]
    same(answer.prediction, expected)
    np.testing.assert_array_equal(answer.deferred, ~(answer.score >= 0.8))


def test_an_image_without_boxes_is_deferred_at_every_threshold():
    def blind(images):
        return [Detections.none(4, (64, 64)) for _ in images]

    for score in ("max_confidence", "box_count"):
        assert joint_of(blind, score=score, threshold=-1e300)(IMAGES).deferred.all()


def test_an_infinite_threshold_is_the_teacher_alone_and_a_low_one_spares_it():
    answer = joint_of(threshold=np.inf)(IMAGES)
    same(answer.prediction, TEACHER(IMAGES))
    keep = joint_of(STUDENT, lambda _: 1 / 0, lambda found: np.zeros(len(found)), -1)
    same(keep(IMAGES).prediction, STUDENT(IMAGES))


@given(parts=cuts(12), threshold=st.floats(0, 1))
def test_any_split_into_batches_gives_the_same_answers(parts, threshold):
    joint = joint_of(threshold=threshold, blend=0.5)
    whole = joint(IMAGES)
    split = [joint(IMAGES[part]) for part in parts]
    same(whole.prediction, [one for answer in split for one in answer.prediction])
    np.testing.assert_array_equal(whole.deferred, np.concatenate([one.deferred for one in split]))


def test_a_deferred_answer_is_fused_from_boxes_on_one_scale():
    scale = CommonScale(ConfidenceMap(0.5, 1.0, 0.0), ConfidenceMap(2.0, 1.0, 0.0))
    joint = joint_of(threshold=np.inf, blend=0.5, rescale=scale)
    own, other = (
        [one.with_scores(change(one.scores)) for one in model(IMAGES)]
        for model, change in ((STUDENT, scale.student), (TEACHER, scale.teacher))
    )
    expected = [fuse_detections(one, two, 0.5) for one, two in zip(own, other, strict=True)]
    same(joint(IMAGES).prediction, expected)
    kept = joint_of(score=lambda found: np.ones(len(found)), threshold=0, rescale=scale)
    same(kept(IMAGES).prediction, own)


def test_a_joint_detector_is_a_teacher_and_its_degraded_images_are_marked():
    def away(images):
        raise TeacherUnavailable("the link is down")

    inner = joint_of(TEACHER, away, threshold=0.99)
    outer = joint_of(STUDENT, inner)
    answer = outer(IMAGES)
    rows = np.flatnonzero(answer.deferred)
    np.testing.assert_array_equal(answer.degraded[rows], inner(rows.tolist()).degraded)
    assert not answer.degraded[~answer.deferred].any()
    assert answer.degraded.any()


def test_a_teacher_that_is_away_leaves_the_students_boxes_marked():
    def away(images):
        raise TeacherUnavailable("the link is down")

    answer = joint_of(teacher=away, threshold=np.inf)(IMAGES)
    same(answer.prediction, STUDENT(IMAGES))
    assert answer.degraded.all()
    assert not answer.deferred.any()
    with pytest.raises(TeacherUnavailable):
        joint_of(teacher=away, threshold=np.inf, when_unavailable="error")(IMAGES)


@pytest.mark.parametrize(
    "wrong", [lambda images: [], lambda images: np.ones(3), lambda _: [1] * 12]
)
def test_what_is_no_list_of_detections_is_refused(wrong):
    with pytest.raises(ModelError, match="given 12 inputs and must return a list of 12 Detections"):
        joint_of(wrong)(IMAGES)


def test_a_score_must_give_one_number_for_each_image():
    with pytest.raises(ValueError, match="one number for each of 12 rows, but returned float"):
        joint_of(score=lambda found: 1.0)(IMAGES)


def test_a_teacher_of_other_classes_is_refused():
    def other(images):
        return [Detections.none(7, (64, 64)) for _ in images]

    with pytest.raises(ModelError, match="student and teacher must answer alike"):
        joint_of(teacher=other, threshold=np.inf)(IMAGES)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threshold": -np.inf}, ValueError, "threshold must be"),
        ({"blend": -1.0}, ValueError, "blend must be"),
        ({"when_unavailable": "cry"}, ValueError, "when_unavailable must be one of"),
        ({"teacher": None}, TypeError, "the teacher must be callable"),
        ({"score": "boxes"}, ValueError, "no score named 'boxes'; there are: .*box_count"),
        ({"score": "box_count(iou=3)"}, ValueError, "does not take the parameters"),
        ({"score": "box_count(above=3)"}, ValueError, "above must lie in 0..1"),
    ],
)
def test_a_joint_detector_that_cannot_be_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        joint_of(**change)


def test_only_detectors_have_scores_that_can_be_put_on_one_scale():
    scale = CommonScale(ConfidenceMap(1.0, 1.0, 0.0), ConfidenceMap(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="rescale is for detection, not for classification"):
        JointClassifier(STUDENT, TEACHER, Router("softmax", 0.5), rescale=scale)


def test_a_scale_is_its_six_numbers():
    scale = CommonScale(ConfidenceMap(0.5, 1.0, 0.25), ConfidenceMap(2.0, 1.5, 0.0))
    assert CommonScale.from_dict(json.loads(json.dumps(scale.as_dict()))) == scale
    with pytest.raises(ValueError, match="three numbers for the student"):
        CommonScale.from_dict({"student": [1.0, 1.0, 0.0]})


def test_the_random_score_depends_on_the_image_alone():
    found = STUDENT(IMAGES)
    values = as_score("random")(found)
    np.testing.assert_array_equal(values[3:5], as_score("random")(found[3:5]))
    seen = [value for value, one in zip(values, found, strict=True) if len(one)]
    assert len(set(seen)) == len(seen)
    assert (values != as_score("random(seed=1)")(found)).any()


def test_a_learned_gain_is_text_like_every_score():
    weights = np.random.default_rng(0).normal(0, 1, len(FEATURES) + 1).tolist()
    score = as_score(f"learned_gain(weights={weights})")
    found = STUDENT(IMAGES)
    np.testing.assert_array_equal(as_score(str(score))(found), learned_gain(found, weights))
    with pytest.raises(ValueError, match="a constant and one for each feature"):
        as_score("learned_gain(weights=[0.0, 1.0])")

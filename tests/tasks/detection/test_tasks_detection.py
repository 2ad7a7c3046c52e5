"""Detection through outcomes, curve and joint loop: the mechanism of classification."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from boxes import random_detections, random_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts

from ebjr import (
    Detections,
    GroundTruth,
    JointAnswer,
    JointClassifier,
    JointDetector,
    ModelError,
    Outcomes,
    OutputWarning,
    Router,
    TeacherUnavailable,
    TradeOffCurve,
    calibrate,
    evaluate,
    oracle,
    record,
)
from ebjr.calibration import CHOICE_SEED, CHOICE_SHARE, choose_score
from ebjr.curve import MOST_ROWS
from ebjr.errors import RecordingNote
from ebjr.evaluation import joint_prediction
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.evaluation.tests import compare_answers
from ebjr.scores import as_score
from ebjr.tasks import as_task
from ebjr.tasks.detection.fusion import fuse_detections
from ebjr.tasks.detection.precision import average_precision, match_detections
from ebjr.tasks.detection.scale import CommonScale, ConfidenceMap
from ebjr.tasks.detection.scores import FEATURES, learned_gain


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
@settings(max_examples=30, deadline=None)
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

    with pytest.warns(OutputWarning, match="student and teacher must answer alike"):
        assert joint_of(teacher=other, threshold=np.inf)(IMAGES).degraded.all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threshold": -np.inf}, ValueError, "threshold must be"),
        ({"blend": -1.0}, ValueError, "blend must be"),
        ({"when_unavailable": "cry"}, ValueError, "when_unavailable must be one of"),
        ({"teacher": None}, TypeError, "the teacher must be a callable"),
        ({"score": "boxes"}, ValueError, "no score named 'boxes'; there are: .*box_count"),
        ({"score": "box_count(iou=3)"}, ValueError, "does not take the parameters"),
        ({"score": "box_count(above=3)"}, ValueError, "above must be at least 0 and below 1"),
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
    with pytest.raises(ValueError, match="a constant and one per feature"):
        as_score("learned_gain(weights=[0.0, 1.0])")


# outcomes


def outcomes_of(images=60, seed=0, **about):
    truth, student, teacher = random_pair(seed, images=images)
    return Outcomes(student, teacher, truth, "detection", **about)


SCENE = outcomes_of()


def identical(first, second):
    same(first, second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.logits, other.logits)


@pytest.mark.parametrize("rescale", [None, SCENE.fit_scale()])
def test_saving_and_loading_changes_nothing(rescale, tmp_path):
    path = tmp_path / "outcomes.npz"
    outcomes = replace(SCENE, metric="f1", rescale=rescale, labels=("a", "b", "c", "d"))
    outcomes.save(path)
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
    loaded = Outcomes.load(path)
    identical(loaded.student, outcomes.student)
    identical(loaded.teacher, outcomes.teacher)
    for one, other in zip(loaded.targets, outcomes.targets, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.crowd, other.crowd)
    assert (loaded.metric, loaded.rescale, loaded.labels) == ("f1", rescale, outcomes.labels)
    assert loaded.fingerprint == outcomes.fingerprint


def test_the_fingerprint_is_of_every_box():
    moved = [replace(SCENE.student[0], boxes=SCENE.student[0].boxes + 1), *SCENE.student[1:]]
    assert replace(SCENE, student=moved).fingerprint != SCENE.fingerprint
    assert replace(SCENE, targets=SCENE.targets[::-1]).fingerprint != SCENE.fingerprint


def test_half_precision_keeps_what_precision_depends_on(tmp_path):
    SCENE.save(tmp_path / "half.npz", half=True)
    loaded = Outcomes.load(tmp_path / "half.npz")
    same(loaded.student, SCENE.student)
    assert loaded.quality("teacher") == SCENE.quality("teacher")


def test_some_rows_are_judged_as_if_they_were_recorded_alone():
    scale = SCENE.fit_scale()
    known = SCENE.with_scale(scale)
    assert known.quality("student") > 0  # so that matches are kept, and handed on
    some = known.take(np.array([5, 3, 8, 40, 41, 2]))
    alone = Outcomes(some.student, some.teacher, some.targets, "detection", rescale=scale)
    np.testing.assert_allclose(some.teacher_quality, alone.teacher_quality)
    assert [len(part) for part in known.split(0.25)] == [15, 45]


GOOD = {"student": SCENE.student[:3], "teacher": SCENE.teacher[:3], "targets": SCENE.targets[:3]}
NONE = Detections.none(7, (64, 64))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"student": np.ones((3, 2))}, TypeError, "student: detections must be a list"),
        ({"teacher": [1, 2, 3]}, TypeError, "teacher: detections must be a list of Detections"),
        ({"student": [NONE, *SCENE.student[:2]]}, ValueError, "must know the same classes"),
        ({"student": [NONE] * 3}, ValueError, "the student has 7 and the teacher 4"),
        ({"targets": SCENE.targets[:2]}, ValueError, "must have the same length"),
        ({"targets": [0, 1, 2]}, TypeError, "must be a list of GroundTruth, .*, not int"),
        ({"targets": np.ones(3)}, TypeError, "must be a list of GroundTruth, .*, not ndarray"),
        ({"targets": [GroundTruth([[0, 0, 1, 1]], [4])] * 3}, ValueError, "3 of 3 images have oth"),
        ({"labels": ("a",)}, ValueError, "labels must name 4 classes, not 1"),
        ({"metric": "rmse"}, ValueError, "metric of detection must be one of ap, ap50, f1"),
        ({"student": [], "teacher": [], "targets": []}, ValueError, "there are no examples"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused_in_one_sentence(changed, error, message):
    with pytest.raises(error, match=message) as caught:
        Outcomes(**{**GOOD, **changed}, task="detection")
    assert "\n" not in str(caught.value)


def test_images_without_a_labeled_box_have_no_precision_and_it_says_so():
    empty = [GroundTruth([], [])] * 3
    outcomes = Outcomes(GOOD["student"], GOOD["teacher"], empty, "detection")
    with pytest.raises(ValueError, match="none of the 3 images has a labeled box"):
        outcomes.quality("student")


def test_recording_runs_both_detectors_once():
    truth = [GroundTruth([[0, 0, 9, 9]], [1])] * 12
    with pytest.warns(RecordingNote, match=r"AP is 0.0%, no better than guessing"):
        outcomes = record(STUDENT, TEACHER, IMAGES, truth, task="detection", batch_size=5)
    identical(outcomes.student, STUDENT(IMAGES))
    identical(outcomes.teacher, TEACHER(IMAGES))
    assert outcomes.metric == "ap"
    assert outcomes.student_cost.seconds > 0


def test_without_labels_the_boxes_that_the_teacher_shows_are_the_targets():
    outcomes = record(STUDENT, TEACHER, IMAGES, task="detection", metric="f1")
    assert not outcomes.labeled
    assert outcomes.quality("teacher") == 1.0
    assert [len(real) for real in outcomes.targets] == [len(t.above(0.3)) for t in TEACHER(IMAGES)]


def test_classes_that_change_on_the_way_are_named_with_their_batch():
    def changing(images):
        return [Detections.none(4 if images[0] < 5 else 7, (8, 8)) for _ in images]

    truth = [GroundTruth([], [])] * 12
    with pytest.raises(ModelError, match="returned 4 classes in batch 1 and 7 classes in batch 2"):
        record(changing, TEACHER, IMAGES, truth, task="detection", batch_size=5)
    with pytest.raises(ModelError, match="the teacher was given 12 inputs and must return a list"):
        record(STUDENT, lambda images: images, IMAGES, truth, task="detection")


# curve


@pytest.mark.parametrize("metric", ["ap", "ap50", "f1"])
@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_every_row_of_a_curve_is_what_its_threshold_does(metric, blend):
    outcomes = replace(SCENE, metric=metric).with_scale(SCENE.fit_scale())
    curve = TradeOffCurve.of(outcomes, "box_count", blend)
    found = dict(
        zip(map(str, range(60)), zip(SCENE.student, SCENE.teacher, strict=True), strict=True)
    )
    for k in range(0, len(curve), 3):
        joint = JointDetector(
            lambda names: [found[name][0] for name in names],
            lambda names: [found[name][1] for name in names],
            Router("box_count", curve.threshold[k]),
            blend=blend,
            rescale=outcomes.rescale,
        )
        answer = joint(list(found))
        matches = match_detections(answer.prediction, SCENE.targets)
        by_overlap = average_precision(matches, per_threshold=True)
        quality = {"ap": by_overlap.mean(), "ap50": by_overlap[0], "f1": matches.f1().mean()}
        assert curve.deferral_rate[k] == answer.deferred.mean()
        assert curve.quality[k] == pytest.approx(quality[metric], abs=1e-9)


def test_a_points_router_brings_its_blend_and_its_scale():
    point = calibrate(SCENE, "budget", deferral_rate=0.5, score="box_count", blend=0.5)
    assert point.rescale is not None
    both = [
        lambda rows, said=said: [said[row] for row in rows]
        for said in (SCENE.student, SCENE.teacher)
    ]
    joint = JointDetector(*both, point.router)
    assert (joint.blend, joint.rescale) == (point.blend, point.rescale)
    matches = match_detections(joint(list(range(len(SCENE)))).prediction, SCENE.targets)
    assert average_precision(matches) == pytest.approx(point.quality, abs=1e-9)
    other = JointDetector(*both, point.router, blend=0.0)  # what is given counts
    assert (other.blend, other.rescale) == (0.0, point.rescale)
    plain = JointDetector(*both, Router("box_count", point.threshold))
    assert (plain.blend, plain.rescale) == (0.0, None)


@pytest.mark.parametrize("metric", ["ap", "ap50", "f1"])
def test_the_ends_of_a_curve_are_the_two_detectors_alone(metric):
    outcomes = replace(SCENE, metric=metric)
    curve = TradeOffCurve.of(outcomes, "random")
    assert curve.quality[-1] == pytest.approx(outcomes.quality("teacher"), abs=1e-12)
    kept = curve.deferral_rate[0] == 0
    assert not kept or curve.quality[0] == pytest.approx(outcomes.quality("student"), abs=1e-12)


def test_a_long_curve_is_thinned_and_exact_where_it_is_asked():
    outcomes = outcomes_of(400, seed=3)
    whole = outcomes.whole()
    values = np.random.default_rng(0).normal(size=400)
    curve = TradeOffCurve.of(outcomes, values, keep=[values[7]])
    assert len(curve) <= MOST_ROWS + 1
    assert (np.diff(curve.deferral_rate) <= 2 / MOST_ROWS).all()
    here = curve.at(threshold=float(values[7]))
    assert here.quality == whole(~(values >= values[7]))
    for threshold in (values[11], values[12] + 1e-9, np.inf):
        assert curve.at(threshold=threshold).quality == whole(~(values >= threshold))
    point = TradeOffCurve.of(outcomes, "box_count").at(deferral_rate=0.37)
    assert evaluate(outcomes, point).quality == point.quality


def test_the_oracle_gains_what_no_score_does():
    best = TradeOffCurve.of(SCENE, oracle(SCENE)).area
    for name in SCENE.kind.scores(SCENE.student):
        assert TradeOffCurve.of(SCENE, name).area < best


# calibration


def test_calibrating_puts_both_detectors_on_one_scale_and_the_point_carries_it():
    calibration, held_out = SCENE.split(0.5)
    point = calibrate(calibration, "budget", deferral_rate=0.5, score="box_count", blend=0.0)
    assert point.rescale == calibration.fit_scale()
    joint = evaluate(held_out, point)
    assert joint.rescale == point.rescale
    _, deferred = point.router(held_out.student)
    expected = held_out.with_scale(point.rescale).whole()(deferred)
    assert joint.quality == expected
    assert joint.quality != evaluate(held_out, replace(point, rescale=None)).quality


def test_detectors_that_are_always_right_keep_their_scores():
    found = [Detections([[0, 0, 4, 4]], [[3.0]], (8, 8))] * 4
    outcomes = Outcomes(found, found, [GroundTruth([[0, 0, 4, 4]], [0])] * 4, "detection")
    assert outcomes.fit_scale() is None
    assert calibrate(outcomes, score="box_count", blend=0.0).quality == 1.0


def test_the_learned_gain_wins_where_only_the_size_of_the_boxes_tells():
    """Each image has three boxes of one size; the student misplaces the small ones."""
    rng = np.random.default_rng(0)
    truth, student, teacher = [], [], []
    for _ in range(240):
        small = rng.random() < 0.5
        side = 8 if small else 44
        corners = np.stack([np.arange(3) * 50.0, rng.uniform(0, 9, 3)], axis=1)
        boxes = np.concatenate([corners, corners + side], axis=1)
        truth.append(GroundTruth(boxes, np.zeros(3, int)))
        sure = Detections(boxes, rng.normal(2, 0.5, (3, 1)), (64, 96))
        teacher.append(sure)
        missed = replace(sure, boxes=boxes + 60, labels=None, scores=None)
        student.append(missed if small and rng.random() < 0.9 else sure)
    outcomes = Outcomes(student, teacher, truth, "detection")
    chosen = choose_score(outcomes)
    assert chosen.name == "learned_gain"
    assert as_score(str(chosen)).named
    curve = TradeOffCurve.of(outcomes, chosen)
    assert curve.at(deferral_rate=0.6).quality > 0.99 * outcomes.quality("teacher")


@pytest.mark.parametrize("promise", ["risk", "excess"])
def test_a_guarantee_is_about_the_error_of_an_image(promise):
    outcomes = outcomes_of(400, seed=1, metric="f1")
    goal = {"goal": "accuracy", "target": 0.1} if promise == "risk" else {"tolerance": 0.2}
    point = calibrate(outcomes, **goal, delta=0.1, score="box_count", blend=0.0)
    certificate = point.certified
    assert (certificate.promise, certificate.test) == (promise, "betting")
    assert "the error of an input being 1 - F1" in certificate.statement
    choosing, rest = outcomes.split(CHOICE_SHARE, CHOICE_SEED)
    assert certificate.n == len(rest)
    assert point.rescale == choosing.fit_scale()  # not on the images that are certified on
    _, deferred = point.router(rest.student)
    own = rest.with_scale(point.rescale)
    loss = 1 - np.where(deferred, own.teacher_quality, own.student_quality)
    if promise == "excess":
        loss -= 1 - own.teacher_quality
    assert certificate.observed == pytest.approx(loss.mean())
    assert certificate.observed < certificate.bound <= certificate.tolerance


def test_nothing_can_be_promised_of_a_precision_over_all_images():
    with pytest.raises(ValueError, match=r"ap is not a mean over examples.* use the metric f1"):
        calibrate(SCENE, tolerance=0.1, delta=0.1, score="box_count", blend=0.0)
    rate = calibrate(
        outcomes_of(300), "budget", deferral_rate=0.5, delta=0.1, score="box_count", blend=0.0
    )
    assert rate.certified.promise == "rate"


# statistics


def test_an_interval_is_the_bootstrap_over_images():
    point = calibrate(SCENE, "budget", deferral_rate=0.4, score="box_count", blend=0.25)
    found = bootstrap(SCENE, point, n_resamples=100, seed=5)
    own = SCENE.with_scale(point.rescale)
    _, deferred = point.router(SCENE.student)
    rng, expected, joint = np.random.default_rng(5), [], []
    for _ in range(100):
        rows = np.repeat(np.arange(60), rng.multinomial(60, np.full(60, 1 / 60)))
        drawn = own.take(rows)
        joint.append(drawn.whole(0.25)(deferred[rows]))
        expected.append(joint[-1] - drawn.quality("teacher"))
    low, high = np.quantile(expected, [0.025, 0.975])
    assert found["gain_over_teacher"].low == pytest.approx(low, abs=1e-9)
    assert found["gain_over_teacher"].high == pytest.approx(high, abs=1e-9)
    here = evaluate(SCENE, point).quality
    assert found["ap"].estimate == here
    low, high = np.quantile(2 * here - np.array(joint), [0.025, 0.975])
    assert (found["ap"].low, found["ap"].high) == pytest.approx((low, high), abs=1e-9)


def test_the_joint_answers_are_compared_by_the_same_metric():
    point = calibrate(SCENE, "budget", deferral_rate=0.4, score="box_count", blend=0.0)
    joint = joint_prediction(SCENE, point)
    assert len(joint) == 60
    own = SCENE.with_scale(point.rescale)
    test = compare_answers(own, joint, own.deferred())
    assert test.difference.estimate == pytest.approx(
        evaluate(SCENE, point).quality - own.quality("teacher")
    )
    assert test.difference.low < test.difference.estimate < test.difference.high
    assert compare_answers(own, joint, joint).p_value == 1.0
    by_image = compare_answers(replace(own, metric="f1"), joint, own.deferred())
    assert by_image.metric == "f1"


@given(st.lists(st.integers(0, 99), max_size=9))
def test_on_the_wire_the_boxes_of_all_images_are_one_tensor_and_a_count_cuts_them(images):
    answer = joint_of()(images) if images else JointAnswer([], [], *[np.zeros(0)] * 3)
    tensors = as_task("detection").tensors()
    sent = {name: tensor.of(answer) for name, tensor in tensors.items()}
    for name, (dtype, shape, *_) in tensors.items():
        assert sent[name].dtype == dtype
        assert sent[name].shape[1:] == shape[1:]
    ends = np.cumsum(sent["count"])
    for name in ("boxes", "labels", "scores"):
        assert len(sent[name]) == sent["count"].sum()
        for part, found in zip(np.split(sent[name], ends[:-1]), answer.prediction, strict=False):
            np.testing.assert_array_equal(part, getattr(found, name).astype(part.dtype))

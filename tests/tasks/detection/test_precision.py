from __future__ import annotations

import contextlib
import io
import time
from dataclasses import replace

import numpy as np
import pytest
from boxes import random_boxes, random_pair, random_scene
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr.tasks.detection.boxes import Detections, GroundTruth
from ebjr.tasks.detection.precision import (
    JointPrecision,
    average_precision,
    match_detections,
    matched_gains,
)
from ebjr.tasks.detection.scale import ConfidenceMap, fit_confidence_map
from experiments.detection.chance import RandomRouting, exact_gains

SEEDS = st.integers(0, 2**32 - 1)
ONE = Detections.of_scores([[0, 0, 4, 4]], [0.9], (8, 8), labels=[0], classes=2)


def coco_precision(detections, truth):
    """AP at each of COCO's overlaps, by its evaluation code."""
    api = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    classes = detections[0].classes
    annotations = [
        {
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": (box[2] - box[0]) * (box[3] - box[1]),
            "iscrowd": int(crowd),
        }
        for image, real in enumerate(truth, 1)
        for box, label, crowd in zip(real.boxes.tolist(), real.labels, real.crowd, strict=True)
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    labels = api.COCO(
        {
            "images": [{"id": n + 1, "width": 64, "height": 64} for n in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": n + 1, "name": str(n)} for n in range(classes)],
        }
    )
    results = [
        {
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": float(score),
        }
        for image, found in enumerate(detections, 1)
        for box, label, score in zip(found.boxes.tolist(), found.labels, found.scores, strict=True)
    ]
    if not results:
        return np.zeros(10)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = api.COCOeval_faster(labels, labels.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]  # overlap, recall, class
    return np.array([row[row > -1].mean() for row in precision])


@pytest.mark.parametrize("ties", [False, True])
@given(seed=SEEDS, images=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_average_precision_is_what_coco_says(ties, seed, images):
    truth, found = random_scene(np.random.default_rng(seed), images, ties=ties)
    if not any((~real.crowd).any() for real in truth):
        return
    ours = average_precision(match_detections(found, truth), per_threshold=True)
    np.testing.assert_allclose(ours, coco_precision(found, truth), atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_joint_precision_is_what_coco_says_of_the_merged_lists(ties, seed):
    truth, student, teacher = random_pair(seed, ties=ties)
    if not any((~real.crowd).any() for real in truth):
        return
    joint = JointPrecision(*(match_detections(found, truth) for found in (student, teacher)))
    deferred = np.random.default_rng(seed).random(len(truth)) < 0.5
    merged = [(student, teacher)[which][image] for image, which in enumerate(deferred.astype(int))]
    np.testing.assert_allclose(joint(deferred, True), coco_precision(merged, truth), atol=1e-9)


@pytest.mark.parametrize("crowds", [False, True])
def test_every_point_of_a_curve_is_what_coco_says(crowds):
    truth, student, teacher = random_pair(3, images=50, classes=6, crowds=crowds)
    joint = JointPrecision(*(match_detections(found, truth) for found in (student, teacher)))
    score = np.random.default_rng(0).normal(size=50)
    order = np.argsort(score)
    rates = np.linspace(0, 1, 51)
    expected = []
    for count in range(51):
        deferred = set(order[:count].tolist())
        merged = [(teacher if image in deferred else student)[image] for image in range(50)]
        expected.append(coco_precision(merged, truth).mean())
    np.testing.assert_allclose(joint.curve(score, rates), expected, atol=1e-9)


def test_more_detections_of_a_class_than_coco_looks_at_are_left_out():
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 300)
    truth = [GroundTruth(boxes[:40], np.zeros(40, int))]
    found = [Detections(boxes, rng.normal((3, 0), size=(300, 2)), (64, 64))]
    ours = average_precision(match_detections(found, truth), per_threshold=True)
    np.testing.assert_allclose(ours, coco_precision(found, truth), atol=1e-9)


def test_a_curve_ends_at_the_two_detectors_alone():
    truth, *both = random_pair(0)
    student, teacher = (match_detections(found, truth) for found in both)
    ends = JointPrecision(student, teacher).curve(np.arange(12.0))[[0, -1]]
    np.testing.assert_allclose(ends, [average_precision(student), average_precision(teacher)])


def test_nan_scores_are_deferred_first_and_ties_in_the_order_of_the_images():
    truth, *both = random_pair(0)
    joint = JointPrecision(*(match_detections(found, truth) for found in both))
    score = np.full(12, 5.0)
    score[7] = np.nan
    expected = [joint(np.isin(np.arange(12), [7, *range(count)])) for count in range(4)]
    np.testing.assert_allclose(joint.curve(score, np.arange(1, 5) / 12), expected)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_some_images_alone_are_matched_as_among_all(seed):
    truth, student, _ = random_pair(seed, crowds=False, objects=9)
    rows = np.random.default_rng(seed).integers(0, 12, 9)
    if not any(len(truth[row]) for row in rows):
        return
    part = match_detections(student, truth).take(rows)
    again = match_detections([student[row] for row in rows], [truth[row] for row in rows])
    for name in ("image", "label", "score", "hit", "ignored", "boxes"):
        np.testing.assert_array_equal(getattr(part, name), getattr(again, name))


@given(seed=SEEDS, a=st.floats(0.2, 3), b=st.floats(0.2, 3), c=st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_a_confidence_map_changes_no_detectors_own_precision(seed, a, b, c):
    truth, found = random_scene(np.random.default_rng(seed), 8, objects=9, crowds=False)
    if not any(len(real) for real in truth):
        return
    matches = match_detections(found, truth)
    mapped = matches.rescored(ConfidenceMap(a, b, c))
    assert average_precision(mapped) == pytest.approx(average_precision(matches), abs=1e-12)


def test_a_fitted_map_finds_the_chance_of_being_right():
    truth, found = random_scene(np.random.default_rng(0), 3)
    known = ConfidenceMap(0.7, 1.4, -0.5)
    rng = np.random.default_rng(1)
    score = rng.uniform(0.01, 0.99, 100_000)
    hit = rng.random(len(score)) < known(score)
    drawn = replace(
        match_detections(found, truth),
        score=score,
        hit=hit[:, None],
        ignored=np.zeros((len(score), 1), bool),
    )
    fitted = fit_confidence_map(drawn)
    np.testing.assert_allclose(fitted(score), known(score), atol=0.01)


def test_one_scale_repairs_what_a_detector_that_shouts_breaks():
    truth, student, teacher = random_pair(5, images=60)
    shy = [found.with_scores(found.scores**4) for found in student]
    matches = [match_detections(found, truth) for found in (shy, teacher)]
    raw = JointPrecision(*matches)
    mapped = JointPrecision(*(one.rescored(fit_confidence_map(one)) for one in matches))
    assert RandomRouting.of(mapped, 5).curves.mean() > RandomRouting.of(raw, 5).curves.mean()


@pytest.mark.parametrize("numbers", [(0, 1, 0), (1, -1, 0), (1, 1, np.nan), (np.inf, 1, 0)])
def test_a_map_that_does_not_rise_is_refused(numbers):
    with pytest.raises(ValueError, match="positive a and b"):
        ConfidenceMap(*numbers)


def test_no_map_can_be_fitted_to_detections_that_are_all_right():
    matches = match_detections([ONE], [GroundTruth([[0, 0, 4, 4]], [0])])
    with pytest.raises(ValueError, match="some wrong detections, but of 1 detections 1 are"):
        fit_confidence_map(matches)


def test_the_oracle_beats_chance_and_its_reverse_loses_to_it():
    truth, student, _ = random_pair(1, images=40)
    perfect = [
        Detections.of_scores(
            real.boxes, np.full(len(real), 0.9), (64, 64), labels=real.labels, classes=4
        )
        for real in truth
    ]
    matches = [match_detections(found, truth) for found in (student, perfect)]
    joint = JointPrecision(*matches)
    chance = RandomRouting.of(joint, repeats=99)
    weighted = matched_gains(*matches, weighted=True)
    for gains in (exact_gains(joint), matched_gains(*matches), weighted):
        best, p = chance.gain(joint.curve(-gains))
        worst, _ = chance.gain(joint.curve(gains))
        assert best > 0 > worst
        assert p == pytest.approx(0.01)


def test_101_rates_over_5000_images_take_less_than_30_seconds():
    rng = np.random.default_rng(0)
    truth, found = random_scene(rng, 50, classes=80, objects=14, extra=160)
    part = match_detections(found, truth)
    rows = np.tile(np.arange(50), 100)
    student, teacher = (
        part.take(rows).rescored(lambda score: rng.random(len(score))) for _ in range(2)
    )
    assert len(student) == 5000
    start = time.perf_counter()
    curve = JointPrecision(student, teacher).curve(rng.normal(size=5000))
    assert time.perf_counter() - start < 30
    assert curve.shape == (101,)


@pytest.mark.parametrize(
    ("detections", "truth", "error", "message"),
    [
        ([ONE], [], ValueError, "must have the same length, one per image, not 1 and 0"),
        ([], [], ValueError, "there are no images"),
        ([ONE], [GroundTruth([], [])], ValueError, "none of the 1 images has a labeled box"),
        (
            [ONE],
            [GroundTruth([[0, 0, 1, 1]], [2])],
            ValueError,
            r"lie in 0\.\.1, .* 1 of 1 images .* is 2",
        ),
        (ONE, [GroundTruth([], [])], TypeError, "must be a list of Detections"),
        ([ONE], GroundTruth([], []), TypeError, "must be a list of GroundTruth"),
        ([ONE], [None], TypeError, "GroundTruth, one per image, not NoneType"),
    ],
)
def test_what_cannot_be_matched_is_refused(detections, truth, error, message):
    with pytest.raises(error, match=message):
        match_detections(detections, truth)


def test_an_image_without_labels_or_detections_is_matched():
    truth = [GroundTruth([[0, 0, 4, 4]], [0]), GroundTruth([], [])]
    nothing = Detections.none(2, (8, 8))
    assert average_precision(match_detections([ONE, nothing], truth)) == 1.0
    assert average_precision(match_detections([nothing, nothing], truth)) == 0.0
    assert average_precision(match_detections([ONE, ONE], truth)) < 1.0 + 1e-12


def test_matches_of_different_images_make_no_joint_model():
    truth, student, teacher = random_pair(0)
    first = match_detections(student, truth)
    with pytest.raises(ValueError, match="on the same images"):
        JointPrecision(first, match_detections(teacher[:6], truth[:6]))
    joint = JointPrecision(first, first)
    with pytest.raises(ValueError, match="deferred must be 12 booleans"):
        joint(np.zeros(12))
    with pytest.raises(ValueError, match="score must be 12 numbers"):
        joint.curve(np.zeros(3))
    with pytest.raises(ValueError, match=r"rates must lie in 0\.\.1"):
        joint.curve(np.zeros(12), [1.5])

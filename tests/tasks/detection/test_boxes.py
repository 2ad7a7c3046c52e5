from __future__ import annotations

import numpy as np
import pytest
from boxes import random_detections
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from ebjr.tasks.detection.boxes import (
    Detections,
    GroundTruth,
    box_area,
    box_iou,
    nms,
    pack_detections,
    unpack_detections,
)

SEEDS = st.integers(0, 2**32 - 1)
BOX = [[0.0, 0.0, 4.0, 4.0]]
FIELDS = ("boxes", "logits", "labels", "scores", "bins", "bin_width")


def same(first, second):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.size == second.size


@given(seed=SEEDS)
def test_overlap_is_symmetric_between_0_and_1_and_1_with_itself(seed):
    found = random_detections(np.random.default_rng(seed), 6)
    overlap = box_iou(found.boxes, found.boxes)
    np.testing.assert_array_equal(overlap, overlap.T)
    assert (overlap >= 0).all()
    assert (overlap <= 1).all()
    solid = box_area(found.boxes) > 0
    np.testing.assert_allclose(overlap.diagonal()[solid], 1)


@given(seed=SEEDS)
def test_overlap_is_what_counting_pixels_says(seed):
    boxes = np.sort(np.random.default_rng(seed).integers(0, 9, (5, 2, 2)), axis=1).reshape(5, 4)
    x, y = np.arange(9)[:, None], np.arange(9)
    masks = [(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in boxes]
    for row, column in np.ndindex(5, 5):
        either = (masks[row] | masks[column]).sum()
        expected = (masks[row] & masks[column]).sum() / either if either else 0
        found = box_iou(boxes[[row]].astype(float), boxes[[column]].astype(float))
        assert found[0, 0] == pytest.approx(expected)


def slow_nms(boxes, scores, labels, iou):
    kept = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        rivals = [other for other in kept if labels[other] == labels[row]]
        if not len(rivals) or box_iou(boxes[rivals], boxes[[row]]).max() <= iou:
            kept.append(row)
    return kept


@given(seed=SEEDS, n=st.integers(0, 25), iou=st.floats(0, 1))
def test_suppression_is_greedy_from_the_best_within_each_class(seed, n, iou):
    found = random_detections(np.random.default_rng(seed), n, classes=3, side=12)
    expected = slow_nms(found.boxes, found.scores, found.labels, iou)
    np.testing.assert_array_equal(nms(found.boxes, found.scores, found.labels, iou), expected)
    same(found.nms(iou), found.take(expected))
    apart = nms(found.boxes, found.scores, None, iou)
    np.testing.assert_array_equal(apart, slow_nms(found.boxes, found.scores, np.zeros(n, int), iou))


def test_boxes_of_two_classes_never_suppress_each_other():
    found = Detections(BOX * 2, [[3.0, 0.0], [0.0, 2.0]], (8, 8))
    assert len(found.nms(0.0)) == 2


@pytest.mark.parametrize("iou", [-0.1, 1.1, np.nan])
def test_an_overlap_limit_out_of_range_is_refused(iou):
    with pytest.raises(ValueError, match=r"iou must lie in 0\.\.1"):
        nms(np.array(BOX), np.ones(1), iou=iou)


@given(seed=SEEDS, n=st.integers(0, 12), k=st.integers(0, 14))
def test_top_keeps_the_best_and_above_keeps_the_order(seed, n, k):
    found = random_detections(np.random.default_rng(seed), n)
    np.testing.assert_array_equal(found.top(k).scores, np.sort(found.scores)[::-1][:k])
    kept = found.above(0.5)
    np.testing.assert_array_equal(kept.scores, found.scores[found.scores > 0.5])


def test_a_negative_number_of_boxes_is_refused():
    with pytest.raises(ValueError, match="k must be at least 0, not -1"):
        Detections(BOX, [[1.0]], (8, 8)).top(-1)


def test_label_and_score_are_by_default_those_of_the_largest_logit():
    found = Detections(BOX, [[0.5, 2.0, -1.0]], (8, 8))
    assert found.labels == [1]
    np.testing.assert_allclose(found.scores, expit(2.0))


@given(seed=SEEDS)
def test_a_box_is_expanded_into_each_class_it_may_be(seed):
    found = random_detections(np.random.default_rng(seed), 5, classes=4)
    wide = found.expand(above=0.3)
    assert len(wide) == (expit(found.logits) > 0.3).sum()
    assert (np.diff(wide.scores) <= 0).all()
    np.testing.assert_array_equal(
        wide.scores, expit(wide.logits[np.arange(len(wide)), wide.labels])
    )
    same(found.expand(above=0.3, limit=3), wide.take(slice(3)))


def test_scores_become_log_odds_so_that_their_sigmoid_is_the_score():
    scores = np.array([[0.25, 0.75], [0.0, 1.0]])
    found = Detections.of_scores(BOX * 2, scores, (8, 8))
    np.testing.assert_allclose(expit(found.logits), scores)
    single = Detections.of_scores(BOX, [0.25], (8, 8), labels=[2], classes=3)
    np.testing.assert_allclose(expit(single.logits), [[0, 0, 0.25]])
    assert single.scores == [0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[4, 0, 2, 3]]}, "x1 <= x2 and y1 <= y2, but 1 of 1 do not, the first is box 0"),
        ({"boxes": [[0, 3, 2, 1]]}, "x1 <= x2 and y1 <= y2"),
        ({"boxes": [[0, np.nan, 2, 1]]}, "boxes must hold finite numbers"),
        ({"boxes": [[0, 0, np.inf, 1]]}, "boxes must hold finite numbers"),
        ({"boxes": [0, 0, 1, 1]}, r"boxes must have shape \(b, 4\), not \(4,\)"),
        ({"boxes": [["a"] * 4]}, "must be numbers"),
        ({"logits": [1.0, 2.0]}, r"logits must have shape \(1, classes\)"),
        ({"logits": [[1.0], [2.0]]}, "one row per box"),
        ({"logits": [[np.nan, 1.0]]}, r"below infinity, but 1 of 1 do not, .* box 0: \[nan, 1.0\]"),
        ({"logits": [[np.inf, 1.0]]}, r"below infinity, .* box 0: \[inf, 1.0\]"),
        ({"size": (0, 4)}, r"size must be \(height, width\)"),
        ({"size": 4}, r"size must be \(height, width\)"),
        ({"size": (4.5, 4)}, "whole pixels"),
        ({"labels": [2]}, r"labels must lie in 0\.\.1, but 1 of 1 do not, the first is 2"),
        ({"labels": [-1]}, r"labels must lie in 0\.\.1"),
        ({"labels": [0.5]}, "whole numbers"),
        ({"labels": [0, 1]}, "one per box"),
        ({"scores": [1.5]}, r"scores must lie in 0\.\.1"),
        ({"scores": [np.nan]}, r"scores must lie in 0\.\.1"),
        ({"scores": [[0.5]]}, r"scores must have shape \(1,\)"),
        ({"bins": np.zeros((1, 3, 8))}, r"bins must have shape \(1, 4, bins\)"),
        ({"bins": np.full((1, 4, 8), np.nan)}, "bins must be numbers"),
        ({"bin_width": [0.0]}, "bin_width must be 1 positive numbers"),
    ],
)
def test_what_no_detector_may_say_is_refused_in_one_sentence(change, message):
    given = {"boxes": BOX, "logits": [[1.0, 0.0]], "size": (8, 8)}
    with pytest.raises(ValueError, match=message) as caught:
        Detections(**given | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "more", "message"),
    [
        ([0.5], {}, "need labels and classes"),
        ([0.5], {"labels": [3], "classes": 3}, r"labels must lie in 0\.\.2"),
        ([1.5], {"labels": [1], "classes": 3}, r"scores must lie in 0\.\.1"),
        ([[1.5, 0.0]], {}, r"scores must lie in 0\.\.1"),
        ([[np.nan, 0.0]], {}, r"scores must lie in 0\.\.1"),
    ],
)
def test_scores_that_are_none_are_refused(scores, more, message):
    with pytest.raises(ValueError, match=message):
        Detections.of_scores(BOX, scores, (8, 8), **more)


@pytest.mark.parametrize(
    ("boxes", "labels", "crowd", "message"),
    [
        ([[3, 0, 1, 1]], [0], None, "x1 <= x2"),
        (BOX, [-1], None, "labels must lie in"),
        (BOX, [0, 1], None, "one per box"),
        (BOX, [0], [True, False], r"crowd must have shape \(1,\)"),
    ],
)
def test_labels_that_fit_no_image_are_refused(boxes, labels, crowd, message):
    with pytest.raises(ValueError, match=message):
        GroundTruth(boxes, labels, crowd)


@given(seed=SEEDS, counts=st.lists(st.integers(0, 4), min_size=1, max_size=5), bins=st.booleans())
@settings(deadline=None)
def test_detections_come_back_from_arrays_as_they_were(seed, counts, bins):
    rng = np.random.default_rng(seed)
    found = [random_detections(rng, n, bins=5 if bins else 0) for n in counts]
    for before, after in zip(found, unpack_detections(pack_detections(found)), strict=True):
        same(before, after)


def test_half_precision_leaves_boxes_and_scores_as_they_are():
    rng = np.random.default_rng(0)
    found = [random_detections(rng, 5, bins=4)]
    found[0].logits[0, 0] = -np.inf
    (after,) = unpack_detections(pack_detections(found, half=True))
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(after, name), getattr(found[0], name))
    np.testing.assert_allclose(after.logits, found[0].logits, atol=0.01)
    np.testing.assert_allclose(after.bins, found[0].bins, atol=0.01)


def test_an_image_without_boxes_may_stand_beside_one_with_bins():
    found = [Detections.none(4, (8, 8)), random_detections(np.random.default_rng(0), 2, bins=3)]
    after = unpack_detections(pack_detections(found))
    assert [len(image) for image in after] == [0, 2]
    same(after[1], found[1])


def test_detections_that_do_not_belong_together_are_refused():
    rng = np.random.default_rng(0)
    few, many = (random_detections(rng, 2, classes=classes) for classes in (3, 4))
    with pytest.raises(ValueError, match="some know 3 and some 4"):
        pack_detections([few, many])
    with pytest.raises(ValueError, match="1 of 2 images have no bins"):
        pack_detections([few, random_detections(rng, 2, classes=3, bins=4)])
    with pytest.raises(ValueError, match="no images"):
        pack_detections([])
    with pytest.raises(TypeError, match="must be a list of Detections"):
        pack_detections(few)
    with pytest.raises(TypeError, match="one per image, not dict"):
        pack_detections([{}])


def test_arrays_of_something_else_are_refused():
    with pytest.raises(KeyError, match="format"):
        unpack_detections({"x": np.ones(3)})
    packed = pack_detections([Detections.none(2, (8, 8))]) | {"format": np.array(9)}
    with pytest.raises(ValueError, match="must be of format 1, not 9"):
        unpack_detections(packed)

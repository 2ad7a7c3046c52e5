from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.integrate
import scipy.special
from boxes import random_detections
from hypothesis import given
from hypothesis import strategies as st

from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.scores import (
    DETECTIONS,
    box_count,
    detection_energy,
    expected_errors,
    mean_confidence,
)

NAMES = tuple(DETECTIONS.scores)
NOTHING = Detections.none(4, (8, 8))
SEEDS = st.integers(0, 2**32 - 1)


def images(seed=0, counts=(3, 0, 1, 7), bins=6):
    rng = np.random.default_rng(seed)
    return [random_detections(rng, n, bins=bins) for n in counts]


@pytest.mark.parametrize("name", NAMES)
def test_no_boxes_is_not_easy(name):
    """B = 0 is deferred at every threshold, whatever the score; a count of 0 would be kept."""
    score = DETECTIONS.scores[name]
    values = score([NOTHING, *images()])
    assert values[0] == -math.inf
    unseen = replace(images()[0], scores=np.zeros(3))
    assert score([unseen]) == -math.inf
    assert not (values[0] >= -1e300)
    assert score([NOTHING], empty=-2.5) == -2.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("empty", [math.inf, math.nan])
def test_no_boxes_cannot_be_the_easiest_of_all(name, empty):
    with pytest.raises(ValueError, match="empty must be a number below infinity"):
        DETECTIONS.scores[name]([NOTHING], empty=empty)


@given(seed=SEEDS)
def test_the_class_energy_is_equation_12(seed):
    found = images(seed, counts=(3, 5))
    expected = [scipy.special.logsumexp(image.logits, axis=1).mean() for image in found]
    np.testing.assert_allclose(detection_energy(found, "classes", above=0.0), expected)


@given(seed=SEEDS)
def test_the_box_energy_is_equation_13_integrated_over_the_distance(seed):
    """A distribution over bins is a density that is constant on each: its integral is exact."""
    (found,) = images(seed, counts=(3,))
    width = np.array([8.0, 16.0, 32.0])
    found = replace(found, bin_width=width)
    energies = []
    for bins, step in zip(found.bins, width, strict=True):
        edges = np.arange(7) * step
        for side in bins:
            pieces = [
                scipy.integrate.quad(lambda y, value=value: math.exp(value), low, high)[0]
                for value, low, high in zip(side, edges[:-1], edges[1:], strict=True)
            ]
            energies.append(math.log(sum(pieces)))
    np.testing.assert_allclose(detection_energy([found], "boxes", above=0.0), np.mean(energies))


@given(seed=SEEDS)
def test_both_is_the_sum_of_equations_12_and_13(seed):
    found = images(seed)
    parts = [detection_energy(found, part) for part in ("classes", "boxes")]
    np.testing.assert_allclose(detection_energy(found), np.sum(parts, axis=0))


@given(seed=SEEDS, shift=st.floats(0, 5))
def test_energy_shifts_with_the_logits(seed, shift):
    found = images(seed, counts=(3, 5))
    louder = [replace(image, logits=image.logits + shift) for image in found]
    for part in ("classes", "both"):
        before, after = (detection_energy(which, part, above=0.0) for which in (found, louder))
        np.testing.assert_allclose(after, before + shift)


@given(seed=SEEDS)
def test_a_sum_is_the_mean_times_the_number_of_boxes(seed):
    found = images(seed, counts=(3, 5))
    mean, total = (detection_energy(found, reduce=how) for how in ("mean", "sum"))
    some = np.isfinite(mean)
    np.testing.assert_allclose(total[some], (mean * -box_count(found))[some])


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS, above=st.floats(0, 0.99), top=st.none() | st.integers(1, 6))
def test_only_the_chosen_boxes_count(name, seed, above, top):
    found = images(seed)
    chosen = [image.above(above).top(len(image) if top is None else top) for image in found]
    score = DETECTIONS.scores[name]
    np.testing.assert_allclose(score(found, above=above, top=top), score(chosen, above=0.0))


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_neither_the_order_of_boxes_nor_the_other_images_matter(name, seed):
    found = images(seed)
    score = DETECTIONS.scores[name]
    mixed = [image.take(np.random.default_rng(0).permutation(len(image))) for image in found]
    alone = np.concatenate([score([image]) for image in mixed])
    np.testing.assert_allclose(score(found), alone)


def test_expected_errors_are_the_variance_of_the_number_of_right_boxes():
    rng = np.random.default_rng(0)
    (found,) = images(counts=(7,))
    right = (rng.random((200_000, 7)) < found.scores).sum(axis=1)
    assert -expected_errors([found], above=0.0)[0] == pytest.approx(right.var(), rel=0.02)


def test_a_surer_box_raises_the_mean_confidence():
    unsure, sure = (Detections([[0, 0, 1, 1]], [[value]], (8, 8)) for value in (0.0, 3.0))
    assert mean_confidence([unsure]) < mean_confidence([sure])


@pytest.mark.parametrize("name", NAMES)
def test_no_images_have_no_scores(name):
    assert DETECTIONS.scores[name]([]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [({"above": 1.0}, "above must be"), ({"above": -0.1}, "above must be"), ({"top": 0}, "top")],
)
def test_a_selection_that_is_none_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        DETECTIONS.scores[name](images(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": "class"}, "part must be one of classes, boxes, both, not 'class'"),
        ({"reduce": "max"}, "reduce must be one of mean, sum, not 'max'"),
    ],
)
def test_an_unknown_part_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        detection_energy(images(), **change)


def test_a_head_without_bins_has_no_box_energy():
    found = images(bins=0)
    assert np.isfinite(detection_energy(found, "classes", above=0.0)[0])
    for part in ("boxes", "both"):
        with pytest.raises(ValueError, match="needs bin logits"):
            detection_energy(found, part, above=0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", [NOTHING, np.zeros((2, 4)), [np.zeros((2, 4))]])
def test_what_is_no_list_of_detections_is_refused(name, what):
    with pytest.raises(TypeError, match="detections must be"):
        DETECTIONS.scores[name](what)

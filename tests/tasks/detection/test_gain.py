from __future__ import annotations

import json

import numpy as np
import pytest
from boxes import random_detections
from scipy.stats import spearmanr

from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.gain import fit_gain
from ebjr.tasks.detection.scores import FEATURES, detection_features, learned_gain

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def images(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return [random_detections(rng, int(k), bins=4) for k in rng.integers(0, 12, n)]


def gains_of(found):
    """Many unsure boxes are where the teacher gains."""
    return np.array([(one.scores * (1 - one.scores)).sum() for one in found])


def test_a_learned_gain_defers_first_what_gains_most_on_images_it_has_not_seen():
    score = fit_gain(images(), gains_of(images()))
    fresh = images(seed=1)
    assert spearmanr(score(fresh), gains_of(fresh)).statistic < -0.9


def test_pure_chance_is_shrunk_to_almost_nothing():
    found = images()
    gains = np.random.default_rng(5).normal(0, 1, len(found))
    assert fit_gain(found, gains)(images(seed=1)).std() < 0.3


def test_a_learned_gain_is_its_weights():
    score = fit_gain(images(), gains_of(images()))
    weights = json.loads(json.dumps(score.parameters["weights"]))
    found = images(20)
    np.testing.assert_array_equal(learned_gain(found, weights), score(found))


def test_an_image_without_boxes_has_finite_features_and_the_gain_that_was_seen():
    found = [*images(100), *[Detections.none(4, (64, 64))] * 100]
    assert np.isfinite(detection_features(found)).all()
    gains = np.concatenate([np.zeros(100), np.ones(100)])
    score = fit_gain(found, gains)
    assert score([Detections.none(4, (64, 64))])[0] == pytest.approx(-1, abs=0.15)


def test_features_are_those_of_the_image_alone_whatever_the_order_of_its_boxes():
    found = images(10)
    mixed = [one.take(np.random.default_rng(0).permutation(len(one))) for one in found]
    alone = np.concatenate([detection_features([one]) for one in mixed])
    np.testing.assert_allclose(detection_features(found), alone, atol=1e-12)


def test_a_class_ruled_out_by_a_logit_of_minus_infinity_is_fine():
    found = Detections.of_scores([[0, 0, 4, 4]], [0.5], (8, 8), labels=[1], classes=3)
    assert np.isfinite(detection_features([found])).all()
    everything_out = Detections([[0, 0, 4, 4]], [[-np.inf, -np.inf]], (8, 8))
    assert np.isfinite(detection_features([everything_out])).all()


def test_no_images_have_no_features():
    assert detection_features([]).shape == (0, len(FEATURES))


@pytest.mark.parametrize(
    ("n", "gains", "message"),
    [
        (40, np.zeros(39), "gains must be 40 finite numbers"),
        (40, np.full(40, np.nan), "gains must be 40 finite numbers"),
        (29, np.zeros(29), "needs at least 30 images, not 29"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(n, gains, message):
    with pytest.raises(ValueError, match=message):
        fit_gain(images(n), gains)


def test_weights_of_other_features_are_refused():
    with pytest.raises(ValueError, match="a constant and one per feature"):
        learned_gain(images(3), [0.0, 1.0])

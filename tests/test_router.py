from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import THRESHOLDS, logits

from ebjr import SCORES, Router
from ebjr.arrays import to_numpy
from ebjr.router import check_threshold


def first_column(output):
    return output[:, 0]


@pytest.mark.parametrize(
    ("threshold", "deferred"),
    [
        (-1e300, [True, True, False, False, False, False]),
        (-1.0, [True, True, False, False, False, False]),
        (2.0, [True, True, True, False, False, False]),
        (math.nextafter(2.0, 3.0), [True, True, True, True, False, False]),
        (5.0, [True, True, True, True, False, False]),
        (5.1, [True, True, True, True, True, False]),
        (math.inf, [True, True, True, True, True, False]),
    ],
)
def test_a_row_is_kept_where_its_score_reaches_the_threshold(threshold, deferred, asarray):
    scores = [np.nan, -np.inf, -1.0, 2.0, 5.0, np.inf]
    output = asarray(np.stack([scores, np.zeros(6)], axis=1))
    score, found = Router(first_column, threshold)(output)
    np.testing.assert_array_equal(to_numpy(score), scores)
    np.testing.assert_array_equal(to_numpy(found), deferred)
    assert to_numpy(found).dtype == bool


@given(rows=logits(), one=THRESHOLDS, other=THRESHOLDS, name=st.sampled_from(list(SCORES)))
@settings(max_examples=100, deadline=None)
def test_deferral_is_monotone_in_the_threshold(rows, one, other, name):
    low, high = sorted((one, other))
    _, few = Router(name, low)(rows)
    _, many = Router(name, high)(rows)
    assert (few <= many).all()


@given(rows=logits(), name=st.sampled_from(list(SCORES)))
@settings(max_examples=50, deadline=None)
def test_a_score_used_as_threshold_keeps_its_own_row(rows, name):
    score, _ = Router(name, 0.0)(rows)
    for row, value in enumerate(score):
        assert not Router(name, value)(rows)[1][row]


@given(rows=logits())
@settings(max_examples=50, deadline=None)
def test_infinity_defers_every_finite_score(rows):
    assert Router("energy", math.inf)(rows)[1].all()


@pytest.mark.parametrize(
    "threshold",
    [math.nan, -math.inf, np.float32(-np.inf), "nan", "-inf", "x", 10**400, -(10**400)],
    ids=lambda value: f"{value!r:.12}",
)
def test_a_threshold_that_compares_with_nothing_is_refused(threshold):
    router = Router("energy", 1.0)
    with pytest.raises(ValueError, match="threshold must be a number above -inf"):
        Router("energy", threshold)
    with pytest.raises(ValueError, match="threshold must be a number above -inf"):
        router.threshold = threshold
    assert router.threshold == 1.0


@pytest.mark.parametrize("threshold", [None, [1.0, 2.0], {}])
def test_a_threshold_is_one_number(threshold):
    with pytest.raises(TypeError):
        Router("energy", threshold)


@pytest.mark.parametrize("threshold", [2, 2.0, np.float32(2), np.int64(2), math.inf])
def test_a_threshold_becomes_a_plain_float(threshold):
    assert type(check_threshold(threshold)) is float
    assert check_threshold(threshold) == threshold


@pytest.mark.parametrize("threshold", [1e300, -1e300, np.finfo(np.float64).max])
def test_a_threshold_beyond_single_precision_is_compared_all_the_same(threshold, asarray):
    rows = asarray(np.zeros((3, 2), np.float32))
    _, deferred = Router("energy", threshold)(rows)
    assert to_numpy(deferred).tolist() == [threshold > 0] * 3


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_threshold_between_two_single_precision_numbers_is_not_rounded(direction, asarray):
    """A curve is computed in double precision: the router must draw the same line."""
    value = np.float32(0.1)
    threshold = math.nextafter(float(value), direction * math.inf)
    rows = asarray(np.array([[value, 0.0]], np.float32))
    _, deferred = Router(first_column, threshold)(rows)
    assert to_numpy(deferred).tolist() == [float(value) < threshold]


def test_the_knob_takes_effect_at_the_next_batch(asarray):
    rows = asarray(np.array([[1.0, 0.0], [3.0, 0.0]]))
    router = Router("max_logit", 0.5)
    seen = []
    for threshold in (0.5, 2.0, 4.0, 1.0):
        router.threshold = threshold
        seen.append(to_numpy(router(rows)[1]).tolist())
    assert seen == [[False, False], [True, False], [True, True], [False, False]]


def test_a_router_takes_text_and_shows_it():
    router = Router("softmax(temperature=2.0)", 0.75)
    assert repr(router) == "Router('softmax(temperature=2.0)', threshold=0.75)"
    assert str(eval(repr(router)).score) == "softmax(temperature=2.0)"


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="there is no score named 'surprise'"):
        Router("surprise", 1.0)


def test_an_empty_batch_has_no_deferred_rows(asarray):
    score, deferred = Router("energy", 1.0)(asarray(np.zeros((0, 3))))
    assert tuple(score.shape) == tuple(deferred.shape) == (0,)


def test_a_skip_at_or_over_the_threshold_is_refused():
    with pytest.raises(ValueError, match="skip must be under the threshold"):
        Router("softmax", 0.5, 0.9)


@pytest.mark.parametrize("value", ["0.5", True])
def test_a_threshold_is_a_number(value):
    with pytest.raises(ValueError, match="threshold must be a number"):
        Router("softmax", value)

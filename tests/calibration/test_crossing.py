from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from ebjr.calibration import crossing
from ebjr.errors import CalibrationError


def two_normals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of wrong rows around 0 and of right rows around 2, a third of them wrong."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < 2 / 3
    return rng.normal(np.where(right, 2.0, 0.0), 1.0), right.astype(float)


def test_two_equal_normals_cross_half_way_whatever_their_shares():
    found = np.mean([crossing(*two_normals(20_000, seed)) for seed in range(10)])
    assert norm.pdf(1.0, 0) == norm.pdf(1.0, 2)
    assert found == pytest.approx(1.0, abs=0.06)


def test_an_increasing_transformation_keeps_the_same_rows():
    score, right = two_normals(2_000, seed=1)
    kept = score >= crossing(score, right)
    squeezed = np.tanh(score / 10)
    assert np.array_equal(squeezed >= crossing(squeezed, right), kept)


def test_ties_move_together():
    score = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    right = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert crossing(score, right) == 2.0


def test_rows_without_a_score_are_left_out():
    score = np.array([np.nan, -np.inf, 1.0, 2.0])
    assert crossing(score, np.array([1.0, 1.0, 0.0, 1.0])) == 2.0


@pytest.mark.parametrize(("value", "word"), [(1.0, "right"), (0.0, "wrong")])
def test_a_student_that_is_always_right_or_wrong_has_no_crossing(value, word):
    with pytest.raises(CalibrationError, match=f"{word} on all 3 examples"):
        crossing(np.arange(3.0), np.full(3, value))


@pytest.mark.parametrize("score", [np.zeros(4), np.array([4.0, 3.0, 2.0, 1.0])])
def test_a_score_that_does_not_tell_right_from_wrong_says_so(score):
    with pytest.raises(CalibrationError, match="do not cross"):
        crossing(score, np.array([0.0, 0.0, 1.0, 1.0]))

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import logits

from ebjr.arrays import to_numpy
from ebjr.blend import blend_logits, check_weight

RNG = np.random.default_rng(3)
STUDENT, TEACHER = RNG.normal(0, 3, (2, 20, 5))


@pytest.mark.parametrize("weight", [1e-3, 0.5, 1, 2.0, 40.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_blend_is_the_weighted_mean_of_both_distributions(weight, dtype, asarray):
    student, teacher = STUDENT.astype(dtype), TEACHER.astype(dtype)
    mixed = blend_logits(asarray(student), asarray(teacher), weight)
    softmax = [scipy.special.softmax(z.astype(float), axis=1) for z in (student, teacher)]
    expected = (softmax[1] + weight * softmax[0]) / (1 + weight)
    np.testing.assert_allclose(np.exp(to_numpy(mixed)), expected, rtol=1e-5)
    assert mixed.dtype == asarray(student).dtype


@given(data=st.data(), weight=st.floats(0, 1e6, exclude_min=True))
@settings(max_examples=80, deadline=None)
def test_blended_probabilities_sum_to_one_and_lie_between_both(data, weight):
    student = data.draw(logits())
    shape = st.just(student.shape[0]), st.just(student.shape[1])
    teacher = data.draw(logits(rows=shape[0], classes=shape[1]))
    mixed = np.exp(blend_logits(student, teacher, weight))
    ends = [scipy.special.softmax(z, axis=1) for z in (student, teacher)]
    np.testing.assert_allclose(mixed.sum(axis=1), 1)
    assert (mixed >= np.minimum(*ends) - 1e-9).all()
    assert (mixed <= np.maximum(*ends) + 1e-9).all()


@pytest.mark.parametrize("weight", [0, 0.0, np.float32(0)])
def test_weight_zero_is_the_teachers_very_logits(weight, asarray):
    teacher = asarray(TEACHER)
    assert blend_logits(asarray(STUDENT), teacher, weight) is teacher


def test_a_large_weight_is_the_student(asarray):
    mixed = to_numpy(blend_logits(asarray(STUDENT), asarray(TEACHER), 1e12))
    np.testing.assert_allclose(np.exp(mixed), scipy.special.softmax(STUDENT, axis=1), rtol=1e-6)


def test_a_small_weight_is_the_teacher(asarray):
    mixed = to_numpy(blend_logits(asarray(STUDENT), asarray(TEACHER), 1e-300))
    np.testing.assert_allclose(np.exp(mixed), scipy.special.softmax(TEACHER, axis=1))


def test_neither_input_is_written_into(asarray):
    student, teacher = asarray(STUDENT.copy()), asarray(TEACHER.copy())
    blend_logits(student, teacher, 0.5)
    np.testing.assert_array_equal(to_numpy(student), STUDENT)
    np.testing.assert_array_equal(to_numpy(teacher), TEACHER)


def test_extreme_logits_neither_overflow_nor_vanish(asarray):
    student, teacher = asarray(np.array([[1e4, 0.0]])), asarray(np.array([[-1e4, 1e4]]))
    mixed = to_numpy(blend_logits(student, teacher, 1.0))
    np.testing.assert_allclose(mixed, np.log([[0.5, 0.5]]))


def test_classes_ruled_out_by_both_stay_ruled_out(asarray):
    out = asarray(np.array([[-np.inf, 0.0, 0.0]]))
    np.testing.assert_allclose(np.exp(to_numpy(blend_logits(out, out, 1.0))), [[0, 0.5, 0.5]])


def test_half_precision_is_blended_in_single(asarray):
    student, teacher = (asarray(z.astype(np.float16)) for z in (STUDENT, TEACHER))
    mixed = to_numpy(blend_logits(student, teacher, 0.5))
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, blend_logits(STUDENT, TEACHER, 0.5), atol=0.02)


@pytest.mark.parametrize("weight", [-0.1, -np.inf, np.inf, np.nan])
def test_a_weight_is_finite_and_not_negative(weight):
    with pytest.raises(ValueError, match="blend must be a finite weight of at least 0, not"):
        check_weight(weight)
    with pytest.raises(ValueError, match="blend must be"):
        blend_logits(STUDENT, TEACHER, weight)

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import logits

from ebjr.arrays import to_numpy
from ebjr.blend import Blend, as_blend, blend_logits, blend_predictions

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
        as_blend(weight)
    with pytest.raises(ValueError, match="blend must be"):
        blend_logits(STUDENT, TEACHER, weight)


# with temperatures


def test_temperatures_soften_each_model_on_its_own(asarray):
    blend = Blend(0.5, student_temperature=2.0, teacher_temperature=0.5)
    mixed = to_numpy(blend_logits(asarray(STUDENT), asarray(TEACHER), blend))
    expected = scipy.special.softmax(TEACHER / 0.5, axis=1)
    expected = (expected + 0.5 * scipy.special.softmax(STUDENT / 2, axis=1)) / 1.5
    np.testing.assert_allclose(np.exp(mixed), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (0, 0.0),
        ("0.25", 0.25),
        (Blend(0.25), 0.25),
        (Blend(0.0, 2.0), 0.0),
        ("blend(weight=0.5, teacher_temperature=2)", Blend(0.5, 1.0, 2.0)),
        (Blend(0.5, 2.0), Blend(0.5, 2.0)),
    ],
)
def test_a_blend_is_as_plain_as_it_can_be(given, found):
    assert as_blend(given) == found
    assert type(as_blend(given)) is type(found)
    assert as_blend(str(as_blend(given))) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("half", "blend must be a weight or 'auto', not 'half'; write temperatures like"),
        ("mix(weight=1)", "blend must be a weight or 'auto', not"),
        ("blend(weight=1, temperature=2)", "blend must be a weight or 'auto', not"),
        ("blend(weight=-1)", "blend must be a finite weight of at least 0, not -1"),
        ("blend(weight=1, teacher_temperature=0)", "teacher_temperature must be a positive number"),
        ("blend(weight=__import__('os'))", "blend must be a weight or 'auto', not"),
    ],
)
def test_a_blend_that_is_none_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_blend(given)


def test_a_blend_is_what_it_says_and_survives_a_pickle():
    blend = Blend(0.5, 2.0)
    assert blend == pickle.loads(pickle.dumps(blend)) == copy.deepcopy(blend)
    assert blend != 0.5
    assert blend != Blend(0.5)
    assert len({blend, Blend(0.5, 2.0), Blend(0.5)}) == 2
    assert (float(blend), f"{blend:g}") == (0.5, "0.5 at temperatures 2 and 1")


@pytest.mark.parametrize("blend", [0.5, Blend(0.5, student_temperature=2.0)])
def test_where_the_student_says_nan_the_teacher_alone_answers(asarray, blend):
    student = asarray(np.array([[np.nan, 1.0, 0.0], [2.0, 1.0, 0.0]]))
    teacher = asarray(np.array([[1.0, 5.0, 0.0], [0.0, 5.0, 1.0]]))
    found = to_numpy(blend_logits(student, teacher, blend))
    alone = [
        blend_logits(*pair, blend)
        for pair in ((teacher[:1], teacher[:1]), (student[1:], teacher[1:]))
    ]
    np.testing.assert_allclose(found, np.concatenate([to_numpy(one) for one in alone]))
    means = to_numpy(blend_predictions(student[:, :1], teacher[:, :1], 0.5))
    np.testing.assert_allclose(means[:, 0], [1.0, 2 / 3])


@pytest.mark.parametrize("blend", [0.5, Blend(0.5, student_temperature=2.0)])
@pytest.mark.parametrize("row", [[np.inf, 1.0, 0.0], [-np.inf] * 3])
def test_where_the_students_row_has_no_softmax_the_teacher_alone_answers(asarray, blend, row):
    teacher = asarray(np.array([[1.0, 5.0, 0.0]]))
    found = to_numpy(blend_logits(asarray(np.array([row])), teacher, blend))
    np.testing.assert_allclose(found, to_numpy(blend_logits(teacher, teacher, blend)))


@pytest.mark.parametrize("number", [np.inf, -np.inf])
def test_an_infinite_prediction_is_not_mixed_in(asarray, number):
    student, teacher = asarray(np.array([[number], [2.0]])), asarray(np.array([[1.0], [5.0]]))
    np.testing.assert_array_equal(to_numpy(blend_predictions(student, teacher, 1.0)), [[1], [3.5]])

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import Cost, joint_cost
from ebjr.costs import KINDS_OF_JOULES, UNITS, break_even_rate, common_unit, is_comparable

AMOUNTS = st.floats(0, 1e12)
COUNTS = st.integers(0, 10_000)
KINDS = st.sampled_from([None, *KINDS_OF_JOULES])


@given(student=AMOUNTS, teacher=AMOUNTS, kept=COUNTS, deferred=COUNTS)
@settings(max_examples=100, deadline=None)
def test_a_joint_model_costs_what_the_paper_says(student, teacher, kept, deferred):
    n = max(kept + deferred, 1)
    kept = n - deferred
    paper = (kept * student + deferred * (student + teacher)) / n
    ours = joint_cost(Cost(flops=student), Cost(flops=teacher), deferred / n)
    assert ours.flops == pytest.approx(paper)


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_follows_the_same_formula(unit):
    cost = joint_cost(Cost(**{unit: 2.0}), Cost(**{unit: 10.0}), 0.25)
    assert cost.as_dict() == {unit: 4.5}


def test_what_one_model_does_not_know_the_joint_model_does_not_know():
    cost = joint_cost(Cost(flops=1.0, seconds=2.0), Cost(flops=3.0, joules=4.0), 0.5)
    assert cost == Cost(flops=2.5)
    assert cost.as_dict() == {"flops": 2.5}


def test_costs_add_and_scale_unit_by_unit():
    one = Cost(flops=1.0, seconds=2.0, joules=3.0)
    assert one + one == 2 * one == one * 2 == Cost(flops=2.0, seconds=4.0, joules=6.0)
    assert 0 * Cost(flops=5.0) == Cost(flops=0.0)
    assert Cost() + one == Cost()
    assert Cost().as_dict() == {}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("value", [-1.0, -1e-300, math.nan, math.inf, -math.inf])
def test_a_cost_is_finite_and_not_negative(unit, value):
    with pytest.raises(ValueError, match=f"{unit} must be a finite number of at least 0, not"):
        Cost(**{unit: value})


@pytest.mark.parametrize(
    ("student", "teacher", "rate"),
    [(1.0, 4.0, 0.75), (0.0, 4.0, 1.0), (4.0, 4.0, 0.0), (8.0, 4.0, -1.0), (1.0, 0.0, None)],
)
def test_the_break_even_is_where_both_ways_cost_the_same(student, teacher, rate):
    student, teacher = Cost(seconds=student), Cost(seconds=teacher)
    assert break_even_rate(student, teacher, "seconds") == rate
    if rate is not None and rate >= 0:
        assert joint_cost(student, teacher, rate).seconds == pytest.approx(teacher.seconds)


@pytest.mark.parametrize(
    ("student", "teacher"), [(Cost(), Cost(flops=1.0)), (Cost(flops=1.0), Cost())]
)
def test_there_is_no_break_even_where_a_cost_is_unknown(student, teacher):
    assert break_even_rate(student, teacher, "flops") is None


@pytest.mark.parametrize(
    ("student", "teacher", "unit"),
    [
        (Cost(1.0, 1.0, 1.0), Cost(1.0, 1.0, 1.0), "flops"),
        (Cost(1.0, 1.0), Cost(seconds=1.0, joules=1.0), "seconds"),
        (Cost(1.0, joules=1.0), Cost(seconds=1.0, joules=0.0), "joules"),
        (Cost(1.0), Cost(seconds=1.0), None),
        (Cost(), Cost(), None),
    ],
)
def test_models_are_compared_in_the_first_unit_that_both_know(student, teacher, unit):
    assert common_unit(student, teacher) == unit


@pytest.mark.parametrize("rate", [-0.1, -1e-300, 1.0000001, 30.0, math.inf, -math.inf, math.nan])
def test_a_deferral_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="deferral_rate must lie between 0 and 1, not"):
        joint_cost(Cost(flops=1.0), Cost(flops=2.0), rate)


@given(student=KINDS, teacher=KINDS, rate=st.floats(0, 1))
@settings(deadline=None)
def test_measured_and_estimated_joules_are_never_mixed(student, teacher, rate):
    one = Cost(flops=1.0, joules=2.0, joules_are=student)
    other = Cost(flops=3.0, joules=4.0, joules_are=teacher)
    joint = joint_cost(one, other, rate)
    assert joint.flops == 1.0 + rate * 3.0
    if student == teacher:
        assert (joint.joules, joint.joules_are) == (2.0 + rate * 4.0, student)
        assert break_even_rate(one, other, "joules") == 0.5
    else:
        assert (joint.joules, joint.joules_are) == (None, None)
        assert break_even_rate(one, other, "joules") is None
    assert is_comparable(one, other, "joules") == (student == teacher)


def test_joules_of_different_kinds_are_no_common_unit():
    measured, estimated = (Cost(joules=1.0, joules_are=kind) for kind in KINDS_OF_JOULES)
    assert common_unit(measured, measured) == "joules"
    assert common_unit(measured, estimated) is None
    assert common_unit(measured, Cost(joules=1.0)) is None


@pytest.mark.parametrize("kind", [None, *KINDS_OF_JOULES])
def test_a_cost_comes_back_from_its_dictionary(kind):
    cost = Cost(1.0, 2.0, 3.0, kind)
    assert Cost(**cost.as_dict()) == cost
    assert (2 * cost).joules_are == kind
    assert ("joules_are" in cost.as_dict()) == (kind is not None)


def test_what_the_joules_are_has_two_words_and_needs_joules():
    with pytest.raises(ValueError, match="joules_are must be measured or estimated, not 'guessed'"):
        Cost(joules=1.0, joules_are="guessed")
    with pytest.raises(ValueError, match="joules_are is 'measured', but no joules are given"):
        Cost(flops=1.0, joules_are="measured")

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import Cost, joint_cost
from ebjr.costs import UNITS, break_even_rate, common_unit

AMOUNTS = st.floats(0, 1e12)
COUNTS = st.integers(0, 10_000)


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

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import THRESHOLDS, tables

from ebjr import SCORES, Cost, JointClassifier, OperatingPoint, Outcomes, TradeOffCurve, oracle

COSTS = {"student_cost": Cost(flops=54.0, seconds=1.0), "teacher_cost": Cost(292.0, joules=2.0)}
ROLES = ("student", "teacher")
SCORE_VALUES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5, np.nan, -np.inf])
TABLE = Outcomes(
    student=[[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.5]],
    teacher=[[0.0, 9.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0]],
    targets=[0, 0, 1, 0],
    **COSTS,
)


@st.composite
def scored(draw):
    """A table and a value of a score for each row: ties, NaN and -inf among them."""
    outcomes = draw(tables(**COSTS))
    n = len(outcomes)
    return outcomes, np.array(draw(st.lists(SCORE_VALUES, min_size=n, max_size=n)))


def brute_force(outcomes, values, threshold, blend=0.0):
    """Deferral rate and accuracy at one threshold, row by row, as the paper's eq. 7 has it."""
    deferred = [not value >= threshold for value in values]
    qualities = outcomes.student_quality, outcomes.deferred_quality(blend)
    right = [qualities[asked][row] for row, asked in enumerate(deferred)]
    return sum(deferred) / len(values), sum(right) / len(values)


@given(case=scored(), blend=st.sampled_from([0.0, 0.5, 3.0]))
@settings(max_examples=100, deadline=None)
def test_every_row_of_a_curve_is_what_brute_force_finds(case, blend):
    outcomes, values = case
    curve = TradeOffCurve.of(outcomes, values, blend)
    finite = sorted({value for value in values if np.isfinite(value)})
    assert curve.threshold.tolist() == [*finite, math.inf]
    for row, threshold in enumerate(curve.threshold):
        rate, quality = brute_force(outcomes, values, threshold, blend)
        assert curve.deferral_rate[row] == rate
        assert curve.quality[row] == quality


@given(case=scored())
@settings(max_examples=60, deadline=None)
def test_a_curve_goes_strictly_from_all_student_to_all_teacher(case):
    outcomes, values = case
    curve = TradeOffCurve.of(outcomes, values)
    assert (np.diff(curve.threshold) > 0).all()
    assert (np.diff(curve.deferral_rate) > 0).all()
    always = np.isnan(values) | np.isneginf(values)
    assert curve.deferral_rate[0] == always.mean()
    assert curve.deferral_rate[-1] == 1
    assert len(curve) == len(curve.quality) == len(curve.cost)


@given(outcomes=tables(), name=st.sampled_from(list(SCORES)))
@settings(max_examples=100, deadline=None)
def test_the_ends_are_the_two_models_alone(outcomes, name):
    curve = TradeOffCurve.of(outcomes, name)
    assert curve.deferral_rate[[0, -1]].tolist() == [0, 1]
    assert curve.quality[0] == outcomes.student_quality.mean()
    assert curve.quality[-1] == outcomes.teacher_quality.mean()


@given(
    outcomes=st.sampled_from(["float16", "float32", "float64"]).flatmap(
        lambda dtype: tables(dtype=dtype)
    ),
    name=st.sampled_from(list(SCORES)),
    threshold=THRESHOLDS | st.floats(-3, 5),
    blend=st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=100, deadline=None)
def test_a_curve_says_what_a_joint_model_does_at_any_threshold(outcomes, name, threshold, blend):
    point = TradeOffCurve.of(outcomes, name, blend).at(threshold=threshold)
    joint = JointClassifier(
        lambda rows: outcomes.student[rows],
        lambda rows: outcomes.teacher[rows],
        point.router,
        blend=point.blend,
    )
    answer = joint(np.arange(len(outcomes)))
    assert point.threshold == joint.router.threshold == threshold
    assert point.deferral_rate == answer.deferred.mean()
    assert point.quality == (answer.prediction == outcomes.targets).mean()


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("name", ["energy", "softmax", "max_logit"])
def test_a_curve_and_a_joint_model_agree_next_to_a_single_precision_score(name, direction):
    student = np.array([[0.1, 0.0], [0.7, 0.0], [0.3, 0.2]], np.float32)
    outcomes = Outcomes(student, -student, [0, 0, 1])
    curve = TradeOffCurve.of(outcomes, name)
    for value in curve.threshold[:-1]:
        point = curve.at(threshold=math.nextafter(value, direction * math.inf))
        assert point.deferral_rate == point.router(student)[1].mean()


@given(case=scored(), rate=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_a_deferral_rate_is_never_exceeded_and_never_wasted(case, rate):
    outcomes, values = case
    curve = TradeOffCurve.of(outcomes, values)
    feasible = curve.deferral_rate[curve.deferral_rate <= rate]
    if len(feasible):
        assert curve.at(deferral_rate=rate).deferral_rate == feasible.max()
    else:
        with pytest.raises(ValueError, match=f"no threshold defers only {rate}"):
            curve.at(deferral_rate=rate)


def test_a_row_is_found_by_its_index():
    curve = TradeOffCurve.of(TABLE, "max_logit")
    for index in (*range(len(curve)), -1, np.int64(2)):
        point = curve.at(index=index)
        assert point.threshold == curve.threshold_of(index)
        assert point.deferral_rate == curve.deferral_rate[index]
        assert point.quality == curve.quality[index]
        assert (point.score, point.blend, point.n) == ("max_logit", 0.0, 4)
        assert (point.student_quality, point.teacher_quality) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of threshold, deferral_rate and index"),
        ({"threshold": 1.0, "index": 0}, "give exactly one"),
        ({"threshold": math.nan}, "threshold must be a number above -inf"),
        ({"threshold": -math.inf}, "threshold must be a number above -inf"),
        ({"deferral_rate": -0.1}, "deferral_rate must lie between 0 and 1, not -0.1"),
        ({"deferral_rate": 1.1}, "deferral_rate must lie between 0 and 1, not 1.1"),
        ({"deferral_rate": math.nan}, "deferral_rate must lie between 0 and 1, not nan"),
        ({"index": 5}, r"index must lie in 0..4, not 5"),
        ({"index": -6}, r"index must lie in 0..4, not -6"),
    ],
)
def test_a_point_is_asked_for_in_one_way_and_in_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        TradeOffCurve.of(TABLE, "max_logit").at(**arguments)


@given(case=scored())
@settings(max_examples=60, deadline=None)
def test_cost_is_the_papers_formula(case):
    outcomes, values = case
    curve = TradeOffCurve.of(outcomes, values)
    assert curve.unit == "flops"
    for row, rate in enumerate(curve.deferral_rate):
        deferred = round(rate * len(outcomes))
        paper = (len(outcomes) - deferred) * 54.0 + deferred * (54.0 + 292.0)
        assert curve.cost[row] == pytest.approx(paper / len(outcomes))
        assert curve.at(index=row).cost.flops == pytest.approx(curve.cost[row])


def test_a_cost_that_one_model_does_not_know_is_refused():
    curve = TradeOffCurve.of(TABLE, "max_logit")
    for unit in ("seconds", "joules"):
        with pytest.raises(ValueError, match=f"do not say what both models cost in {unit}: record"):
            curve.cost_in(unit)


def test_a_curve_of_measured_and_estimated_joules_is_refused():
    about = {f"{role}_cost": Cost(joules=2.0, joules_are="measured") for role in ROLES}
    alike = Outcomes(TABLE.student, TABLE.teacher, TABLE.targets, **about)
    assert TradeOffCurve.of(alike, "max_logit").cost_in("joules")[-1] == 4.0
    mixed = replace(alike, teacher_cost=Cost(joules=9.0, joules_are="estimated"))
    curve = TradeOffCurve.of(mixed, "max_logit")
    with pytest.raises(ValueError, match="joules of student and teacher are measured and estim"):
        curve.cost_in("joules")
    assert (curve.unit, curve.at(index=0).saving) == (None, None)


def test_a_cost_in_no_known_unit_is_refused():
    with pytest.raises(ValueError, match="euros"):
        TradeOffCurve.of(TABLE, "max_logit").cost_in("euros")


def test_without_costs_the_cost_is_counted_in_calls_of_the_teacher():
    curve = TradeOffCurve.of(Outcomes(TABLE.student, TABLE.teacher, TABLE.targets), "max_logit")
    assert curve.unit is None
    np.testing.assert_array_equal(curve.cost, curve.deferral_rate)
    point = curve.at(index=0)
    assert (point.unit, point.break_even, point.pays, point.saving) == (None,) * 4
    assert "costs are not known" in point.verdict


@pytest.mark.parametrize("values", [[np.inf, 0, 0, 0], [np.inf, np.nan, -np.inf, np.inf]])
def test_a_score_of_plus_infinity_is_refused(values):
    with pytest.raises(ValueError, match=r"is \+inf in \d rows: scores must be finite, or -inf"):
        TradeOffCurve.of(TABLE, np.array(values))


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((4, 1)), np.zeros(0)])
def test_score_values_of_another_length_are_refused(values):
    with pytest.raises(ValueError, match="must return one number for each of 4 rows"):
        TradeOffCurve.of(TABLE, values)


def test_scores_that_differ_by_rounding_alone_count_as_one():
    score = np.array([1.0, 1.0 + 2e-7, 2.0, 2.0 - 2e-7])
    curve = TradeOffCurve.of(TABLE, score)
    assert curve.deferral_rate.tolist() == [0.0, 0.5, 1.0]
    for index in range(2):
        threshold = curve.at(index=index).threshold
        for seed in range(20):  # as another batch would round them
            moved = score * (1 + np.random.default_rng(seed).uniform(-3e-7, 3e-7, 4))
            assert ((moved >= threshold) == (score >= curve.threshold[index])).all()


def test_scores_that_follow_each_other_closely_are_no_ties():
    rng = np.random.default_rng(0)
    n = 200_000
    targets = rng.integers(0, 2, n)
    table = Outcomes(np.eye(2)[targets], np.eye(2)[targets], targets)
    curve = TradeOffCurve.of(table, np.linspace(0.5, 0.5 + n * 1e-9, n))
    assert len(curve) == n + 1
    point = curve.at(deferral_rate=0.25)
    assert point.deferral_rate == 0.25
    assert curve.at(threshold=point.threshold).deferral_rate == 0.25


@pytest.mark.parametrize("blend", [-1.0, math.nan, math.inf])
def test_a_bad_blend_is_refused(blend):
    with pytest.raises(ValueError, match="blend must be a finite weight"):
        TradeOffCurve.of(TABLE, "energy", blend)


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="there is no score named 'luck'"):
        TradeOffCurve.of(TABLE, "luck")


def test_extreme_score_values_make_a_curve():
    curve = TradeOffCurve.of(TABLE, np.array([-1.7e308, 1.7e308, 5e-324, 0.0]))
    assert curve.threshold.tolist() == [-1.7e308, 0.0, 1.7e308, math.inf]  # 5e-324 is a tie


def test_a_score_that_defers_all_leaves_the_teacher_alone():
    curve = TradeOffCurve.of(TABLE, np.full(4, np.nan))
    assert curve.threshold.tolist() == [math.inf]
    assert curve.quality.tolist() == [0.75]
    alone = TABLE.student_quality.mean()
    assert curve.area == (alone + 0.75) / 2  # as random routing: no credit for deferring all


@given(outcomes=tables(), name=st.sampled_from(list(SCORES)), blend=st.sampled_from([0.0, 0.5]))
@settings(max_examples=100, deadline=None)
def test_no_score_beats_the_oracle(outcomes, name, blend):
    best = TradeOffCurve.of(outcomes, oracle(outcomes, blend), blend)
    ours = TradeOffCurve.of(outcomes, name, blend)
    assert len(best) == len(outcomes) + 1
    rows = np.searchsorted(best.deferral_rate, ours.deferral_rate)
    np.testing.assert_allclose(best.deferral_rate[rows], ours.deferral_rate)
    assert (best.quality[rows] >= ours.quality - 1e-12).all()
    assert best.area >= ours.area - 1e-12


@given(case=scored())
@settings(max_examples=60, deadline=None)
def test_the_area_lies_between_the_worst_and_the_best_quality(case):
    curve = TradeOffCurve.of(*case)
    seen = np.append(curve.quality, curve.outcomes.student_quality.mean())
    assert seen.min() - 1e-12 <= curve.area <= seen.max() + 1e-12


@given(case=scored(), shift=st.integers(-5, 5), scale=st.sampled_from([0.5, 1.0, 8.0]))
@settings(max_examples=50, deadline=None)
def test_only_the_order_of_a_score_matters(case, shift, scale):
    outcomes, values = case
    one = TradeOffCurve.of(outcomes, values)
    other = TradeOffCurve.of(outcomes, values * scale + shift)
    np.testing.assert_array_equal(one.quality, other.quality)
    np.testing.assert_array_equal(one.deferral_rate, other.deferral_rate)


def point(rate, student=1.0, teacher=4.0):
    costs = Cost(flops=student), Cost(flops=teacher)
    return OperatingPoint(0.5, "softmax", 0.0, rate, 0.94, 0.92, 0.95, *costs, 100)


@pytest.mark.parametrize(
    ("rate", "student", "pays", "saving", "words"),
    [
        (0.0, 1.0, True, 4.0, "takes 4.00 times fewer FLOPs than the teacher alone"),
        (0.25, 1.0, True, 2.0, "the teacher alone is cheaper above a deferral rate of 75.0%"),
        (0.75, 1.0, False, 1.0, "This pair does not pay here"),
        (1.0, 1.0, False, 0.8, "this point defers 100.0%"),
        (0.0, 4.0, False, 1.0, "student costs as much as the teacher: this pair cannot pay"),
        (0.0, 40.0, False, 0.1, "costs 10.00 times as much as the teacher: this pair cannot pay"),
    ],
)
def test_a_point_says_plainly_whether_it_pays(rate, student, pays, saving, words):
    chosen = point(rate, student)
    assert chosen.break_even == 1 - student / 4
    assert chosen.pays is pays
    assert chosen.saving == pytest.approx(saving)
    assert words in chosen.verdict


def test_every_known_figure_of_a_point_is_in_its_dictionary():
    figures = point(0.25).as_dict()
    assert figures["cost"] == {"flops": 2.0}
    assert figures["break_even"] == 0.75
    assert figures["pays"] is True
    assert "certified" not in figures
    assert None not in figures.values()


def test_a_point_makes_a_new_router_each_time():
    chosen = TradeOffCurve.of(TABLE, "softmax(temperature=2.0)").at(index=1)
    one, other = chosen.router, chosen.router
    one.threshold = 7.0
    assert other.threshold == chosen.threshold != 7.0
    assert str(one.score) == chosen.score == "softmax(temperature=2.0)"


def test_a_point_of_a_callable_score_keeps_the_callable():
    def first(output):
        return output[:, 0]

    chosen = TradeOffCurve.of(TABLE, first).at(threshold=1.5)
    assert chosen.score == "first"
    assert chosen.router(TABLE.student)[1].tolist() == [False, False, True, True]

"""The bootstrap against resampled rows; the joint model's answers against the joint model."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from noisy import pair_of_models

from ebjr.costs import Cost
from ebjr.curve import TradeOffCurve
from ebjr.evaluation import joint_prediction
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.outcomes import Outcomes


def test_resampled_kinds_are_resampled_rows():
    outcomes = pair_of_models(400)
    point = TradeOffCurve.of(outcomes, "softmax", 0.5).at(deferral_rate=0.4)
    found = bootstrap(outcomes, point, n_resamples=4_000, seed=1)
    deferred = point.router(outcomes.student)[1]
    joint = np.where(deferred, outcomes.deferred_quality(0.5), outcomes.student_quality)
    rows = np.random.default_rng(2).integers(0, 400, (4_000, 400))
    slow = {
        "accuracy": joint[rows].mean(axis=1),
        "deferral_rate": deferred[rows].mean(axis=1),
        "gain_over_teacher": (joint - outcomes.teacher_quality)[rows].mean(axis=1),
        "gain_over_student": (joint - outcomes.student_quality)[rows].mean(axis=1),
        "cost": (1 + 9 * deferred)[rows].mean(axis=1),
    }
    slow["saving"] = 9 / slow["cost"]
    assert set(found) == set(slow)
    for name, values in slow.items():
        spread = values.std()
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=0.15 * spread)
        assert found[name].high == pytest.approx(high, abs=0.15 * spread)


def test_the_estimates_are_the_point_s_own_figures():
    outcomes = pair_of_models(500)
    point = TradeOffCurve.of(outcomes, "margin", 0.3).at(deferral_rate=0.25)
    found = bootstrap(outcomes, point)
    assert found["accuracy"].estimate == pytest.approx(point.quality)
    assert found["deferral_rate"].estimate == pytest.approx(point.deferral_rate)
    assert found["cost"].estimate == pytest.approx(point.cost.flops)
    assert found["saving"].estimate == pytest.approx(point.saving)
    gain = point.quality - point.teacher_quality
    assert found["gain_over_teacher"].estimate == pytest.approx(gain)
    assert all(entry.low <= entry.estimate <= entry.high for entry in found.values())


def test_95_percent_intervals_cover_the_truth_in_95_of_100_samples():
    population = pair_of_models(200_000, seed=3)
    point = TradeOffCurve.of(population, "softmax").at(deferral_rate=0.3)
    rng = np.random.default_rng(4)
    covered = []
    for seed in range(300):
        sample = population.take(rng.choice(len(population), 500, replace=False))
        found = bootstrap(sample, point, n_resamples=500, seed=seed)
        gain = point.quality - point.teacher_quality
        covered.append(
            [
                found["accuracy"].low <= point.quality <= found["accuracy"].high,
                found["gain_over_teacher"].low <= gain <= found["gain_over_teacher"].high,
            ]
        )
    assert (np.mean(covered, axis=0) > 0.92).all()


def test_ten_thousand_examples_are_resampled_2000_times_within_a_second():
    outcomes = pair_of_models(10_000)
    point = TradeOffCurve.of(outcomes, "softmax").at(deferral_rate=0.3)
    began = time.perf_counter()
    bootstrap(outcomes, point, n_resamples=2_000)
    assert time.perf_counter() - began < 1.0


def test_the_same_seed_gives_the_same_intervals():
    outcomes = pair_of_models(300)
    point = TradeOffCurve.of(outcomes, "energy").at(deferral_rate=0.5)
    assert bootstrap(outcomes, point, seed=7) == bootstrap(outcomes, point, seed=7)
    assert bootstrap(outcomes, point, seed=7) != bootstrap(outcomes, point, seed=8)


def test_costs_that_are_not_known_are_left_out():
    outcomes = pair_of_models(100)
    bare = Outcomes(outcomes.student, outcomes.teacher, outcomes.targets)
    point = TradeOffCurve.of(bare, "energy").at(deferral_rate=0.5)
    assert not {"cost", "saving"} & set(bootstrap(bare, point))


def test_the_joules_that_are_saved_are_those_of_the_point_and_vary_with_the_rate_alone():
    outcomes = replace(
        pair_of_models(300),
        student_cost=Cost(flops=1, joules=0.2),
        teacher_cost=Cost(flops=9, joules=1.0),
    )
    point = TradeOffCurve.of(outcomes, "energy").at(deferral_rate=0.5)
    found = bootstrap(outcomes, point)
    saved, rate = found["joules_saved"], found["deferral_rate"]
    assert saved.estimate == pytest.approx(point.joules_saved) == pytest.approx(0.3)
    assert (saved.low, saved.high) == pytest.approx((0.8 - rate.high, 0.8 - rate.low))
    assert TradeOffCurve.of(pair_of_models(9), "energy").at(index=1).joules_saved is None


@pytest.mark.parametrize(
    ("options", "words"), [({"n_resamples": 1}, "at least 100"), ({"level": 1.0}, "level must")]
)
def test_a_bootstrap_that_makes_no_sense_says_so(options, words):
    outcomes = pair_of_models(50)
    point = TradeOffCurve.of(outcomes, "energy").at(deferral_rate=0.5)
    with pytest.raises(ValueError, match=words):
        bootstrap(outcomes, point, **options)


@pytest.mark.parametrize("blend", [0.0, 0.4])
def test_joint_predictions_are_those_of_the_joint_model(blend):
    from ebjr.tasks.classification import JointClassifier

    outcomes = pair_of_models(300)
    point = TradeOffCurve.of(outcomes, "margin", blend).at(deferral_rate=0.4)
    joint = JointClassifier(
        lambda rows: outcomes.student[rows],
        lambda rows: outcomes.teacher[rows],
        point.router,
        blend=blend,
    )
    answer = joint(np.arange(300))
    assert np.array_equal(joint_prediction(outcomes, point), answer.prediction)


@pytest.mark.parametrize("n", [1, 3, 100])
def test_examples_that_all_agree_leave_room_for_what_they_have_not_shown(n):
    answers = np.tile([[3.0, 0.0]], (n, 1))
    outcomes = Outcomes(answers, answers, np.zeros(n, int))
    found = bootstrap(outcomes, TradeOffCurve.of(outcomes, "softmax").at(threshold=0.5))
    unseen = 1 - 0.025 ** (1 / n)  # the largest share of which n examples show none, 1 in 40
    assert tuple(found["accuracy"]) == pytest.approx((1, 1 - unseen, 1))
    assert tuple(found["deferral_rate"]) == pytest.approx((0, 0, unseen))
    assert tuple(found["gain_over_teacher"]) == pytest.approx((0, -unseen, unseen))


def test_a_point_that_defers_everything_is_the_teacher_for_certain():
    answers = np.tile([[3.0, 0.0]], (5, 1))
    outcomes = Outcomes(answers, answers, np.zeros(5, int))
    point = TradeOffCurve.of(outcomes, "softmax").at(threshold=np.inf)
    assert tuple(bootstrap(outcomes, point)["gain_over_teacher"]) == (0, 0, 0)

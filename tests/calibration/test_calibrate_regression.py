"""Calibrating regressors: goals in the metric's unit, blends, and guarantees on bounded losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ebjr import (
    CalibrationError,
    Certificate,
    Cost,
    GridWarning,
    Outcomes,
    TradeOffCurve,
    calibrate,
    evaluate,
)
from ebjr.calibration.choice import blend_candidates, choose_blend, rank_scores
from ebjr.calibration.guarantee import certify
from ebjr.scores import as_score


def pair(n=4000, seed=0, metric="rmse", wrong=0.3):
    """A student whose error its deviation tells, and a teacher of constant error."""
    rng = np.random.default_rng(seed)
    targets, deviation = rng.normal(0, 3, n), rng.gamma(2, 0.4, n)
    student = np.column_stack([targets + deviation * rng.normal(0, 1, n), deviation])
    teacher = targets + rng.normal(0, wrong, n)
    return Outcomes(student, teacher, targets, task="regression", metric=metric,
                    student_cost=Cost(flops=1.0), teacher_cost=Cost(flops=9.0))  # fmt: skip


@pytest.mark.parametrize("metric", ["rmse", "mse", "mae", "r2"])
def test_match_teacher_is_the_least_deferral_within_the_tolerance(metric):
    outcomes = pair(metric=metric)
    point = calibrate(outcomes, tolerance=0.05, score="predicted_std", blend=0.0, margin=0.0)
    curve = TradeOffCurve.of(outcomes, "predicted_std")
    reached = curve.quality >= outcomes.quality("teacher") - 0.05 - 1e-9
    assert point.quality >= outcomes.quality("teacher") - 0.05 - 1e-9
    assert point.deferral_rate == curve.deferral_rate[reached].min()
    assert point.metric == metric


def test_a_target_is_a_figure_to_reach():
    point = calibrate(pair(), goal="accuracy", target=0.6, score="predicted_std", blend=0.0)
    assert -0.6 <= point.quality < -0.59
    high = calibrate(
        pair(metric="r2"), goal="accuracy", target=0.95, score="predicted_std", blend=0.0
    )
    assert 0.95 <= high.quality < 0.96


def test_a_budget_buys_the_best_quality():
    point = calibrate(pair(), goal="budget", flops=4.0, score="predicted_std", blend=0.0)
    assert point.cost.flops <= 4.0
    assert point.quality > calibrate(
        pair(), goal="budget", flops=2.0, score="predicted_std", blend=0.0
    ).quality  # fmt: skip


def test_what_cannot_be_reached_is_said_in_the_metrics_unit():
    with pytest.raises(CalibrationError, match=r"no threshold reaches rmse 0.1; the best is 0.\d+"):
        calibrate(pair(), goal="accuracy", target=0.1, score="predicted_std", blend=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"goal": "crossing"}, "right or wrong"),
        ({"tolerance": -1.0}, "tolerance must be a finite number of at least 0, not -1"),
        ({"goal": "accuracy", "target": -2.0}, "target must be a finite number of at least 0"),
        ({"loss_bound": 2.0}, "give delta too"),
        ({"score": "interval_width"}, "two or more quantiles"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(pair(200), **arguments)


def test_a_student_of_predictions_alone_cannot_be_calibrated():
    outcomes = Outcomes([1.0, 2.0], [1.0, 2.0], [1.0, 2.5], task="regression")
    with pytest.raises(CalibrationError, match="only predictions"):
        calibrate(outcomes)


def test_auto_finds_the_deviation_that_is_no_energy():
    outcomes = pair()
    assert "interval_width" not in outcomes.kind.candidates(outcomes.student)
    assert calibrate(outcomes, tolerance=0.05).score == "predicted_std"
    gains = {str(row.score): row.gain for row in rank_scores(outcomes)}
    assert gains["predicted_std"] > 0.1 > -0.1 > gains["regression_energy"]


def test_auto_finds_the_energy_that_is_no_deviation():
    outcomes = pair()
    flipped = outcomes.student * [1.0, -1.0]
    assert calibrate(replace(outcomes, student=flipped), tolerance=0.05).score == (
        "regression_energy"
    )


def test_two_independent_models_blend_by_inverse_variances():
    rng = np.random.default_rng(0)
    targets = rng.normal(0, 3, 20_000)
    student = np.column_stack([targets + rng.normal(0, 0.6, 20_000), rng.uniform(0, 1, 20_000)])
    outcomes = Outcomes(student, targets + rng.normal(0, 0.5, 20_000), targets, task="regression")
    weight = choose_blend(outcomes, as_score("predicted_std"))
    assert weight in blend_candidates(outcomes)
    assert weight == pytest.approx(0.25 / 0.36, rel=0.1)
    better = TradeOffCurve.of(outcomes, "predicted_std", weight).quality[-1]
    assert better > outcomes.quality("teacher")


def test_a_blend_that_hurts_is_left_out():
    assert choose_blend(pair(wrong=0.01), as_score("predicted_std")) == 0.0


def test_the_figures_on_the_other_half_are_those_of_the_same_threshold():
    chosen_on, held_out = pair(8000).split()
    point = calibrate(chosen_on, tolerance=0.02)
    result = evaluate(held_out, point)
    assert result.threshold == point.threshold
    assert result.quality == pytest.approx(point.quality, abs=0.05)


def test_a_score_that_is_nan_in_many_rows_does_not_win_by_deferring_them():
    outcomes = pair()
    student = outcomes.student.copy()
    student[::10, 1] *= -1
    assert "predicted_std" not in outcomes.kind.candidates(student)


def test_a_grid_that_does_not_cover_the_data_is_said_with_how_much_is_outside():
    rng = np.random.default_rng(0)
    targets, grid = rng.normal(0, 3, 500), np.linspace(-4, 4, 33)
    energies = -((grid - targets[:, None] + rng.normal(0, 1, (500, 1))) ** 2) / 2
    outcomes = Outcomes(np.column_stack([targets, energies]), targets, targets, "regression")
    outside = int((np.abs(targets) > 4).sum())
    with pytest.warns(GridWarning, match=f"{outside} of 500 targets"):
        calibrate(outcomes, score="regression_energy(grid=(-4.0, 4.0))", tolerance=9.0)


# guarantees


def test_a_loss_without_a_bound_is_not_certified():
    with pytest.raises(ValueError, match="give loss_bound, the largest loss that counts"):
        calibrate(pair(metric="mae"), tolerance=0.1, delta=0.1)


@pytest.mark.parametrize(
    ("metric", "arguments", "message"),
    [
        ("rmse", {"tolerance": 0.1}, "a difference of roots"),
        ("r2", {"goal": "accuracy", "target": 0.9}, "r2 is not a mean over examples"),
        ("mae", {"tolerance": 0.1, "loss_bound": -1.0}, "loss_bound must be a positive number"),
        ("mae", {"tolerance": 3.0, "loss_bound": 2.0}, "as a share of loss_bound"),
        ("mae", {"goal": "budget", "deferral_rate": 0.5, "loss_bound": 2.0}, "loss_bound is for"),
    ],
)
def test_what_cannot_be_promised_is_refused(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(pair(metric=metric), delta=0.1, **{"loss_bound": 5.0, **arguments})


def test_a_certificate_is_in_the_metrics_unit_and_comes_back():
    outcomes = pair(metric="mae")
    point = calibrate(outcomes, tolerance=0.1, delta=0.1, loss_bound=3.0)
    found = point.certified
    assert found.test == "betting"
    assert found.observed <= found.bound <= found.tolerance == 0.1
    assert "mae, each loss counting for at most 3" in found.statement
    assert Certificate.from_dict(found.as_dict()) == found


def test_an_rmse_can_be_promised_as_a_whole():
    outcomes = pair()
    point = calibrate(outcomes, goal="accuracy", target=0.7, delta=0.1, loss_bound=25.0)
    found = point.certified
    assert found.observed <= found.bound <= 0.7
    assert found.observed == pytest.approx(-point.quality, abs=0.02)


@pytest.mark.parametrize(
    ("metric", "goal", "bound", "unit"),
    [
        ("mae", {"tolerance": 0.1}, 1.0, "absolute error"),
        ("mae", {"tolerance": 0.1, "promise": "harm"}, 1.0, "absolute error"),
        ("rmse", {"goal": "accuracy", "target": 0.7}, 2.0, "squared error"),
    ],
    ids=str,
)
def test_a_promise_says_how_many_losses_its_bound_cut_off(metric, goal, bound, unit):
    outcomes = pair(metric=metric)
    how = {"score": "predicted_std", "blend": 0.0, "delta": 0.1, **goal}
    point = calibrate(outcomes, **how, loss_bound=bound)
    found = point.certified
    student, teacher = -outcomes.student_quality, -outcomes.teacher_quality
    deferred = point.router(outcomes.student)[1]
    over = np.where(deferred, teacher, student) > bound  # an RMSE's bound is of squared errors
    if found.promise == "excess":
        over = ~deferred & ((student > bound) | (teacher > bound))
    if found.promise == "harm":
        over = ~deferred & (student > bound) & (student > teacher)
    assert 0 < found.clipped == over.sum()
    words = (
        f"({metric}, each loss counting for at most {bound:g} of {unit}; {found.clipped} were cut"
    )
    assert words in found.statement
    assert found.as_dict()["clipped"] == found.clipped
    old = {name: value for name, value in found.as_dict().items() if name != "clipped"}
    assert "cut off" not in Certificate.from_dict(old).statement


def test_what_cannot_be_certified_says_what_can_in_the_metrics_unit():
    outcomes = pair(300, metric="mae")
    with pytest.raises(CalibrationError, match="smallest tolerance that can be certified is") as c:
        calibrate(outcomes, tolerance=0.001, delta=0.1, loss_bound=3.0, score="predicted_std")
    least = float(str(c.value).split("certified is ")[1].split(",")[0])
    _, rest = outcomes.split(0.3, 1)
    assert certify(
        TradeOffCurve.of(rest, "predicted_std"), "excess", tolerance=3 * least, loss_bound=3.0
    )


@pytest.mark.parametrize("promise", ["harm", "excess", "risk"])
def test_a_promise_is_broken_at_most_delta_of_the_time(promise):
    """400 redrawn calibration sets, each threshold judged on a large population."""
    population = pair(200_000, seed=9, metric="mae")
    curve = TradeOffCurve.of(population, "predicted_std")
    bound, tolerance, delta = 2.0, {"harm": 0.1, "excess": 0.1, "risk": 0.34}[promise], 0.2
    loss = [np.minimum(-q, bound) for q in (population.student_quality, population.teacher_quality)]
    kept, deferred = {
        "harm": (np.maximum(loss[0] - loss[1], 0), 0 * loss[1]),
        "excess": (loss[0] - loss[1], 0 * loss[1]),
        "risk": (loss[0], loss[1]),
    }[promise]
    score = as_score("predicted_std")(population.student)
    order = np.argsort(score)
    true = np.append(kept.sum(), kept.sum() + np.cumsum((deferred - kept)[order])) / len(score)
    rng = np.random.default_rng(1)
    broken = certified = 0
    for _ in range(400):
        drawn = population.take(rng.integers(0, len(population), 400))
        curve = TradeOffCurve.of(drawn, "predicted_std")
        try:
            found = certify(curve, promise, tolerance=tolerance, delta=delta, loss_bound=bound)
        except CalibrationError:
            continue
        certified += 1
        broken += true[np.searchsorted(score[order], found.threshold)] > tolerance
    assert broken <= delta * 400
    assert certified >= 100

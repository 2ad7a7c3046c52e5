"""What a study says of its operating point and its scores, against the parts it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from ebjr import Cost, Outcomes, TradeOffCurve, evaluate, run_study
from ebjr.calibration import rank_scores
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.evaluation.ranking import auroc, oracle_share
from ebjr.scores import as_score
from ebjr.study import study_point


@pytest.fixture(scope="module")
def outcomes():
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 4, 4_000)
    truth = 3 * np.eye(4)[targets]
    return Outcomes(
        truth + rng.normal(0, 2.0, truth.shape),
        truth + rng.normal(0, 1.3, truth.shape),
        targets,
        student_cost=Cost(flops=1.0),
        teacher_cost=Cost(flops=9.0),
    )


@pytest.fixture(scope="module")
def study(outcomes):
    return run_study(outcomes, tolerance=0.01)


def test_the_best_accuracy_is_the_best_row_of_the_calibration_curve_seen_elsewhere(study):
    curve = TradeOffCurve.of(study.calibration, study.point.score_function, study.point.blend)
    named = study.named_points["best-accuracy"]
    assert named.quality == curve.quality.max()
    assert named.threshold == curve.threshold_of(curve.quality.argmax())
    assert study.best_accuracy.threshold == named.threshold
    assert study.best_accuracy == evaluate(study.held_out, named)
    assert study.best_accuracy.n == len(study.held_out)
    assert study.best_accuracy.quality > study.best_accuracy.teacher_quality


def test_the_joint_model_is_compared_with_both_models_on_the_held_out_half(study):
    held_out, point = study.held_out, study.point
    keep = point.score_function(held_out.student) >= point.threshold
    joint = np.where(keep, held_out.student_quality, held_out.deferred_quality(point.blend)) > 0
    for test, role in zip(study.comparisons, ("teacher", "student"), strict=True):
        other = getattr(held_out, f"{role}_quality") > 0
        assert test.names == ("the joint model", f"the {role}")
        assert test.first_only == (joint & ~other).sum()
        assert test.second_only == (other & ~joint).sum()
        assert test.n == len(held_out)
    assert study.comparisons[1].better == "the joint model"


def test_the_joint_model_is_compared_with_any_predictions(study):
    perfect = study.compare(study.held_out.targets, "the truth")
    assert perfect.first_only == 0
    assert perfect.better == "the truth"
    with pytest.raises(ValueError, match="must be"):
        study.compare(study.held_out.targets[:-1])


def test_the_intervals_are_those_of_the_chosen_point_on_the_held_out_half(study):
    assert study.intervals == bootstrap(study.held_out, study.point)
    assert study.intervals["accuracy"].estimate == pytest.approx(study.result.quality)
    assert study.intervals["saving"].estimate == pytest.approx(study.result.saving)


def test_scores_rank_by_the_calibration_half_and_show_figures_of_the_other(outcomes):
    study = run_study(outcomes, score="softmax(temperature=2.0)")
    names = [*outcomes.kind.compared(outcomes.student), "softmax(temperature=2.0)"]
    ranked = rank_scores(study.calibration, names)
    assert [entry.score for entry in study.ranking] == [str(entry.score) for entry in ranked]
    for found, expected in zip(study.ranking, ranked, strict=True):
        assert (found.gain.estimate, found.gain.low) == (expected.gain, expected.interval[0])
        values = as_score(found.score)(study.held_out.student)
        assert found.elsewhere.auroc == auroc(values, study.held_out.student_quality)
        curve = TradeOffCurve.of(study.held_out, found.score)
        assert found.elsewhere.oracle_share == pytest.approx(oracle_share(curve))


def test_a_fitted_score_ranks_by_examples_that_it_was_not_fitted_on(outcomes):
    from ebjr.calibration.learned import fit_learned

    calibration, _ = outcomes.split()
    study = run_study(outcomes, score=fit_learned(calibration, 0.0))
    [found] = [entry for entry in study.ranking if entry.score == "learned"]
    [expected] = rank_scores(calibration, ["learned"])
    assert found.gain.estimate == expected.gain
    curve = TradeOffCurve.of(study.held_out, study.point.score_function)
    assert found.elsewhere.oracle_share == pytest.approx(oracle_share(curve))


def test_a_point_that_is_chosen_already_is_judged_as_it_is(outcomes, study):
    again = study_point(outcomes, study.point, study.goal)
    assert again.point == study.point
    assert again.result == study.result
    assert again.other_results == study.other_results


@pytest.mark.parametrize("score", ["softmax", "margin", "entropy", "energy"])
def test_a_deferral_rate_is_found_among_scores_that_crowd(score):
    """Softmax probabilities of a sure student differ in their last digits."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 10, 4_000)
    sure = rng.normal(0, 0.1, (4_000, 10))
    sure[np.arange(4_000), targets] += rng.uniform(12, 30, 4_000)
    table = Outcomes(sure, 9 * np.eye(10)[targets], targets)
    study = run_study(table, "budget", deferral_rate=0.3, score=score, blend=0.0)
    figures = study.kept_figures()
    values = as_score(score)(study.held_out.student)
    for rate in (0.1, 0.3, 0.5, 0.9):
        found = np.interp(rate, np.linspace(0, 1, 101), figures["score_quantiles"])
        assert (values < found).mean() == pytest.approx(rate, abs=0.04)
    curve = study.point.curve(study.held_out)
    assert set(figures["curve"]["threshold"]) <= set(curve.threshold.tolist())


def test_a_point_out_of_its_goals_reach_can_still_be_judged():
    """A blend that hurts here never matches the teacher; its figures are asked for all the same."""
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 3, 400)
    teacher = 2 * np.eye(3)[targets]
    outcomes = Outcomes(9 * np.eye(3)[(targets + 1) % 3], teacher, targets)
    point = TradeOffCurve.of(outcomes, "softmax", 1.0).at(threshold=2.0)
    assert study_point(outcomes, point).result.quality == 0.0

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import CalibrationError, JointClassifier, Outcomes, TradeOffCurve, as_score, calibrate
from ebjr.arrays import to_numpy
from ebjr.calibration import choose_score, rank_scores
from ebjr.calibration.learned import can_learn, cross_fitted, fit_learned
from ebjr.tasks.classification.learned import FEWEST, learned, score_features

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

ROWS = np.random.default_rng(0).normal(0, 4, (50, 4))
WEIGHTS = {"helps": [0.1, -0.5, 0.2, 0.3, -0.1, 0.05], "hurts": [-1.0, 0.1, 0.0, 0.2, 0.1, 0.0]}


def pair(n: int = 4000, seed: int = 0, classes: int = 4) -> Outcomes:
    """A teacher that is good at two classes and no better than the student at the others."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    clear = 3 * np.eye(classes)[targets]
    student = clear + rng.normal(0, 2, clear.shape)
    teacher = np.where(student.argmax(1)[:, None] < 2, 3 * clear, student)
    return Outcomes(student, teacher, targets)


def test_the_score_is_the_gain_that_a_multinomial_model_expects(asarray):
    rows = asarray(ROWS)
    features = np.column_stack([np.ones(len(ROWS)), to_numpy(score_features(rows))])
    odds = [features @ WEIGHTS["helps"], features @ WEIGHTS["hurts"]]
    helps, hurts = np.exp(odds) / (1 + np.exp(odds).sum(axis=0))
    np.testing.assert_allclose(to_numpy(learned(rows, **WEIGHTS)), hurts - helps)


def test_the_predicted_class_counts(asarray):
    offsets = [[0.0, 0.0], [2.0, -1.0], [0.5, 0.0], [0.0, 3.0]]
    plain = learned(ROWS, **WEIGHTS)
    whole = to_numpy(learned(asarray(ROWS), **WEIGHTS, classes=offsets))
    first = ROWS.argmax(axis=1) == 0
    np.testing.assert_allclose(whole[first], plain[first])
    second = ROWS.argmax(axis=1) == 1
    assert (whole[second] < plain[second]).all()


def test_what_the_teacher_helps_with_is_learned():
    outcomes = pair()
    entries = {entry.score.name: entry for entry in rank_scores(outcomes, ["softmax", "learned"])}
    assert entries["learned"].gain > 1.3 * entries["softmax"].gain
    assert choose_score(outcomes).name == "learned"
    held_out = pair(seed=1)
    score = fit_learned(outcomes)
    assert TradeOffCurve.of(held_out, score).area > TradeOffCurve.of(held_out, "softmax").area


def test_scores_of_which_none_can_be_fitted_are_refused():
    with pytest.raises(CalibrationError, match="none of the scores learned can be fitted to these"):
        choose_score(pair(8), ["learned"])


@pytest.mark.parametrize("seed", range(5))
def test_where_there_is_nothing_to_learn_a_simpler_score_wins(seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, 3000)
    clear = 3 * np.eye(4)[targets]
    outcomes = Outcomes(clear + rng.normal(0, 2, clear.shape), 3 * clear, targets)
    assert choose_score(outcomes, ["softmax", "learned"]).name == "softmax"


def test_no_row_is_judged_by_a_model_that_has_seen_it():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 40, 1500)
    student = rng.normal(0, 1, (1500, 40))  # forty offsets and nothing to learn: easy to overfit
    teacher = np.where(rng.random(1500)[:, None] < 0.3, 9 * np.eye(40)[targets], student)
    outcomes = Outcomes(student, teacher, targets)
    chance = (outcomes.student_quality + outcomes.teacher_quality).mean() / 2
    own = TradeOffCurve.of(outcomes, fit_learned(outcomes)).area - chance
    honest = TradeOffCurve.of(outcomes, cross_fitted(outcomes)).area - chance
    assert abs(honest) < own / 2


def test_its_text_is_all_of_it():
    score = fit_learned(pair())
    again = as_score(str(score))
    np.testing.assert_array_equal(again(ROWS), score(ROWS))
    assert again.named
    assert again.title == "learned"


@given(seed=st.integers(0, 1000), classes=st.sampled_from([2, 3, 150]))
@settings(max_examples=8, deadline=None)
def test_a_chosen_threshold_is_what_the_joint_model_does(seed, classes):
    outcomes = pair(1500, seed, classes)
    if not can_learn(outcomes):
        return
    point = calibrate(outcomes, tolerance=0.01, score=fit_learned(outcomes), blend=0.0)
    joint = JointClassifier(
        lambda rows: outcomes.student[rows], lambda rows: outcomes.teacher[rows], point.router
    )
    answer = joint(np.arange(1500))
    assert answer.deferred.mean() == pytest.approx(point.deferral_rate)
    assert (answer.prediction == outcomes.targets).mean() == pytest.approx(point.quality)


def test_too_few_disagreements_leave_it_out():
    outcomes = pair(60)
    assert not can_learn(outcomes)
    assert "learned" not in {entry.score.name for entry in rank_scores(outcomes)}
    with pytest.raises(CalibrationError, match=f"needs {FEWEST} examples on which the teacher"):
        fit_learned(outcomes)


def test_just_enough_disagreements_are_enough_for_every_fold():
    outcomes = pair(4000)
    helped = np.flatnonzero(outcomes.teacher_quality > outcomes.student_quality)[:FEWEST]
    alike = np.flatnonzero(outcomes.teacher_quality == outcomes.student_quality)[:300]
    few = outcomes.take(np.concatenate([helped, alike]))
    assert can_learn(few)
    assert "learned" in {entry.score.name for entry in rank_scores(few)}


def test_more_classes_than_it_knows_are_refused():
    with pytest.raises(ValueError, match="fitted for 2 classes, but the logits have 4"):
        learned(ROWS, **WEIGHTS, classes=[[0.0, 0.0], [0.0, 0.0]])


def test_without_its_weights_it_is_no_score():
    with pytest.raises(ValueError, match="must be fitted to outcomes"):
        as_score("learned")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_distribution_is_deferred(bad, asarray):
    rows = ROWS.copy()
    rows[3, 1] = bad
    values = to_numpy(learned(asarray(rows), **WEIGHTS))
    assert np.flatnonzero(np.isnan(values)).tolist() == [3]

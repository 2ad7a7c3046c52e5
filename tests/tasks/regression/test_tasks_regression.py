"""Regression through outcomes, curve and joint loop: the mechanism of classification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts

from ebjr import (
    Blend,
    JointRegressor,
    ModelError,
    Outcomes,
    Router,
    TeacherUnavailable,
    TradeOffCurve,
    calibrate,
    oracle,
    record,
)
from ebjr.arrays import to_numpy
from ebjr.blend import blend_predictions
from ebjr.tasks import as_task

SMOOTH = [metric.name for metric in as_task("regression").metrics]


ROWS = st.integers(2, 14)


@st.composite
def regressions(draw, rows=ROWS, **about):
    """Outcomes of a pair whose student has a deviation, with ties in the scores."""
    n = draw(rows)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = rng.normal(0, 3, n)
    deviation = rng.integers(1, 4, n) if draw(st.booleans()) else rng.uniform(0.1, 3, n)
    student = np.column_stack([targets + deviation * rng.normal(0, 1, n), deviation])
    teacher = np.column_stack([targets + rng.normal(0, 0.5, n), rng.normal(0, 1, (n, 3))])
    return Outcomes(student, teacher, targets, task="regression", **about)


# outcomes


def test_student_and_teacher_may_have_different_columns_after_the_prediction():
    outcomes = Outcomes([[1.0, 0.1]], [2.0], [1.5], task="regression")
    assert outcomes.student.shape == (1, 2)
    assert outcomes.teacher.shape == (1, 1)


GOOD = {"student": np.ones((3, 2)), "teacher": np.ones(3), "targets": np.arange(3.0)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student": np.ones((3, 0))}, r"student output must have shape \(n,\) or \(n, 1 \+ k\)"),
        ({"teacher": np.ones((3, 1, 1))}, r"teacher output must have shape .*, not \(3, 1, 1\)"),
        ({"student": np.full((3, 2), np.nan)}, "student output must be finite, but 3 of 3"),
        ({"teacher": [1.0, np.inf, 0.0]}, "the first in row 1"),
        ({"targets": [0.0, np.nan, 1.0]}, "1 of 3 targets are NaN"),
        ({"targets": [0.0, np.inf, 1.0]}, "targets must be finite"),
        ({"targets": ["a", "b", "c"]}, "targets must be numbers, not <U1"),
        ({"targets": np.ones((3, 1))}, r"targets must have shape \(n,\), not \(3, 1\)"),
        ({"targets": [0.0, 1.0]}, "must have the same length"),
        ({"labels": ("a", "b")}, "labels must name 0 classes, not 2"),
        ({"metric": "accuracy"}, "metric of regression must be one of rmse"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused_in_one_sentence(changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        Outcomes(**{**GOOD, **changed}, task="regression")
    assert "\n" not in str(caught.value)


@given(outcomes=regressions())
@settings(max_examples=20, deadline=None)
def test_saving_and_loading_changes_nothing(outcomes, tmp_path_factory):
    path = tmp_path_factory.mktemp("o") / "outcomes.npz"
    outcomes = replace(outcomes, metric="mae")
    outcomes.save(path)
    loaded = Outcomes.load(path)
    for name in ("student", "teacher", "targets"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(outcomes, name))
    assert (loaded.task, loaded.metric) == ("regression", "mae")
    assert loaded.fingerprint == outcomes.fingerprint


def test_a_split_keeps_task_and_metric():
    outcomes = Outcomes(np.ones((4, 2)), np.ones(4), np.arange(4.0), "regression", metric="mse")
    for part in outcomes.split(0.5, seed=3):
        assert (part.task, part.metric, len(part)) == ("regression", "mse", 2)


def test_recording_runs_both_models_once():
    x = np.linspace(0, 1, 7)
    outcomes = record(
        lambda b: np.stack([b, b + 1], axis=1), lambda b: 2 * b, x, 2 * x,
        task="regression", metric="mae", batch_size=3,
    )  # fmt: skip
    assert outcomes.metric == "mae"
    assert outcomes.quality("teacher") == 0
    np.testing.assert_array_equal(outcomes.student, np.stack([x, x + 1], axis=1))


def test_without_targets_the_teachers_predictions_are_the_targets():
    outcomes = record(lambda b: b, lambda b: np.stack([2 * b, b], axis=1), np.ones(3),
                      task="regression")  # fmt: skip
    assert outcomes.targets.tolist() == [2.0, 2.0, 2.0]
    assert not outcomes.labeled


def test_columns_that_change_on_the_way_are_named_with_their_batch():
    def student(batch):
        return np.ones((len(batch), 2 + len(batch)))

    with pytest.raises(ModelError, match="the same columns in every batch, but returned 5 columns"):
        record(student, lambda b: b, np.ones(4), np.ones(4), task="regression", batch_size=3)


# curve


@given(outcomes=regressions(), metric=st.sampled_from(SMOOTH), blend=st.sampled_from([0.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_every_row_of_a_curve_is_what_its_threshold_does(outcomes, metric, blend):
    outcomes = replace(outcomes, metric=metric)
    curve = TradeOffCurve.of(outcomes, "predicted_std", blend)
    student, teacher = outcomes.student[:, 0], outcomes.teacher[:, 0]
    answered = (teacher + blend * student) / (1 + blend)
    for k, threshold in enumerate(curve.threshold):
        _, deferred = Router("predicted_std", threshold)(outcomes.student)
        joint = np.where(deferred, answered, student)
        measure = outcomes.measure
        expected = measure.quality(measure.rows(joint, outcomes.targets).mean())
        assert curve.deferral_rate[k] == deferred.mean()
        assert curve.quality[k] == pytest.approx(expected, abs=1e-6)


@given(outcomes=regressions(), metric=st.sampled_from(SMOOTH))
@settings(max_examples=40, deadline=None)
def test_the_ends_are_the_two_models_alone_and_deferral_is_monotone(outcomes, metric):
    outcomes = replace(outcomes, metric=metric)
    curve = TradeOffCurve.of(outcomes, "predicted_std")
    assert (np.diff(curve.threshold) > 0).all()
    assert (np.diff(curve.deferral_rate) > 0).all()
    assert curve.quality[0] == pytest.approx(outcomes.quality("student"), abs=1e-9)
    assert curve.quality[-1] == pytest.approx(outcomes.quality("teacher"), abs=1e-6)
    point = curve.at(deferral_rate=1.0)
    assert point.metric == metric
    assert point.teacher_quality == outcomes.quality("teacher")


@given(outcomes=regressions(), metric=st.sampled_from(SMOOTH))
@settings(max_examples=40, deadline=None)
def test_a_perfect_teacher_is_reached_exactly(outcomes, metric):
    outcomes = replace(outcomes, metric=metric, targets=outcomes.teacher[:, 0], labeled=False)
    curve = TradeOffCurve.of(outcomes, "predicted_std")
    assert curve.quality[-1] == pytest.approx(1.0 if metric == "r2" else 0.0, abs=1e-12)
    assert calibrate(outcomes, score="predicted_std", blend=0.0).deferral_rate <= 1


@given(outcomes=regressions(), metric=st.sampled_from(SMOOTH))
@settings(max_examples=40, deadline=None)
def test_no_score_beats_the_oracle(outcomes, metric):
    outcomes = replace(outcomes, metric=metric)
    best = TradeOffCurve.of(outcomes, oracle(outcomes))
    curve = TradeOffCurve.of(outcomes, "predicted_std")
    at = np.searchsorted(best.deferral_rate, curve.deferral_rate - 1e-12)
    assert (best.quality[at] >= curve.quality - 1e-6).all()


# joint loop


def student(batch):
    return np.stack([batch, np.abs(batch)], axis=1)


def teacher(batch):
    return 10 * batch


def test_deferred_rows_are_the_teachers_and_kept_ones_the_students(asarray):
    joint = JointRegressor(
        lambda b: asarray(student(to_numpy(b))),
        lambda b: asarray(teacher(to_numpy(b))),
        Router("predicted_std", -2.0),
    )
    answer = joint(asarray(np.array([1.0, -3.0, 2.0, 5.0])))
    assert to_numpy(answer.prediction).tolist() == [1.0, -30.0, 2.0, 50.0]
    assert to_numpy(answer.deferred).tolist() == [False, True, False, True]
    assert tuple(answer.output.shape) == (4, 1)
    assert type(answer.prediction) is type(asarray(np.ones(1)))


def test_a_blend_is_the_weighted_mean_of_both_predictions():
    joint = JointRegressor(student, teacher, Router("predicted_std", np.inf), blend=0.5)
    np.testing.assert_allclose(joint(np.array([1.0])).prediction, [(10 + 0.5) / 1.5])
    with pytest.raises(ValueError, match="a weight without temperatures"):
        JointRegressor(student, teacher, Router("predicted_std", 0.0), blend=Blend(0.5, 2.0))
    with pytest.raises(ValueError, match="a weight without temperatures"):
        Outcomes([1.0], [2.0], [2.0], "regression").deferred_quality(Blend(0.5, 2.0))
    with pytest.raises(ValueError, match="at least 0"):
        blend_predictions(np.ones(1), np.ones(1), -1.0)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_answers(data):
    x = np.random.default_rng(0).normal(0, 2, 20)
    joint = JointRegressor(student, teacher, Router("predicted_std", -1.5), blend=0.3)
    whole = joint(x).prediction
    parts = [joint(x[part]).prediction for part in data.draw(cuts(20))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_joint_regressor_is_another_ones_teacher():
    inner = JointRegressor(student, teacher, Router("predicted_std", -4.0))
    outer = JointRegressor(lambda b: np.stack([b + 100, np.abs(b)], 1), inner,
                           Router("predicted_std", -2.0))  # fmt: skip
    assert outer(np.array([1.0, 3.0, 5.0])).prediction.tolist() == [101.0, 3.0, 50.0]


def test_a_teacher_out_of_reach_leaves_the_students_predictions():
    def gone(batch):
        raise TeacherUnavailable("no link")

    joint = JointRegressor(student, gone, Router("predicted_std", -2.0))
    answer = joint(np.array([1.0, 3.0]))
    assert answer.prediction.tolist() == [1.0, 3.0]
    assert answer.degraded.tolist() == [False, True]


def test_a_joint_model_does_what_its_curve_says():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 200)
    outcomes = record(student, teacher, x, 9 * x, task="regression")
    curve = TradeOffCurve.of(outcomes, "predicted_std", blend=0.1)
    point = curve.at(deferral_rate=0.4)
    joint = JointRegressor(student, teacher, point.router, blend=point.blend)
    answer = joint(x)
    rmse = np.sqrt(np.mean((answer.prediction - 9 * x) ** 2))
    assert rmse == pytest.approx(-point.quality)
    assert answer.deferred.mean() == point.deferral_rate


# another task's models


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_logits_of_a_classifier_are_not_taken_for_predictions(role):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 10, 64)
    logits = 4 * np.eye(10)[targets] + rng.normal(0, 1, (64, 10))
    members = targets[:, None] + rng.normal(0, 1, (64, 10))  # a prediction and nine members
    assert Outcomes(members, members, targets, task="regression").student.shape == (64, 10)
    words = f"{role} output must have the prediction first, but looks like the logits of 10 classes"
    said = {"student": members, "teacher": members, role: logits}
    with pytest.raises(ValueError, match=words):
        Outcomes(**said, targets=targets, task="regression")
    calls = []
    models = [lambda rows, name=name: calls.append(name) or said[name][rows] for name in said]
    with pytest.raises(ValueError, match=words):
        record(*models, np.repeat(np.arange(64), 9), np.repeat(targets, 9), task="regression")
    assert len(calls) == 2, "the first batch must show it"


def test_a_model_that_names_classes_is_no_regressor():
    def named(rows):
        raise AssertionError("it must be refused before it runs")

    named.labels = ("cat", "dog")
    with pytest.raises(ValueError, match=r"the student, .*, names classes \(cat, dog\), but task"):
        record(named, lambda rows: rows, np.arange(9), np.arange(9.0), task="regression")

"""Multilabel: a task that is a folder and nothing else, through all that tasks go through."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import Blend, CalibrationError, Outcomes, Router, TradeOffCurve, calibrate, run_study
from ebjr.arrays import to_numpy
from ebjr.scores import as_score
from ebjr.tasks import as_task
from ebjr.tasks.multilabel import JointF1, MultilabelJointClassifier
from ebjr.tasks.multilabel.scores import LABEL_LOGITS

TASK = as_task("multilabel")
ROWS = np.random.default_rng(0).normal(0, 4, (64, 5))


def pair(n=600, labels=4, seed=0, **about):
    """A noisy student and a better teacher of the same labels."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, labels)) < 0.3
    clear = np.where(targets, 3.0, -3.0)
    student = clear + rng.normal(0, 2.2, clear.shape)
    teacher = clear + rng.normal(0, 1.2, clear.shape)
    return Outcomes(student, teacher, targets, task="multilabel", **about)


def _entropy(z):
    p = scipy.special.expit(z)
    return (scipy.special.entr(p) + scipy.special.entr(1 - p)).sum(axis=1)


ORACLES = {
    "smallest_margin": lambda z: np.abs(z).min(axis=1),
    "set_probability": lambda z: scipy.special.log_expit(np.abs(z)).sum(axis=1),
    "label_entropy": lambda z: -_entropy(z),
    "label_energy": lambda z: np.logaddexp(0, z).sum(axis=1),
}


def test_every_score_has_an_oracle():
    assert set(ORACLES) == set(LABEL_LOGITS.scores)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_score_is_what_scipy_says(name, dtype, asarray):
    rows = ROWS.astype(dtype)
    found = to_numpy(as_score(name)(asarray(rows)))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, ORACLES[name](rows.astype(float)), tolerance, tolerance)


@pytest.mark.parametrize("name", ORACLES)
def test_nan_and_infinity_are_deferred_and_a_label_may_be_ruled_out(name, asarray):
    rows = np.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 2.0], [3.0, 2.0]])
    found = to_numpy(as_score(name)(asarray(rows)))
    assert np.isnan(found).tolist() == [True, True, False, False]


def test_the_energy_of_one_label_is_that_of_two_classes_of_which_one_has_the_logit_0():
    two = np.stack([ROWS[:, 0], np.zeros(len(ROWS))], axis=1)
    found = as_score("label_energy(temperature=2.0)")(ROWS[:, :1])
    np.testing.assert_allclose(found, as_score("energy(temperature=2.0)")(two))


def test_a_blend_is_the_weighted_mean_of_each_labels_probability(asarray):
    student, teacher = asarray(ROWS[:32]), asarray(ROWS[32:])
    mixed = scipy.special.expit(to_numpy(TASK.mix(student, teacher, Blend(0.5, 2.0, 0.5))))
    one, other = scipy.special.expit(ROWS[:32] / 2), scipy.special.expit(ROWS[32:] / 0.5)
    np.testing.assert_allclose(mixed, (other + 0.5 * one) / 1.5, atol=1e-12)
    assert TASK.mix(student, teacher, 0.0) is teacher


def test_a_row_that_scores_cannot_read_is_not_mixed_in(asarray):
    student = asarray(np.array([[np.inf, 1.0], [np.nan, 1.0], [-np.inf, 1.0]]))
    teacher = asarray(np.array([[-1.0, -2.0]] * 3))
    found = to_numpy(TASK.predict(TASK.mix(student, teacher, 4.0)))
    assert found.tolist() == [[False, False], [False, False], [False, True]]


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30))
@settings(max_examples=40)
def test_micro_f1_of_any_deferred_rows_is_what_scikit_learn_says(seed, n):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    student, deferred, targets = rng.random((3, n, 3)) < 0.4
    whole, chosen = JointF1(student, deferred, targets), rng.random(n) < 0.5
    said = np.where(chosen[:, None], deferred, student)
    expected = metrics.f1_score(targets, said, average="micro", zero_division=1.0)
    assert whole(chosen) == pytest.approx(expected)
    times = rng.integers(0, 3, n)
    times[0] = 1
    again = metrics.f1_score(
        targets.repeat(times, 0), said.repeat(times, 0), average="micro", zero_division=1.0
    )
    assert whole(chosen, times=times) == pytest.approx(again)
    kept, changed = whole.rows()
    assert kept.mean() == pytest.approx(whole(np.zeros(n, bool)))
    assert changed.mean() == pytest.approx(whole(np.ones(n, bool)))


def test_outcomes_survive_a_file(tmp_path):
    outcomes = pair(metric="micro_f1")
    outcomes.save(tmp_path / "outcomes.npz")
    again = Outcomes.load(tmp_path / "outcomes.npz")
    assert again.fingerprint == outcomes.fingerprint
    assert (again.task, again.metric) == ("multilabel", "micro_f1")
    assert again.targets.dtype == bool


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": np.zeros(600)}, r"targets must have shape \(n, labels\)"),
        ({"targets": np.full((600, 4), 2)}, "0 or 1 per label, but one is 2"),
        ({"targets": np.zeros((600, 3))}, "must have 4 columns, one per label"),
        ({"targets": np.full((600, 4), np.nan)}, "targets are NaN"),
        ({"teacher": np.zeros((600, 5))}, "must answer the same labels"),
        ({"student": np.zeros((600, 0))}, r"shape \(n, labels\), one per label"),
        ({"metric": "accuracy"}, "one of subset_accuracy, micro_f1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changed, message):
    table = pair()
    parts = {"student": table.student, "teacher": table.teacher, "targets": table.targets}
    with pytest.raises(ValueError, match=message) as caught:
        Outcomes(**{**parts, **changed}, task="multilabel")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", ["subset_accuracy", "micro_f1"])
def test_auto_meets_the_goal_and_beats_random(metric):
    study = run_study(pair(4000, metric=metric), tolerance=0.005)
    chosen = study.point
    assert chosen.score.partition("(")[0] in ORACLES
    assert chosen.quality >= chosen.teacher_quality - 0.005
    areas = {entry.score: entry.gain.estimate for entry in study.ranking}
    assert areas[chosen.score] > areas["random"] + 0.01
    assert set(study.named_points) >= {"match-teacher", f"best-{metric}"}


def test_a_guarantee_is_of_subset_accuracy():
    point = calibrate(pair(4000), tolerance=0.03, delta=0.1)
    assert point.certified.test == "exact trinomial"
    with pytest.raises((ValueError, CalibrationError), match="use the metric subset_accuracy"):
        calibrate(pair(1000, metric="micro_f1"), tolerance=0.02, delta=0.1)


def test_the_joint_model_and_the_curve_agree():
    table = pair()
    point = TradeOffCurve.of(table, "set_probability", blend=0.5).at(deferral_rate=0.3)
    joint = MultilabelJointClassifier(
        lambda rows: table.student[rows], lambda rows: table.teacher[rows], point.router, blend=0.5
    )
    answer = joint(np.arange(len(table)))
    assert (answer.prediction == table.targets).all(axis=1).mean() == pytest.approx(point.quality)
    assert answer.deferred.mean() == pytest.approx(point.deferral_rate)


def test_a_score_of_classes_is_refused():
    with pytest.raises(ValueError, match="it reads logits, and the student gives label logits"):
        TradeOffCurve.of(pair(), "softmax")
    assert Router("random", 0.5)(ROWS)[1].any()


def test_answers_are_label_sets_by_number_and_name():
    answers = np.array([[True, False, True], [False, False, False]])
    assert TASK.plain(answers, ["cat", "dog", "fox"]) == [
        {"prediction": [0, 2], "label": ["cat", "fox"]},
        {"prediction": [], "label": []},
    ]

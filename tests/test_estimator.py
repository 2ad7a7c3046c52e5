"""A joint model is a scikit-learn estimator where its models are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import ebjr

pytest.importorskip("sklearn")

from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

PAIRS = [
    ebjr.JointEstimator(LogisticRegression(), RandomForestClassifier(10, random_state=0)),
    ebjr.JointEstimator(
        DecisionTreeClassifier(max_depth=2, random_state=0),
        HistGradientBoostingClassifier(max_iter=5, random_state=0),
    ),
    ebjr.JointEstimator(make_pipeline(StandardScaler(), GaussianNB()), SVC(), folds=2),
]


@parametrize_with_checks(PAIRS)
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    inputs, targets = load_digits(return_X_y=True)
    return train_test_split(inputs, targets, test_size=600, random_state=0, stratify=targets)


@pytest.fixture
def joint():
    return ebjr.JointEstimator(LogisticRegression(C=1e-4, max_iter=999), SVC(), random_state=0)


def test_the_teachers_accuracy_costs_a_part_of_its_calls(digits, joint):
    inputs, others, targets, other_targets = digits
    joint.fit(inputs, targets)
    student, teacher = (
        one.score(others, other_targets) for one in (joint.student_, joint.teacher_)
    )
    answer = joint.answer(others)
    assert 0.02 < answer.deferred.mean() < 0.6
    assert student < teacher - 0.05
    assert joint.score(others, other_targets) > teacher - 0.01
    assert joint.point_.deferral_rate == pytest.approx(answer.deferred.mean(), abs=0.1)
    shares = joint.predict_proba(others)
    assert np.array_equal(joint.classes_[shares.argmax(axis=1)], joint.predict(others))


def test_the_knob_is_that_of_the_joint_model(digits, joint):
    inputs, others, targets, _ = digits
    joint.fit(inputs, targets)
    assert isinstance(joint.joint_, ebjr.JointClassifier)
    joint.joint_.router.threshold = np.inf
    assert joint.answer(others).deferred.all()
    again = pickle.loads(pickle.dumps(joint))
    assert np.array_equal(again.predict(others), joint.predict(others))


def test_folds_are_rows_that_neither_model_was_fitted_on(digits):
    """A student that knows its rows by heart would be never deferred."""
    inputs, _, targets, _ = digits
    overfitted = DecisionTreeClassifier(random_state=0)
    joint = ebjr.JointEstimator(overfitted, SVC(), router_score="margin", random_state=0)
    point = joint.fit(inputs, targets).point_
    assert joint.student_.score(inputs, targets) == 1
    assert point.student_quality < 0.9
    assert len(inputs) == point.n


def test_parameters_of_both_models_are_searched(digits, joint):
    inputs, others, targets, other_targets = digits
    grid = {"teacher__C": [1.0, 1e-5], "blend": [0.0, "auto"]}
    found = GridSearchCV(joint, grid, cv=2).fit(inputs, targets)
    assert found.best_params_["teacher__C"] == 1.0
    assert found.score(others, other_targets) > 0.9
    whole = make_pipeline(StandardScaler(), clone(joint)).fit(inputs, targets)
    assert whole.score(others, other_targets) > 0.9


def test_labels_are_the_users_own_and_a_frames_columns_are_compared(digits, joint):
    pandas = pytest.importorskip("pandas")
    inputs, others, targets, _ = digits
    names = np.array([f"digit {label}" for label in targets])
    columns = [f"pixel {k}" for k in range(64)]
    joint.fit(pandas.DataFrame(inputs, columns=columns), names)
    frame = pandas.DataFrame(others, columns=columns)
    assert set(joint.predict(frame)) == set(names)
    assert joint.feature_names_in_.tolist() == columns
    with pytest.raises(ValueError, match="feature names should match"):
        joint.predict(frame[columns[::-1]])


def test_a_goal_is_that_of_calibrate(digits, joint):
    inputs, _, targets, _ = digits
    joint.set_params(goal="budget", deferral_rate=0.05).fit(inputs, targets)
    assert joint.point_.deferral_rate <= 0.05
    joint.set_params(goal="accuracy", deferral_rate=None, target=0.9999)
    with pytest.raises(ebjr.CalibrationError, match=r"no threshold reaches accuracy 0\.9999"):
        joint.fit(inputs, targets)


def test_a_promise_is_about_the_models_whose_answers_certify_it(digits):
    """A teacher fitted on more rows than in the folds is better than its answers there."""
    inputs, _, targets, _ = digits
    pair = LogisticRegression(C=1e-4, max_iter=999), KNeighborsClassifier(1)
    how = {"tolerance": 0.1, "router_score": "margin", "blend": 0.0, "random_state": 0}
    joint = ebjr.JointEstimator(*pair, **how, delta=0.1, folds=3).fit(inputs, targets)
    assert joint.point_.certified.n == joint.point_.n == pytest.approx(len(inputs) / 3, abs=1)
    assert joint.teacher_.n_samples_fit_ == len(inputs) - joint.point_.n
    whole = ebjr.JointEstimator(*pair, **how).fit(inputs, targets)
    assert whole.teacher_.n_samples_fit_ == whole.point_.n == len(inputs)


def test_a_class_of_one_row_is_fitted_and_not_calibrated_on(joint):
    rows = (
        np.random.default_rng(0).normal(size=(41, 2)) + np.repeat([0, 2, 9], [20, 20, 1])[:, None]
    )
    labels = np.repeat([0, 1, 2], [20, 20, 1])
    joint.set_params(student=LogisticRegression(), teacher=DecisionTreeClassifier())
    assert joint.fit(rows, labels).point_.n == 40
    assert joint.predict(rows[-1:]) == [2]


def test_what_cannot_be_fitted_is_one_sentence(joint):
    rows, labels = np.random.default_rng(0).normal(size=(20, 2)), np.repeat([0, 1], 10)
    for change, given, labeled, error, words in (
        (
            {"folds": 1},
            rows,
            labels,
            ValueError,
            "folds must be a whole number of at least 2, not 1",
        ),
        ({}, rows, 0 * labels, ValueError, "all are of one class, .*0"),
        ({}, rows[9:11], labels[9:11], ValueError, "no class has 2 rows"),
        ({}, csr_array(rows), labels, TypeError, "[Ss]parse data was passed"),
        ({}, np.full_like(rows, np.nan), labels, ValueError, "contains NaN"),
        ({"student": LinearRegression()}, rows, labels, TypeError, "the student must be a class"),
    ):
        with pytest.raises(error, match=words):
            clone(joint).set_params(**change).fit(given, labeled)

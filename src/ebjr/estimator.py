"""Two scikit-learn classifiers as one: fitted, calibrated and asked as any other estimator."""

from numbers import Integral
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from ebjr.backends.sklearn import SklearnModel
from ebjr.blend import Blend
from ebjr.calibration import calibrate
from ebjr.errors import needs
from ebjr.joint import JointAnswer
from ebjr.outcomes import Outcomes
from ebjr.tasks.classification import JointClassifier

with needs("learned", "ebjr.JointEstimator"):
    from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
    from sklearn.utils import check_random_state, get_tags
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data


class JointEstimator(ClassifierMixin, BaseEstimator):
    """A student and a teacher, both scikit-learn classifiers, as one estimator.

    `fit` asks both about rows that they were not fitted on, fold by fold, chooses score, blend and
    threshold by their answers, and fits both on all rows (n, features), dense. `joint_` is then the
    `JointClassifier` of both, whose router has the knob; `point_` the `OperatingPoint` that was
    chosen, with its figures on the folds; `student_` and `teacher_` are the fitted classifiers.

    Parameters
    ----------
    student, teacher
        Classifiers, the cheap one first. They are cloned, and stay as they are.
    goal, tolerance, target, deferral_rate, delta, router_score, blend
        As of `calibrate`; its `score` is `router_score` here, as every estimator has a method
        `score`.
    folds
        How many. A class of one row is fitted and not calibrated on.
    random_state
        Of the draw of the folds.

    Raises
    ------
    ValueError
        `folds` is no whole number of at least 2; rows are not finite, too few, or all of one class.
    TypeError
        `student` or `teacher` is no classifier, or rows are sparse.
    CalibrationError
        No threshold reaches the goal.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.svm import SVC
    >>> inputs, targets = load_digits(return_X_y=True)
    >>> joint = JointEstimator(LogisticRegression(C=1e-4, max_iter=999), SVC(), random_state=0)
    >>> joint.fit(inputs[:1200], targets[:1200]).score(inputs[1200:], targets[1200:]) > 0.9
    True
    >>> bool(0 < joint.answer(inputs[1200:]).deferred.mean() < 1)
    True
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        goal: str = "match-teacher",
        tolerance: float | None = None,
        target: float | None = None,
        deferral_rate: float | None = None,
        delta: float | None = None,
        router_score: str = "auto",
        blend: float | Blend | str = "auto",
        folds: int = 5,
        random_state: Any = None,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.goal = goal
        self.tolerance = tolerance
        self.target = target
        self.deferral_rate = deferral_rate
        self.delta = delta
        self.router_score = router_score
        self.blend = blend
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit both, and choose when the teacher is asked: rows (n, features), labels (n,)."""
        folds: Any = self.folds
        if not isinstance(folds, Integral) or folds < 2:
            raise ValueError(f"folds must be a whole number of at least 2, not {folds!r}")
        X, y = validate_data(self, X, y, ensure_min_samples=2, ensure_all_finite=self._finite)
        check_classification_targets(y)
        for role, one in (("student", self.student), ("teacher", self.teacher)):
            if not is_classifier(one):
                raise TypeError(f"the {role} must be a classifier, not {type(one).__name__}")
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "a classifier needs rows of at least 2 classes, and all are of one class, "
                f"{self.classes_[0]}"
            )
        fold = _folds(targets, self.folds, check_random_state(self.random_state))
        student = self._outside(self.student, X, y, fold)
        teacher = self._outside(self.teacher, X, y, fold)
        self.point_ = calibrate(
            Outcomes(student, teacher, targets[fold >= 0]),
            self.goal,
            tolerance=self.tolerance,
            target=self.target,
            deferral_rate=self.deferral_rate,
            delta=self.delta,
            score=self.router_score,
            blend=self.blend,
        )
        self.student_, self.teacher_ = (
            clone(one).fit(X, y) for one in (self.student, self.teacher)
        )
        both = SklearnModel(self.student_), SklearnModel(self.teacher_)
        self.joint_ = JointClassifier(*both, self.point_.router, blend=self.point_.blend)
        return self

    def _outside(self, one: Any, X: Any, y: Any, fold: np.ndarray) -> np.ndarray:
        """The raw output of an estimator about the rows of each fold, fitted on all others."""
        output = np.zeros((len(y), len(self.classes_)))
        for number in range(fold.max() + 1):
            own = fold == number
            output[own] = SklearnModel(clone(one).fit(X[~own], y[~own]))(X[own])
        return output[fold >= 0]

    def answer(self, X: Any) -> JointAnswer:
        """All that the joint model says of rows (n, features): who answered, and the score too."""
        check_is_fitted(self)
        return self.joint_(validate_data(self, X, reset=False, ensure_all_finite=self._finite))

    def predict(self, X: Any) -> np.ndarray:
        """The label of each row, (n,)."""
        found = self.answer(X).prediction
        return self.classes_[found]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The softmax of the answers, (n, classes); nothing has calibrated these shares."""
        return softmax(self.answer(X).output, axis=1)

    @property
    def _finite(self) -> bool | str:
        return "allow-nan" if get_tags(self).input_tags.allow_nan else True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        own = [get_tags(one).input_tags for one in (self.student, self.teacher)]
        tags.input_tags.allow_nan = all(one.allow_nan for one in own)
        return tags


def _folds(targets: np.ndarray, folds: int, rng: np.random.RandomState) -> np.ndarray:
    """(n,): the fold of each row, every class spread evenly; -1, in none, of a class's only row.

    So every class is among the rows that are not of a fold.
    """
    fold, done = np.full(len(targets), -1), 0
    rows = [np.flatnonzero(targets == label) for label in range(targets.max() + 1)]
    rows = [rng.permutation(some) for some in rows if len(some) > 1]
    if not rows:
        raise ValueError("no class has 2 rows, one to fit both models on and one to ask them about")
    for some in rows:
        fold[some] = (done + np.arange(len(some))) % min(folds, sum(map(len, rows)))
        done += len(some)
    return fold

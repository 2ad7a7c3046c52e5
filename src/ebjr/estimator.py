"""Two scikit-learn classifiers as one estimator, which fits and calibrates them."""

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

    `fit` takes both models' answers on rows that they were not fitted on, fold by fold, chooses
    score, blend and threshold by these, and fits both on all rows (n, features), dense. `joint_` is
    then the `JointClassifier` of both, whose router has the knob; `point_` is the `OperatingPoint`,
    with its figures on the folds; `student_` and `teacher_` are the fitted classifiers.

    Parameters
    ----------
    student, teacher
        Classifiers, the cheap one first. They are cloned, and stay unfitted.
    goal, tolerance, target, deferral_rate, delta, router_score, blend
        As for `calibrate`; its `score` is `router_score` here, since every estimator has a method
        `score`.
        With `delta`, both are fitted without one fold, which certifies the threshold: a promise is
        about the very models whose answers certify it.
    folds
        The number of folds. A class with one row is fitted, but not calibrated on.
    random_state
        Seed or generator of the folds.

    Raises
    ------
    ValueError
        `folds` is not a whole number of at least 2; rows are not finite, too few, or all of one
        class.
    TypeError
        `student` or `teacher` is not a classifier, or rows are sparse.
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
        """Fit both, and choose the router, on rows (n, features) and labels (n,)."""
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
                "a classifier needs rows of at least 2 classes, but all are of one class, "
                f"{self.classes_[0]}"
            )
        fold = _folds(targets, self.folds, check_random_state(self.random_state))
        # a promise is about the very models whose answers certify it
        promised = self.delta is not None
        seen = fold == 0 if promised else fold >= 0
        own = ~seen if promised else np.ones(len(y), bool)
        self.student_, self.teacher_ = (
            clone(one).fit(X[own], y[own]) for one in (self.student, self.teacher)
        )
        both = SklearnModel(self.student_), SklearnModel(self.teacher_)
        if promised:
            student, teacher = (model(X[seen]) for model in both)
        else:
            student, teacher = (
                self._outside(one, X, y, fold) for one in (self.student, self.teacher)
            )
        self.point_ = calibrate(
            Outcomes(student, teacher, targets[seen]),
            self.goal,
            tolerance=self.tolerance,
            target=self.target,
            deferral_rate=self.deferral_rate,
            delta=self.delta,
            score=self.router_score,
            blend=self.blend,
        )
        self.joint_ = JointClassifier(*both, self.point_.router, blend=self.point_.blend)
        return self

    def _outside(self, one: Any, X: Any, y: Any, fold: np.ndarray) -> np.ndarray:
        """Return raw output on the rows of each fold by an estimator fitted on the other folds."""
        output = np.zeros((len(y), len(self.classes_)))
        for number in range(fold.max() + 1):
            own = fold == number
            output[own] = SklearnModel(clone(one).fit(X[~own], y[~own]))(X[own])
        return output[fold >= 0]

    def answer(self, X: Any) -> JointAnswer:
        """Return the joint model's whole answer to rows (n, features), with score and deferred."""
        check_is_fitted(self)
        return self.joint_(validate_data(self, X, reset=False, ensure_all_finite=self._finite))

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each row, (n,)."""
        found = self.answer(X).prediction
        return self.classes_[found]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the softmax of the answers, (n, classes), not calibrated."""
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
    """Return the fold of each row, (n,), with every class spread evenly; -1 for none.

    A class's only row is in no fold, so that every fit sees every class.
    """
    fold, done = np.full(len(targets), -1), 0
    rows = [np.flatnonzero(targets == label) for label in range(targets.max() + 1)]
    rows = [rng.permutation(some) for some in rows if len(some) > 1]
    if not rows:
        raise ValueError("no class has 2 rows, one to fit both models on and one to calibrate on")
    for some in rows:
        fold[some] = (done + np.arange(len(some))) % min(folds, sum(map(len, rows)))
        done += len(some)
    return fold

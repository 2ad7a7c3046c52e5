"""A learned score: a small model of where the teacher helps, fitted to the outcomes.

Of classifiers a logistic model of the student's scores and its predicted class; of detectors the
gain of `ebjr.calibration.gain`. It competes with the other scores on equal terms: the values that
it is judged by are cross-fitted, each row's from a model that has not seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ebjr.arrays import take_rows
from ebjr.calibration import gain
from ebjr.errors import CalibrationError, MissingExtra
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, learned, score_features

FOLDS = 5
FEWEST = 50
"""With fewer rows that the teacher helps or hurts, there is nothing to learn from."""

MOST_EXAMPLES = 20_000
"""More rows than this move a few dozen weights no further: the rest is left out of the fit."""

MOST_CLASSES = 100
"""With more classes than this, the predicted class is left out."""

_DIGITS = 6
_NEVER = -50.0  # the log-odds of what was not seen


def can_learn(outcomes: Outcomes, blend: float = 0.0) -> bool:
    """Whether a learned score can compete on these outcomes.

    Examples
    --------
    >>> can_learn(Outcomes([[1.0, 0.0]], [[1.0, 0.0]], [0]))
    False
    """
    if find_spec("sklearn") is None or not outcomes.kind.has_logits:
        return False
    return min(_counts(_kinds(outcomes, blend))) >= FEWEST


def fit_learned(outcomes: Outcomes, blend: float = 0.0, seed: int = 0) -> Score:
    """Fit the score `learned` to outcomes.

    Parameters
    ----------
    outcomes
        The calibration examples; at most `MOST_EXAMPLES` of them are used.
    blend
        The student's weight in a deferred answer.
    seed
        Of the choice of examples, where there are more.

    Raises
    ------
    MissingExtra
        scikit-learn is not installed.
    CalibrationError
        The models disagree on too few examples to learn from.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.integers(0, 3, 2000)
    >>> clear = 4 * np.eye(3)[targets]
    >>> fit_learned(Outcomes(clear + rng.normal(0, 3, clear.shape), clear, targets)).name
    'learned'
    """
    kind = _kinds(outcomes, blend)
    helped, alike = _counts(kind)
    if min(helped, alike) < FEWEST:
        raise CalibrationError(
            f"a learned score needs {FEWEST} examples on which the teacher helps, and as many on "
            f"which both do alike, but of {len(kind)} there are {helped} and {alike}"
        )
    return _fit_some(outcomes, blend, np.arange(len(kind)), seed)


@dataclass(frozen=True)
class Learner:
    """How a score is learned from outcomes.

    Attributes
    ----------
    can_learn
        Outcomes and a blend in: whether it can compete on them.
    fit_rows
        Outcomes, a blend, some of the rows and a seed in: the score that is fitted to those.
    """

    can_learn: Callable[[Outcomes, float], bool]
    fit_rows: Callable[[Outcomes, float, np.ndarray, int], Score]

    def fit(self, outcomes: Outcomes, blend: float = 0.0, seed: int = 0) -> Score:
        """The score that is fitted to all rows."""
        return self.fit_rows(outcomes, blend, np.arange(len(outcomes)), seed)


def cross_fitted(
    outcomes: Outcomes, blend: float = 0.0, seed: int = 0, learner: Learner | None = None
) -> np.ndarray:
    """(n,): the learned score of each row, by a model that was fitted without it.

    `learner` is that of classifiers unless given.

    Raises
    ------
    MissingExtra, CalibrationError
        As `fit_learned`.
    """
    learner = learner or LEARNERS["learned"]
    fold = np.random.default_rng(seed).permutation(len(outcomes)) % FOLDS
    values = np.empty(len(outcomes))
    for k in range(FOLDS):
        fitted = learner.fit_rows(outcomes, blend, np.flatnonzero(fold != k), seed)
        values[fold == k] = fitted(take_rows(outcomes.student, np.flatnonzero(fold == k)))
    return values


def _kinds(outcomes: Outcomes, blend: float) -> np.ndarray:
    """(n,): 1 where deferring helps, -1 where it hurts, 0 where both do alike."""
    change = outcomes.deferred_quality(blend) - outcomes.student_quality
    return np.sign(change).astype(np.int64)


def _counts(kind: np.ndarray) -> tuple[int, int]:
    """How many rows the teacher helps, and on how many both do alike."""
    return int((kind == 1).sum()), int((kind == 0).sum())


def _fit_some(outcomes: Outcomes, blend: float, rows: np.ndarray, seed: int) -> Score:
    """Fit to at most `MOST_EXAMPLES` of some rows."""
    kind = _kinds(outcomes, blend)
    drawn = np.random.default_rng(seed).permutation(rows)[:MOST_EXAMPLES]
    return _fit(outcomes.student[drawn], kind[drawn])


def _fit(logits: np.ndarray, kind: np.ndarray) -> Score:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtra("learned", "a learned score") from error
    features = score_features(logits).astype(np.float64)
    classes = logits.shape[1] if logits.shape[1] <= MOST_CLASSES else 0
    center, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    table = (features - center) / spread
    if classes:
        table = np.hstack([table, np.eye(classes)[logits.argmax(axis=1)]])
    if (kind == -1).sum() < FEWEST:  # too few to learn from
        kind = np.maximum(kind, 0)
    model = LogisticRegression(max_iter=500).fit(table, kind)
    weights = {name: _against_alike(model, value) for name, value in (("helps", 1), ("hurts", -1))}
    found: dict[str, Any] = {}
    for name, (constant, slopes) in weights.items():
        own = slopes[: len(center)] / spread
        found[name] = _rounded([constant - own @ center, *own])
    if classes:
        pairs = zip(*(slopes[len(center) :] for _, slopes in weights.values()), strict=True)
        found["classes"] = [_rounded(pair) for pair in pairs]
    return Score("learned", learned, found)


def _against_alike(model: Any, kind: int) -> tuple[float, np.ndarray]:
    """Constant and slopes of the log-odds of a kind against 0."""
    kinds = list(model.classes_)
    if kind not in kinds:
        return _NEVER, np.zeros(model.coef_.shape[1])
    if len(kinds) == 2:
        return float(model.intercept_[0]), model.coef_[0]
    one, alike = kinds.index(kind), kinds.index(0)
    constant = model.intercept_[one] - model.intercept_[alike]
    return float(constant), model.coef_[one] - model.coef_[alike]


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]


LEARNERS: Mapping[str, Learner] = {
    "learned": Learner(can_learn, _fit_some),
    "learned_gain": Learner(gain.can_learn, gain.fit_rows),
}
"""By the name of the score."""

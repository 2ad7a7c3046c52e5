"""Learned scores, whose weights are fitted to outcomes.

They compete with other scores on equal terms: they are judged by cross-fitted values, each row's
from a model that has not seen it.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec

import numpy as np

from ebjr.arrays import take_rows
from ebjr.blend import Blend
from ebjr.errors import CalibrationError
from ebjr.outcomes import Outcomes
from ebjr.scores import Score
from ebjr.task import Learner

FOLDS = 5


def can_learn(outcomes: Outcomes, blend: float | Blend = 0.0) -> bool:
    """Whether a learned score can be fitted to these outcomes."""
    learner = outcomes.kind.learner
    if learner is None or find_spec("sklearn") is None:
        return False
    with suppress(CalibrationError):
        learner.check(_signal(outcomes, blend))
        return True
    return False


def fit_learned(outcomes: Outcomes, blend: float | Blend = 0.0) -> Score:
    """Fit the task's learned score to outcomes."""
    signal = _signal(outcomes, blend)
    _learner(outcomes).check(signal)
    return _fit(outcomes, signal, np.arange(len(signal)))


def cross_fitted(outcomes: Outcomes, blend: float | Blend = 0.0) -> np.ndarray:
    """Return the learned score, (n,), of each row by a model fitted without it; cached."""

    def find() -> np.ndarray:
        signal, values = _signal(outcomes, blend), np.empty(len(outcomes))
        fold = np.random.default_rng(0).permutation(len(outcomes)) % FOLDS
        for k in range(FOLDS):
            fitted = _fit(outcomes, signal, np.flatnonzero(fold != k))
            values[fold == k] = fitted(take_rows(outcomes.student, np.flatnonzero(fold == k)))
        return values

    found: np.ndarray = outcomes._once(("cross-fitted", blend), find)
    return found


def _learner(outcomes: Outcomes) -> Learner:
    if outcomes.kind.learner is None:
        raise CalibrationError(f"{outcomes.task} has no learned score: use another")
    return outcomes.kind.learner


def _signal(outcomes: Outcomes, blend: float | Blend) -> np.ndarray:
    change = outcomes.deferred_quality(blend) - outcomes.student_quality
    return _learner(outcomes).signal(outcomes.judged(), outcomes.judged(blend), change)


def _fit(outcomes: Outcomes, signal: np.ndarray, rows: np.ndarray) -> Score:
    """Fit the score to some rows, at most as many as the learner takes."""
    learner = _learner(outcomes)
    if learner.most_examples is not None:
        rows = np.random.default_rng(0).permutation(rows)[: learner.most_examples]
    return learner.fit(take_rows(outcomes.student, rows), signal[rows])

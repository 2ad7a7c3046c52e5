"""Learned scores: their weights are fitted to outcomes.

What a task's fitted score learns, its `Learner` says. It competes with the other scores on equal
terms: the values that it is judged by are cross-fitted, each row's from a model that has not seen
it.
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
    """Whether a learned score can compete on these outcomes."""
    learner = outcomes.kind.learner
    if learner is None or find_spec("sklearn") is None:
        return False
    with suppress(CalibrationError):
        learner.check(_signal(outcomes, blend))
        return True
    return False


def fit_learned(outcomes: Outcomes, blend: float | Blend = 0.0, seed: int = 0) -> Score:
    """Fit the task's learned score to outcomes."""
    signal = _signal(outcomes, blend)
    _learner(outcomes).check(signal)
    return _fit(outcomes, signal, np.arange(len(signal)), seed)


def cross_fitted(outcomes: Outcomes, blend: float | Blend = 0.0, seed: int = 0) -> np.ndarray:
    """(n,): the learned score of each row, by a model that was fitted without it; found once."""
    found: np.ndarray = outcomes._once(
        ("cross-fitted", blend, seed), lambda: _cross_fitted(outcomes, blend, seed)
    )
    return found


def _cross_fitted(outcomes: Outcomes, blend: float | Blend, seed: int) -> np.ndarray:
    signal = _signal(outcomes, blend)
    fold = np.random.default_rng(seed).permutation(len(outcomes)) % FOLDS
    values = np.empty(len(outcomes))
    for k in range(FOLDS):
        fitted = _fit(outcomes, signal, np.flatnonzero(fold != k), seed)
        values[fold == k] = fitted(take_rows(outcomes.student, np.flatnonzero(fold == k)))
    return values


def _learner(outcomes: Outcomes) -> Learner:
    if outcomes.kind.learner is None:
        raise CalibrationError(f"no score is learned for {outcomes.task}: name one that is fixed")
    return outcomes.kind.learner


def _signal(outcomes: Outcomes, blend: float | Blend) -> np.ndarray:
    """(n,): what the score learns of each row."""
    change = outcomes.deferred_quality(blend) - outcomes.student_quality
    return _learner(outcomes).signal(outcomes.judged(), outcomes.judged(blend), change)


def _fit(outcomes: Outcomes, signal: np.ndarray, rows: np.ndarray, seed: int) -> Score:
    """Fit to at most as many of some rows as the learner takes."""
    learner = _learner(outcomes)
    if learner.most_examples is not None:
        rows = np.random.default_rng(seed).permutation(rows)[: learner.most_examples]
    return learner.fit(take_rows(outcomes.student, rows), signal[rows])

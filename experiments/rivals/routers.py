"""Rivals that route between the shipped student and teacher: fitted ones, and agreement of two.

Each chooses an operating point on one half of the outcomes, which the other half judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ebjr import Cost, OperatingPoint, Outcomes, TradeOffCurve, calibrate
from ebjr.arrays import log_softmax
from ebjr.blend import blend_logits
from ebjr.scores import Score
from experiments.choices import choice

FOLDS = 5

Router = Callable[..., OperatingPoint]
"""From outcomes, the seed of a split and a goal as `ebjr.calibrate` takes it to an operating point,
chosen on the split's first half."""


def svm(calibration: Outcomes) -> Score:
    """Adaptive feeding (H.-Y. Zhou et al., ICCV 2017): a linear SVM on the student's output."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    model = make_pipeline(StandardScaler(), LinearSVC(C=0.1, class_weight="balanced"))
    model.fit(ranked(calibration.student), helps(calibration))
    return Score("svm", lambda output: -model.decision_function(ranked(output)))


def boosted(calibration: Outcomes) -> Score:
    """Learned deferral: boosted trees on the student's output say where the teacher helps."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=80, max_depth=3, early_stopping=False, random_state=0
    )
    model.fit(described(calibration.student), helps(calibration))
    return Score("boosted", lambda output: -model.predict_proba(described(output))[:, 1])


def helps(outcomes: Outcomes) -> np.ndarray:
    """(n,): the teacher is right where the student is wrong."""
    return outcomes.teacher_quality > outcomes.student_quality


def ranked(output: np.ndarray) -> np.ndarray:
    """The student's log-probabilities, the largest first."""
    return np.sort(log_softmax(output), axis=1)[:, ::-1]


def described(output: np.ndarray) -> np.ndarray:
    """`ranked`, the logits, and which class has the largest."""
    return np.hstack([ranked(output), output, output.argmax(axis=1)[:, None]])


def ours(outcomes: Outcomes, seed: int, *goal: str, **how: Any) -> OperatingPoint:
    """The library's own: score and blend by `auto`, unless a blend is given."""
    return calibrate(
        outcomes.split(0.5, seed)[0], *goal, margin=0.0, **{**choice(outcomes, seed), **how}
    )


def named(score: str, outcomes: Outcomes, seed: int, *goal: str, **how: Any) -> OperatingPoint:
    """A router that is a score, without a blend."""
    return calibrate(outcomes.split(0.5, seed)[0], *goal, score=score, blend=0.0, margin=0.0, **how)


def fitted(
    fit: Callable[[Outcomes], Score], outcomes: Outcomes, seed: int, *goal: str, **how: Any
) -> OperatingPoint:
    """A router that is fitted; its threshold is chosen on values of models that miss the row."""
    calibration, _ = outcomes.split(0.5, seed)
    fold = np.random.default_rng(0).permutation(len(calibration)) % FOLDS
    values = np.empty(len(calibration))
    for k in range(FOLDS):
        score = fit(calibration.take(np.flatnonzero(fold != k)))
        values[fold == k] = score(calibration.student[fold == k])
    point = calibrate(
        calibration, *goal, score=Score("values", lambda _: values), blend=0.0, margin=0.0, **how
    )
    return replace(point, score_function=fit(calibration))


ROUTERS: Mapping[str, Router] = {
    "ours: score and blend chosen": ours,
    "ours without the blend": partial(ours, blend=0.0),
    "energy (eq. 3)": partial(named, "energy"),
    "softmax cascade": partial(named, "softmax"),
    "entropy cascade": partial(named, "entropy"),
    "random": partial(named, "random"),
    "adaptive feeding (linear SVM)": partial(fitted, svm),
    "learned deferral (boosted trees)": partial(fitted, boosted),
}
"""By title."""


def average(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The logarithm of two networks' mean probabilities, (n, classes)."""
    return blend_logits(one, other, 1.0)


def both(pair: Outcomes, other: np.ndarray, flops: float) -> Outcomes:
    """The pair with a second student beside the first: their mean, paid for both.

    Source: S. Kolawole et al., "Agreement-based cascading for efficient inference", 2024.
    """
    cost = Cost(flops=(pair.student_cost.flops or 0.0) + flops)
    return replace(pair, student=average(pair.student, other), student_cost=cost)


def voted(pair: Outcomes, other: np.ndarray, flops: float) -> Outcomes:
    """The same where only their vote counts: a student that is certain where both agree.

    Where they disagree its logits are all zero, so that any score defers these rows first.
    """
    agree = pair.student.argmax(axis=1) == other.argmax(axis=1)
    certain = np.eye(other.shape[1], dtype=np.float32)[pair.student.argmax(axis=1)]
    return replace(both(pair, other, flops), student=certain * agree[:, None])


def by_vote(outcomes: Outcomes, seed: int, *goal: str, **how: Any) -> OperatingPoint:
    """Keep where both agree; nothing is chosen, for any goal."""
    return TradeOffCurve.of(outcomes.split(0.5, seed)[0], "max_logit").at(threshold=0.5)

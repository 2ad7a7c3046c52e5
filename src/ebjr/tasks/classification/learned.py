"""A learned score of classifiers: a logistic model of where the teacher helps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.arrays import (
    Array,
    argmax,
    as_logits,
    convert_like,
    namespace,
    take_places,
    top_and_total,
    top_two,
)
from ebjr.errors import CalibrationError, needs
from ebjr.scores import LOGITS, Score, entropy
from ebjr.task import Learner

FEWEST = 50  # rows that the teacher helps or hurts, at least, to learn from
MOST_CLASSES = 100  # with more classes, the predicted class is not a feature

_DIGITS = 6
_NEVER = -50.0  # log-odds of an unseen kind


def learned(
    logits: Array,
    helps: Sequence[float],
    hurts: Sequence[float],
    classes: Sequence[Sequence[float]] = (),
) -> Array:
    """Minus the expected gain from the teacher: P(deferring hurts) - P(deferring helps).

    A logistic model over `score_features` and the predicted class, whose weights `Logistic` fits;
    its reference is that both models do equally well.

    - `logits`: (n, classes).
    - `helps`, `hurts`: A constant and a weight per feature: the log-odds of each against equal.
    - `classes`: Per class that the student can predict, what it adds to both log-odds.

    Returns (n,), in [-1, 1].

    Raises
    ------
    ValueError
        `logits` has more classes than the score was fitted for.

    Examples
    --------
    >>> weights = dict(helps=[0.0, -1.0, 0.0, 0.0, 0.0, 0.0], hurts=[-9.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    >>> learned(np.array([[0.0, 0.0], [4.0, 0.0]]), **weights).round(3)
    array([-0.5  , -0.018])
    """
    features = score_features(logits)
    xp = namespace(features)
    fitted = np.array([helps, hurts], dtype=np.float64).T
    weights = xp.astype(convert_like(fitted, features), features.dtype)
    odds = features @ weights[1:, :] + weights[0, :]
    if len(classes):
        if len(classes) < logits.shape[1]:
            raise ValueError(
                f"the learned score was fitted for {len(classes)} classes, but the logits have "
                f"{logits.shape[1]}: calibrate again"
            )
        offsets = convert_like(np.array(classes, dtype=np.float64), features)
        odds = odds + take_places(xp.astype(offsets, features.dtype), argmax(logits), axis=0)
    alike = xp.zeros_like(odds[:, :1])
    top, total = top_and_total(xp.concat([odds, alike], axis=1))
    likely = xp.exp(odds - top[:, None]) / total[:, None]
    return likely[:, 1] - likely[:, 0]


def score_features(logits: Array) -> Array:
    """Return the features of a learned score, (n, 5), on scales that suit a linear model.

    They are the log-odds of `softmax`, the gap between the two largest logits (at most 50),
    `entropy`, `energy` and `max_logit`.
    """
    logits = as_logits(logits)
    xp = namespace(logits)
    top, total = top_and_total(logits)
    first, second = top_two(logits)
    with np.errstate(invalid="ignore"):
        gap = xp.clip(first - second, 0, 50)
    rest = xp.clip(total - 1, xp.finfo(total.dtype).eps, None)
    return xp.stack([-xp.log(rest), gap, entropy(logits), xp.log(total) + top, top], axis=1)


LOGITS.fitted[learned.__name__] = learned


class Logistic(Learner):
    """Fits the score `learned`: deferring a row helps, hurts, or makes no difference."""

    name = learned.__name__
    most_examples = 20_000  # enough for a few dozen weights

    def signal(self, student: Any, deferred: Any, change: np.ndarray) -> np.ndarray:
        """Return 1 where deferring helps, -1 where it hurts, and 0 elsewhere, (n,)."""
        return np.sign(change).astype(np.int64)

    def check(self, signal: np.ndarray) -> None:
        """Raise CalibrationError if the models disagree on too few examples."""
        helped, alike = int((signal == 1).sum()), int((signal == 0).sum())
        if min(helped, alike) < FEWEST:
            raise CalibrationError(
                f"a learned score needs {FEWEST} examples on which the teacher helps, and {FEWEST} "
                f"on which both do equally well; of {len(signal)} there are {helped} and {alike}"
            )

    def fit(self, output: np.ndarray, signal: np.ndarray) -> Score:
        """Return the score `learned` with weights fitted to these rows."""
        with needs("learned", "a learned score"):
            from sklearn.linear_model import LogisticRegression
        features = score_features(output).astype(np.float64)
        classes = output.shape[1] if output.shape[1] <= MOST_CLASSES else 0
        center, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        table = (features - center) / spread
        if classes:
            table = np.hstack([table, np.eye(classes)[output.argmax(axis=1)]])
        if (signal == -1).sum() < FEWEST:  # too few to learn from
            signal = np.maximum(signal, 0)
        model = LogisticRegression(max_iter=500).fit(table, signal)
        found: dict[str, Any] = {}
        of_classes = []
        for name, kind in (("helps", 1), ("hurts", -1)):
            constant, slopes = _against_alike(model, kind)
            own, more = np.split(slopes, [len(center)])
            found[name] = _rounded([constant - own / spread @ center, *(own / spread)])
            of_classes.append(more)
        if classes:
            found["classes"] = [_rounded(pair) for pair in zip(*of_classes, strict=True)]
        return Score("learned", learned, found)


def _against_alike(model: Any, kind: int) -> tuple[float, np.ndarray]:
    """Return constant and slopes of the log-odds of a kind against kind 0."""
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

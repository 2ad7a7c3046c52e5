"""A learned gain: how much more the teacher finds on an image, judged by the student's output.

It is a ridge regression with strong shrinkage, because a few hundred images tell little.
"""

from collections.abc import Sequence

import numpy as np

from ebjr.errors import CalibrationError, needs
from ebjr.scores import Score
from ebjr.task import Learner
from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.precision import Matches, matched_gains
from ebjr.tasks.detection.scores import detection_features, learned_gain

FEWEST = 30  # images at least to learn from

PENALTIES = np.logspace(-1, 4, 21)
"""The penalties tried, for standardized features; leave-one-out picks the best."""


class Gain(Learner):
    """Fits the score `learned_gain` to how many more boxes the teacher finds on an image."""

    name = learned_gain.__name__

    def signal(self, student: Matches, deferred: Matches, change: np.ndarray) -> np.ndarray:
        """Return the boxes gained, (n,), each weighted by its confidence on the common scale."""
        return matched_gains(student, deferred, weighted=True)

    def check(self, signal: np.ndarray) -> None:
        """Raise CalibrationError if there are too few images to fit to a part of them."""
        if len(signal) < 2 * FEWEST:
            raise CalibrationError(
                f"a learned gain needs at least {2 * FEWEST} images, not {len(signal)}"
            )

    def fit(self, output: Sequence[Detections], signal: np.ndarray) -> Score:
        """Return the score `learned_gain` with weights fitted to these images."""
        return fit_gain(output, signal)


def fit_gain(detections: Sequence[Detections], gains: np.ndarray) -> Score:
    """Fit the score `learned_gain` to finite gains (n,) of `FEWEST` or more calibration images."""
    values = np.asarray(gains, np.float64)
    if values.shape != (len(detections),) or not np.isfinite(values).all():
        raise ValueError(
            f"gains must be {len(detections)} finite numbers, one per image, "
            f"not of shape {values.shape}"
        )
    if len(values) < FEWEST:
        raise ValueError(f"a learned gain needs at least {FEWEST} images, not {len(values)}")
    with needs("learned", "a learned gain"):
        from sklearn.linear_model import RidgeCV
    features = detection_features(detections)
    center, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    model = RidgeCV(alphas=PENALTIES).fit((features - center) / spread, values)
    slopes = model.coef_ / spread
    weights = [model.intercept_ - slopes @ center, *slopes]
    rounded = [float(f"{weight:.8g}") for weight in weights]
    return Score("learned_gain", learned_gain, {"weights": rounded})

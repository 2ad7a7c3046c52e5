"""A learned gain: how much more the teacher finds on an image, from what the student says of it.

A ridge regression, linear and heavily shrunk, as a few hundred labeled images say little.
"""

from collections.abc import Sequence

import numpy as np

from ebjr.errors import CalibrationError, needs
from ebjr.scores import Score
from ebjr.task import Learner
from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.precision import Matches, matched_gains
from ebjr.tasks.detection.scores import detection_features, learned_gain

FEWEST = 30  # with fewer images there is nothing to learn from

PENALTIES = np.logspace(-1, 4, 21)
"""What is tried, with features of deviation one; the best of leave-one-out is taken."""


class Gain(Learner):
    """Fits the score `learned_gain`: an image says how many boxes more the teacher finds."""

    name = learned_gain.__name__

    def signal(self, student: Matches, deferred: Matches, change: np.ndarray) -> np.ndarray:
        """(n,): boxes found, each by its confidence on the common scale, if there is one."""
        return matched_gains(student, deferred, weighted=True)

    def check(self, signal: np.ndarray) -> None:
        """Check that there are enough images to fit to a part of them."""
        if len(signal) < 2 * FEWEST:
            raise CalibrationError(
                f"a learned gain needs {2 * FEWEST} images or more, not {len(signal)}"
            )

    def fit(self, output: Sequence[Detections], signal: np.ndarray) -> Score:
        """The score `learned_gain` with the weights of these images."""
        return fit_gain(output, signal)


def fit_gain(detections: Sequence[Detections], gains: np.ndarray) -> Score:
    """Fit the score `learned_gain` to finite gains (n,) of `FEWEST` or more calibration images."""
    values = np.asarray(gains, np.float64)
    if values.shape != (len(detections),) or not np.isfinite(values).all():
        raise ValueError(
            f"gains must be {len(detections)} finite numbers, one for each image, "
            f"not of shape {values.shape}"
        )
    if len(values) < FEWEST:
        raise ValueError(f"a learned gain needs {FEWEST} images or more, not {len(values)}")
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

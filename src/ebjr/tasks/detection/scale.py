"""One scale for the scores of two detectors, because mAP ranks the boxes of all images together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import expit

from ebjr.tasks.detection.precision import Matches

_LEAST_SLOPE = 1e-3
LEAST_SCORE = 1e-7  # distance of scores from 0 and 1, so that log-odds are finite


@dataclass(frozen=True)
class ConfidenceMap:
    """Maps scores to the probability of being right: ``sigmoid(a log s - b log(1 - s) + c)``.

    It increases, so that a detector's own mAP stays the same; ``1, 1, 0`` is the identity. Source:
    Kull, Silva Filho & Flach, "Beta calibration", AISTATS 2017.
    """

    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.a, self.b, self.c]).all() and self.a > 0 and self.b > 0):
            raise ValueError(
                f"a confidence map must increase, with finite numbers and positive a and b, not "
                f"a={self.a}, b={self.b}, c={self.c}"
            )

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Map scores (d,) in [0, 1] to probabilities (d,) in [0, 1]."""
        low, high = _log_sides(scores)
        return expit(self.a * low - self.b * high + self.c)


@dataclass(frozen=True)
class CommonScale:
    """One scale for the scores of two detectors: a map for each."""

    student: ConfidenceMap
    teacher: ConfidenceMap

    @classmethod
    def fit(cls, student: Matches, teacher: Matches) -> Self:
        """Fit both maps to calibration images with `fit_confidence_map`."""
        return cls(fit_confidence_map(student), fit_confidence_map(teacher))

    def of(self, role: str) -> ConfidenceMap:
        """Return the map of ``"student"`` or ``"teacher"``."""
        return self.student if role == "student" else self.teacher

    def as_dict(self) -> dict[str, list[float]]:
        """Return the parameters of both maps, for JSON and TOML."""
        return {role: [one.a, one.b, one.c] for role, one in vars(self).items()}

    @classmethod
    def from_dict(cls, table: Mapping[str, Sequence[float]]) -> Self:
        """Read what `as_dict` returned."""
        if sorted(table) != ["student", "teacher"] or any(len(v) != 3 for v in table.values()):
            raise ValueError(
                "a scale must have three numbers for the student and three for the teacher, not "
                f"{dict(table)}"
            )
        return cls(**{role: ConfidenceMap(*map(float, v)) for role, v in table.items()})


def fit_confidence_map(matches: Matches) -> ConfidenceMap:
    """Fit the likeliest map, with "right" averaged over overlaps; ValueError if all or none are."""
    weight = 1.0 - matches.ignored.mean(axis=1)
    right = matches.hit.mean(axis=1)
    wrong = np.maximum(weight - right, 0)
    if not (right.any() and wrong.any()):
        raise ValueError(
            "a confidence map needs some right and some wrong detections, but of "
            f"{len(right)} detections {int((right > 0).sum())} are right: use more images"
        )
    from scipy.optimize import minimize  # slow to import

    low, high = _log_sides(matches.score)
    features = np.stack([low, -high, np.ones_like(low)], axis=1)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        odds = features @ parameters
        # log(1 + exp(odds)) without overflow
        value = (right + wrong) @ np.logaddexp(0, odds) - right @ odds
        slope = features.T @ ((right + wrong) * expit(odds) - right)
        return value / len(odds), slope / len(odds)

    found = minimize(
        loss,
        np.array([1.0, 1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(_LEAST_SLOPE, None), (_LEAST_SLOPE, None), (None, None)],
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    return ConfidenceMap(*(float(value) for value in found.x))


def _log_sides(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.clip(np.asarray(scores, np.float64), LEAST_SCORE, 1 - LEAST_SCORE)
    return np.log(values), np.log1p(-values)

"""Study: calibrate on one half of the outcomes, report on the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebjr.arrays import Array
from ebjr.calibration import calibrate, crossing
from ebjr.curve import OperatingPoint
from ebjr.errors import CalibrationError
from ebjr.evaluation import evaluate
from ebjr.evaluation.report import write_report
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, as_score

COMPARED = ("softmax", "margin", "entropy", "energy", "max_logit", "softmax_energy", "random")
"""The scores that a study shows beside the chosen one."""

NAMED_GOALS: dict[str, dict[str, Any]] = {
    "match-teacher": {"goal": "match-teacher"},
    "within-half-a-point": {"goal": "match-teacher", "tolerance": 0.005},
    "within-one-point": {"goal": "match-teacher", "tolerance": 0.01},
    "crossing": {"goal": "crossing"},
}
"""The operating points that ``joint.toml`` names beside the chosen one."""


@dataclass(frozen=True, eq=False)
class Study:
    """A calibration and what came of it on examples that it did not see.

    Attributes
    ----------
    outcomes, calibration, held_out
        The whole table and its two parts.
    split
        The fraction and the seed of the split.
    goal
        The goal and its argument.
    point, result
        The operating point chosen on `calibration`, and its figures on `held_out`.
    others, other_results
        By score, without blend: the same goal with each score; those that cannot reach it are
        left out.
    """

    outcomes: Outcomes
    calibration: Outcomes
    held_out: Outcomes
    split: tuple[float, int]
    goal: Mapping[str, Any]
    point: OperatingPoint
    result: OperatingPoint
    others: Mapping[str, OperatingPoint]
    other_results: Mapping[str, OperatingPoint]

    @property
    def crossings(self) -> dict[str, float]:
        """By score: where the densities of right and wrong cross on `calibration` (figure 4)."""
        right = self.calibration.student_quality
        found = {}
        for name in {self.point.score: None, **dict.fromkeys(self.others)}:
            score = self.point.score_function if name == self.point.score else as_score(name)
            values = np.asarray((score or as_score(name))(self.calibration.student), np.float64)
            try:
                found[name] = crossing(values, right)
            except CalibrationError:
                continue
        return found

    @property
    def named_points(self) -> dict[str, OperatingPoint]:
        """By name: other operating points of the chosen score and blend, on `calibration`."""
        score = self.point.score_function or self.point.score
        found = {}
        for name, goal in NAMED_GOALS.items():
            try:
                found[name] = calibrate(
                    self.calibration, **goal, score=score, blend=self.point.blend
                )
            except CalibrationError:
                continue
        return found

    def write_report(
        self, path: str | os.PathLike[str], *, title: str, notes: Mapping[str, str] | None = None
    ) -> None:
        """Write the HTML report of the held-out half.

        Raises
        ------
        MissingExtra
            plotly is not installed.
        OSError
            The file cannot be written.
        """
        fraction, seed = self.split
        goal = ", ".join(f"{key} = {value}" for key, value in self.goal.items())
        made = {
            "Calibrated on": f"{len(self.calibration):,} examples, for {goal}",
            "Reported on": f"{len(self.held_out):,} others (split {fraction:g}, seed {seed})",
            "Outcomes": self.outcomes.fingerprint,
        }
        write_report(
            path,
            self.held_out,
            self.point,
            others=list(self.others.values()),
            crossings=self.crossings,
            title=title,
            notes={**made, **(notes or {})},
        )


def run_study(
    outcomes: Outcomes,
    goal: str = "match-teacher",
    *,
    score: str | Callable[..., Array] | Score = "auto",
    blend: float | str = "auto",
    fraction: float = 0.5,
    seed: int = 0,
    **target: Any,
) -> Study:
    """Split the outcomes, calibrate on the first part, and evaluate on the second.

    Parameters
    ----------
    outcomes
        What both models said.
    goal, score, blend, **target
        As for `calibrate`. A guarantee is of the chosen point alone: the scores beside it meet
        the goal on the examples, without one.
    fraction, seed
        As for `Outcomes.split`.

    Raises
    ------
    ValueError
        A bad argument, or too few examples to split.
    CalibrationError
        No threshold reaches the goal on the calibration half.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.integers(0, 2, 100)
    >>> clear = 4 * np.eye(2)[targets]
    >>> study = run_study(Outcomes(clear + rng.normal(0, 3, (100, 2)), clear, targets))
    >>> len(study.held_out), study.result.quality >= study.result.student_quality
    (50, True)
    """
    calibration, held_out = outcomes.split(fraction, seed)
    given = {name: value for name, value in target.items() if value is not None}
    point = calibrate(calibration, goal, score=score, blend=blend, **given)
    plain = {name: value for name, value in given.items() if name not in ("delta", "promise")}
    others = {}
    for name in COMPARED:
        try:
            others[name] = calibrate(calibration, goal, score=name, blend=0.0, **plain)
        except CalibrationError:
            continue
    return Study(
        outcomes=outcomes,
        calibration=calibration,
        held_out=held_out,
        split=(fraction, seed),
        goal={"goal": goal, **given},
        point=point,
        result=evaluate(held_out, point),
        others=others,
        other_results={name: evaluate(held_out, other) for name, other in others.items()},
    )

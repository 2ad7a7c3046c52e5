"""Sweep: which of several students fits this traffic?

The more classes a student knows, the fewer inputs it defers as "other", and the less sure it is of
each class: the best number depends on how popular the popular classes are (the paper's figure 6).
All candidates are recorded on the same examples and beside the same teacher; one of them may know
all classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ebjr.calibration import Goal, calibrate
from ebjr.calibration.goal import ARGUMENTS, GUARANTEE
from ebjr.costs import UNITS, is_comparable
from ebjr.curve import OperatingPoint
from ebjr.errors import CalibrationError
from ebjr.evaluation import evaluate
from ebjr.evaluation.plots import candidates_figure, shares_figure
from ebjr.evaluation.report import Extra
from ebjr.outcomes import Outcomes
from ebjr.study import Study, run_study
from ebjr.tasks.specialized.known_classes import Traffic

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
"""Popular shares that a sweep also shows."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Every candidate's study on the same examples."""

    studies: Mapping[str, Study]
    failed: Mapping[str, str]  # by name: why a candidate cannot reach the goal
    best: str  # the best one's name

    @property
    def study(self) -> Study:
        """The best candidate's study."""
        return self.studies[self.best]

    @property
    def traffic(self) -> Traffic | None:
        """The traffic to which the examples were resampled."""
        return self.study.traffic

    @property
    def unit(self) -> str | None:
        """The unit of savings: the first in which every candidate's costs are known."""
        return _common_unit(self.studies)

    @cached_property
    def by_share(self) -> dict[str, dict[float, OperatingPoint]]:
        """By candidate and popular share that reaches the goal: its point on held-out examples.

        Each share has its own threshold, chosen on the calibration half.
        """
        if self.traffic is None:
            return {}
        mixes = {s: replace(self.traffic, popular=s) for s in {*SHARES, self.traffic.popular}}
        return {
            name: {
                share: point
                for share, mix in sorted(mixes.items())
                if (point := _at_share(study, mix)) is not None
            }
            for name, study in self.studies.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return every candidate's figures for JSON."""
        figures = {name: self._figures(name) for name in self.studies}
        failed = {name: {"failed": reason} for name, reason in self.failed.items()}
        return {
            "traffic": None if self.traffic is None else asdict(self.traffic),
            "best": self.best,
            "candidates": figures | failed,
        }

    def _figures(self, name: str) -> dict[str, Any]:
        study, points = self.studies[name], self.by_share.get(name, {})
        return {
            "known_classes": study.outcomes.known_classes,
            "chosen_on": study.point.as_dict(),
            "held_out": study.result.as_dict(),
            "saving_by_popular_share": {
                f"{x:g}": point.saving_in(self.unit) for x, point in points.items()
            },
        }

    @property
    def extras(self) -> list[Extra]:
        """A report's sections: the candidates' curves, and their savings by popular share."""
        return [self._curves] if self.traffic is None else [self._curves, self._savings]

    @property
    def _curves(self) -> Extra:
        measure = self.study.outcomes.measure
        rows = {
            name: [
                known_text(study.outcomes),
                measure.words(study.result.quality),
                f"{100 * study.result.deferral_rate:.1f} %",
                saving_text(study.result.saving_in(self.unit)),
            ]
            for name, study in self.studies.items()
        }
        points = {name: (study.held_out, study.point) for name, study in self.studies.items()}
        return Extra(
            "candidates",
            "Which student",
            candidates_figure(points, self.best),
            ("student", "classes known", measure.title, "deferred", "times cheaper"),
            rows,
            self.best,
            "Each line is a student with the same teacher, on the same held-out examples, at its "
            "own score and blend. The calibration half chose the best.",
        )

    @property
    def _savings(self) -> Extra:
        assert self.traffic is not None
        savings = {
            name: {
                share: saving
                for share, point in row.items()
                if (saving := point.saving_in(self.unit)) is not None
            }
            for name, row in self.by_share.items()
        }
        shares = sorted({share for row in savings.values() for share in row})
        return Extra(
            "shares",
            "The traffic decides",
            shares_figure(savings, self.best, self.traffic.popular),
            ("student", *(f"{share:.0%} popular" for share in shares)),
            {n: [saving_text(row.get(share)) for share in shares] for n, row in savings.items()},
            self.best,
            "Times cheaper than the teacher alone at the same goal, by the share of inputs of a "
            "popular class (the paper's figure 6). The calibration half chose a threshold for each "
            "share.",
        )


def check_distinct(paths: Sequence[Path]) -> None:
    """Refuse a file that is given twice, and two files of one name, which tells them apart."""
    for place, path in enumerate(paths):
        for other in paths[:place]:
            if path.resolve() == other.resolve():
                raise ValueError(f"{path} is given twice: give each outcomes file once")
            if path.stem == other.stem:
                raise ValueError(
                    f"outcomes files are told apart by name, but {other} and {path} are both "
                    f"called {path.stem}: rename one"
                )


def run_sweep(
    tables: Mapping[str, Outcomes],
    goal: str | Goal = "match-teacher",
    *,
    traffic: Traffic | None = None,
    **how: Any,
) -> Sweep:
    """Study every candidate on the same examples and traffic, and pick the best.

    The best is the cheapest that reaches the goal, or for a budget the best in quality. The
    calibration half picks it, so that its figures on the other half are fair.

    - `tables`: By name: the outcomes of each candidate and the teacher on the same examples.
    - `goal`, `**how`: As for `run_study`; `seed` is also the seed of the resampling. A guarantee
      holds for the best: each candidate is certified at `delta` over their number (union bound).
    - `traffic`: The expected traffic, to which the examples are resampled.

    Raises
    ------
    ValueError
        `tables` is empty, or its tables differ in examples, teacher or metric.
    CalibrationError
        No candidate reaches the goal.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.integers(0, 4, 400)
    >>> clear = 4 * np.eye(4)[targets]
    >>> tables = {
    ...     f"top {c}": Outcomes(
    ...         4 * np.eye(c + 1)[np.minimum(targets, c)] + rng.normal(0, 1, (400, c + 1)),
    ...         clear, targets, "specialized", known_classes=range(c),
    ...     )
    ...     for c in (1, 2)
    ... }
    >>> run_sweep(tables, tolerance=0.05, traffic=Traffic(0.9, (0, 1))).best
    'top 2'
    """
    _check_candidates(tables)
    aim = Goal.of(goal, **{name: how.pop(name) for name in (*ARGUMENTS, *GUARANTEE) if name in how})
    each = aim if aim.delta is None else replace(aim, delta=aim.delta / len(tables))
    studies: dict[str, Study] = {}
    failed: dict[str, str] = {}
    for name, table in tables.items():
        try:
            study = run_study(table, each, traffic=traffic, **how)
        except CalibrationError as error:
            if len(tables) == 1:
                raise
            failed[name] = str(error)
            continue
        if aim.delta is not None:  # by the union bound the best one's promise holds at delta
            certified = replace(study.point.certified, delta=aim.delta)
            study = replace(study, goal=aim, point=replace(study.point, certified=certified))
        studies[name] = study
    if not studies:
        name, reason = next(iter(failed.items()))
        raise CalibrationError(
            f"none of {len(tables)} candidates reaches the goal; {name}: {reason}"
        )
    return Sweep(studies, failed, best=_best(studies, aim.kind))


def _best(studies: Mapping[str, Study], goal: str) -> str:
    """Return the cheapest on the calibration half, or for a budget the best in quality."""
    unit = _common_unit(studies)

    def merit(name: str) -> tuple[float, float]:
        point = studies[name].point
        saving = point.saving_in(unit)  # in one unit, or by the calls of the teacher they share
        cheap = -point.deferral_rate if saving is None else saving
        return (point.quality, cheap) if goal == "budget" else (cheap, point.quality)

    return max(studies, key=merit)


def _common_unit(studies: Mapping[str, Study]) -> str | None:
    """Return the first unit in which every candidate's costs are known, or None."""
    pairs = [(study.point.student_cost, study.point.teacher_cost) for study in studies.values()]
    return next((unit for unit in UNITS if all(is_comparable(*one, unit) for one in pairs)), None)


def _at_share(study: Study, traffic: Traffic) -> OperatingPoint | None:
    """Return the study's goal, score and blend at other traffic; None if out of reach."""
    fraction, seed = study.split
    try:
        calibration, held_out = (
            half.take(traffic.draw(half.targets, seed))
            for half in study.outcomes.split(fraction, seed)
        )
        score, blend = study.point.router.score, study.point.blend
        point = calibrate(calibration, study.goal.plain, score=score, blend=blend)
    except (CalibrationError, ValueError):
        return None
    return evaluate(held_out, point)


def _check_candidates(tables: Mapping[str, Outcomes]) -> None:
    if not tables:
        raise ValueError("there are no candidates: give the outcomes of at least one student")
    (name, first), *others = tables.items()
    for other_name, other in others:
        if first.metric != other.metric:
            what = "metrics"
        elif not first.kind.equal(first.targets, other.targets):
            what = "examples"
        elif not first.kind.equal(first.teacher, other.teacher):
            what = "teachers"
        else:
            continue
        raise ValueError(
            "candidates must be recorded on the same examples and with the same teacher, but "
            f"the {what} of {name} and {other_name} differ"
        )


def known_text(outcomes: Outcomes) -> str:
    """Return how many classes the student knows; empty if it has no classes."""
    if outcomes.known_classes is not None:
        return str(len(outcomes.known_classes))
    return str(outcomes.student.shape[1]) if outcomes.kind.has_logits else ""


def saving_text(saving: float | None) -> str:
    """Return how many times cheaper, in words; empty if unknown."""
    return "" if saving is None or math.isnan(saving) else f"{saving:.2f}x"

"""Goal: what a threshold must reach, and which rows of a curve reach it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ebjr.calibration.guarantee import check_promise
from ebjr.costs import UNITS
from ebjr.curve import TradeOffCurve, mean_at
from ebjr.errors import CalibrationError, check_at_least, check_choice
from ebjr.metric import Metric

GOALS: Mapping[str, tuple[str, ...]] = {
    "match-teacher": ("tolerance",),
    "accuracy": ("target",),
    "budget": (*UNITS, "deferral_rate"),
    "crossing": (),
}
"""Each kind of goal with the arguments that may limit it."""

ARGUMENTS = {name: kind for kind, names in GOALS.items() for name in names}
"""By argument that limits a goal: the goal's kind."""

_PROMISED: Mapping[str, tuple[str, ...]] = {
    "match-teacher": ("excess", "harm"),
    "accuracy": ("risk",),
    "budget": ("rate",),
    "crossing": (),
}
"""By goal: the promises it can make, its default first."""

MARGIN = 0.75
"""The default margin, in standard errors, by which a threshold exceeds its goal.

Score, blend and threshold are chosen on the same examples, and the choice favors what is lucky
there: without a margin, held-out examples fall short of the goal (`experiments/optimism.py`).
"""

_SLACK = 1e-12  # means minus a tolerance are not exact in binary


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for; its kind is one of `GOALS`.

    `limit` is the tolerance, target or budget, and `unit` the argument that named a budget. The
    others are arguments of `calibrate`: `delta`, `promise` and `loss_bound` make a guarantee, and
    `margin` is for goals without one.
    """

    kind: str = "match-teacher"
    limit: float | None = None
    unit: str | None = None
    delta: float | None = None
    promise: str | None = None
    loss_bound: float | None = None
    margin: float | None = None

    @classmethod
    def of(cls, goal: str | Goal = "match-teacher", **given: Any) -> Goal:
        """Make a goal from its kind and the keyword arguments of `calibrate`."""
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(goal, Goal):
            if given:
                raise ValueError(f"a Goal already has its arguments: remove {', '.join(given)}")
            return goal
        limits = {name: given.pop(name) for name in ARGUMENTS if name in given}
        for name in limits:
            if goal in GOALS and ARGUMENTS[name] != goal:
                raise ValueError(f"{name} goes with goal {ARGUMENTS[name]!r}, not with {goal!r}")
        if len(limits) > 1:
            raise ValueError(_needed(goal))
        limit = next(iter(limits.values()), None)
        return cls(goal, limit, next(iter(limits), None) if goal == "budget" else None, **given)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Goal:
        """Read what `as_dict` returned, ignoring other keys."""
        known = {name: table[name] for name in (*ARGUMENTS, *GUARANTEE) if name in table}
        return cls.of(table.get("goal", "match-teacher"), **known)

    def __post_init__(self) -> None:
        check_choice("goal", self.kind, GOALS)
        units, needed = GOALS[self.kind], self.kind in ("accuracy", "budget")
        units_of = units if self.kind == "budget" else (None,)
        if self.unit not in units_of or (needed and self.limit is None):
            raise ValueError(_needed(self.kind))
        if self.limit is not None and self.kind == "budget":
            share = self.unit == "deferral_rate"
            if not (0 <= self.limit <= 1 if share else 0 <= self.limit < np.inf):
                limits = "lie between 0 and 1" if share else "be a finite number of at least 0"
                raise ValueError(f"{self.unit} must {limits}, not {self.limit:g}")
        check_at_least(0, margin=self.margin)
        if self.margin and (self.delta is not None or not self.limits_quality):
            raise ValueError("margin is for match-teacher and accuracy without delta: remove it")
        if self.delta is not None:
            self._check_guarantee(self.delta)
        elif self.promise is not None:
            raise ValueError(
                f"promise {self.promise!r} needs delta, like 0.1: the probability that it fails"
            )
        elif self.loss_bound is not None:
            raise ValueError("loss_bound is for a guarantee: give delta too, or remove it")

    def _check_guarantee(self, delta: float) -> None:
        known = _PROMISED[self.kind]
        check_promise("harm" if self.promise is None else self.promise, delta)
        if not known:
            raise ValueError(f"goal {self.kind!r} cannot be guaranteed: remove delta")
        if self.promise not in (None, *known):
            words = " or ".join(known)
            raise ValueError(f"goal {self.kind!r} promises {words}, not {self.promise}")
        if self.kind == "match-teacher" and self.limit is None:
            raise ValueError(
                "with delta, match-teacher needs a tolerance, like 0.01: how far quality may be "
                "below the teacher's"
            )

    def check(self, measure: Metric) -> None:
        """Raise ValueError if the goal does not fit the metric."""
        if self.kind == "crossing" and not measure.binary:
            raise ValueError(
                f"goal 'crossing' needs answers that are right or wrong: for {measure.name} use "
                "another goal"
            )
        if self.limit is None:
            return
        if self.kind == "match-teacher":
            measure.check_tolerance(float(self.limit))
        elif self.kind == "accuracy":
            measure.check_target(float(self.limit))

    @property
    def plain(self) -> Goal:
        """The same goal without a guarantee."""
        return replace(self, delta=None, promise=None, loss_bound=None)

    @property
    def promised(self) -> str:
        """The promise that a guarantee of this goal makes."""
        return self.promise or _PROMISED[self.kind][0]

    def as_dict(self) -> dict[str, Any]:
        """Return the goal as keyword arguments of `calibrate`, for JSON and TOML."""
        argument = self.unit or next(iter(GOALS[self.kind]), "")
        table = {"goal": self.kind, argument: self.limit}
        table |= {name: getattr(self, name) for name in GUARANTEE}
        return {name: value for name, value in table.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.as_dict().items())

    def row(self, curve: TradeOffCurve) -> int:
        """Return the row of a curve that reaches the goal, without a guarantee."""
        measure = curve.outcomes.measure
        if self.kind == "match-teacher":
            tolerance, teacher = self.limit or 0.0, curve.outcomes.quality("teacher")
            name = f"the teacher's {measure.figure(teacher):.4g} within {tolerance:g}"
            beside = curve.outcomes.teacher_quality
            return cheapest(curve, teacher - tolerance, name, self.own_margin, beside)
        assert self.limit is not None
        if self.kind == "accuracy":
            wanted = measure.check_target(float(self.limit))
            return cheapest(curve, wanted, f"{measure.name} {self.limit:g}", self.own_margin)
        if self.unit == "deferral_rate":
            return best_within(curve, curve.deferral_rate, self.limit, "deferral rate")
        assert self.unit in UNITS
        return best_within(curve, curve.cost_in(self.unit), self.limit, f"cost in {self.unit}")

    @property
    def limits_quality(self) -> bool:
        """Whether the goal asks for a quality, at the least deferral."""
        return self.kind in ("match-teacher", "accuracy")

    @property
    def own_margin(self) -> float | None:
        """The margin, or `MARGIN` if none is given; None if the goal limits no quality."""
        return (MARGIN if self.margin is None else self.margin) if self.limits_quality else None

    def allowed(self, curve: TradeOffCurve) -> float:
        """Return the tolerance of the goal's promise."""
        assert self.limit is not None
        if self.kind == "match-teacher":
            return float(self.limit)
        if self.kind == "accuracy":
            return 1 - self.limit if curve.outcomes.measure.percent else self.limit
        rate = self.limit
        if self.unit in UNITS:
            self.row(curve)  # raises if no row keeps the budget
            costs = curve.outcomes.student_cost, curve.outcomes.teacher_cost
            student, teacher = (getattr(cost, self.unit) for cost in costs)
            rate = (self.limit - student) / teacher if teacher else np.inf
        if rate >= 1:
            raise ValueError(
                "the budget allows deferring every input, which needs no guarantee: remove delta"
            )
        return float(rate)


GUARANTEE = tuple(field.name for field in fields(Goal))[3:]
"""A goal's other arguments: the guarantee, and the margin."""


def _needed(kind: str) -> str:
    """Return the message about a limit that is missing, doubled, or has a wrong unit."""
    names = GOALS[kind]
    if len(names) > 1:
        return f"goal {kind!r} needs exactly one of {', '.join(names)}"
    return f"goal {kind!r} needs {f'{names[0]} (--{names[0]})' if names else 'no unit'}"


def cheapest(
    curve: TradeOffCurve,
    quality: float,
    name: str,
    margin: float | None = None,
    beside: np.ndarray | None = None,
) -> int:
    """Return the row that defers least among those that exceed a quality by a margin.

    The margin is in standard errors of each row's quality, or of its difference to row qualities
    `beside`, (n,). If no row keeps the margin, return the row that comes nearest.

    Raises
    ------
    CalibrationError
        No row reaches the quality, which the message calls `name`.
    """
    slack = _SLACK * max(1.0, abs(quality))
    reached = np.flatnonzero(curve.quality >= quality - slack)
    if not len(reached):
        best = int(curve.quality.argmax())
        raise CalibrationError(
            f"no threshold reaches {name}; the best is "
            f"{curve.outcomes.measure.figure(curve.quality[best]):.4g}, at deferral "
            f"rate {curve.deferral_rate[best]:.4g}"
        )
    mean = curve.outcomes.measure.mean
    above = np.maximum(mean(curve.quality[reached]) - mean(quality), 0.0)
    error = standard_errors(curve, beside)[reached]
    # an error of 0, like the teacher's against itself, needs no margin
    surplus = np.divide(above, error, out=np.full(len(above), np.inf), where=error > slack)
    enough = np.flatnonzero(surplus >= (margin or 0.0))
    return int(reached[enough[0] if len(enough) else surplus.argmax()])


def standard_errors(curve: TradeOffCurve, beside: np.ndarray | None = None) -> np.ndarray:
    """Return standard errors, (k,), of each row's mean quality, or of its mean minus `beside`."""
    table = curve.outcomes
    beside = np.zeros(len(table)) if beside is None else beside
    kept, deferred = (
        (rows - beside)[curve.order]
        for rows in (table.student_quality, table.deferred_quality(curve.blend))
    )
    count = np.rint(curve.deferral_rate * len(table)).astype(int)
    spread = mean_at(kept**2, deferred**2, count) - mean_at(kept, deferred, count) ** 2
    return np.sqrt(np.maximum(spread, 0.0) / len(table))


def best_within(curve: TradeOffCurve, cost: np.ndarray, budget: float, unit: str) -> int:
    """Return the best row in quality whose cost, (k,), is within the budget; ties: the cheapest."""
    within = np.flatnonzero(cost <= budget * (1 + _SLACK))
    if not len(within):
        raise CalibrationError(
            f"no threshold keeps to a {unit} of {budget:.6g}; the least is {cost[0]:.6g}, at "
            f"deferral rate {curve.deferral_rate[0]:.4g}"
        )
    return int(within[curve.quality[within].argmax()])

"""Stages: which of several models to use, in which order, with which routers between them.

A chain of models is a joint model as the student of another. The knob is the last threshold. Inner
thresholds are fixed on the examples that choose score and blend, so that a guarantee, whose proof
covers the last threshold, holds for any number of stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from ebjr.arrays import Batch, take_rows
from ebjr.blend import Blend
from ebjr.calibration import CHOICE_SEED, CHOICE_SHARE, calibrate
from ebjr.calibration.choice import at_most, choose_blend, choose_score
from ebjr.calibration.goal import Goal
from ebjr.calibration.stage_search import Candidate, Search, Stage
from ebjr.curve import OperatingPoint
from ebjr.errors import check_at_least
from ebjr.joint import JointModel, router_table
from ebjr.model import Model
from ebjr.outcomes import Outcomes
from ebjr.task import Task
from ebjr.tasks import as_task

MOST_STAGES = 3
"""The most models of a chain by default."""


@dataclass(frozen=True)
class StagedPoint(OperatingPoint):
    """An operating point of a chain; its student is the chain without the last model.

    `stages` are the models with the routers in front of them. `candidates` are the chains and
    single models that were compared by cost in `compared_in`.
    """

    stages: tuple[Stage, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    compared_in: str | None = None
    roles: tuple[str, ...] = ()
    task: str = "classification"

    @classmethod
    def of(cls, point: OperatingPoint, stages: Sequence[Stage], **about: Any) -> Self:
        """Make a point of the last router into one of its chain."""
        own: dict[str, Any] = {each.name: getattr(point, each.name) for each in fields(point)}
        return cls(**own, stages=tuple(stages), **about)

    @property
    def _chosen_with(self) -> dict[str, Any]:
        return {**super()._chosen_with, "models": len(self.stages)}

    @property
    def alone(self) -> Candidate | None:
        """The best single model that costs no more than the chain and is as good, or None.

        Like all `candidates`, both are measured on examples that chose no threshold.
        """
        roles = tuple(stage.role for stage in self.stages)
        taken = next((one for one in self.candidates if one.roles == roles), None)
        if taken is None:
            return None
        singles = [one for one in self.candidates if len(one.roles) == 1]
        better = [one for one in singles if one.cost <= taken.cost and one.quality >= taken.quality]
        return max(better, key=lambda one: one.quality, default=None)

    def percent(self, one: Candidate) -> float:
        """Return a candidate's cost in percent of the teacher's."""
        return 100 * one.cost / next(c.cost for c in self.candidates if c.roles == ("teacher",))

    def stages_dict(self) -> dict[str, Any]:
        """Return the stages, and what was compared, for JSON."""
        compared = [asdict(one) | {"level": one.level} for one in self.candidates]
        stages = [stage.as_dict() for stage in self.stages]
        return {"stages": stages, "compared": compared, "compared_in": self.compared_in}

    def joint(self, models: Sequence[Model]) -> JointModel:
        """Make the chain's joint model from all recorded models, in their order.

        Raises
        ------
        ValueError
            `models` has another number of models than were recorded.
        """
        if len(models) != len(self.roles):
            raise ValueError(f"give the {len(self.roles)} recorded models, not {len(models)}")
        by_role = dict(zip(self.roles, models, strict=True))
        return nested([by_role[one.role] for one in self.stages], self.stages, as_task(self.task))


def nested(models: Sequence[Model], stages: Sequence[Stage], kind: Task) -> Any:
    """Nest the models of some stages: each joint model is the student of the next."""
    model = models[0]
    for stage, teacher in zip(stages[1:], models[1:], strict=True):
        model = kind.final(model, teacher, stage.router, blend=stage.blend)
    return model


def reduced(outcomes: Outcomes, stages: Sequence[Stage]) -> Outcomes:
    """Return a chain's outcomes as a pair's: the student stands for all but the last stage.

    The joint model itself answers, with recorded outputs in place of its models.
    """
    *inner, last = stages
    if len(inner) == 1:
        return outcomes.pair(inner[0].role, last.role)
    asked = np.zeros((len(outcomes), len(inner)), bool)

    def recorded(place: int) -> Model:
        def look_up(rows: np.ndarray) -> Batch:
            asked[rows, place] = True
            return take_rows(outcomes.said_by(inner[place].role), rows)

        return look_up

    student = nested([*map(recorded, range(len(inner)))], inner, outcomes.kind)
    said = student(np.arange(len(outcomes))).output
    pair = outcomes.pair(inner[0].role, last.role)
    models = {"student": _table(outcomes, inner), "teacher": pair.models.get("teacher")}
    return replace(
        pair,
        student=said,
        models={role: table for role, table in models.items() if table is not None},
        asked=asked,
        asked_costs=tuple(outcomes.cost_of(stage.role) for stage in inner),
    )


def _table(outcomes: Outcomes, stages: Sequence[Stage]) -> Mapping[str, Any] | None:
    """Return ``joint.toml``'s entry for a student made of stages; None if a model has no entry."""
    if any(stage.role not in outcomes.models for stage in stages):
        return None
    table = outcomes.models[stages[0].role]
    for stage in stages[1:]:
        router = router_table(stage.router, stage.blend)
        both = {"student": table, "teacher": outcomes.models[stage.role]}
        table = {"task": outcomes.task, "router": router, **both}
    return table


def calibrate_stages(
    outcomes: Outcomes,
    goal: str | Goal = "match-teacher",
    *,
    stages: str | Sequence[str] = "auto",
    most: int = MOST_STAGES,
    unit: str | None = None,
    score: Any = "auto",
    blend: float | Blend | str = "auto",
    **target: Any,
) -> StagedPoint:
    """Choose a chain of models and all its thresholds. Give it one half of the outcomes.

    Every chain of at most `most` models, cheapest first, is fitted on part of the examples and
    compared on the rest, in turn, with the others and with each model alone. The shortest chain
    that only noise puts behind the best is chosen. `calibrate` then finds the last threshold, which
    is the knob and what a guarantee is about.

    Parameters
    ----------
    outcomes
        The answers of two or more models, from `record_all`.
    goal, score, blend, **target
        As in `calibrate`; `score` and `blend` are the last router's.
    stages
        ``"auto"``, or the roles of a chain's models with the teacher last, like
        ``("student", "model-2", "teacher")``.
    most
        The most models in a chain.
    unit
        The unit of cost, one of `costs.UNITS`, to compare chains in; by default the goal's, or the
        first that is known for every model.

    Raises
    ------
    ValueError
        `stages` is not a chain of these outcomes, `most` is under 2, `unit` is not known for every
        model, a model costs more than the one after it, or the task has no stages.
    CalibrationError
        No chain reaches the goal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.integers(0, 2, 400)
    >>> weak, fair, sure = (s * np.eye(2)[targets] + rng.normal(0, 1, (400, 2)) for s in (1, 2, 6))
    >>> from ebjr import Cost
    >>> table = Outcomes(weak, sure, targets, student_cost=Cost(1.0), teacher_cost=Cost(10.0),
    ...                  between=(fair,), between_costs=(Cost(2.0),))
    >>> point = calibrate_stages(table, tolerance=0.02)
    >>> [stage.role for stage in point.stages][-1], point.cost.flops < 10
    ('teacher', True)
    """
    aim = Goal.of(goal, **target)
    aim.check(outcomes.measure)
    check_at_least(2, most=most)
    choosing, rest = outcomes, outcomes
    if aim.delta is not None:
        choosing, rest = outcomes.split(CHOICE_SHARE, CHOICE_SEED)
    search = Search(at_most(choosing), aim.plain, unit)
    chain, candidates = search.best(search.chains(stages, most))
    found = search.stages(chain)
    if aim.delta is not None:  # choose score and blend here, so that `rest` only certifies
        table = reduced(choosing, found)
        score = choose_score(table, None if score == "auto" else [score])
        blend = choose_blend(table, score) if blend == "auto" else blend
    point = calibrate(reduced(rest, found), aim, score=score, blend=blend)
    last = Stage(found[-1].role, point.score, point.threshold, point.blend)
    return StagedPoint.of(
        point,
        (*found[:-1], last),
        candidates=candidates,
        compared_in=search.unit,
        roles=outcomes.roles,
        task=outcomes.task,
    )

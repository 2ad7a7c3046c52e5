"""Stages: which models of a zoo, in which order, with which routers in between.

A chain of models is a joint model as the student of another. The knob is the last threshold. Those
inside are fixed here, on the examples that score and blend are chosen on, so that a guarantee,
whose proof is about the last threshold, holds with any number of stages.
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
"""The most models of a chain that ``"auto"`` tries, if nobody says how many."""


@dataclass(frozen=True)
class StagedPoint(OperatingPoint):
    """An operating point of a chain: as its student counts the chain without the last model.

    `stages` are the models with the routers in front of them. `candidates` are the chains and
    single models that were compared, by their cost in `compared_in`.
    """

    stages: tuple[Stage, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    compared_in: str | None = None
    roles: tuple[str, ...] = ()
    task: str = "classification"

    @classmethod
    def of(cls, point: OperatingPoint, stages: Sequence[Stage], **about: Any) -> Self:
        """A point of the last router as one of its chain."""
        own: dict[str, Any] = {each.name: getattr(point, each.name) for each in fields(point)}
        return cls(**own, stages=tuple(stages), **about)

    @property
    def alone(self) -> Candidate | None:
        """The best single model that costs no more than the chain and is as good, if there is one.

        As `candidates` they are both judged on examples that no threshold was chosen on.
        """
        roles = tuple(stage.role for stage in self.stages)
        taken = next((one for one in self.candidates if one.roles == roles), None)
        if taken is None:
            return None
        singles = [one for one in self.candidates if len(one.roles) == 1]
        better = [one for one in singles if one.cost <= taken.cost and one.quality >= taken.quality]
        return max(better, key=lambda one: one.quality, default=None)

    def percent(self, one: Candidate) -> float:
        """A candidate's cost in percent of the teacher's."""
        return 100 * one.cost / next(c.cost for c in self.candidates if c.roles == ("teacher",))

    def stages_dict(self) -> dict[str, Any]:
        """The stages, and what was compared, for JSON."""
        compared = [asdict(one) | {"level": one.level} for one in self.candidates]
        stages = [stage.as_dict() for stage in self.stages]
        return {"stages": stages, "compared": compared, "compared_in": self.compared_in}

    def joint(self, models: Sequence[Model]) -> JointModel:
        """The joint model of the chain, of all the models that were recorded, in their order.

        Raises
        ------
        ValueError
            `models` are not as many as were recorded.
        """
        if len(models) != len(self.roles):
            raise ValueError(f"give the {len(self.roles)} models recorded, not {len(models)}")
        by_role = dict(zip(self.roles, models, strict=True))
        return nested([by_role[one.role] for one in self.stages], self.stages, as_task(self.task))


def nested(models: Sequence[Model], stages: Sequence[Stage], kind: Task) -> Any:
    """The models of some stages as one: each joint model is the student of the next."""
    model = models[0]
    for stage, teacher in zip(stages[1:], models[1:], strict=True):
        model = kind.final(model, teacher, stage.router, blend=stage.blend)
    return model


def reduced(outcomes: Outcomes, stages: Sequence[Stage]) -> Outcomes:
    """The outcomes of a chain as those of a pair: as the student answers all but the last stage.

    It is the joint model itself that answers, with the recorded outputs in place of its models.
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
    """The entry of ``joint.toml`` for the student that some stages are; None if one has none."""
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
    """Choose a chain of models and all of its thresholds. Give it one half of the outcomes.

    Every chain of at most `most` of the models, the cheapest first, is fitted on a part of the
    examples and compared on the rest, in turn, with each other and with each model alone. Taken is
    the shortest one that is behind the best by no more than noise. The last threshold is then that
    of `calibrate`: the knob, and what a guarantee is about.

    Parameters
    ----------
    outcomes
        What two or more models said, as `record_all` gives it.
    goal, score, blend, **target
        As of `calibrate`; `score` and `blend` are those of the last router.
    stages
        ``"auto"``, or the roles of a chain's models, the teacher last, as in
        ``("student", "model-2", "teacher")``.
    most
        The most models of a chain.
    unit
        In which of `costs.UNITS` chains are compared; None is the goal's, or the first that is
        known of every model.

    Raises
    ------
    ValueError
        `stages` names no chain of these outcomes, `most` is under 2, `unit` is not known of all
        models, a model is dearer than the one after it, or the task has no stages.
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
    if aim.delta is not None:  # chosen here, so that all the rest is left to certify on
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

"""Groups: which classes gain by deferral, and which lose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from ebjr.curve import OperatingPoint
from ebjr.evaluation.bootstrap import point_rows
from ebjr.outcomes import Outcomes
from ebjr.stats import Interval

OTHERS = ("student", "teacher")  # compared with the joint model


@dataclass(frozen=True)
class Group:
    """The `n` examples of a class, or with similar targets, at an operating point."""

    name: str
    n: int
    means: tuple[float, ...]  # means of `point_rows`
    over: dict[str, Interval]  # by model: the joint model's mean minus the model's, in this group
    sure: dict[str, int]  # its sign if significant over all groups (Bonferroni), else 0


def by_rows(outcomes: Outcomes, point: OperatingPoint) -> Outcomes:
    """Return the outcomes as the point sees them, in the task's nearest metric of rows."""
    table = outcomes.with_scale(point.rescale)
    return table if table.measure.rows is not None else replace(table, metric="f1")


def group_gains(outcomes: Outcomes, point: OperatingPoint) -> list[Group]:
    """Return each class that has examples, in order, with the figures of all three models.

    An image counts for every class of which it has a label or a box; numeric targets are cut into
    tenths. Intervals are Wald's with two examples added (half of one per combination of right and
    wrong), so that they are not too short with few examples or differences.

    Source: Agresti & Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 2005.
    """
    table = by_rows(outcomes, point)
    rows, places, names = _grouped(table)
    size = np.bincount(places, minlength=len(names))
    there = np.flatnonzero(size)

    def means(column: np.ndarray) -> np.ndarray:
        return np.bincount(places, column[rows], len(names))[there] / size[there]

    columns = point_rows(table, point).T
    found = {}
    for role, other in zip(OTHERS, columns[2:], strict=True):
        change = columns[1] - other
        prior = 1.0 if table.measure.binary else float((change**2).mean())
        bound = 1.0 if table.measure.percent else np.inf  # of a difference of two qualities
        found[role] = _intervals(means(change), means(change**2), size[there], prior, bound)
    figures = np.column_stack([means(column) for column in columns]).tolist()
    return [
        Group(
            names[place],
            int(size[place]),
            tuple(figures[row]),
            {role: intervals[row] for role, (intervals, _) in found.items()},
            {role: int(signs[row]) for role, (_, signs) in found.items()},
        )
        for row, place in enumerate(there.tolist())
    ]


def _intervals(
    mean: np.ndarray, square: np.ndarray, n: np.ndarray, prior: float, bound: float
) -> tuple[list[Interval], np.ndarray]:
    """Return each group's mean change with its interval, and its sign if all together are sure."""
    middle = n * mean / (n + 2)
    error = np.sqrt(((n * square + prior) / (n + 2) - middle**2) / (n + 2))
    ends = np.clip([middle - 1.96 * error, middle + 1.96 * error], -bound, bound)
    sure = np.abs(middle) > -ndtri(0.025 / len(n)) * error
    intervals = [Interval(*map(float, row)) for row in zip(mean, *ends, strict=True)]
    return intervals, np.sign(middle) * sure


def _grouped(table: Outcomes) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Return rows, each one's group, and the groups' names; a row may be in several groups."""
    targets, names = table.targets, table.labels
    rows, places = np.arange(len(table)), targets
    if table.kind.targets_are == "numbers":
        edges = np.unique(np.quantile(targets, np.linspace(0, 1, 11)))
        places = np.searchsorted(edges[1:-1], targets, side="right")
        names = tuple(map("{:.4g} to {:.4g}".format, edges, edges[1:])) or (f"{edges[0]:.4g}",)
    elif table.kind.targets_are == "boxes":
        pairs = [(row, k) for row, one in enumerate(targets) for k in np.unique(one.labels)]
        rows, places = np.array(pairs, int).reshape(-1, 2).T
    elif table.kind.targets_are == "label sets":
        rows, places = np.nonzero(targets)
    names = names or tuple(f"class {place}" for place in range(1 + int(places.max(initial=-1))))
    twice = len(set(names)) < len(names)  # like ImageNet's two cranes
    return rows, places, [f"{name} ({k})" for k, name in enumerate(names)] if twice else names

"""Costs: what an example costs, and what a joint model costs at a deferral rate (section 3.1)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

UNITS = ("flops", "seconds", "joules")


@dataclass(frozen=True)
class Cost:
    """What one example costs; None is "not known". FLOPs, not MACs: 1 MAC = 2 FLOPs.

    Raises
    ------
    ValueError
        A cost is negative or not finite.

    Examples
    --------
    >>> Cost(flops=2e6) + Cost(flops=3e6, seconds=0.1)
    Cost(flops=5000000.0, seconds=None, joules=None)
    """

    flops: float | None = None
    seconds: float | None = None
    joules: float | None = None

    def __post_init__(self) -> None:
        for unit, value in asdict(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{unit} must be a finite number of at least 0, not {value}")

    def __add__(self, other: Cost) -> Cost:
        def total(unit: str) -> float | None:
            mine, theirs = getattr(self, unit), getattr(other, unit)
            return None if mine is None or theirs is None else mine + theirs

        return Cost(**{unit: total(unit) for unit in UNITS})

    def __mul__(self, factor: float) -> Cost:
        return Cost(**{k: None if v is None else v * factor for k, v in asdict(self).items()})

    __rmul__ = __mul__

    def as_dict(self) -> dict[str, float]:
        """The units that are known.

        Examples
        --------
        >>> Cost(seconds=0.1).as_dict()
        {'seconds': 0.1}
        """
        return {unit: value for unit, value in asdict(self).items() if value is not None}


def joint_cost(student: Cost, teacher: Cost, deferral_rate: float) -> Cost:
    """Cost per example of a joint model: ``F_S + rate * F_T``.

    The paper's ``(N_S F_S + N_T (F_S + F_T)) / (N_S + N_T)`` (section 3.1): the student is paid on
    every input.

    Examples
    --------
    >>> joint_cost(Cost(flops=0.54e8), Cost(flops=2.92e8), deferral_rate=0.3).flops
    141600000.0
    """
    return student + deferral_rate * teacher


def break_even_rate(student: Cost, teacher: Cost, unit: str) -> float | None:
    """The deferral rate above which the teacher alone is cheaper: ``1 - F_S / F_T``.

    None where the unit is not known; negative where the student costs more than the teacher.

    Examples
    --------
    >>> break_even_rate(Cost(flops=1.0), Cost(flops=4.0), "flops")
    0.75
    """
    paid, saved = getattr(student, unit), getattr(teacher, unit)
    if paid is None or not saved:
        return None
    return 1.0 - paid / saved


def common_unit(student: Cost, teacher: Cost) -> str | None:
    """The first unit that both costs know, FLOPs before seconds before joules.

    Examples
    --------
    >>> common_unit(Cost(flops=1.0, seconds=2.0), Cost(seconds=3.0))
    'seconds'
    """
    for unit in UNITS:
        if getattr(student, unit) is not None and getattr(teacher, unit) is not None:
            return unit
    return None

"""Costs of an example, and of a joint model at a deferral rate (section 3.1)."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

UNITS = ("flops", "dollars", "seconds", "joules", "bytes")
SAVED = {
    "flops": "fewer FLOPs",
    "dollars": "less money",
    "seconds": "less time",
    "joules": "fewer joules",
    "bytes": "fewer bytes",
}
"""Words after a ratio, by unit: "3x fewer FLOPs"."""

MOST_DEARER = 1.1
"""A model may cost up to this many times the next one's cost: measured costs are noisy."""

KINDS_OF_JOULES = ("measured", "estimated")


@dataclass(frozen=True)
class Cost:
    """The cost of one example; None is unknown. FLOPs, not MACs: 1 MAC = 2 FLOPs.

    Parameters
    ----------
    flops, seconds, joules
        Per example.
    bytes
        Bytes over a link per example, both ways.
    dollars
        Price of an example.
    joules_are
        ``"measured"`` or ``"estimated"``; None if unknown. Measured and estimated joules have
        neither a sum nor a ratio.
    rest
        True for a teacher that continues from the student's features: the cost of its part only.

    Raises
    ------
    ValueError
        A cost is negative or not finite, or `joules_are` is invalid or without `joules`.

    Examples
    --------
    >>> Cost(flops=2e6) + Cost(flops=3e6, seconds=0.1)
    Cost(flops=5000000.0, seconds=None, joules=None, joules_are=None, bytes=None, dollars=None)
    >>> Cost(joules=2.0, joules_are="measured") + Cost(joules=3.0, joules_are="estimated") == Cost()
    True
    """

    flops: float | None = None
    seconds: float | None = None
    joules: float | None = None
    joules_are: str | None = None
    bytes: float | None = None
    dollars: float | None = None
    rest: bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for unit in UNITS:
            value = getattr(self, unit)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{unit} must be a finite number of at least 0, not {value}")
        if self.joules_are is None:
            return
        if self.joules_are not in KINDS_OF_JOULES:
            known = " or ".join(KINDS_OF_JOULES)
            raise ValueError(f"joules_are must be {known}, not {self.joules_are!r}")
        if self.joules is None:
            raise ValueError(f"joules_are is {self.joules_are!r}, but no joules are given")

    def __add__(self, other: "Cost") -> "Cost":
        common = [unit for unit in UNITS if is_comparable(self, other, unit)]
        kind = self.joules_are if "joules" in common else None
        total = {unit: getattr(self, unit) + getattr(other, unit) for unit in common}
        return Cost(**total, joules_are=kind)

    def __mul__(self, factor: float) -> "Cost":
        known = {unit: value for unit in UNITS if (value := getattr(self, unit)) is not None}
        return replace(self, **{unit: value * factor for unit, value in known.items()})

    __rmul__ = __mul__

    def filled(self, **values: Any) -> "Cost":
        """Return a copy with the unknown values filled in."""
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def as_dict(self) -> dict[str, Any]:
        """Return the known fields."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def is_comparable(one: Cost, other: Cost, unit: str) -> bool:
    """Tell whether both costs have a unit; joules must also be of the same kind."""
    if getattr(one, unit) is None or getattr(other, unit) is None:
        return False
    return unit != "joules" or one.joules_are == other.joules_are


def joint_cost(student: Cost, teacher: Cost, deferral_rate: float) -> Cost:
    """Return the cost per example of a joint model: ``F_S + rate * F_T``.

    The paper's ``(N_S F_S + N_T (F_S + F_T)) / (N_S + N_T)`` (section 3.1): the student is paid on
    every input. A unit that one of them lacks, or joules of different kinds, are None.

    Raises
    ------
    ValueError
        `deferral_rate` is outside [0, 1].

    Examples
    --------
    >>> joint_cost(Cost(flops=0.54e8), Cost(flops=2.92e8), deferral_rate=0.3).flops
    141600000.0
    """
    if not 0 <= deferral_rate <= 1:  # refuses a NaN as well
        raise ValueError(f"deferral_rate must lie between 0 and 1, not {deferral_rate}")
    return student + deferral_rate * teacher


def alone_cost(student: Cost, teacher: Cost) -> Cost:
    """Return the cost per example of the teacher alone, or of both if it continues from it."""
    return student + teacher if teacher.rest else teacher


def break_even_rate(student: Cost, teacher: Cost, unit: str) -> float | None:
    """Return the deferral rate above which the teacher alone is cheaper: ``1 - F_S / F_T``.

    None if the unit is unknown or joules are of different kinds; negative if the student costs more
    than the teacher; 1 for a teacher that continues from the student, which is never cheaper.
    """
    paid, saved = getattr(student, unit), getattr(teacher, unit)
    if not is_comparable(student, teacher, unit) or not saved:
        return None
    return 1.0 if teacher.rest else 1.0 - paid / saved


def common_unit(student: Cost, teacher: Cost) -> str | None:
    """Return the first of `UNITS` that both costs have, with joules of one kind."""
    return next((unit for unit in UNITS if is_comparable(student, teacher, unit)), None)


def half_known(student: Cost, teacher: Cost) -> str:
    """Return a clause about units that only one model has; empty if there are none."""
    clauses = [
        f"the {role}'s {unit} are not known"
        for unit in UNITS
        for role, own, other in (("student", student, teacher), ("teacher", teacher, student))
        if getattr(own, unit) is None and getattr(other, unit) is not None
    ]
    return ", ".join(clauses)


def flops_text(cost: Cost) -> str:
    """Return MFLOPs per example; empty if unknown."""
    return "" if cost.flops is None else _short(cost.flops / 1e6, 1)


def ms_text(cost: Cost) -> str:
    """Return milliseconds per example; empty if unknown."""
    return "" if cost.seconds is None else _short(1e3 * cost.seconds, 3)


def millijoules_text(joules: float | None) -> str:
    """Return joules in millijoules; empty if unknown."""
    return "" if joules is None else f"{1e3 * joules:,.4g}"


def further_columns(common: Cost, cost: Cost) -> dict[str, str]:
    """Return a table's further cells by title, for the units that `common`, the rows' sum, has."""
    columns = {}
    if common.joules_are is not None:
        columns[f"mJ, {common.joules_are}"] = millijoules_text(cost.joules)
    if common.dollars is not None:
        columns["$ per 1,000"] = "" if cost.dollars is None else f"{1e3 * cost.dollars:,.4g}"
    if common.bytes is not None:
        columns["kB moved"] = "" if cost.bytes is None else f"{cost.bytes / 1e3:,.4g}"
    return columns


def _short(value: float, digits: int) -> str:
    """Format with `digits` after the point, or three significant ones below 0.1."""
    return f"{value:.3g}" if 0 < value < 0.1 else f"{value:,.{digits}f}"

"""Costs: what an example costs, and what a joint model costs at a deferral rate (section 3.1)."""

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
"""By unit: what there is that many times less of."""

MOST_DEARER = 1.1
"""How many times what the next model costs one may cost and come before it: figures have noise."""

KINDS_OF_JOULES = ("measured", "estimated")


@dataclass(frozen=True)
class Cost:
    """What one example costs; None is "not known". FLOPs, not MACs: 1 MAC = 2 FLOPs.

    Parameters
    ----------
    flops, seconds, joules
        Per example.
    bytes
        Moved over a link per example, there and back.
    dollars
        Paid to who runs the model, per example.
    joules_are
        ``"measured"`` or ``"estimated"``; None where nobody said. Two costs whose joules are of
        different kinds have none in common: neither their sum nor their ratio is known.
    rest
        Whether it is of a teacher that continues from the student's features: of its part alone.

    Raises
    ------
    ValueError
        A cost is negative or not finite, or `joules_are` is something else, or without joules.

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
        """The same, with some values where it has none."""
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def as_dict(self) -> dict[str, Any]:
        """The units that are known, and what the joules are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def is_comparable(one: Cost, other: Cost, unit: str) -> bool:
    """Whether both costs know a unit; joules also have to be of the same kind."""
    if getattr(one, unit) is None or getattr(other, unit) is None:
        return False
    return unit != "joules" or one.joules_are == other.joules_are


def joint_cost(student: Cost, teacher: Cost, deferral_rate: float) -> Cost:
    """Cost per example of a joint model: ``F_S + rate * F_T``.

    The paper's ``(N_S F_S + N_T (F_S + F_T)) / (N_S + N_T)`` (section 3.1): the student is paid on
    every input. What one of them does not know, or joules of different kinds, are None.

    Raises
    ------
    ValueError
        The deferral rate does not lie between 0 and 1.

    Examples
    --------
    >>> joint_cost(Cost(flops=0.54e8), Cost(flops=2.92e8), deferral_rate=0.3).flops
    141600000.0
    """
    if not 0 <= deferral_rate <= 1:  # a NaN fails here, too
        raise ValueError(f"deferral_rate must lie between 0 and 1, not {deferral_rate}")
    return student + deferral_rate * teacher


def alone_cost(student: Cost, teacher: Cost) -> Cost:
    """Cost per example of the teacher alone; of one that continues, with the student before it."""
    return student + teacher if teacher.rest else teacher


def break_even_rate(student: Cost, teacher: Cost, unit: str) -> float | None:
    """The deferral rate above which the teacher alone is cheaper: ``1 - F_S / F_T``.

    None where the unit is not known or joules are of different kinds; negative where the student
    costs more than the teacher. A teacher that continues from the student's is never cheaper: 1.
    """
    paid, saved = getattr(student, unit), getattr(teacher, unit)
    if not is_comparable(student, teacher, unit) or not saved:
        return None
    return 1.0 if teacher.rest else 1.0 - paid / saved


def common_unit(student: Cost, teacher: Cost) -> str | None:
    """The first of `UNITS` that both costs know; joules have to be of one kind."""
    return next((unit for unit in UNITS if is_comparable(student, teacher, unit)), None)


def half_known(student: Cost, teacher: Cost) -> str:
    """Which units are known of one model alone, as a clause; nothing where there are none."""
    clauses = [
        f"the {role}'s {unit} are not known"
        for unit in UNITS
        for role, own, other in (("student", student, teacher), ("teacher", teacher, student))
        if getattr(own, unit) is None and getattr(other, unit) is not None
    ]
    return ", ".join(clauses)


def flops_text(cost: Cost) -> str:
    """MFLOPs per example; nothing where they are not known."""
    return "" if cost.flops is None else _short(cost.flops / 1e6, 1)


def ms_text(cost: Cost) -> str:
    """Milliseconds per example; nothing where they are not known."""
    return "" if cost.seconds is None else _short(1e3 * cost.seconds, 3)


def millijoules_text(joules: float | None) -> str:
    """Joules in millijoules; nothing where they are not known."""
    return "" if joules is None else f"{1e3 * joules:,.4g}"


def further_columns(common: Cost, cost: Cost) -> dict[str, str]:
    """What a table shows beside FLOPs and time, by title, if `common`, its rows' sum, knows it."""
    columns = {}
    if common.joules_are is not None:
        columns[f"mJ, {common.joules_are}"] = millijoules_text(cost.joules)
    if common.dollars is not None:
        columns["$ per 1,000"] = "" if cost.dollars is None else f"{1e3 * cost.dollars:,.4g}"
    if common.bytes is not None:
        columns["kB moved"] = "" if cost.bytes is None else f"{cost.bytes / 1e3:,.4g}"
    return columns


def _short(value: float, digits: int) -> str:
    """So many digits after the point, but three that count where it is small."""
    return f"{value:.3g}" if 0 < value < 0.1 else f"{value:,.{digits}f}"

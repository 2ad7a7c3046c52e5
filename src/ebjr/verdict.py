"""Verdict: do held-out examples meet the goal, and at what price?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ebjr.calibration.goal import Goal
from ebjr.costs import Cost, flops_text
from ebjr.curve import OperatingPoint
from ebjr.errors import counted
from ebjr.metric import METRICS
from ebjr.stats import Interval

MET, MISSED, UNDECIDED = "met", "missed", "not decided"


@dataclass(frozen=True)
class Verdict:
    """The result of a study in sentences.

    `standing` is ``"met"`` if the whole 95 % interval meets the goal, ``"missed"`` if none of it
    does, and ``"not decided"`` otherwise; None if the goal sets no limit. `goal` says what the
    held-out examples show, `price` compares the joint model's cost with the teacher's, and
    `promise` explains, if needed, why a promise can hold although the figures miss it.
    """

    standing: str | None
    goal: str
    price: str
    promise: str = ""

    @classmethod
    def of(
        cls,
        goal: Goal,
        point: OperatingPoint,
        intervals: Mapping[str, Interval],
        pays_within: OperatingPoint | None = None,
    ) -> Verdict:
        """Judge a goal by what held-out examples show at a point.

        `intervals` come from `bootstrap`. If the point does not pay, `pays_within` is a point that
        does, at a larger tolerance.
        """
        above, limit = _above(goal, point, intervals)
        shown = _shown(goal, point, intervals)
        price = point.verdict if pays_within is None else _brittle(goal, point, pays_within)
        seen = counted(point.n, "held-out example")
        if above is None:
            return cls(None, f"Goal {goal.kind} sets no limit. On {seen}: {shown}", price)
        standing = MET if above.low >= 0 else MISSED if above.high < 0 else UNDECIDED
        by = {
            MET: f" on {seen}",
            MISSED: f" by {_amount(goal, point, -above.estimate)} on {seen}",
            UNDECIDED: f" by {seen}",
        }[standing]
        promise = ""
        if point.certified is not None and above.estimate < 0:
            promise = (
                "The promise may still hold: it is about all inputs, and these "
                f"{point.n:,} are only a sample. It fails with probability "
                f"{point.certified.delta:g} at most."
            )
        return cls(standing, f"Goal {standing}{by}: {limit}. {shown}", price, promise)

    @property
    def text(self) -> str:
        """All sentences as one paragraph."""
        return " ".join(filter(None, (self.goal, self.price, self.promise)))


def _above(
    goal: Goal, point: OperatingPoint, intervals: Mapping[str, Interval]
) -> tuple[Interval | None, str]:
    """Return the surplus over what the goal asks, higher is better, and what it asks in words."""
    measure, limit = METRICS[point.metric], float(goal.limit or 0.0)
    if goal.kind == "match-teacher":
        least = _amount(goal, point, limit)
        words = f"at most {least} under the teacher" if limit else "as good as the teacher"
        return _shifted(intervals["gain_over_teacher"], limit), words
    if goal.kind == "accuracy":
        wanted, (estimate, *ends) = measure.check_target(limit), intervals[measure.name]
        low, high = sorted(float(measure.figure(end)) for end in ends)
        words = f"{measure.title} of at {'most' if measure.lower else 'least'} "
        found = Interval(float(measure.figure(estimate)), low, high)
        return _shifted(found, -wanted), words + measure.words(wanted)
    if goal.kind == "budget":
        rate = intervals["deferral_rate"]
        fixed, each = 0.0, 1.0
        if goal.unit != "deferral_rate":
            fixed, each = (
                getattr(cost, str(goal.unit)) for cost in (point.student_cost, point.teacher_cost)
            )
        left = Interval(
            *(limit - fixed - each * end for end in (rate.estimate, rate.high, rate.low))
        )
        each_example = "" if goal.unit == "deferral_rate" else " an example"
        return left, f"at most {_amount(goal, point, limit)}{each_example}"
    return None, ""


def _shifted(interval: Interval, by: float) -> Interval:
    slack = 1e-12  # differences of means are not exact in binary
    return Interval(*(end + by + slack for end in interval))


def _amount(goal: Goal, point: OperatingPoint, amount: float) -> str:
    if goal.kind == "budget":
        if goal.unit == "deferral_rate":
            return f"{100 * amount:.3g} % deferred"
        if goal.unit == "flops":
            return f"{flops_text(Cost(flops=abs(amount)))} MFLOPs"
        return f"{amount:,.4g} {goal.unit}"
    measure = METRICS[point.metric]
    if not measure.percent:
        return f"{amount:.3g} of {measure.title}"
    points = f"{100 * amount:.3g}"
    return f"{points} point" if points == "1" else f"{points} points"


def _shown(goal: Goal, point: OperatingPoint, intervals: Mapping[str, Interval]) -> str:
    measure, gain = METRICS[point.metric], intervals["gain_over_teacher"]

    over, under = ("over", "under") if measure.percent else ("better", "worse")
    size, *ends = (f"{100 * abs(x):.2f}" if measure.percent else f"{abs(x):.3g}" for x in gain)
    side, *sides = (over if x >= 0 else under for x in gain)
    low, high = map(" ".join, zip(ends, sides, strict=True))

    deferred = ""
    if goal.kind == "budget":
        rate = intervals["deferral_rate"]
        deferred = f", deferring {rate.estimate:.1%} ({rate.low:.1%} to {rate.high:.1%})"
    unit, than = ("points ", "the teacher") if measure.percent else ("", "than the teacher")
    title = measure.title[:1].upper() + measure.title[1:]
    return (
        f"{title} {measure.words(point.quality)}, {size} {unit}{side} {than} (95 % interval "
        f"{low} to {high}){deferred}."
    )


def _brittle(goal: Goal, point: OperatingPoint, other: OperatingPoint) -> str:
    """Say that the goal does not pay although a slightly larger tolerance would."""
    tolerance, limit = other.teacher_quality - other.quality, float(goal.limit or 0.0)
    return (
        f"At this goal nothing is saved: {point.deferral_rate:.1%} are deferred, and the teacher "
        f"alone is cheaper above {point.break_even:.1%}. A tolerance of {limit:g} hangs on a few "
        f"examples: at {_amount(goal, point, max(tolerance, 0.0))} under the teacher, "
        f"{other.deferral_rate:.1%} of the calibration examples would be deferred. Use a larger "
        "--tolerance."
    )

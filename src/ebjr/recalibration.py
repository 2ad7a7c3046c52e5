"""Recalibrate: is today's threshold still right, and would another one pay?

New examples answer two questions. All of them *judge today's threshold*, which they did not choose:
the promise is broken if a test at level `alpha` refutes it. And they *choose the threshold again*,
as `calibrate` does, for the same goal, score and blend: half of them choose, with the same
guarantee, and the other half show the result.

- ``"broken"``: the promise is refuted. A kept promise is called broken with probability `alpha` at
  most.
- ``"moved"``: the promise is not refuted, and the new threshold changes the deferral rate by more
  than `worth` and by more than the scatter of both choices. Resampled examples show the scatter of
  the new choice; today's is taken to be the same, on as many examples as it was chosen on.
- ``"kept"``: neither.

*Slices* are each class, and each value of the given columns. They are judged too but do not decide,
because the promise is about all inputs. Their levels are ``alpha`` over their number, so that with
probability ``1 - alpha`` no slice within the limit is called over. A slice is judged if it has
enough examples to show, with probability 0.8, a mean loss that is half of its standard deviation
over the limit.

If losses are bounded (accuracy, deferral rates, `loss_bound`) the tests are exact, see
`calibration.guarantee.LossesAt`. Otherwise they use the bootstrap's intervals, stretched to their
level like those of a normal distribution.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from ebjr.calibration import Goal, calibrate
from ebjr.calibration.guarantee import LossesAt, certified_row
from ebjr.curve import OperatingPoint, TradeOffCurve, score_values
from ebjr.data.tables import Table
from ebjr.errors import CalibrationError, check_at_least
from ebjr.evaluation import evaluate
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.files import read_text
from ebjr.joint_file import JointConfig
from ebjr.monitor import DriftMonitor, RiskMonitor
from ebjr.outcomes import Outcomes
from ebjr.router import deferral_key, is_deferred
from ebjr.stats import Interval
from ebjr.study import Study, check_classes, run_study
from ebjr.windows import STATE_FILE, STATE_FORMAT, RiskWindows, foremost, why_recalibrate

KEPT, MOVED, BROKEN = "kept", "moved", "broken"
EXIT_STATUS = {KEPT: 0, MOVED: 3, BROKEN: 4}
"""By status: the command's exit status."""

WITHIN, OVER, OPEN, FEW = "within", "over", "open", "too few"

WINDOWS = 10
"""How many slices of equal size times and numbers are cut into, in order."""

MOST_VALUES, MOST_TEXTS = 100, 10_000
"""The most values of a column that become slices: for whole numbers, and for texts."""

_EFFECT, _POWER = 0.5, 0.8
_RESAMPLES, _RESAMPLES_OF_WHOLE = (100, 50_000), (30, 500)  # their number, and their most rows


@dataclass(frozen=True)
class Slice:
    """The examples of a class, or of a value of a column, at today's threshold.

    `loss` is what the promise bounds, with its interval at the slices' level; None if there are too
    few examples or nothing is promised. `loss_after` is the loss at the new threshold, if there is
    one, on the same examples, some of which chose it. `standing` is ``"within"`` the limit,
    ``"over"`` it, ``"open"``, or ``"too few"``.
    """

    column: str
    name: str
    n: int
    deferral_rate: float
    quality: float
    loss: Interval | None
    loss_after: float | None
    standing: str


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What new examples show about a calibrated threshold.

    Attributes
    ----------
    config
        Today's ``joint.toml``.
    goal, promise, limit
        The threshold's goal, the loss that it bounds (``"excess"``, ``"harm"``, ``"risk"`` or
        ``"rate"``; None if it bounds none), and the largest loss that keeps it.
    today, loss
        Today's threshold on all new examples, and its loss there; each end of the interval is
        wrong with probability `alpha` at most.
    refuted
        Whether the examples refute a loss of at most `limit`.
    study
        The new threshold, chosen on one part of the examples and reported on the other; None if
        there is none, for `reason`.
    found
        The new threshold on all new examples, like `today`.
    change
        The new threshold's deferral rate minus today's, with its interval of chance.
    slices, least
        The slices, and the number of examples that a judgement needs.
    alpha, worth
        The arguments of `recalibrate`.
    clipped
        How many of the new losses were cut off at the goal's `loss_bound`; None without one.
    """

    config: JointConfig
    goal: Goal
    promise: str | None
    limit: float | None
    today: OperatingPoint
    loss: Interval | None
    refuted: bool
    study: Study | None
    reason: str | None
    found: OperatingPoint | None
    change: Interval | None
    slices: tuple[Slice, ...]
    least: int
    alpha: float
    worth: float
    clipped: int | None = None

    @property
    def status(self) -> str:
        """``"kept"``, ``"moved"`` or ``"broken"``."""
        if self.refuted:
            return BROKEN
        moved = self.change is not None and abs(self.change.estimate) > self.worth
        return MOVED if moved and self._beyond_chance else KEPT

    @property
    def _beyond_chance(self) -> bool:
        assert self.change is not None
        return not self.change.low <= 0 <= self.change.high

    @property
    def shown(self) -> bool:
        """Whether the whole interval of the loss is within the limit: more than "not refuted"."""
        return self.loss is None or (self.limit is not None and self.loss.high <= self.limit)

    @property
    def saving(self) -> float | None:
        """The share of today's cost that the new threshold saves; None if unknown."""
        unit = self.today.unit
        if self.found is None or unit is None:
            return None
        before, after = (getattr(one.cost, unit) for one in (self.today, self.found))
        return 1 - after / before if before else None

    @property
    def statement(self) -> str:
        """The status and its reasons, in a few sentences."""
        return " ".join(filter(None, (self._promise_words, self._change_words, self._over_words)))

    @property
    def _promise_words(self) -> str:
        n = f"{self.today.n:,} new examples"
        if self.loss is None or self.limit is None:
            return f"{self.status.capitalize()}: the goal {self.goal.kind} sets no limit to check."
        word, verb = ("goal", "asked") if self.goal.delta is None else ("promise", "promised")
        state = "refuted" if self.refuted else "shown to be kept" if self.shown else "not refuted"
        ends = f"{self.loss.low:.4g} to {self.loss.high:.4g}"
        figures = f"{LOSSES[self.promise or '']} is {self.loss.estimate:.4g} on {n} ({ends})"
        limit = f"at most {self.limit:.4g} was {verb}"
        cut = "" if self.clipped is None else f"; {self.clipped:,} losses were cut off"
        return f"{self.status.capitalize()}: the {word} is {state}; {figures}, and {limit}{cut}."

    @property
    def _change_words(self) -> str:
        if self.found is None or self.change is None:
            return f"No threshold can be chosen now: {self.reason}."
        rates = f"{self.found.deferral_rate:.1%} instead of {self.today.deferral_rate:.1%}"
        found = f"The new threshold, {self.found.threshold:.6g}, defers {rates}"
        chance = "which may be chance" if not self._beyond_chance else "which is beyond chance"
        if self._beyond_chance and abs(self.change.estimate) <= self.worth:
            chance += f" but too little to count (under {self.worth:g})"
        saved = "" if self.saving is None else _saving_words(self.saving, self.today.unit)
        return f"{found}, {chance}{saved}."

    @property
    def _over_words(self) -> str:
        over = [f"{one.column} {one.name}" for one in self.slices if one.standing == OVER]
        if not over:
            return ""
        more = f" and {len(over) - 5} more" if len(over) > 5 else ""
        return f"Over the limit on their own: {', '.join(over[:5])}{more}."

    def new_config(self) -> JointConfig:
        """Return ``joint.toml`` with the new threshold; CalibrationError if there is none."""
        if self.study is None:
            raise CalibrationError(f"there is no new threshold to write: {self.reason}")
        config = self.config
        made = JointConfig.of_study(config.student, config.teacher, self.study)
        new = ("threshold", "rescale", "calibration", "operating_points")
        return replace(config, **{name: getattr(made, name) for name in new})

    def as_dict(self) -> dict[str, Any]:
        """Return every figure for JSON."""
        same = ("status", "shown", "refuted", "promise", "limit", "reason", "least", "statement")
        before, study = self.config.certificate, self.study
        after = None if study is None else study.point.certified
        certificates = {"before": before, "after": after}
        return {
            **{
                name: getattr(self, name) for name in (*same, "alpha", "worth", "saving", "clipped")
            },
            "exit_status": EXIT_STATUS[self.status],
            "goal": self.goal.as_dict(),
            "loss": self.loss and asdict(self.loss),
            "today": self.today.as_dict(),
            "found": self.found and self.found.as_dict(),
            "held_out": None if study is None else study.result.as_dict(),
            "change": self.change and asdict(self.change),
            "promises": {when: one and one.as_dict() for when, one in certificates.items()},
            "slices": [asdict(one) for one in self.slices],
        }


LOSSES = {
    "excess": "the loss beyond the teacher's",
    "harm": "the loss of kept answers beyond the teacher's",
    "risk": "the loss",
    "rate": "the deferral rate",
}
"""By promise: what it bounds, in words."""


def recalibrate(
    joint: str | os.PathLike[str] | JointConfig,
    outcomes: Outcomes,
    *,
    slices: Mapping[str, Any] | None = None,
    alpha: float = 0.05,
    worth: float = 0.01,
    fraction: float = 0.5,
    seed: int = 0,
) -> Recalibration:
    """Judge a calibrated threshold on new examples, and choose it again on them.

    To write the result, call ``recalibrate(...).new_config().save(path)``.

    Parameters
    ----------
    joint
        A ``joint.toml``, or its configuration.
    outcomes
        New outcomes of its models, labeled like the calibration examples. If the threshold was
        chosen for a mix of traffic, they are resampled to it.
    slices
        By name: columns (n,) by which to slice `outcomes`, in addition to its classes. Numbers with
        many values, and times, are cut into `WINDOWS` parts; other values are slices of their own.
    alpha
        The probability of calling a kept promise broken, between 0 and 0.5.
    worth
        The smallest change in deferral rate that counts as moved, like 0.01.
    fraction, seed
        The share of the examples that choose the new threshold, and the seed of that split.

    Raises
    ------
    ValueError
        `outcomes` have other models, another task, other classes or other labels than `joint`, were
        calibrated on, or are too few; a column of `slices` has another length; `joint` does not
        name its goal; or an argument is out of range.
    ModelError
        A model's file or preprocessing has changed since the calibration.

    Examples
    --------
    >>> from ebjr.demo import shipped
    >>> from ebjr.backends.entry import ModelEntry
    >>> with shipped("outcomes.npz") as path:
    ...     before, since = Outcomes.load(path).pair("student", "teacher").split(0.5, seed=0)
    >>> models = ModelEntry("student.onnx", "5f1c"), ModelEntry("teacher.onnx", "90ab")
    >>> config = JointConfig.of_study(*models, run_study(before, tolerance=0.01, score="margin"))
    >>> found = recalibrate(config, since)
    >>> found.status, found.today.n, len(found.slices)
    ('kept', 5000, 10)
    """
    config = joint if isinstance(joint, JointConfig) else JointConfig.read(joint)
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, not {alpha:g}")
    check_at_least(0, worth=worth)
    whole, table, point, columns = _checked(config, outcomes, slices or {}, alpha, seed)
    goal = config.goal
    assert goal is not None
    judge = _Judge(goal, table, point)
    study, found, reason, change = None, None, None, None
    try:
        study = run_study(
            whole.with_scale(config.rescale),
            goal,
            score=point.router.score,
            blend=config.blend,
            fraction=fraction,
            seed=seed,
            traffic=config.traffic,
        )
        found = replace(evaluate(table, study.point), certified=study.point.certified)
        change = _change(study, table, found.deferral_rate - point.deferral_rate, config, alpha)
    except CalibrationError as error:
        reason = str(error)
    after = None if study is None else _Judge(goal, table, study.point)
    parts, least = _judged_slices(judge, after, columns, alpha)
    return Recalibration(
        config=config,
        goal=goal,
        promise=judge.promise,
        limit=judge.limit,
        today=point,
        loss=judge.interval(alpha),
        refuted=judge.refutes(alpha),
        study=study,
        reason=reason,
        found=found,
        change=change,
        slices=parts,
        least=least,
        alpha=alpha,
        worth=worth,
        clipped=judge.clipped,
    )


@dataclass(frozen=True, eq=False)
class AuditedThreshold:
    """What a server's monitors show about its threshold, from the rows it served.

    `risk` watched the promise in all rows, `windows` in each window, and `drift` the scores. `why`
    says, by kind, why choosing the threshold again would pay. A server keeps counts of its audits
    and no rows, so audits cannot choose a new threshold or tell one class from another.
    """

    risk: RiskMonitor
    windows: RiskWindows | None
    drift: DriftMonitor | None
    why: Mapping[str, str]

    @property
    def status(self) -> str:
        """``"broken"`` if the promise was, ``"moved"`` for another reason, or ``"kept"``."""
        return BROKEN if "broken" in self.why else MOVED if self.why else KEPT

    @property
    def statement(self) -> str:
        """The status and its reasons, in a few sentences."""
        drift = () if self.drift is None else (self.drift.statement,)
        pays = (f"Choosing the threshold again would pay: {'; '.join(self.why.values())}.",)
        words = (f"{self.status.capitalize()}.", self.risk.statement, *drift)
        return " ".join((*words, *(pays if self.why else ()), LEFT_OPEN))

    def as_dict(self) -> dict[str, Any]:
        """Return every figure for JSON."""
        names = ("status", "statement", "rows", "risk", "lower", "upper", "tolerance")
        past = [] if self.windows is None else self.windows.past
        return {
            "status": self.status,
            "exit_status": EXIT_STATUS[self.status],
            "statement": self.statement,
            "why": dict(self.why),
            "promise": {name: getattr(self.risk, name) for name in names},
            "windows": [asdict(window) for window in past],
        }


LEFT_OPEN = (
    "Audits cannot choose a new threshold, show classes or replace labels: a server keeps their "
    "counts, not the rows. For that, record new examples and give --outcomes."
)
"""What audits cannot show."""


def recalibrate_audits(
    joint: str | os.PathLike[str] | JointConfig, path: str | os.PathLike[str]
) -> AuditedThreshold:
    """Judge a threshold by the audits of the server that serves it.

    Parameters
    ----------
    joint
        The ``joint.toml`` that is served, or its configuration.
    path
        The server's ``monitor.json``, or the folder that holds it.

    Raises
    ------
    FileNotFoundError
        `path` does not exist.
    ValueError
        The file belongs to another calibration, is damaged, or has no audits or too few.
    """
    config = joint if isinstance(joint, JointConfig) else JointConfig.read(joint)
    file = Path(path)
    file = file / STATE_FILE if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: `ebjr serve --audit-rate 0.01 --state FOLDER` writes it"
        )
    try:
        kept = json.loads(read_text(file))
        if kept["format"] != STATE_FORMAT:
            raise ValueError(f"the format is {kept['format']!r}, not {STATE_FORMAT!r}")
        states, windows = kept["monitors"], kept.get("windows")
        drift = _resumed(DriftMonitor, states.get("drift"))
        risk = foremost(
            *(_resumed(RiskMonitor, states.get(name)) for name in ("rate", "disagreement"))
        )
        passed = _resumed(RiskWindows, windows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a server's monitor.json: {error}") from error
    known = config.calibration
    if (of := kept.get("calibration")) is None or of != known.get("outcomes"):
        raise ValueError(
            f"{file} belongs to a server with another calibration ({of}) than joint.toml's "
            f"({known.get('outcomes')}): give the joint.toml that is served"
        )
    own = known.get("drift")
    if drift and own and drift.reference != DriftMonitor.of_reference(own).reference:
        raise ValueError(
            f"{file} belongs to a server with another threshold or score, chosen on the same "
            "outcomes as joint.toml's: give the joint.toml that is served"
        )
    if risk is None or risk.rows < (least := least_examples(risk.alpha)):
        seen = "no audits" if risk is None else f"{risk.rows} rows; at least {least} are needed"
        raise ValueError(
            f"{file} has {seen}: serve for longer with --audit-rate 0.01, or record new "
            "examples and give --outcomes"
        )
    return AuditedThreshold(risk, passed, drift, why_recalibrate(risk, passed, drift))


def _resumed(kind: Any, state: Any) -> Any:
    return None if state is None else kind.from_state(state)


def read_slices(path: str | os.PathLike[str], names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read columns of a table, ``.csv``, ``.jsonl``, ``.parquet`` or ``.arrow``: `names`, or all.

    Raises
    ------
    ValueError
        `path` cannot be read or lacks a column of `names`.
    """
    table = Table.of(Path(path))
    have = table.schema.names
    if missing := [name for name in names if name not in have]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(have)}")
    whole = table.columns(list(names or have))
    return {name: whole.column(name).to_numpy() for name in whole.column_names}


def least_examples(level: float) -> int:
    """Return how many examples a judgement at a level needs.

    Examples
    --------
    >>> least_examples(0.05), least_examples(0.05 / 10)
    (25, 47)
    """
    return math.ceil(((ndtri(1 - level) + ndtri(_POWER)) / _EFFECT) ** 2)


# --- the inputs


def _checked(
    config: JointConfig, outcomes: Outcomes, columns: Mapping[str, Any], alpha: float, seed: int
) -> tuple[Outcomes, Outcomes, OperatingPoint, Mapping[str, np.ndarray]]:
    """Return the outcomes as a pair's, those to judge, today's point on them, and their columns."""
    if config.goal is None:
        raise ValueError(
            "joint.toml does not name the goal of its threshold: write it with `ebjr calibrate`"
        )
    config.check()
    for part in config.parts:
        with suppress(FileNotFoundError):  # the models need not be on this machine
            part.check()
    whole, point = config.point_on(config.in_own_metric(outcomes))
    if config.calibration.get("outcomes") == whole.fingerprint:
        raise ValueError(
            "the threshold was calibrated on these outcomes: record new examples, or use `ebjr "
            "evaluate` for the figures of the held-out half"
        )
    check_classes(whole)
    _check_labeled(config, whole)
    given = {name: _column(name, values, len(whole)) for name, values in columns.items()}
    table = whole
    if config.traffic is not None:
        rows = config.traffic.draw(whole.targets, seed)
        table, given = whole.take(rows), {name: values[rows] for name, values in given.items()}
    if len(table) < (least := least_examples(alpha)):
        raise ValueError(
            f"{len(table)} examples are too few to judge a threshold: record at least {least}, "
            "better thousands"
        )
    table = table.with_scale(config.rescale)
    return whole, table, _own(point, evaluate(table, point)), given


def _own(before: OperatingPoint, after: OperatingPoint) -> OperatingPoint:
    """Return the figures of one point with the promise of another, which may be a chain's."""
    figures = {one.name: getattr(after, one.name) for one in fields(OperatingPoint)}
    return replace(before, **figures | {"certified": before.certified})


def _check_labeled(config: JointConfig, outcomes: Outcomes) -> None:
    """Raise ValueError if the promise is about labels and the outcomes have none, or vice versa."""
    chosen, certificate = config.calibration.get("chosen_on", {}), config.certificate
    of_teacher = chosen.get("teacher_quality", outcomes.quality("teacher"))
    perfect = bool(np.isclose(of_teacher, 0.0 if outcomes.measure.lower else 1.0, atol=1e-9))
    labeled = not perfect if certificate is None else certificate.labeled
    if labeled and not outcomes.labeled:
        raise ValueError(
            "joint.toml was calibrated on labels, but these outcomes only have the teacher's own "
            "answers: record labeled examples"
        )
    if not labeled and certificate is not None and outcomes.labeled:
        raise ValueError(
            "joint.toml promises agreement with the teacher, but these outcomes have labels: "
            "record the examples without them"
        )


def _column(name: str, values: Any, n: int) -> np.ndarray:
    column = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(
            f"the column {name} of slices must have one value per example, ({n},), not the shape "
            f"{column.shape}"
        )
    column = column.astype(str) if column.dtype == object else column
    if column.dtype.kind in "US" and (count := len(np.unique(column))) > MOST_TEXTS:
        raise ValueError(
            f"the column {name} of slices has {count:,} values, too many for slices: leave it out"
        )
    return column


# --- judging today's threshold


class _Judge:
    """Judges examples at today's threshold by what the goal promises."""

    def __init__(self, goal: Goal, table: Outcomes, point: OperatingPoint) -> None:
        self.goal, self.table, self.point = goal, table, point
        self.promise = None if goal.kind == "crossing" else goal.promised
        self.limit = None if self.promise is None else _limit(goal, table)
        measure, self._losses = table.measure, None
        bounded = measure.certifiable and (measure.percent or goal.loss_bound is not None)
        curve = point.curve(table)
        if self.promise is not None and (bounded or self.promise == "rate"):
            self._losses = LossesAt.of(curve, self.promise, point.threshold, goal.loss_bound)
        self._deferred = is_deferred(point.router.score(table.student), point.threshold)

    @property
    def clipped(self) -> int | None:
        """How many losses were cut off at the goal's bound, if it has one."""
        return None if self._losses is None else self._losses.clipped

    def refutes(self, alpha: float) -> bool:
        """Whether all examples together refute the promise."""
        if self.limit is None:
            return False
        if self._losses is not None:
            return self._losses.refutes(self.limit, alpha)
        found = self.interval(alpha)
        return found is not None and found.low > self.limit

    def interval(self, alpha: float, rows: np.ndarray | None = None) -> Interval | None:
        """Return the promised loss of some rows, or of all; None if nothing is promised."""
        if self.limit is None:
            return None
        if self._losses is None:
            return _approximate(self.goal, self._of(rows), self.point, alpha)
        return (self._losses if rows is None else self._losses.take(rows)).interval(
            alpha, quick=rows is not None
        )

    def figures(self, rows: np.ndarray) -> tuple[float, float]:
        """Return the deferral rate and quality of some rows; NaN for a quality without labels."""
        quality = math.nan
        with suppress(ValueError):  # AP is undefined without a labeled box
            quality = self._quality(rows)
        return float(self._deferred[rows].mean()), quality

    def standing(self, loss: Interval | None) -> str:
        """Return the standing of a slice's loss."""
        if loss is None or self.limit is None:
            return OPEN
        return OVER if loss.low > self.limit else WITHIN if loss.high <= self.limit else OPEN

    def _of(self, rows: np.ndarray | None) -> Outcomes:
        return self.table if rows is None else self.table.take(rows)

    def _quality(self, rows: np.ndarray) -> float:
        if not self.table.measure.certifiable:
            return evaluate(self._of(rows), self.point).quality
        return float(self.table.measure.quality(self._rows[rows].mean()))

    @cached_property
    def _rows(self) -> np.ndarray:
        table = self.table
        return np.where(
            self._deferred, table.deferred_quality(self.point.blend), table.student_quality
        )


def _limit(goal: Goal, table: Outcomes) -> float:
    """Return the largest loss that keeps the promise, in its unit."""
    limit = float(goal.limit or 0.0)
    if goal.kind == "accuracy":
        return limit if table.measure.lower else 1 - limit
    if goal.kind == "budget" and goal.unit != "deferral_rate":
        costs = table.student_cost, table.teacher_cost
        TradeOffCurve.of(table).cost_in(str(goal.unit))  # raises if the cost is unknown
        student, teacher = (getattr(cost, str(goal.unit)) for cost in costs)
        return float(np.clip((limit - student) / teacher, 0.0, 1.0)) if teacher else 1.0
    return limit


def _approximate(goal: Goal, table: Outcomes, point: OperatingPoint, alpha: float) -> Interval:
    """Return the promised loss with the bootstrap's interval, stretched to a level."""
    intervals, measure = bootstrap(table, point), table.measure
    if goal.kind == "match-teacher":
        estimate, low, high = (-end for end in intervals["gain_over_teacher"])
    else:
        estimate, low, high = intervals[measure.name]
        if not measure.lower:
            estimate, low, high = 1 - estimate, 1 - low, 1 - high
    low, high = sorted((low, high))
    stretch = float(ndtri(1 - alpha) / ndtri(0.975))
    return Interval(
        estimate, estimate - stretch * (estimate - low), estimate + stretch * (high - estimate)
    )


# --- slices


def _judged_slices(
    judge: _Judge, after: _Judge | None, columns: Mapping[str, np.ndarray], alpha: float
) -> tuple[tuple[Slice, ...], int]:
    """Judge every slice that is large enough to share the level; return the least size too."""
    parts = [*_classes(judge.table), *_values(columns)]
    count, least = len(parts), least_examples(alpha / max(len(parts), 1))
    while (enough := sum(len(rows) >= least for *_, rows in parts)) < count:
        count, least = enough, least_examples(alpha / max(enough, 1))
    level = alpha / max(count, 1)

    def judged(column: str, name: str, rows: np.ndarray) -> Slice:
        rate, quality = judge.figures(rows)
        if len(rows) < least:
            return Slice(column, name, len(rows), rate, quality, None, None, FEW)
        loss = judge.interval(level, rows)
        then = None if after is None else after.interval(level, rows)
        standing, later = judge.standing(loss), None if then is None else then.estimate
        return Slice(column, name, len(rows), rate, quality, loss, later, standing)

    return tuple(judged(*part) for part in parts), least


Part = tuple[str, str, np.ndarray]  # a column, a value, and its rows


def _classes(table: Outcomes) -> Iterator[Part]:
    """Yield the rows of each class; of label sets, the rows that have the label."""
    if table.kind.has_labels:
        for label, rows in _groups(np.asarray(table.targets)):
            yield "class", str(label) if table.labels is None else table.labels[label], rows
    elif table.task == "multilabel":
        targets = np.asarray(table.targets)
        names = table.labels or range(targets.shape[1])
        for name, column in zip(names, targets.T, strict=True):
            if column.any():
                yield "class", str(name), np.flatnonzero(column)


def _values(columns: Mapping[str, np.ndarray]) -> Iterator[Part]:
    """Yield the rows of each value of each column, or of each part of times and many numbers."""
    for name, column in columns.items():
        counted = column.dtype.kind in "iu" and len(np.unique(column)) > MOST_VALUES
        if counted or column.dtype.kind in "Mmf":
            order = np.argsort(column, kind="stable")
            known, missing = np.split(order, [len(order) - int(np.isnan(column).sum())])
            for rows in np.array_split(known, WINDOWS):
                if len(rows):
                    yield name, f"{column[rows[0]]} to {column[rows[-1]]}", np.sort(rows)
            if len(missing):
                yield name, "missing", np.sort(missing)
            continue
        for value, rows in _groups(column):
            yield name, str(value), rows


def _groups(column: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield each value of a column, (n,), with its rows, in ascending order."""
    order = np.argsort(column, kind="stable")
    values, first = np.unique(column[order], return_index=True)
    yield from zip(values.tolist(), np.split(order, first[1:]), strict=True)


# --- the new threshold


def _change(
    study: Study, table: Outcomes, change: float, config: JointConfig, alpha: float
) -> Interval:
    """Return the change of the deferral rate, with the interval of both choices' scatter."""
    known = config.calibration
    chosen_on = known.get("certified", known.get("chosen_on", {})).get("n", len(table))
    scatter = _scatter(study, table) * math.sqrt(1 / chosen_on + 1 / len(study.calibration))
    reach = float(ndtri(1 - alpha / 2)) * scatter
    return Interval(change, change - reach, change + reach)


def _scatter(study: Study, table: Outcomes) -> float:
    """Return the deviation of the chosen deferral rate, for a choice on one example.

    On n examples it is smaller by the root of n.
    """
    examples, rng = study.calibration, np.random.default_rng(0)
    times, most = _RESAMPLES if table.measure.whole is None else _RESAMPLES_OF_WHOLE
    n = min(len(examples), most)
    scores = np.sort(deferral_key(score_values(study.point.router.score, table)))
    rates = np.empty(times)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the examples themselves have already warned
        for number in range(times):
            drawn = examples.take(rng.integers(0, len(examples), n))
            rates[number] = np.searchsorted(scores, _chosen_again(drawn, study)) / len(table)
    # quantiles, because a few resamples without a threshold must not count
    low, high = np.quantile(rates, [0.05, 0.95])
    return float((high - low) / (ndtri(0.95) - ndtri(0.05))) * math.sqrt(n)


def _chosen_again(drawn: Outcomes, study: Study) -> float:
    """Return the threshold that a resample leads to; inf, which defers all, if to none."""
    goal, score, blend = study.goal, study.point.router.score, study.point.blend
    with suppress(CalibrationError):
        if goal.delta is None or goal.promised == "rate":
            return calibrate(drawn, goal, score=score, blend=blend).threshold
        curve = TradeOffCurve.of(drawn, score, blend)
        asked: dict[str, Any] = {"tolerance": goal.allowed(curve), "delta": goal.delta}
        row = certified_row(curve, goal.promised, **asked, loss_bound=goal.loss_bound)
        return math.inf if row is None else curve.threshold_of(row)
    return math.inf


def _saving_words(saving: float, unit: str | None) -> str:
    return f", and {f'saves {saving:.1%}' if saving >= 0 else f'costs {-saving:.1%} more'} {unit}"

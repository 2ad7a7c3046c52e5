"""What a server's models have spent, and whether they still return usable answers.

A provider may drop log-probabilities without notice. Then every row is deferred, or none, and the
teacher's bill grows; this raises an alarm.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebjr.serving.events import Asked, Batched, Observer

ALLOWED = 0.05  # share of a model's rows that may lack an answer without an alarm
EXCESS = 50.0  # rows above that share raise the alarm: at most 100 unanswered rows at one in ten
BESIDE = ("audit", "both")  # stages of `Asked` outside the engine
UNITS = ("tokens_in", "tokens_out", "dollars")

log = logging.getLogger("ebjr.serving")


@dataclass
class _Model:
    """One model's spending (`UNITS`), its rows of unknown price, and its unanswered rows."""

    spent: np.ndarray
    unknown: np.ndarray
    asked: bool = False  # the model reports its spending
    unanswered: int = 0
    excess: float = 0.0
    missed: int = 0  # unanswered rows since the excess was 0
    alarm: str | None = None


class Spending(Observer):
    """Adds up the spending of each stage, and counts rows without a usable answer."""

    def __init__(self, stages: Sequence[str], about: Mapping[str, str] | None = None) -> None:
        self._extra = {"figures": about or {}}  # of which model
        self._of = {
            stage: _Model(np.zeros(3), np.zeros(3, np.int64)) for stage in (*stages, *BESIDE)
        }
        self.handlers = {Asked: self._asked, Batched: self._batched}

    def _asked(self, event: Asked) -> None:
        own = self._of[event.stage]
        if event.spent is not None:
            spent = np.asarray(event.spent, np.float64)
            own.spent += np.nansum(spent, axis=0)
            own.unknown += np.isnan(spent).sum(axis=0)
            own.asked = True
        if event.unanswered:
            own.unanswered += event.unanswered
            self._look(event.stage, own, event.unanswered)

    def _batched(self, event: Batched) -> None:
        own = self._of[event.stage]
        if own.excess:
            self._look(event.stage, own, -ALLOWED * event.rows)

    def _look(self, stage: str, own: _Model, more: float) -> None:
        """Raise or end the alarm; `more` counts rows without an answer, or minus the allowance."""
        own.excess = min(own.excess + more, EXCESS)
        own.missed += max(0, int(more))
        if own.excess <= 0:
            if own.alarm is not None:
                log.warning("the %s answers again", stage, extra=self._extra)
            own.excess, own.missed, own.alarm = 0.0, 0, None
        elif own.excess >= EXCESS and own.alarm is None:
            own.alarm = (
                f"the {stage} gave no usable answer to {own.missed} rows lately: its server fails, "
                "or leaves out log-probabilities"
            )
            log.error("alarm: %s", own.alarm, extra=self._extra)

    def of(self, unit: str) -> dict[str, float | None]:
        """Return one of `UNITS` by stage, without models that report nothing."""
        place = UNITS.index(unit)
        return {
            stage: float(own.spent[place])
            for stage, own in self._of.items()
            if own.asked and (own.spent[place] or not own.unknown[place])
        }

    def tokens(self) -> dict[tuple[str, str], float | None]:
        """Return the tokens so far, by stage and direction."""
        both = {"in": self.of("tokens_in"), "out": self.of("tokens_out")}
        return {(stage, way): n for way, found in both.items() for stage, n in found.items()}

    def unpriced(self) -> dict[str, float]:
        """Return the rows of unknown price so far, by stage."""
        return {stage: float(own.unknown[2]) for stage, own in self._of.items() if own.asked}

    def unanswered(self) -> dict[str, float]:
        """Return the rows without a usable answer so far, by stage."""
        return {stage: float(own.unanswered) for stage, own in self._engine().items()}

    def alarms(self) -> dict[str, float]:
        """Return 1 for each stage whose alarm is on, else 0."""
        return {stage: float(own.alarm is not None) for stage, own in self._engine().items()}

    @property
    def silence(self) -> str | None:
        """The alarm of a model whose answers are scored; None if all of them answer."""
        *before, _last = self._engine().values()
        return next((own.alarm for own in before if own.alarm is not None), None)

    def _engine(self) -> Mapping[str, _Model]:
        return {stage: own for stage, own in self._of.items() if stage not in BESIDE}

    def status(self) -> dict[str, Any]:
        """Return figures and alarms for JSON, by stage, for stages that have any."""
        figures = {unit: self.of(unit) for unit in UNITS}
        return {
            stage: {
                **{unit: found.get(stage) for unit, found in figures.items()},
                "unpriced_rows": int(own.unknown[2]),
                "unanswered_rows": own.unanswered,
                "alarm": own.alarm,
            }
            for stage, own in self._of.items()
            if own.asked or own.unanswered
        }

"""What the models of a server have spent, and whether they still say what is asked of them.

A provider may drop log-probabilities without a word. Every row is deferred then, or nobody's, and
the bill is the teacher's, so that this raises an alarm.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebjr.serving.events import Asked, Batched, Observer

ALLOWED = 0.05  # of a model's rows may be without an answer, time and again
EXCESS = 50.0  # rows beyond these raise the alarm: it takes 100 at most where a tenth has none
BESIDE = ("audit", "both")  # who asks models, too, beside the engine: `Asked.stage`
UNITS = ("tokens_in", "tokens_out", "dollars")

log = logging.getLogger("ebjr.serving")


@dataclass
class _Model:
    """What one model has spent (`UNITS`), on how many rows that is unknown, and its silence."""

    spent: np.ndarray
    unknown: np.ndarray
    asked: bool = False  # something of what it spent is known
    unanswered: int = 0
    excess: float = 0.0
    missed: int = 0  # since the excess was 0
    alarm: str | None = None


class Spending(Observer):
    """Adds up what is spent, by stage, and counts the rows to which a model said nothing of use."""

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
        """Raise the alarm, or end it, after rows without an answer, or others."""
        own.excess = min(own.excess + more, EXCESS)
        own.missed += max(0, int(more))
        if own.excess <= 0:
            if own.alarm is not None:
                log.warning("the %s answers again", stage, extra=self._extra)
            own.excess, own.missed, own.alarm = 0.0, 0, None
        elif own.excess >= EXCESS and own.alarm is None:
            own.alarm = (
                f"{own.missed} rows lately got no answer of the {stage}'s that can be used: its "
                "server fails, or leaves log-probabilities out"
            )
            log.error("alarm: %s", own.alarm, extra=self._extra)

    def of(self, unit: str) -> dict[str, float | None]:
        """One of `UNITS` so far, by stage; nothing of those that say of no row what it took."""
        place = UNITS.index(unit)
        return {
            stage: float(own.spent[place])
            for stage, own in self._of.items()
            if own.asked and (own.spent[place] or not own.unknown[place])
        }

    def tokens(self) -> dict[tuple[str, str], float | None]:
        """Tokens so far, by stage and direction."""
        both = {"in": self.of("tokens_in"), "out": self.of("tokens_out")}
        return {(stage, way): n for way, found in both.items() for stage, n in found.items()}

    def unpriced(self) -> dict[str, float]:
        """Rows so far whose dollars are not known, by stage."""
        return {stage: float(own.unknown[2]) for stage, own in self._of.items() if own.asked}

    def unanswered(self) -> dict[str, float]:
        """Rows so far to which a model gave no answer that can be used, by stage."""
        return {stage: float(own.unanswered) for stage, own in self._engine().items()}

    def alarms(self) -> dict[str, float]:
        """By stage: 1 while the alarm is on, else 0."""
        return {stage: float(own.alarm is not None) for stage, own in self._engine().items()}

    @property
    def silence(self) -> str | None:
        """The alarm of a model that rows are scored by; None: these say what is asked of them."""
        *before, _last = self._engine().values()
        return next((own.alarm for own in before if own.alarm is not None), None)

    def _engine(self) -> Mapping[str, _Model]:
        return {stage: own for stage, own in self._of.items() if stage not in BESIDE}

    def status(self) -> dict[str, Any]:
        """What is known, for JSON: figures by stage, where there are some, and alarms."""
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

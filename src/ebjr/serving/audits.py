"""Audits: kept rows about which the teacher is asked after the fact, when nothing else waits."""

from collections import deque

import numpy as np

from ebjr.arrays import Batch, row_count, take_rows, to_numpy
from ebjr.errors import TeacherUnavailable
from ebjr.joint import JointModel
from ebjr.serving.events import Audited

MOST_ROWS = 256  # may wait for an audit; while they do, no other is drawn
MOST_BYTES = 2**20  # on average of the inputs of a batch that is drawn from


class Audit:
    """Drawn rows of one batch."""

    def __init__(self, audited: Audited, inputs: Batch, output: Batch) -> None:
        self.audited = audited
        self.places = np.flatnonzero(audited.drawn)
        self._done = 0
        self._inputs, self._output = take_rows(inputs, self.places), take_rows(output, self.places)

    def ask(self, joint: JointModel) -> bool:
        """Ask the teacher about the next row; returns whether that was the last one."""
        one = np.array([self._done])
        own = take_rows(self._output, one)
        found = joint.ask_teacher_alone(take_rows(self._inputs, one), own)
        degraded = found.degraded is not None and bool(to_numpy(found.degraded).any())
        if degraded or row_count(found.output) != 1:
            raise TeacherUnavailable("the teacher did not answer a row that was to be audited")
        differs = to_numpy(joint.predict(found.output)) != to_numpy(joint.predict(own))
        self.audited.contradicted[self.places[self._done]] = differs[0]
        self._done += 1
        return self._done == len(self.places)


def _row_bytes(inputs: Batch) -> float:
    return sum(getattr(row, "nbytes", 0) for row in inputs) / max(1, row_count(inputs))


class Audits:
    """Draws kept rows at a rate, and has the teacher asked about them, one at a time."""

    def __init__(self, rate: float) -> None:
        self._rate, self._chance = rate, np.random.default_rng()
        self._waiting: deque[Audit] = deque()
        self._rows = 0  # that wait

    def __len__(self) -> int:
        return self._rows

    def draw(
        self, inputs: Batch, output: Batch, deferred: np.ndarray, threshold: np.ndarray
    ) -> Audited | None:
        """Draw from a batch that is chosen before its rows are seen, which is fair.

        Returns what is to be told at once: that none was drawn.
        """
        if not self._rate or self._rows >= MOST_ROWS or _row_bytes(inputs) > MOST_BYTES:
            return None
        drawn = ~deferred & (self._chance.random(len(deferred)) < self._rate)
        audited = Audited(threshold, deferred, drawn, np.zeros(len(drawn), bool))
        if not drawn.any():
            return audited
        self._rows += int(drawn.sum())
        self._waiting.append(Audit(audited, inputs, output))
        return None

    def ask(self, joint: JointModel) -> Audited | None:
        """Ask about one row; returns the audit that it ends. Where it fails, that one is left."""
        audit = self._waiting[0]
        finished = True
        try:
            finished = audit.ask(joint)
        finally:
            if finished:
                self._waiting.popleft()
                self._rows -= len(audit.places)
        return audit.audited if finished else None

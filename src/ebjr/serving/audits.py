"""Audits: kept rows that are also sent to the teacher, when the engine is idle."""

from collections import deque
from collections.abc import Callable

import numpy as np

from ebjr.arrays import Batch, row_count, take_rows, to_numpy
from ebjr.errors import TeacherUnavailable
from ebjr.joint import JointModel
from ebjr.serving.events import Asked, Audited

MOST_ROWS = 256  # rows queued for an audit; above it no batch is drawn from
MOST_BYTES = 2**20  # mean bytes of a row's input above which a batch is not drawn from


def check_rate(rate: float) -> None:
    """Check that `audit_rate` is a share, from 0 to 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"audit_rate must be a share, from 0 to 1, not {rate}")


class Audits:
    """Draws kept rows at a rate, and asks the teacher about them, one at a time.

    All workers draw, and one at a time asks: each step on the deque is atomic. ValueError if `rate`
    is outside [0, 1].
    """

    def __init__(self, rate: float) -> None:
        check_rate(rate)
        self._rate, self._chance = rate, np.random.default_rng()
        self._waiting: deque[tuple[Audited, Batch, Batch, np.ndarray]] = deque()  # one per row

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def open(self) -> bool:
        """Whether rows may be drawn now."""
        return self._rate > 0 and len(self._waiting) < MOST_ROWS

    def draw(
        self, inputs: Batch, output: Batch, deferred: np.ndarray, threshold: np.ndarray
    ) -> Audited | None:
        """Draw rows of a batch; the batch was admitted before its rows were seen, without bias.

        Returns the audit at once if no row was drawn, else None.
        """
        if sum(getattr(row, "nbytes", 0) for row in inputs) > MOST_BYTES * row_count(inputs):
            return None
        drawn = ~deferred & (self._chance.random(len(deferred)) < self._rate)
        audited = Audited(threshold, deferred, drawn, np.zeros(len(drawn), bool))
        rows = np.flatnonzero(drawn)[:, None]  # index arrays of one row each
        self._waiting.extend(
            [(audited, take_rows(inputs, row), take_rows(output, row), row) for row in rows]
        )
        return None if len(rows) else audited

    def ask(self, joint: JointModel, tell: Callable[[Asked], None]) -> Audited | None:
        """Ask the teacher about one row; return its audit if this was the last row.

        A failure drops the whole audit.
        """
        audited, inputs, own, row = self._waiting.popleft()
        try:
            found = joint.ask_teacher_alone(inputs, own)
            if found.spent is not None:
                tell(Asked("audit", 0, found.spent))
            degraded = found.degraded is not None and bool(to_numpy(found.degraded).any())
            if degraded or row_count(found.output) != 1:
                raise TeacherUnavailable("the teacher did not answer an audited row")
            differs = to_numpy(joint.predict(found.output)) != to_numpy(joint.predict(own))
        except Exception:
            while self._goes_on(audited):
                self._waiting.popleft()
            raise
        audited.contradicted[row] = differs
        return None if self._goes_on(audited) else audited

    def _goes_on(self, audited: Audited) -> bool:
        return bool(self._waiting) and self._waiting[0][0] is audited

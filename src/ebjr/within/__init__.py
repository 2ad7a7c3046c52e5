"""Within a promise: answer all rows of a batch with as few teacher calls as the promise allows.

No labels are needed. The teacher answers a uniform sample of the batch, which decides the
threshold; `ebjr.calibration.budget` has the promises and their proof. The teacher's answers are
paid for, so they are kept in a file until all rows are answered, and never asked for again.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np

from ebjr.arrays import Batch, logsumexp, row_count, to_numpy
from ebjr.calibration.budget import Belief
from ebjr.data.columns import check_columns
from ebjr.data.examples import Data
from ebjr.errors import CalibrationError, check_at_least
from ebjr.joint import JointModel
from ebjr.journal import Journal
from ebjr.labels import label_text, listed_places
from ebjr.model import Model, facts
from ebjr.router import Router
from ebjr.tasks import as_task
from ebjr.within.batch import PromisedBatch
from ebjr.within.certificate import LABELS, BatchCertificate, PromisedAnswers, Wanted
from ebjr.within.rows import Paid, Rows, Told

__all__ = ["BatchCertificate", "PromisedAnswers", "PromisedRun", "Wanted", "answer_within"]


def answer_within(
    student: Model,
    teacher: Model,
    inputs: Batch | Data,
    *,
    promise: str | Mapping[str, float | None] = "agreement",
    at_least: float | None = None,
    delta: float | None = None,
    teacher_calls: int | None = None,
    positive: int | str | None = None,
    targets: Mapping[Any, Any] | None = None,
    score: Any = None,
    task: str = "classification",
    batch_size: int = 64,
    seed: int = 0,
    keep: Journal | None = None,
    progress: Told | None = None,
) -> PromisedAnswers:
    """Answer all rows of a batch, and promise something about these answers, without labels.

    The teacher is asked about a uniform sample of the rows, and then about every other row whose
    score is below the threshold that the sample allows. Give the promise, and as few rows as
    possible are asked about. Give `teacher_calls` alone, and the certificate's `at_least` says what
    is promised. Give both, and an error says, usually before anything is paid for, that the budget
    is too small. With a budget, a single promise of precision or recall is kept by turning answers
    that the teacher is not asked about: those not sure enough to be positive, or to be negative.
    For precision a quarter of the budget chooses the threshold and the rest tests it; for recall
    what the sample leaves goes to the rows next to the threshold, where it gains most.

    Parameters
    ----------
    student, teacher
        Models: batch in, raw output out. The student may be a joint model.
    inputs
        An array (n, ...), a list of n inputs, or what `ebjr.data.open.open_data` returned.
    promise, at_least, delta, teacher_calls, positive
        As in `Wanted`: ``"agreement"`` with the teacher; ``"precision"`` or ``"recall"`` of the
        class `positive`, by the teacher's answers, or both (``{"precision": 0.9, "recall": 0.8}``);
        or ``"accuracy"``, with `targets`.
    targets
        For accuracy: labels of rows by number, or by the data's name of a row. The rows must be a
        uniform sample.
    score
        Rows with the lowest score are deferred; None is the task's first score. Precision and
        recall of classifiers use the log-odds of the class, with a threshold for each answer.
    task
        ``"classification"``, ``"multilabel"``, or ``"detection"`` for precision and recall of
        boxes.
    batch_size
        Inputs per model call.
    seed
        The seed of the sample.
    keep
        A `Journal` that keeps the teacher's answers. The same call resumes after an error or a
        kill; another promise asks for no answer twice, see `BatchCertificate.tried`. Call its
        `remove` at the end.
    progress
        Called with the current work, how much is done, and the total.

    Raises
    ------
    ValueError
        A promise, `delta`, `teacher_calls` or `positive` is out of range or missing, or the task
        has no such promise.
    CalibrationError
        `teacher_calls` are too few for the promise; without a budget it needs more than nine rows
        in ten; or labels do not show that the teacher itself is right that often. The message says
        what is possible.
    TeacherUnavailable
        The teacher gave no valid answer to a row; such a row never counts as agreement.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clear = rng.normal(size=4000) * 4                 # the teacher sees it clearly
    >>> teacher = lambda x: np.stack([x, -x], axis=1)
    >>> student = lambda x: teacher(x + np.sin(9e4 * x))  # the student sees it blurred
    >>> answers = answer_within(student, teacher, clear, at_least=0.97, delta=0.1)
    >>> answers.teacher_calls < 1200, float((answers.prediction == (clear < 0)).mean()) >= 0.97
    (True, True)
    """
    kind = as_task(task)
    first = score if score is not None else (kind.auto or tuple(kind.raw.names(own=False)))[0]
    wanted = Wanted(promise, at_least, delta, teacher_calls, positive)
    joint = kind.final(student, teacher, Router(first, math.inf))
    run = PromisedRun(joint, wanted, targets=targets, batch_size=batch_size, seed=seed)
    return run.answer(inputs, keep=keep, progress=progress)


@dataclass
class PromisedRun:
    """Answers batches with a joint model's student and teacher, each batch with its own promise.

    It uses the router's score, but not its threshold or blend. The teacher's answers to one batch
    help to size the sample of the next.
    """

    joint: JointModel
    wanted: Wanted
    labels: Sequence[str] | None = None
    targets: Mapping[Any, Any] | None = None
    batch_size: int = 64
    seed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)  # identifies these models
    window: int | None = None  # rows per promise; None: all
    beliefs: dict[str, Belief] = field(default_factory=dict)
    paid: Paid | None = field(default=None, init=False)  # the first window's, with its journal

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size)
        kind, promised = self.joint.kind, self.wanted.promised
        boxes, sets = kind.targets_are == "boxes", kind.targets_are == "label sets"
        if kind.targets_are == "numbers" or (boxes and not promised.keys() <= {*LABELS}):
            can = "only precision and recall of boxes" if boxes else "nothing"
            raise ValueError(
                f"{', '.join(promised)} cannot be promised: {kind.name} can promise {can}"
            )
        self.positive = self._place_of(self.wanted.positive)
        if promised.keys() & {*LABELS} and self.positive is None and not boxes:
            raise ValueError(f"{', '.join(promised)} needs a class: give positive= (--positive)")
        if promised.keys() - {*LABELS} and self.wanted.positive is not None:
            raise ValueError(f"positive is for precision and recall, not for {', '.join(promised)}")
        if ("accuracy" in promised) != (self.targets is not None):
            raise ValueError(
                "accuracy and targets (labels of some rows, --labels) go together: give both"
            )
        if "accuracy" in promised and sets:
            raise ValueError("accuracy is for single labels, not for label sets: promise agreement")

    def answer(
        self,
        inputs: Batch | Data,
        rows: range | None = None,
        *,
        keep: Journal | None = None,
        progress: Told | None = None,
    ) -> PromisedAnswers:
        """Answer one batch, all inputs or some `rows` of them, see `answer_within`."""
        check_columns(inputs, self.joint)
        tell = progress or (lambda what, done, total: None)
        batch = PromisedBatch(self, Rows(inputs, rows), tell)
        if keep is not None:
            batch.take_up(keep)
        found = [batch.promise(name, share) for name, share in self.wanted.promised.items()]
        return batch.answers(tuple(found))

    def windows(self, inputs: Batch | Data, window: int, **how: Any) -> Iterator[PromisedAnswers]:
        """Answer each `window` rows, one window after another, each with its own promise.

        The last window has the rest. Each promise is broken with probability `delta` at most.
        `how` is as in `answer`.
        """
        check_at_least(1, window=window)
        self.window = window
        n = len(inputs) if isinstance(inputs, Data) else row_count(inputs)
        if self.targets is not None and window < n:
            raise ValueError(
                "accuracy is promised for all rows at once, because targets cover a sample of all "
                "rows: remove window (--window)"
            )
        for start in range(0, n, window):
            rows = range(start, min(start + window, n))
            try:
                yield self.answer(inputs, rows, **how)
            except CalibrationError as error:
                if window >= n:
                    raise
                raise CalibrationError(f"rows {start:,} to {rows[-1]:,}: {error}") from error

    def _place_of(self, positive: int | str | None) -> int | None:
        names = self.labels or facts(self.joint.teacher).labels or facts(self.joint.student).labels
        if not isinstance(positive, str):
            return None if positive is None else index(positive)
        try:
            return listed_places([positive], names)[0]
        except ValueError as error:
            raise ValueError(f"positive (--positive) must be a class: {error}") from None

    def read(self, raw: Batch) -> tuple[np.ndarray, Batch]:
        """Return what orders a batch's rows, (n,), and the student's answers to them."""
        output = self.joint.of_student(raw)
        if self.positive is None or self.joint.kind.targets_are == "boxes":
            return to_numpy(self.joint.router.score(raw)).astype(np.float64), output
        rows = to_numpy(output).astype(np.float64)
        if not 0 <= self.positive < rows.shape[1]:
            raise ValueError(f"positive must lie in 0..{rows.shape[1] - 1}, not {self.positive}")
        odds = rows[:, self.positive]
        if self.joint.kind.targets_are == "labels":
            odds = odds - logsumexp(np.delete(rows, self.positive, axis=1))
        return np.where(self.is_positive(self.joint.predict(output)), odds, -odds), output

    def turned(self, output: Batch) -> np.ndarray:
        """Return the opposite of the student's answers, (n, ...): negative for positive ones."""
        said = to_numpy(self.joint.predict(output)).copy()
        if said.ndim == 2:
            said[:, self.positive] ^= True
            return said
        others = to_numpy(output).astype(np.float64)
        others[:, self.positive] = -math.inf
        turned = others.argmax(axis=1)
        turned[said != self.positive] = self.positive
        return turned

    def is_positive(self, prediction: Any) -> np.ndarray:
        """Return which answers, (n,), are the positive class."""
        listed = isinstance(prediction, list) and len(prediction) > 0
        said = to_numpy(np.stack(prediction) if listed else prediction)
        return said[:, self.positive] if said.ndim == 2 else said == self.positive

    @property
    def title(self) -> str | None:
        """The positive class's name or number."""
        if self.positive is None:
            return None
        names = self.labels or facts(self.joint.teacher).labels
        return label_text(names[self.positive]) if names else str(self.positive)

"""Within a promise: all rows of a batch answered, the teacher asked about as few as will do.

Nothing needs a label. The teacher is asked about a uniform sample of this very data, which decides
about the threshold; `ebjr.calibration.budget` has the promises and their proof. What the teacher
has said is paid for, so it is kept in a file until all is answered, and never asked again.
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
from ebjr.labels import label_text
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
    """Answer all rows of a batch, and promise something of these answers; no labels are needed.

    The teacher is asked about a uniform sample of the rows, and then about every other row whose
    score is below the threshold that the sample allows. Give the promise, and as few rows are asked
    as will do; give `teacher_calls` alone, and `at_least` of the certificate says what is promised;
    give both, and an error says, mostly before anything is paid for, that they do not go together.
    With a budget, precision or recall alone is kept by turning answers that the teacher is not
    asked about: those that are not sure enough to be positive, or to be negative. For precision a
    quarter of the budget chooses the threshold, and the rest tests it; for recall what the sample
    leaves goes to the rows next to the threshold, where most is gained.

    Parameters
    ----------
    student, teacher
        Models: a batch in, raw output out. A joint model may be the student.
    inputs
        Array (n, ...), a list of n inputs, or what `ebjr.data.open.open_data` opened.
    promise, at_least, delta, teacher_calls, positive
        As of `Wanted`: ``"agreement"`` with the teacher, of all rows; ``"precision"`` or
        ``"recall"`` of the class `positive`, the teacher's answers being right, of which both may
        be promised (``{"precision": 0.9, "recall": 0.8}``); or ``"accuracy"``, with `targets`.
    targets
        Of accuracy: labels of rows by number, or by the name that the data give a row. They must be
        a uniform sample.
    score
        Defers the rows of the lowest first; None takes the task's first. Precision and recall of
        classifiers take the log-odds of the class instead, with a threshold for each answer.
    task
        ``"classification"``, ``"multilabel"``, or ``"detection"`` for precision and recall of
        boxes.
    batch_size
        How many inputs a model gets at once.
    seed
        Of the draw.
    keep
        A `Journal` that keeps what the teacher said; the same call goes on after an error or a
        kill, and one with another promise asks nothing twice, see `BatchCertificate.tried`. Call
        its `remove` at the end.
    progress
        Called with what is being done, how much of it is done, and of how much.

    Raises
    ------
    ValueError
        A promise, `delta`, `teacher_calls` or `positive` is out of range or missing, or the task
        has no such promise.
    CalibrationError
        The promise cannot be kept within `teacher_calls`; or without a budget it takes more than
        nine rows in ten; or labels do not show that the teacher itself is right so often. The
        message has what can be had.
    TeacherUnavailable
        The teacher gave no sound answer to a row; such a row never counts as agreement.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clear = rng.normal(size=4000) * 4                 # the teacher sees all of it
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
    """A joint model's student and teacher at work on batches, each with its own promise.

    The router's score is used, its threshold and blend are not. What the teacher says of one batch
    tells how large a sample of the next should be.
    """

    joint: JointModel
    wanted: Wanted
    labels: Sequence[str] | None = None
    targets: Mapping[Any, Any] | None = None
    batch_size: int = 64
    seed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)  # what tells these models from others
    window: int | None = None  # rows that a promise is of, where it is not of all
    beliefs: dict[str, Belief] = field(default_factory=dict)
    paid: Paid | None = field(default=None, init=False)  # with a journal that a window has read

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size)
        kind, promised = self.joint.kind, self.wanted.promised
        boxes, sets = kind.targets_are == "boxes", kind.targets_are == "label sets"
        if kind.targets_are == "numbers" or (boxes and not promised.keys() <= {*LABELS}):
            can = "precision and recall of boxes" if boxes else "nothing"
            raise ValueError(f"of {kind.name} {can} can be promised, not {', '.join(promised)}")
        self.positive = self._place_of(self.wanted.positive)
        if promised.keys() & {*LABELS} and self.positive is None and not boxes:
            raise ValueError(
                f"{', '.join(promised)} is about one class: say which with positive= (--positive)"
            )
        if promised.keys() - {*LABELS} and self.wanted.positive is not None:
            raise ValueError(f"positive is for precision and recall, not for {', '.join(promised)}")
        if ("accuracy" in promised) != (self.targets is not None):
            raise ValueError(
                "accuracy and targets, the labels of some rows, go together (--labels)"
            )
        if "accuracy" in promised and sets:
            raise ValueError("accuracy is promised of single labels, not of label sets")

    def answer(
        self,
        inputs: Batch | Data,
        rows: range | None = None,
        *,
        keep: Journal | None = None,
        progress: Told | None = None,
    ) -> PromisedAnswers:
        """The answers to one batch, all inputs or some `rows` of them, see `answer_within`."""
        check_columns(inputs, self.joint)
        tell = progress or (lambda what, done, total: None)
        batch = PromisedBatch(self, Rows(inputs, rows), tell)
        if keep is not None:
            batch.take_up(keep)
        found = [batch.promise(name, share) for name, share in self.wanted.promised.items()]
        return batch.answers(tuple(found))

    def windows(self, inputs: Batch | Data, window: int, **how: Any) -> Iterator[PromisedAnswers]:
        """The answers to each `window` rows, one after another, with a promise of their own.

        The last window has what is left. Each promise is broken with probability `delta`. `how` is
        as of `answer`.
        """
        check_at_least(1, window=window)
        self.window = window
        n = len(inputs) if isinstance(inputs, Data) else row_count(inputs)
        if self.targets is not None and window < n:
            raise ValueError(
                "accuracy is promised of all rows at once, as targets are of some of all rows: "
                "leave window (--window) out"
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
        if names is not None and positive in (texts := [label_text(name) for name in names]):
            return texts.index(positive)
        if positive.isdecimal():
            return int(positive)
        known = f"the classes are {', '.join(map(str, names))}" if names else "no class has a name"
        raise ValueError(f"positive must be a class, not {positive!r}: {known}")

    def read(self, raw: Batch) -> tuple[np.ndarray, Batch]:
        """What orders a batch's rows, (n,), and what the student says of them."""
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
        """(n, ...): answers that are positive where the student's are not, and negative else."""
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
        """(n,): which answers are the positive class."""
        listed = isinstance(prediction, list) and len(prediction) > 0
        said = to_numpy(np.stack(prediction) if listed else prediction)
        return said[:, self.positive] if said.ndim == 2 else said == self.positive

    @property
    def title(self) -> str | None:
        """What to call the positive class."""
        if self.positive is None:
            return None
        names = self.labels or facts(self.joint.teacher).labels
        return label_text(names[self.positive]) if names else str(self.positive)

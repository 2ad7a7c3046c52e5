"""The joint loop for many callers at once: two queues, and threads that make batches of them.

Requests are cut into rows. Rows of many requests form the student's batches, the deferred rows of
many student batches form the teacher's, and answers return to their own requests. A worker takes
whatever waits as soon as it is free: batches grow by themselves with the load. With
`max_wait_seconds` it waits for company where a batch will be full by then. No asyncio here:
all happens in these threads, and the `Ticket` of a request has a `concurrent.futures` future.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ebjr.arrays import Batch, join_rows, plain, put_rows, row_count, take_rows, to_numpy
from ebjr.errors import EbjrError, ModelError, Overloaded, TeacherUnavailable, check_at_least
from ebjr.joint import JointAnswer, JointModel, LateRows
from ebjr.router import check_threshold, is_deferred
from ebjr.serving.events import (
    STAGES,
    Answered,
    Audited,
    Batched,
    Degraded,
    Failed,
    Observer,
    Scored,
    Submitted,
)
from ebjr.serving.row_queue import Part, RowQueue, alike, form_of, spans
from ebjr.threads import background


@dataclass(frozen=True, eq=False)
class ServedAnswer:
    """An answer and the threshold that was in force for all of its rows."""

    answer: JointAnswer
    threshold: float


MOST_AUDITS = 256  # rows that may wait for an audit; while they do, no other is drawn


class Ticket:
    """One request in the pipeline; its `future` has the `ServedAnswer`, or the error.

    Cancelling the future frees the rows that still wait. Rows of one batch have the same `form`;
    `since` is of `time.perf_counter`, and `trace` is for `Tracing`.
    """

    def __init__(self, pipeline: "Pipeline", inputs: Batch, threshold: float | None) -> None:
        self.future: Future[ServedAnswer] = Future()
        self.since = time.perf_counter()
        self.trace: Any = None
        self.form = form_of(inputs)
        self._pipeline = pipeline
        self._inputs = inputs
        self._threshold = threshold
        self._rows = row_count(inputs)
        self._unscored = self._rows  # rows that the student has yet to answer
        self._open = self._rows  # rows without an answer
        self._output: Any = None
        self._predicted: Any = None  # of the output, where all of it is the student's
        self._score: np.ndarray
        self._deferred: np.ndarray
        self._degraded: np.ndarray
        self._waiting: np.ndarray  # for the teacher
        self.late: str | None = None  # under this id are rows that were kept for later
        self._late_id: str | None = None

    def hurry(self) -> bool:
        """Answer now: rows that wait for the teacher get the student's answer, marked as degraded.

        Returns False, and changes nothing, where the student has yet to answer some rows.
        """
        with self._pipeline.lock:
            if self._unscored:
                return False
            rows = np.flatnonzero(self._waiting)
            part = _Part(self, rows, take_rows(self._output, rows))
        self._pipeline.keep([part])  # waits for a disk, and nobody is to wait for that
        with self._pipeline.lock:
            self.untaught(np.flatnonzero(self._waiting))
        self._pipeline.tell_answered()
        return True

    def late_id(self, new: Callable[[], str]) -> str:
        """The id of whatever is kept of it, one whoever keeps it; the pipeline's lock is held."""
        if self._late_id is None:
            self._late_id = new()
        return self._late_id

    def inputs_of(self, rows: np.ndarray) -> Batch:
        """Some of its inputs."""
        return self._inputs if len(rows) == self._rows else take_rows(self._inputs, rows)

    def threshold(self, knob: float) -> float:
        """The threshold of all of its rows: its own, or the knob when its first row is taken."""
        if self._threshold is None:
            self._threshold = knob
        return self._threshold

    def scored(
        self,
        rows: np.ndarray,
        output: Batch,
        predicted: Batch,
        score: np.ndarray,
        deferred: np.ndarray,
        marked: Any,
    ) -> None:
        """Take the student's answer to some rows."""
        degraded = deferred & False if marked is None else marked & ~deferred
        if len(rows) == self._rows:  # the common case, all at once
            self._output, self._predicted, self._score = output, predicted, score
            self._deferred, self._waiting = deferred.copy(), deferred.copy()
            self._degraded = degraded
        else:
            if self._output is None:
                self._output = _room_for(output, self._rows)
                self._score = np.zeros(self._rows)
                self._deferred, self._waiting, self._degraded = np.zeros((3, self._rows), bool)
            self._output = put_rows(self._output, rows, output)
            self._score[rows] = score
            self._deferred[rows] = deferred
            self._waiting[rows] = deferred
            self._degraded[rows] = degraded
        self._unscored -= len(rows)
        self._settle(len(rows) - int(np.count_nonzero(deferred)))

    def taught(self, rows: np.ndarray, output: Batch, marked: Any) -> None:
        """Take the teacher's answer to some rows, unless they have been answered."""
        if self.future.done():
            return
        self._output, self._predicted = put_rows(self._output, rows, output), None
        self._waiting[rows] = False
        if marked is not None:
            self._degraded[rows] = marked
        self._settle(len(rows))

    def untaught(self, rows: np.ndarray) -> None:
        """Keep the student's answer to some rows that the teacher should have answered."""
        if self.future.done():
            return
        self._degraded[rows] = True
        self._deferred[rows] = False
        self._waiting[rows] = False
        self._pipeline.observer.observe(Degraded(len(rows)))
        self._settle(len(rows))

    def _settle(self, rows: int) -> None:
        self._open -= rows
        if self._open or self.future.done():
            return
        assert self._threshold is not None
        output, predicted = self._output, self._predicted
        answer = JointAnswer(
            self._pipeline.joint.predict(output) if predicted is None else predicted,
            output,
            self._score,
            self._deferred,
            self._degraded,
            self.late,
        )
        self.finish(ServedAnswer(answer, self._threshold))

    def finish(self, result: ServedAnswer | BaseException) -> None:
        """Answer, or say why there is no answer, unless one of both was done before."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)
            self._pipeline.done.append(self)


@dataclass(frozen=True, eq=False)
class _Part(Part):
    """Some rows of a ticket in a queue; for the teacher with the student's answer to them."""

    ticket: Ticket
    rows: np.ndarray
    output: Batch | None = None

    @property
    def inputs(self) -> Batch:
        return self.ticket.inputs_of(self.rows)

    def cut(self, start: int, stop: int | None) -> Self:
        where = slice(start, stop)
        return replace(self, rows=self.rows[where], output=_cut(self.output, where))


class _Audit:
    """Drawn rows that wait for a moment when nothing else does."""

    def __init__(self, audited: Audited, inputs: Batch, output: Batch) -> None:
        self.audited = audited
        self.places = np.flatnonzero(audited.drawn)
        self.done = 0
        self._inputs, self._output = take_rows(inputs, self.places), take_rows(output, self.places)

    def ask(self, joint: JointModel) -> bool:
        """Ask the teacher about the next row; returns whether that was the last one."""
        one = np.array([self.done])
        own = take_rows(self._output, one)
        found = joint.ask_teacher_alone(take_rows(self._inputs, one), own)
        degraded = found.degraded is not None and bool(to_numpy(found.degraded).any())
        if degraded or row_count(found.output) != 1:
            raise TeacherUnavailable("the teacher did not answer a row that was to be audited")
        differs = to_numpy(joint.predict(found.output)) != to_numpy(joint.predict(own))
        self.audited.contradicted[self.places[self.done]] = differs[0]
        self.done += 1
        return self.done == len(self.places)


class Pipeline:
    """A joint model that answers many callers at once; ``joint.router.threshold`` is the knob.

    By default the student's batches are half of the teacher's: while it is at work on the next
    rows, the last ones are on their way back. More than one of `teacher_workers` pays where the
    teacher is far away. Beyond `queue_rows` `submit` raises Overloaded. `audit_rate` is the share
    of kept rows about which the teacher is asked too, one at a time, when nothing waits.

    Examples
    --------
    >>> from ebjr import JointClassifier, Router
    >>> student = lambda x: np.stack([x, -x], axis=1)
    >>> joint = JointClassifier(student, lambda x: 2 * student(x), Router("max_logit", 2.0))
    >>> with Pipeline(joint) as pipeline:
    ...     served = pipeline.submit(np.array([3.0, 1.0])).future.result()
    >>> served.answer.deferred, served.threshold
    (array([False,  True]), 2.0)
    """

    def __init__(
        self,
        joint: JointModel,
        *,
        student_batch: int = 32,
        teacher_batch: int = 64,
        teacher_workers: int = 1,
        max_wait_seconds: float = 0.0,
        queue_rows: int = 4096,
        audit_rate: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        sizes = {"student_batch": student_batch, "teacher_batch": teacher_batch}
        check_at_least(1, **sizes, teacher_workers=teacher_workers, queue_rows=queue_rows)
        if not 0 <= max_wait_seconds < 60:
            raise ValueError(f"max_wait_seconds must be from 0 to 60, not {max_wait_seconds}")
        if not 0 <= audit_rate <= 1:
            raise ValueError(f"audit_rate must be from 0 to 1, not {audit_rate}")
        if audit_rate and not joint.kind.has_labels:
            raise ValueError(
                f"audits compare labels, and the answers of {joint.task} are none: audit_rate "
                "must be 0"
            )
        self.joint = joint
        self.observer = Observer() if observer is None else observer
        self.lock = threading.Lock()
        self.done: list[Ticket] = []  # answered, and the observer has yet to be told
        self._batches = sizes
        self._student_queue: RowQueue[_Part] = RowQueue(queue_rows, max_wait_seconds)
        self._teacher_queue: RowQueue[_Part] = RowQueue(queue_rows, max_wait_seconds)
        self._row_seconds = dict.fromkeys(STAGES, 0.0)  # of each model, smoothed
        self._audit_rate = audit_rate
        self._audits: deque[_Audit] = deque()
        self._auditing = 0  # rows that wait for an audit
        self._chance = np.random.default_rng()
        self.busy = False
        self._student = background("student", self._run_student)
        self._teachers = [
            background(f"teacher-{number}", self._run_teacher, number == 0)
            for number in range(teacher_workers)
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the threads."""
        for thread in (self._student, *self._teachers):
            thread.start()

    def stop(self, within: float | None = None) -> None:
        """Answer what waits, take nothing more, and end the threads.

        A model that hangs is left after `within` seconds; None waits as long as it takes.
        """
        self._student_queue.close()
        self._student.join(within)
        self._teacher_queue.close()
        for thread in self._teachers:
            thread.join(within)

    def waiting(self) -> dict[str, int]:
        """How many rows wait for each model, and for an audit."""
        queues = {"student": self._student_queue.rows, "teacher": self._teacher_queue.rows}
        return {**queues, "audit": self._auditing}

    def submit(self, inputs: Batch, *, threshold: float | None = None) -> Ticket:
        """Hand in a request; a threshold of None is read when its first row is taken.

        Raises Overloaded where too many rows wait, or the pipeline has stopped.
        """
        own = None if threshold is None else check_threshold(threshold)
        n = row_count(inputs)
        if n < 1:
            raise ValueError("a request needs at least one input, but has none")
        ticket = Ticket(self, inputs, own)
        self.observer.observe(Submitted(ticket))
        if self._teacher_queue.full(1):  # what is deferred goes there, however much it is
            raise self._overloaded("teacher", self._teacher_queue.rows)
        if not self._student_queue.put(_Part(ticket, np.arange(n)), bounded=True):
            if self._student_queue.closed:
                raise Overloaded("the server is stopping and takes no more requests", 1.0)
            raise self._overloaded("student", self._student_queue.rows)
        return ticket

    def _overloaded(self, stage: str, waits: int) -> Overloaded:
        seconds = max(0.05, waits * self._row_seconds[stage])
        return Overloaded(
            f"{waits} rows are waiting already for the {stage}, and {self._student_queue.limit} is "
            f"the most: try again in {seconds:.2g} s",
            seconds,
        )

    def _run_student(self) -> None:
        while parts := self._take(self._student_queue, "student"):
            self.busy = True
            self._guarded(self._answer_by_student, parts, "student")
            self.busy = False
            if self._audits:
                self._teacher_queue.poke()

    def _run_teacher(self, audits: bool) -> None:
        while parts := self._take(self._teacher_queue, "teacher", audits):
            self._guarded(self._answer_by_teacher, parts, "teacher")

    def _guarded(
        self, answer: Callable[[Sequence[_Part]], None], parts: Sequence[_Part], stage: str
    ) -> None:
        """Answer rows, or say why not: a thread that ended would leave all others unanswered."""
        for group in alike(parts):
            try:
                answer(group)
            except Exception as error:
                self._fail(group, stage, error)

    def _take(self, queue: RowQueue[_Part], stage: str, audits: bool = False) -> list[_Part]:
        """A batch for a model; none when there will never be another."""
        while True:
            parts = queue.take(self._batches[f"{stage}_batch"], lambda: audits and self._idle())
            if parts or queue.drained:
                return parts
            if audits and self._idle():
                self._audit()

    def _idle(self) -> bool:
        """Whether something is to be audited and nothing else is to be done."""
        waits = self.busy or self._student_queue.rows or self._teacher_queue.rows
        return bool(self._audits) and not waits

    def _draw(
        self, inputs: Batch, output: Batch, deferred: np.ndarray, thresholds: np.ndarray
    ) -> None:
        """Draw kept rows for an audit, from a batch chosen before its rows are seen: it is fair."""
        if not self._audit_rate or self._auditing >= MOST_AUDITS:
            return
        drawn = ~deferred & (self._chance.random(len(deferred)) < self._audit_rate)
        audited = Audited(thresholds, deferred, drawn, np.zeros(len(drawn), bool))
        count = int(drawn.sum())
        if not count:
            self.observer.observe(audited)
            return
        with self.lock:
            self._auditing += count
        self._audits.append(_Audit(audited, inputs, output))

    def _audit(self) -> None:
        audit = self._audits[0]
        try:
            finished = audit.ask(self.joint)
        except Exception as error:  # nobody waits: what is not known is left out
            self.observer.observe(Failed("audit", error))
        else:
            if not finished:
                return
            self.observer.observe(audit.audited)
        self._audits.popleft()
        with self.lock:
            self._auditing -= len(audit.places)

    def _answer_by_student(self, parts: Sequence[_Part]) -> None:
        began = time.perf_counter()
        inputs = join_rows([part.inputs for part in parts])
        found = self.joint.ask_student(inputs)
        values = np.asarray(to_numpy(self.joint.router.score(found.output)), np.float64)
        output = plain(self.joint.of_student(found.output))
        batch = self._batched("student", parts, began)
        knob = self.joint.router.threshold
        each = [part.ticket.threshold(knob) for part in parts]
        thresholds = np.repeat(each, [len(part) for part in parts])
        deferred = is_deferred(values, thresholds)
        self.observer.observe(batch)
        self.observer.observe(Scored(values, deferred, thresholds))
        flags = None if found.degraded is None else to_numpy(found.degraded)
        predicted = self.joint.predict(output)
        later = []
        with self.lock:
            for part, own in spans(parts):
                hard, answers = deferred[own], output[own]
                part.ticket.scored(
                    part.rows, answers, predicted[own], values[own], hard, _cut(flags, own)
                )
                if hard.any():
                    chosen = np.flatnonzero(hard)
                    later.append(_Part(part.ticket, part.rows[chosen], take_rows(answers, chosen)))
        for part in later:
            self._teacher_queue.put(part, bounded=False)
        self.tell_answered()
        self._draw(inputs, output, deferred, thresholds)

    def _answer_by_teacher(self, parts: Sequence[_Part]) -> None:
        began = time.perf_counter()
        try:
            inputs = join_rows([part.inputs for part in parts])
            found = self.joint.ask_teacher(inputs, join_rows([part.output for part in parts]))
            output = plain(found.output)
        except ModelError as error:  # unreachable, or it answers nonsense
            self._miss(parts, error)
            return
        if found.answered is not None:
            parts, missed = _divided(parts, to_numpy(found.answered))
            self._miss(missed, TeacherUnavailable("the teacher answers no more rows just now"))
        self.observer.observe(self._batched("teacher", parts, began))
        flags = None if found.degraded is None else to_numpy(found.degraded)
        with self.lock:
            for part, own in spans(parts):
                part.ticket.taught(part.rows, output[own], _cut(flags, own))
        self.tell_answered()

    def _batched(self, stage: str, parts: Sequence[_Part], began: float) -> Batched:
        batch = Batched.of(stage, parts, began)
        each = batch.seconds / max(batch.rows, 1)
        self._row_seconds[stage] = 0.9 * self._row_seconds[stage] + 0.1 * each
        return batch

    def tell_answered(self) -> None:
        """Tell the observer which requests have been answered since the last time."""
        with self.lock:
            done, self.done = self.done, []
        if done:
            now = time.perf_counter()
            waited = now - np.array([ticket.since for ticket in done])
            self.observer.observe(Answered(done, waited))

    def _miss(self, parts: Sequence[_Part], error: ModelError) -> None:
        """Do as the policy says with rows that the teacher did not answer."""
        if self.joint.when_unavailable == "error":
            self._fail(parts, "teacher", error)
            return
        self.observer.observe(Failed("teacher", error))
        self.keep(parts)
        with self.lock:
            for part in parts:
                part.ticket.untaught(part.rows)
        self.tell_answered()

    def keep(self, parts: Sequence[_Part]) -> None:
        """Keep rows for later, those that somebody waits for, if that is the policy."""
        late = self.joint.late
        if late is None:
            return
        with self.lock:  # other rows of the same request may be missed by another thread
            open_ones = [part for part in parts if len(part.rows) and not part.answered]
            ids = {part.ticket: part.ticket.late_id(late.new_id) for part in open_ones}
        entries = [
            LateRows(ids[part.ticket], part.rows, part.inputs, part.output) for part in open_ones
        ]
        if entries and late.keep(entries, self.joint.kind):
            for ticket, own in ids.items():
                ticket.late = own

    def _fail(self, parts: Sequence[_Part], stage: str, error: Exception) -> None:
        told = error
        if not isinstance(error, EbjrError):
            told = ModelError(f"the {stage} failed on a batch: {type(error).__name__}: {error}")
        with self.lock:
            for part in parts:
                part.ticket.finish(told)
        self.observer.observe(Failed(stage, error))


def _divided(parts: Sequence[_Part], yes: np.ndarray) -> tuple[list[_Part], list[_Part]]:
    both: tuple[list[_Part], list[_Part]] = ([], [])
    for part, own in spans(parts):
        for found, mask in zip(both, (yes[own], ~yes[own]), strict=True):
            if mask.any():
                rows = np.flatnonzero(mask)
                output = take_rows(part.output, rows)
                found.append(replace(part, rows=part.rows[rows], output=output))
    return both


def _cut(batch: Any, where: slice) -> Any:
    return None if batch is None else batch[where]


def _room_for(output: Batch, rows: int) -> Batch:
    if isinstance(output, list | tuple):
        return [output[0]] * rows
    return np.zeros((rows, *output.shape[1:]), output.dtype)

"""The engine: a queue in front of each model, and workers that take the most urgent rows.

A request is cut into rows. Rows of many requests form one model's batch, the rows that a router
defers form the next model's batches, and answers return to their requests. A free worker takes
whatever is queued, so batches grow with the load. The stages are the models of the joint model:
its student, which may be a joint model itself, and its teacher. The engine uses no asyncio: a
`Ticket` calls `reply` in the thread that completes its answer.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np

from ebjr.arrays import Batch, join_rows, plain, row_count, to_numpy
from ebjr.backends import FILES
from ebjr.data.preprocess import unprepared
from ebjr.errors import EbjrError, ModelError, Overloaded, TeacherUnavailable, check_whole
from ebjr.joint import JointAnswer, JointModel, LateRows, models_of, silent_rows, with_spent
from ebjr.model import Answer, Model, TeacherFailed, answer, facts, may_answer_fewer
from ebjr.outcomes import roles_of
from ebjr.router import check_threshold
from ebjr.serving.audits import Audits
from ebjr.serving.events import Answered, Asked, Batched, Bulk, Degraded, Failed, Observer, Scored
from ebjr.serving.pace import Pace
from ebjr.serving.row_queue import (
    Part,
    RowQueue,
    Said,
    alike,
    form_of,
    index_of,
    join,
    pick,
    put,
    some,
    spans,
)
from ebjr.serving.turns import Usage, path_of
from ebjr.task import Task
from ebjr.threads import available_cores, background

LONG_SECONDS = 0.1  # beside a batch expected to take longer, a spare worker serves the first model
FAR_CALLS = 2  # batches in flight to a remote model, which takes no core here
AT_ONCE_SECONDS = 0.003  # a student faster than this answers a lone row in the calling thread
AUDIT = -1  # a model number of its own: the last model, asked about rows already answered


class Ticket:
    """One request: its rows, and their answers as they arrive.

    `reply` is called once, with the ticket, when the ticket has an `answer` or an `error`; it is
    not called after `cancel`. `since` is the arrival in `time.perf_counter` seconds, `client`
    takes turns with other clients in a queue, `priority` is that of `Engine.submit`, and `trace`
    belongs to `Tracing`.
    """

    __slots__ = (
        *("inputs", "rows", "form", "threshold", "client", "priority", "reply", "since", "trace"),
        *("open", "answer", "error", "late", "late_id", "_left", "unscored"),
        *("_said", "_score", "_deferred", "_waiting"),
    )

    def __init__(
        self,
        inputs: Batch,
        threshold: float | None = None,
        client: Any = None,
        reply: Callable[["Ticket"], None] = lambda ticket: None,
        priority: int = 0,
    ) -> None:
        self.inputs, self.rows, self.form = inputs, row_count(inputs), form_of(inputs)
        self.threshold, self.client, self.reply = threshold, client, reply
        self.priority = priority
        self.since = time.perf_counter()
        self.open = True  # a caller still waits for the answer
        self.answer: JointAnswer | None = None
        self.error: Exception | None = None
        self.trace: Any = None
        self.late: str | None = None  # the id of rows kept for later
        self.late_id = ""  # the id that all rows of this request share when they are kept
        self._left = self.unscored = self.rows
        self._said: Said | None = None  # the answers so far, where they arrive in parts

    def cancel(self) -> None:
        """Drop the request: rows that no model has started are skipped."""
        self.open, self.reply = False, _nobody

    def tell(self) -> None:
        """Call `reply`, once, and drop it: the callback may refer to this ticket."""
        reply, self.reply = self.reply, _nobody
        reply(self)

    def result(self) -> JointAnswer:
        """Return the answer, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def begin(self, knob: float) -> float:
        """Return the threshold of all rows: the request's own, else the knob at the first row."""
        if self.threshold is None:
            self.threshold = knob
        return self.threshold

    def scored(self, rows: Any, said: Said, score: np.ndarray, deferred: np.ndarray) -> None:
        """Take the student's answer to some rows; deferred rows wait for the next model."""
        self._take(rows, said._replace(degraded=said.degraded & ~deferred))
        place = index_of(rows)
        self._score[place] = score
        self._deferred[place] = self._waiting[place] = deferred
        self.unscored -= len(rows)
        self._left -= len(rows) - int(np.count_nonzero(deferred))

    def taught(self, rows: Any, said: Said, deferred: bool) -> None:
        """Take the final answer to waiting rows; `deferred`: the teacher gave it."""
        rows = np.asarray(rows)
        if self._said is not None and not (fresh := self._waiting[rows]).all():
            # `hurry` may have answered some rows while the teacher worked
            rows, said = rows[fresh], some(said, np.flatnonzero(fresh))
        self._take(rows, said)
        self._waiting[rows], self._deferred[rows] = False, deferred
        self._left -= len(rows)

    def _take(self, rows: Any, said: Said) -> None:
        if self._said is None:
            self._score, self._deferred = np.zeros(self.rows), np.zeros(self.rows, bool)
            self._waiting = np.ones(self.rows, bool)
        self._said = put(self._said, self.rows, rows, said)

    def waiting(self) -> Part:
        """Return the rows that wait for a later model, with the student's answer to them."""
        assert self._said is not None
        rows = np.flatnonzero(self._waiting)
        return Part(self, rows, some(self._said, rows))

    def whole(self, predict: Callable[[Batch], Batch]) -> JointAnswer | None:
        """Return the answer once every row has one."""
        if self._left or self._said is None:
            return None
        output, degraded, stage, _, spent = self._said
        how = self._score, self._deferred, degraded, self.late, stage, spent
        return JointAnswer(predict(output), output, *how)


class Engine:
    """Answers many callers at once with one model; a joint model's router is the knob.

    `kind` is the task of a model that is not joint. `student_batch` and `teacher_batch` are the
    most rows in a batch of the first model and of the later ones. `workers` batches run here at
    once (None: one for each core), and `teacher_workers` batches of the last model beside them.
    With `teacher_workers` None, the workers also run a local teacher, and a remote teacher has two
    batches in flight. A model that takes many calls at once (`ModelFacts.calls`) gets each row in
    its own call, so no row waits for the slowest. Other models wait up to `max_wait_seconds` for a
    batch to fill, if rows arrive fast enough to fill it. About `audit_rate` of the kept rows also
    go to the teacher, one at a time, when the engine is idle. `observer` receives the events, after
    the callers have their answers.

    Examples
    --------
    >>> from ebjr import JointClassifier, Router
    >>> student = lambda x: np.stack([x, -x], axis=1)
    >>> joint = JointClassifier(student, lambda x: 2 * student(x), Router("max_logit", 2.0))
    >>> with Engine(joint) as engine:
    ...     ticket = engine.ask(np.array([3.0, 1.0])).result()
    >>> ticket.answer.deferred, ticket.threshold
    (array([False,  True]), 2.0)
    """

    def __init__(
        self,
        model: Model,
        kind: Task | None = None,
        *,
        student_batch: int = 32,
        teacher_batch: int = 64,
        workers: int | None = None,
        teacher_workers: int | None = None,
        max_wait_seconds: float = 0.0,
        audit_rate: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        check_whole(1, student_batch=student_batch, teacher_batch=teacher_batch)
        check_whole(1, workers=workers, teacher_workers=teacher_workers)
        if not 0 <= max_wait_seconds < 60:
            raise ValueError(f"max_wait_seconds must be from 0 to 60, not {max_wait_seconds}")
        self.levels = _levels(model)
        self.kind = self.levels[-1].kind if self.levels else kind or Task()
        models = [model]
        if self.levels:
            models = [self.levels[0].student, *(level.teacher for level in self.levels)]
            if audit_rate and not self.kind.has_labels:
                raise ValueError(
                    f"audit_rate must be 0 for {self.kind.name}: an audit compares labels, "
                    "and this task has none"
                )
        self._predict = self.levels[-1].predict if self.levels else lambda output: output
        self._starts = [0, *(len(models_of(level.student)) for level in self.levels)]
        last = [*self._starts[1:], len(models_of(model))]  # a teacher may be joint itself
        self.stages = tuple(stages_of(model)[number - 1] for number in last)
        self.closed = False
        self.paces = [Pace() for _ in models]
        self._rates = [0.0] * len(self.levels)  # deferral rate of each router, smoothed
        self.bell: Callable[[], None] = lambda: None  # rung after tickets have been answered
        self._model = model
        self._batches = [student_batch, *[teacher_batch] * len(self.levels)]
        self.most_rows = student_batch
        self.workers = workers or available_cores()
        self._singly = [not _bears_many(each) for each in models]
        self._usage = Usage()
        self._queues = [RowQueue(max_wait_seconds, usage=self._usage) for _ in models]
        self._active = [0] * len(models)  # running batches of each model
        self._began = [-number for number in range(len(models))]  # in the order of their batches
        self._continues = bool(self.levels) and facts(self.levels[0].teacher).continues
        self._long: set[int] = set()  # threads that run a batch expected to take long
        self.lock = threading.Lock()
        self._told = Bulk(Observer() if observer is None else observer)
        self._audits = Audits(audit_rate)
        self._hire(models, teacher_workers)

    def _hire(self, models: Sequence[Model], teacher_workers: int | None) -> None:
        """Form the crews: shared workers for the local models, own workers for each remote one."""
        known = [facts(each) for each in models]
        own = [each.calls or (FAR_CALLS if each.url is not None else 0) for each in known]
        self._is_here = not own[0]
        for number, each in enumerate(known):
            if each.calls:  # a finished row must not wait for the slowest of its batch
                self._batches[number] = 1
        if self.levels and teacher_workers is not None:
            own[-1] = teacher_workers
            self._singly[-1] &= teacher_workers == 1
        here = _Crew(self.lock, [number for number, count in enumerate(own) if not count])
        self._crews = [
            _Crew(self.lock, [number]) if count else here for number, count in enumerate(own)
        ]
        self._spare = _Crew(self.lock, [0])  # serves the first model beside long batches
        sizes = {crew: count for crew, count in zip(self._crews, own, strict=True) if count}
        sizes |= {here: self.workers if here.stages else 0, self._spare: int(self._is_here)}
        singly = zip(models, self._singly, strict=True)
        self._turns = [_turn_of(model) if alone else None for model, alone in singly]
        # admission's limit is in seconds of `workers` threads: scale to the size of each crew
        self._share = [self.workers / count if count else 1.0 for count in own]
        self._threads = [
            background(f"worker-{number}", self._work, crew)
            for crew, count in sizes.items()
            for number in range(count)
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self, within: float | None = None) -> None:
        """Answer the queued requests, refuse new ones, and end the workers.

        A model that hangs is abandoned after `within` seconds; None waits without limit.
        """
        with self.lock:
            self.closed = True
            self._wake_all()
        until = None if within is None else time.monotonic() + within
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        self.tell()

    def waiting(self) -> dict[str, int]:
        """Return how many rows wait for each model, and for an audit."""
        queues = {stage: queue.rows for stage, queue in zip(self.stages, self._queues, strict=True)}
        return {**queues, "audit": len(self._audits)}

    def tell(self) -> None:
        """Pass the events so far to the observer."""
        self._told.tell()

    def ask(self, inputs: Batch, **how: Any) -> "Future[Ticket]":
        """Submit a request, as `submit` does, and return a future of its ticket."""
        future: Future[Ticket] = Future()

        def reply(ticket: Ticket) -> None:
            if ticket.error is None:
                future.set_result(ticket)
            else:
                future.set_exception(ticket.error)

        self.submit(inputs, reply=reply, **how)
        return future

    def submit(
        self,
        inputs: Batch,
        *,
        threshold: float | None = None,
        client: Any = None,
        priority: int = 0,
        reply: Callable[[Ticket], None] = lambda ticket: None,
        trace: Any = None,
        here: bool = False,
    ) -> Ticket:
        """Submit a request; a `threshold` of None is read from the knob at its first row.

        In each queue, rows of a lower `priority` go first. 0 means 1, the highest, so a request can
        yield to others and cannot push ahead. After `YIELD_SECONDS` a row counts as priority 1.
        With `here`, a fast student answers a lone row at once, in this thread.

        Raises
        ------
        Overloaded
            The engine has stopped.
        ValueError
            `inputs` is empty, `priority` is not a whole number below 2**64, or a router refuses
            `threshold`.
        """
        own = None if threshold is None else check_threshold(threshold)
        ticket = Ticket(inputs, own, client, reply, check_priority(priority))
        ticket.trace = trace
        if not ticket.rows:
            raise ValueError("a request must have at least one row, but this one has none")
        part = Part(ticket, range(ticket.rows))
        with self.lock:
            if self.closed:
                raise Overloaded("the server is stopping and takes no more requests", 1.0)
            fast = self._is_here and 0 < self.paces[0].row < AT_ONCE_SECONDS
            free = (turn := self._turns[0]) is None or not turn.locked()
            at_once = here and fast and ticket.rows == 1 and free and not self.busy
            if at_once:
                self._begin(0, 1)
            else:
                self._put(0, [part])
        if at_once:
            self._do(0, [part])
            with self.lock:
                self._end(0)
                self._crews[0].changed.notify()  # rows may have arrived meanwhile
        return ticket

    def expected_seconds(self, rows: int) -> float:
        """Return the worker seconds that `rows` rows are expected to take."""
        seconds = [pace.row for pace in self.paces]
        each = zip((1.0, *self._rates), seconds, self._share, strict=True)
        return rows * sum(map(math.prod, each))

    def hurry(self, ticket: Ticket) -> bool:
        """Answer now: rows that wait for a later model keep the student's answer, as degraded.

        Returns False, and changes nothing, if some rows have no answer from the student.
        """
        with self.lock:
            if ticket.unscored or not ticket.open:
                return False
            part = ticket.waiting()
        if silent_rows(part.said.output) is not None:
            return False
        self._degrade(len(self.levels), [part])
        self.bell()
        return True

    def _work(self, crew: "_Crew") -> None:
        number: int | None = None
        while (task := self._next(crew, number)) is not None:
            number, parts = task
            if number == AUDIT:
                self._audit()
            else:
                self._do(number, parts)
            del task, parts  # an idle worker must not keep inputs in memory

    def _next(self, crew: "_Crew", before: int | None) -> tuple[int, list[Part]] | None:
        """Return the next model of a worker, and its rows; None ends the worker."""
        with crew.changed:
            if before is not None:
                self._end(before)
            if crew is self._spare:  # it serves long batches only: pass other work on
                self._crews[0].changed.notify()
            while (number := self._pick(crew)) is None:
                if self.closed and not self.busy:
                    self._wake_all()
                    return None
                soonest = min(self._queues[each].holds() for each in crew.stages)
                if crew is not self._crews[-1] and len(self._audits) and not self.busy:
                    self._crews[-1].changed.notify()
                crew.idle += 1
                self.bell()
                crew.changed.wait(None if soonest == math.inf else soonest)
                crew.idle -= 1
            parts = [] if number == AUDIT else self._queues[number].take(self._most(number, crew))
            self._begin(number, sum([part.count for part in parts]))
            if self._open_to(crew):
                crew.changed.notify()  # one wake-up per batch: the next worker passes it on
            return number, parts

    def _full(self, number: int) -> int:
        """Return the rows of a model's full batch."""
        return int(min(self._batches[number], self.paces[number].most))

    def _most(self, number: int, crew: "_Crew") -> int:
        """Return the row limit of the next batch: idle workers share the queue."""
        hands = 1 if self._singly[number] else 1 + crew.idle
        return min(self._full(number), -(-self._queues[number].rows // hands))

    def _pick(self, crew: "_Crew") -> int | None:
        """Return the model to serve next, or an audit; None: there is no work.

        The first model, and later ones whose batch is worthwhile: deferred rows wait briefly for
        others, and no core idles while rows are queued. The model with rows of the address that has
        had least comes first, then a later model with a full batch; otherwise they take turns.
        """
        if crew is self._spare and not self._long:
            return None
        open_ones = self._open_to(crew)
        if open_ones:
            due = [one for one in open_ones if not one or self._queues[one].is_worthwhile()]
            return min(due or open_ones, key=self._urgency)
        may = len(self._audits) and crew is self._crews[-1] and not self.closed
        return AUDIT if may and not self.busy else None

    def _urgency(self, number: int) -> tuple[float, bool, int]:
        queue = self._queues[number]
        full = number and queue.rows >= self._full(number)
        return queue.least(), not full, self._began[number]

    def _open_to(self, crew: "_Crew") -> list[int]:
        """Return the models of a crew that have a batch ready."""
        return [
            number
            for number in crew.stages
            if self._queues[number].rows
            and not (self._singly[number] and self._active[number])
            and (self.closed or self._queues[number].ready(self._full(number)))
        ]

    def _put(self, number: int, parts: Sequence[Part]) -> None:
        """Queue rows for a model and wake a worker for them; the caller holds the lock."""
        for part in parts:
            self._queues[number].put(part)
        self._crews[number].changed.notify()
        if self._long and not number:
            self._spare.changed.notify()

    def _begin(self, number: int, rows: int) -> None:
        """Count a batch that starts in this thread; the caller holds the lock."""
        self._active[number] += 1
        self._began[number] = 1 + max(self._began)
        seconds = self.paces[number].row
        if number and (not seconds or rows * seconds > LONG_SECONDS):
            self._long.add(threading.get_ident())
            self._spare.changed.notify()

    def _end(self, number: int) -> None:
        self._active[number] -= 1
        self._long.discard(threading.get_ident())
        if self.closed:
            self._wake_all()

    def _wake_all(self) -> None:
        for crew in (*self._crews, self._spare):
            crew.changed.notify_all()

    @property
    def busy(self) -> bool:
        """Whether a model is running, or rows are queued."""
        return any(self._active) or any(queue.rows for queue in self._queues)

    def _do(self, number: int, parts: Sequence[Part]) -> None:
        """Run one batch; the worker survives any error."""
        for group in alike(parts):
            self._try(number, group)
        if len(self._told) >= Bulk.MANY:
            self.tell()

    def _try(self, number: int, parts: Sequence[Part]) -> None:
        """Ask a model about rows that fit together, and refuse their requests if it fails."""
        if not (parts := [part for part in parts if part.ticket.open]):
            return
        try:
            self._answer(number, parts)
        except Exception as error:
            self._fail(parts, self.stages[number], error)

    def _audit(self) -> None:
        try:
            if (found := self._audits.ask(self.levels[-1], self._told.observe)) is not None:
                self._told.observe(found)
        except Exception as error:  # no caller waits: a failed audit is only reported
            self._told.observe(Failed("audit", error))

    def _answer(self, number: int, parts: Sequence[Part]) -> None:
        began = time.perf_counter()
        inputs, said = join_rows([part.inputs for part in parts]), join(parts) if number else None
        self.bell()  # here: a woken thread wants the interpreter, which the model now releases
        error, found = None, None
        try:
            with self._turns[number] or nullcontext():
                found = self._ask(number, inputs, said)
        except Exception as failure:
            if len(parts) == 1 or not may_answer_fewer(failure):
                if said is None or not isinstance(failure, ModelError):
                    raise
                error, spent = failure, getattr(failure, "spent", None)
                found = Answer(said.output[:0], answered=np.zeros(len(inputs), bool), spent=spent)
        finally:  # work that fails counts, too
            seconds = time.perf_counter() - began
            self._usage.share(seconds, [(path_of(p.ticket.client)[0], p.count) for p in parts])
        if found is None:  # one request's rows must not fail the requests beside it
            half = len(parts) // 2
            self._try(number, parts[:half])
            self._try(number, parts[half:])
            return
        self._tell_asked(number, len(inputs), found, error, said)
        if said is not None:
            said = said._replace(
                spent=with_spent(said.spent, slice(None), found.spent, len(inputs))
            )
        spent = found.spent if said is None else said.spent
        if found.answered is not None:
            answered = to_numpy(found.answered)
            missed, parts = pick(parts, ~answered, said), pick(parts, answered)
            spent = None if spent is None else spent[answered]
            why = found.why or "the teacher does not answer these rows now"
            self._miss(number, missed, error or TeacherUnavailable(why))
        if parts:
            self._go_on(number, parts, self._whole(number, found, spent))
            self._tell_batch(number, parts, began, seconds)

    def _ask(self, number: int, inputs: Batch, said: Said | None) -> Answer:
        """Call a model; a later model's answer is blended with the earlier ones."""
        if said is not None:
            asked = inputs if said.features is None else said.features
            return self.levels[number - 1].ask_teacher(asked, said.output)
        if self.levels:
            found = self.levels[0].ask_student(inputs)
        else:
            found = answer(self._model, inputs, row_count(inputs), self.kind)
        if found.answered is not None:
            raise ModelError(f"the {self.stages[0]} answered only some rows of this batch")
        return found

    def _whole(self, number: int, found: Answer, spent: Any) -> Said:
        """Return the answers with each row's flags; `spent` is the total of all models so far."""
        output = found.output if number < len(self.levels) else plain(found.output)
        rows, start = len(output), self._starts[number]
        degraded = np.zeros(rows, bool) if found.degraded is None else to_numpy(found.degraded)
        stage = found.stages(rows)
        features = plain(found.features) if self._continues and not number else None
        return Said(output, degraded, stage + start if start else stage, features, spent)

    def _tell_asked(
        self, number: int, rows: int, found: Answer, error: ModelError | None, said: Said | None
    ) -> None:
        """Report what a model has spent, and how many rows it left without a usable answer."""
        missed = 0
        if found.answered is None:
            nothing = silent_rows(found.output)
            missed = 0 if nothing is None else int(nothing.sum())
        elif found.why or isinstance(error, TeacherFailed):
            missed = rows - int(to_numpy(found.answered).sum())
        if missed or found.spent is not None:
            silent = silent_rows(found.output if said is None else said.output)
            self._told.observe(Asked(self.stages[number], missed, found.spent, silent))

    def _tell_batch(self, number: int, parts: Sequence[Part], began: float, seconds: float) -> None:
        rows = sum([part.count for part in parts])
        self.paces[number].add(rows, seconds)
        tickets, waited = [part.ticket for part in parts], [began - part.since for part in parts]
        self._told.observe(Batched(self.stages[number], rows, tickets, waited, began, seconds))

    def _go_on(self, number: int, parts: Sequence[Part], said: Said) -> None:
        """Pass a model's answers to the next router; the last model's answers are final."""
        if number < len(self.levels) - 1:
            self._route(number, parts, said)
        elif number < len(self.levels):
            self._decide(parts, said)
        else:
            self._settle(parts, said, deferred=True)

    def _route(self, number: int, parts: Sequence[Part], said: Said) -> None:
        """Apply an inner router: the rows it keeps become input of the joint model around it."""
        level = self.levels[number]
        deferred = to_numpy(level.router(said.output)[1])
        said = said._replace(output=plain(level.of_student(said.output)))
        kept = said._replace(features=None)  # only the next model reads them
        count = np.count_nonzero(deferred)
        self._rates[number] = 0.9 * self._rates[number] + 0.1 * count / len(deferred)
        if count:
            self._defer(number + 1, pick(parts, deferred, said))
            parts = pick(parts, ~deferred, kept)
            kept = some(kept, np.flatnonzero(~deferred))
        if parts:
            self._go_on(number + 1, parts, kept)

    def _decide(self, parts: Sequence[Part], said: Said) -> None:
        """Apply the router with the knob, and answer the rows it keeps."""
        joint = self.levels[-1]
        score = np.asarray(to_numpy(joint.router.score(said.output)), np.float64)
        said = said._replace(output=plain(joint.of_student(said.output)))
        knob = joint.router.threshold
        with self.lock:  # two workers may hold rows of one request
            each = np.array([part.ticket.begin(knob) for part in parts])
        if len(parts) < len(score):
            each = np.repeat(each, [part.count for part in parts])
        deferred = joint.router.deferred(score, each)
        done = self._answer_kept(parts, said, score, deferred)
        count = np.count_nonzero(deferred)
        self._rates[-1] = 0.9 * self._rates[-1] + 0.1 * count / len(deferred)
        if count:
            self._defer(len(self.levels), pick(parts, deferred, said))
        self._reply(done)
        self._told.observe(Scored(score, deferred, each))
        if len(self.levels) > 1 and (missed := np.count_nonzero(said.degraded > deferred)):
            self._told.observe(Degraded(int(missed)))
        if self._audits.open:
            held = said.features
            inputs = join_rows([part.inputs for part in parts]) if held is None else held
            if (none := self._audits.draw(inputs, said.output, deferred, each)) is not None:
                self._told.observe(none)

    def _answer_kept(
        self, parts: Sequence[Part], said: Said, score: np.ndarray, deferred: np.ndarray
    ) -> list[Ticket]:
        """Give tickets the answers to their rows; return the tickets that are complete."""
        hard, done = deferred.tolist(), list[Ticket]()
        said, predicted = said._replace(features=None), self._predict(said.output)
        output, flags, stage, _, spent = said
        for part, own in spans(parts):
            ticket = part.ticket
            if part.count == ticket.rows and True not in hard[own]:  # the common case
                columns = predicted[own], output[own], score[own], deferred[own], flags[own]
                its_own = None if spent is None else spent[own]
                _finish(ticket, JointAnswer(*columns, stage=stage[own], spent=its_own), done)
                continue
            with self.lock:
                ticket.scored(part.rows, some(said, own), score[own], deferred[own])
                _finish(ticket, ticket.whole(self._predict), done)
        return done

    def _defer(self, number: int, parts: Sequence[Part]) -> None:
        with self.lock:
            self._put(number, parts)

    def _settle(self, parts: Sequence[Part], said: Said, *, deferred: bool) -> None:
        """Take the final answer to some rows; `deferred`: the teacher gave it."""
        done: list[Ticket] = []
        with self.lock:
            for part, own in spans(parts):
                if part.ticket.open:
                    part.ticket.taught(part.rows, some(said, own), deferred)
                    _finish(part.ticket, part.ticket.whole(self._predict), done)
        self._reply(done)

    def _miss(self, number: int, parts: Sequence[Part], error: ModelError) -> None:
        """Apply the `when_unavailable` policy to rows that a teacher did not answer."""
        if not parts:
            return
        if self.levels[number - 1].when_unavailable == "error":
            self._fail(parts, self.stages[number], error)
            return
        self._told.observe(Failed(self.stages[number], error))
        self._degrade(number, parts, error)

    def _degrade(self, number: int, parts: Sequence[Part], error: object = None) -> None:
        """Continue with the earlier answers to rows whose teacher failed with `error`.

        A request fails if one of its rows has no earlier answer.
        """
        said = join(parts)
        said = said._replace(degraded=np.ones(len(said.output), bool), features=None)
        if number < len(self.levels):
            self._go_on(number, parts, said)
            return
        if (nothing := silent_rows(said.output)) is not None:
            for part in pick(parts, nothing):
                which = f"row {part.rows[0]} (from 0)" if part.ticket.rows > 1 else "the row"
                words = f"neither student nor {self.stages[number]} answered {which}"
                self._refuse([part], TeacherUnavailable(f"{words}: {error}"))
            parts, said = pick(parts, ~nothing), some(said, np.flatnonzero(~nothing))
            if not parts:
                return
        self._keep(parts)
        self._told.observe(Degraded(len(said.output)))
        self._settle(parts, said, deferred=False)

    def _keep(self, parts: Sequence[Part]) -> None:
        """Keep open rows for later, if the policy is to queue them."""
        late = self.levels[-1].late
        if late is None:
            return
        with self.lock:  # another worker may keep other rows of the same request
            waiting = [part for part in parts if part.ticket.open]
            for part in waiting:
                part.ticket.late_id = part.ticket.late_id or late.new_id()
        entries = [
            LateRows(part.ticket.late_id, np.asarray(part.rows), part.inputs, part.said.output)
            for part in waiting
        ]
        if entries and late.keep(entries, self.kind):
            for part in waiting:
                part.ticket.late = part.ticket.late_id

    def _reply(self, done: Sequence[Ticket]) -> None:
        if not done:
            return
        for ticket in done:
            ticket.tell()
        since = np.array([ticket.since for ticket in done])
        stage = np.concatenate([ticket.result().stage for ticket in done])
        self._told.observe(Answered(since, time.perf_counter() - since, stage))

    def _fail(self, parts: Sequence[Part], stage: str, error: Exception) -> None:
        told = error
        if not isinstance(error, EbjrError):
            told = ModelError(f"the {stage} failed on a batch: {type(error).__name__}: {error}")
        told.__traceback__ = None  # its frames keep the rows in memory
        self._refuse(parts, told)
        self._told.observe(Failed(stage, error))

    def _refuse(self, parts: Sequence[Part], error: Exception) -> None:
        """Fail the requests of some rows."""
        with self.lock:
            failed = dict.fromkeys(part.ticket for part in parts if part.ticket.open)
            for ticket in failed:
                ticket.open, ticket.error = False, error
        for ticket in failed:
            ticket.tell()
        self.bell()


class _Crew:
    """Workers that wait on one condition, and the models that they serve."""

    def __init__(self, lock: threading.Lock, stages: list[int]) -> None:
        self.changed, self.stages = threading.Condition(lock), stages
        self.idle = 0  # waiting workers


def _nobody(ticket: Ticket) -> None:
    """Reply to no one: the request was canceled or answered."""


def _finish(ticket: Ticket, found: JointAnswer | None, done: list[Ticket]) -> None:
    if found is not None and ticket.open:
        ticket.open, ticket.answer = False, found
        done.append(ticket)


def check_priority(priority: Any) -> int:
    """Return the priority; raise ValueError unless it is a whole number below 2**64."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority < 2**64:
        raise ValueError(
            "priority must be a whole number from 0 to 2**64 - 1 (0 and 1 go first), not "
            f"{priority!r:.60}"
        )
    return priority


def stages_of(model: Model) -> tuple[str, ...]:
    """Return the names of a model's models, cheapest first; a single model is the teacher."""
    return roles_of(len(models_of(model))) if isinstance(model, JointModel) else ("teacher",)


def _levels(model: Model) -> tuple[JointModel, ...]:
    """Return the joint models in a model, innermost first; each is the student of the next."""
    if not isinstance(model, JointModel):
        return ()
    return (*_levels(model.student), model)


_TURNS: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
"""One lock for each model that takes one call at a time, shared by all engines."""


def _turn_of(model: Model) -> threading.Lock:
    once = unprepared(model)[0]
    once = getattr(once, "made_of", once)  # loads of the same Python code share its state
    try:
        return _TURNS.setdefault(once, threading.Lock())
    except TypeError:  # not weakly referable: assume that no other engine shares it
        return threading.Lock()


def _bears_many(model: Model) -> bool:
    """Whether several threads may call a model at once, which is known only of our backends."""
    known = facts(model)
    on_disk = known.path is not None and known.path.suffix in FILES
    return known.url is not None or (on_disk and known.device == "cpu")

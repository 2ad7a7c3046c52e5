"""A joint model behind a server, as queues: who waits for whom, and who shares which cores.

A request is read by its replica's event loop, its rows wait for the student's thread, the deferred
ones for a teacher's, and the loop writes the answer when the last row has one. Each of these is one
thread, which does one thing at a time. Where they share a machine, all that have work get an equal
part of its cores; and so do the clients, if they are there too.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

ROWS = 8

Job = tuple[float, Callable[[], None]]
"""Seconds of one core, and what happens then."""


def likely(values: np.ndarray, n: int) -> tuple[float, ...]:
    """Draw `n` values in place of the measured ones, each as likely as the others.

    Examples
    --------
    >>> likely(np.array([1.0, 2.0, 3.0, 4.0]), 2)
    (1.75, 3.25)
    """
    return tuple(np.round(np.quantile(values, (np.arange(n) + 0.5) / n), 5).tolist())


@dataclass(frozen=True)
class Times:
    """Seconds that a batch takes: some for any, more for each row, and a spread.

    Attributes
    ----------
    fixed, each
        For a batch, and for each of its rows.
    spread
        What batches took over what that says, each as likely as the others.
    """

    fixed: float
    each: float
    spread: tuple[float, ...] = (1.0,)

    def of(self, rows: int) -> float:
        """Seconds for a batch, without the spread.

        Examples
        --------
        >>> Times(0.5, 0.25).of(2)
        1.0
        """
        return self.fixed + self.each * rows

    @classmethod
    def fit(cls, rows: Sequence[int], seconds: Sequence[float], spread: int = 200) -> Times:
        """The line through measured batches by least relative squares, and their spread."""
        taken = np.asarray(seconds)
        design = np.stack([1 / taken, np.asarray(rows) / taken], axis=1)
        fixed, each = np.linalg.lstsq(design, np.ones(len(taken)), rcond=None)[0]
        line = cls(max(float(fixed), 0.0), float(each))
        return replace(line, spread=likely(taken / line.of(np.asarray(rows)), spread))


@dataclass(frozen=True)
class Plan:
    """The plan to simulate.

    Attributes
    ----------
    student, teacher
        Their times.
    deferral_rate, rows
        The share of deferred rows, and the rows of a request.
    students, teachers
        Replicas of each.
    student_batch, teacher_batch
        The most rows of a batch.
    http
        Seconds of a core for a request in the event loop of its student's replica.
    client
        The same in the clients' one thread, where they are on the same machine.
    idle
        Seconds in which no thread works for a request, as one that was woken does not run yet, each
        as likely as the others; and the same where rows of it are deferred.
    cores
        Of a machine that all share; without end where each thread has a core of its own.
    """

    student: Times
    teacher: Times
    deferral_rate: float
    rows: int = ROWS
    students: int = 1
    teachers: int = 1
    student_batch: int = 32
    teacher_batch: int = 64
    http: float = 0.0
    client: float = 0.0
    idle: tuple[Sequence[float], Sequence[float]] = ((0.0,), (0.0,))
    cores: float = float("inf")


@dataclass
class Simulated:
    """Result: seconds of each request, rows and core seconds of each stage's batches."""

    latencies: np.ndarray
    batches: dict[str, list[int]] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)


class _Machine:
    """Threads that have work, each with an equal part of the cores."""

    def __init__(self, cores: float) -> None:
        self.now = 0.0
        self._cores = cores
        self._given = 0.0  # the seconds of a core that a thread has got that was always at work
        self._order = 0
        self._working: list[tuple[float, int, _Thread, Callable[[], None]]] = []

    def start(self, thread: _Thread) -> None:
        """Let a thread do what is next, if it is free and there is something."""
        if thread.working or (job := thread.next()) is None:
            return
        seconds, then = job
        thread.working = True
        self._order += 1
        heapq.heappush(self._working, (self._given + seconds, self._order, thread, then))

    def run(self, until: float) -> None:
        """Go on until then."""
        while self._working:
            pace = min(1.0, self._cores / len(self._working))
            at = self.now + (self._working[0][0] - self._given) / pace
            if at > until:
                self._given += (until - self.now) * pace
                break
            self.now = at
            self._given, _, thread, then = heapq.heappop(self._working)
            thread.working = False
            then()
            self.start(thread)
        self.now = until


class _Thread:
    """Does one thing at a time: what it was given, first in first out."""

    def __init__(self) -> None:
        self.working = False
        self.jobs: deque[Job] = deque()

    def next(self) -> Job | None:
        """Return the job that it runs next."""
        return self.jobs.popleft() if self.jobs else None


class _Stage(_Thread):
    """A replica of a model: it answers what waits, up to a full batch."""

    def __init__(
        self,
        times: Times,
        most: int,
        random: np.random.Generator,
        then: Callable[[list[tuple[int, int]]], None],
    ) -> None:
        super().__init__()
        self.times, self.most, self._random, self._then = times, most, random, then
        self.queue: deque[tuple[int, int]] = deque()  # (request, rows)
        self.queued = 0
        self.batches: list[int] = []
        self.busy = 0.0

    @property
    def waiting(self) -> int:
        """The rows before one that comes now, at most."""
        return self.queued + self.most * self.working

    def put(self, request: int, rows: int) -> None:
        """Let rows of a request wait."""
        self.queue.append((request, rows))
        self.queued += rows

    def next(self) -> Job | None:
        batch, room = [], self.most
        while self.queue and room:
            request, rows = self.queue.popleft()
            if rows > room:
                self.queue.appendleft((request, rows - room))
                rows = room
            batch.append((request, rows))
            room -= rows
        if not batch:
            return None
        size = self.most - room
        self.queued -= size
        spread = self.times.spread
        seconds = self.times.of(size) * spread[self._random.integers(len(spread))]
        self.batches.append(size)
        self.busy += seconds
        return seconds, lambda: self._then(batch)


def poisson(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Times of requests that come at random, `rate` a second."""
    random = np.random.default_rng(seed)
    return np.cumsum(random.exponential(1 / rate, int(rate * seconds)))


def simulate(
    plan: Plan, arrivals: np.ndarray, seed: int = 0, hard: np.ndarray | None = None
) -> Simulated:
    """Simulate requests at rising arrival times.

    Parameters
    ----------
    plan
        Of the server.
    arrivals
        (n,): seconds.
    seed
        Of what is left to chance.
    hard
        (n, rows) bool: the rows that are deferred; without it chance defers.

    Examples
    --------
    >>> plan = Plan(Times(0.0, 0.5), Times(0.0, 1.0), deferral_rate=0.0, rows=1)
    >>> simulate(plan, np.array([0.0, 0.1])).latencies
    array([0.5, 0.9])
    """
    random = np.random.default_rng(seed)
    if hard is None:
        hard = random.random((len(arrivals), plan.rows)) < plan.deferral_rate
    unscored = np.full(len(arrivals), plan.rows)
    unanswered = unscored.copy()
    finished = np.zeros(len(arrivals))
    replica_of = np.zeros(len(arrivals), int)
    machine = _Machine(plan.cores)

    def scored(batch: list[tuple[int, int]]) -> None:
        for request, rows in batch:
            first = plan.rows - unscored[request]
            unscored[request] -= rows
            deferred = int(hard[request, first : first + rows].sum())
            if deferred:
                put(teachers, request, deferred)
            settle(request, rows - deferred)

    def taught(batch: list[tuple[int, int]]) -> None:
        for request, rows in batch:
            settle(request, rows)

    def put(stages: list[_Stage], request: int, rows: int) -> None:
        chosen = min(stages, key=lambda stage: stage.waiting)
        chosen.put(request, rows)
        machine.start(chosen)

    def give(thread: _Thread, seconds: float, then: Callable[[], None]) -> None:
        thread.jobs.append((seconds, then))
        machine.start(thread)

    # of what the loop and the clients do for a request, half is before its answer and half after
    def arrive(request: int) -> None:
        give(clients, plan.client / 2, lambda: read(request))

    def read(request: int) -> None:
        replica = min(range(plan.students), key=lambda at: students[at].waiting)
        replica_of[request] = replica
        give(loops[replica], plan.http / 2, lambda: to_student(request))

    def to_student(request: int) -> None:
        put([students[replica_of[request]]], request, plan.rows)

    def settle(request: int, rows: int) -> None:
        unanswered[request] -= rows
        if not unanswered[request]:
            give(loops[replica_of[request]], plan.http / 2, lambda: answer(request))

    def answer(request: int) -> None:
        give(clients, plan.client / 2, lambda: finish(request))

    def finish(request: int) -> None:
        finished[request] = machine.now

    clients, loops = _Thread(), [_Thread() for _ in range(plan.students)]
    students = [
        _Stage(plan.student, plan.student_batch, random, scored) for _ in range(plan.students)
    ]
    teachers = [
        _Stage(plan.teacher, plan.teacher_batch, random, taught) for _ in range(plan.teachers)
    ]
    for request, at in enumerate(arrivals.tolist()):
        machine.run(at)
        arrive(request)
    machine.run(float("inf"))
    stages = {"student": students, "teacher": teachers}
    kept, deferred = (random.choice(np.asarray(each), len(arrivals)) for each in plan.idle)
    idle = np.where(hard.any(axis=1), deferred, kept)
    return Simulated(
        finished - arrivals + idle,
        {name: [rows for one in found for rows in one.batches] for name, found in stages.items()},
        {name: sum(one.busy for one in found) for name, found in stages.items()},
    )


def cheapest(
    plan: Plan,
    rate: float,
    p99: float,
    prices: tuple[float, float] = (1.0, 1.0),
    most: int = 64,
) -> tuple[Plan, Simulated] | None:
    """The replicas that answer `rate` requests a second within `p99` seconds for the least money.

    Parameters
    ----------
    plan
        All but the replicas.
    rate, p99
        Requests a second, and the seconds that 99 % of them may take.
    prices
        Of a student replica and of a teacher replica, an hour.
    most
        Replicas of each at most.

    Returns
    -------
    tuple or None
        The plan and its simulation; None where not even the most do it.
    """
    arrivals = poisson(rate, max(30.0, 3_000 / rate))
    full = plan.student.of(plan.student_batch) / plan.student_batch
    taught = plan.teacher.of(plan.teacher_batch) / plan.teacher_batch * plan.deferral_rate
    least = [max(1, int(np.ceil(rate * plan.rows * seconds))) for seconds in (full, taught)]
    pairs = sorted(
        (s * prices[0] + t * prices[1], s, t)
        for s in range(least[0], most + 1)
        for t in range(least[1], most + 1)
    )
    for _, students, teachers in pairs:
        tried = replace(plan, students=students, teachers=teachers)
        found = simulate(tried, arrivals)
        if np.quantile(found.latencies, 0.99) <= p99:
            return tried, found
    return None

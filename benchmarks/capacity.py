"""How many replicas a load needs: a simulator of the two queues, and how right it is.

Requests arrive at random; a student replica answers what waits in batches, a share of the rows is
deferred, teacher replicas answer those in batches of their own, and a request is answered when its
last row is. Times of batches are measured here.

``python -m benchmarks.capacity`` measures the shipped pair, simulates ``ebjr serve`` at three loads
and compares with the real server at the same loads. ``python -m benchmarks.capacity plan
--requests 400 --p99 0.2`` says how many replicas that takes, and what they cost.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, about, save

LOADS = (0.3, 0.5, 0.7)
ROWS = 8
SECONDS = 40.0


@dataclass(frozen=True)
class Times:
    """Seconds that a model takes for a batch: some for any, and more for each row."""

    fixed: float
    each: float

    def of(self, rows: int) -> float:
        """Seconds for a batch.

        Examples
        --------
        >>> Times(0.5, 0.25).of(2)
        1.0
        """
        return self.fixed + self.each * rows

    @classmethod
    def fit(cls, rows: Sequence[int], seconds: Sequence[float]) -> Times:
        """The line through measured batches by least relative squares."""
        weight = 1 / np.asarray(seconds)
        design = np.stack([weight, weight * np.asarray(rows)], axis=1)
        fixed, each = np.linalg.lstsq(design, np.ones(len(weight)), rcond=None)[0]
        return cls(max(float(fixed), 0.0), float(each))


@dataclass(frozen=True)
class Plan:
    """What is simulated.

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
    overhead
        Seconds of a request beside the models: network, protocol.
    contention
        How much longer a batch takes while the other model is busy, where both share a machine.
    """

    student: Times
    teacher: Times
    deferral_rate: float
    rows: int = ROWS
    students: int = 1
    teachers: int = 1
    student_batch: int = 64
    teacher_batch: int = 64
    overhead: float = 0.0
    contention: float = 1.0


@dataclass
class Simulated:
    """What came of it: seconds of each request, rows and busy seconds of each stage's batches."""

    latencies: np.ndarray
    batches: dict[str, list[int]] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)


class _Stage:
    """The replicas of one model, each with a queue of (request, rows)."""

    def __init__(self, times: Times, replicas: int, most: int) -> None:
        self.times, self.most = times, most
        self.queues: list[deque[tuple[int, int]]] = [deque() for _ in range(replicas)]
        self.working = [False] * replicas
        self.batches: list[int] = []
        self.busy = 0.0

    def put(self, request: int, rows: int) -> int:
        """To the replica where the fewest rows wait."""
        waits = [
            sum(r for _, r in queue) + self.most * working
            for queue, working in zip(self.queues, self.working, strict=True)
        ]
        chosen = int(np.argmin(waits))
        self.queues[chosen].append((request, rows))
        return chosen

    def take(self, replica: int) -> list[tuple[int, int]]:
        """What waits, up to a full batch."""
        taken, room, queue = [], self.most, self.queues[replica]
        while queue and room:
            request, rows = queue.popleft()
            if rows > room:
                queue.appendleft((request, rows - room))
                rows = room
            taken.append((request, rows))
            room -= rows
        return taken


def simulate(plan: Plan, arrivals: np.ndarray, seed: int = 0) -> Simulated:
    """What requests at some times, rising, have to wait.

    Examples
    --------
    >>> plan = Plan(Times(0.0, 0.5), Times(0.0, 1.0), deferral_rate=0.0, rows=1)
    >>> simulate(plan, np.array([0.0, 0.1])).latencies
    array([0.5, 0.9])
    """
    random = np.random.default_rng(seed)
    stages = {
        "student": _Stage(plan.student, plan.students, plan.student_batch),
        "teacher": _Stage(plan.teacher, plan.teachers, plan.teacher_batch),
    }
    open_rows = np.full(len(arrivals), plan.rows)
    finished = np.zeros(len(arrivals))
    events: list[tuple[float, int, str, Any]] = [
        (at, number, "arrive", number) for number, at in enumerate(arrivals.tolist())
    ]
    heapq.heapify(events)
    count = len(events)

    def start(name: str, replica: int, now: float) -> None:
        nonlocal count
        stage = stages[name]
        if stage.working[replica] or not (batch := stage.take(replica)):
            return
        rows = sum(r for _, r in batch)
        other = stages["teacher" if name == "student" else "student"]
        seconds = stage.times.of(rows) * (plan.contention if any(other.working) else 1.0)
        stage.working[replica] = True
        stage.batches.append(rows)
        stage.busy += seconds
        count += 1
        heapq.heappush(events, (now + seconds, count, name, (replica, batch)))

    while events:
        now, _, what, about_it = heapq.heappop(events)
        if what == "arrive":
            start("student", stages["student"].put(about_it, plan.rows), now)
            continue
        replica, batch = about_it
        stages[what].working[replica] = False
        for request, rows in batch:
            deferred = int(random.binomial(rows, plan.deferral_rate)) if what == "student" else 0
            if deferred:
                start("teacher", stages["teacher"].put(request, deferred), now)
            open_rows[request] -= rows - deferred
            if not open_rows[request]:
                finished[request] = now
        start(what, replica, now)
    return Simulated(
        finished - arrivals + plan.overhead,
        {name: stage.batches for name, stage in stages.items()},
        {name: stage.busy for name, stage in stages.items()},
    )


def poisson(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Times of requests that come at random, `rate` a second."""
    random = np.random.default_rng(seed)
    return np.cumsum(random.exponential(1 / rate, int(rate * seconds)))


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


def measure_times(model: Callable[[np.ndarray], Any], inputs: np.ndarray) -> Times:
    """A model's times here: the median of each size of batch."""
    sizes = (1, 2, 4, 8, 16, 32, 64)
    medians = []
    for size in sizes:
        model(inputs[:size])
        spent = []
        until = time.perf_counter() + 1.0
        while time.perf_counter() < until or len(spent) < 5:
            began = time.perf_counter()
            model(inputs[:size])
            spent.append(time.perf_counter() - began)
        medians.append(float(np.median(spent)))
    return Times.fit(sizes, medians)


def measure_contention(
    student: Callable[[np.ndarray], Any], teacher: Callable[[np.ndarray], Any], inputs: np.ndarray
) -> float:
    """How much longer the student's batch takes while the teacher works beside it."""

    def median() -> float:
        spent = []
        until = time.perf_counter() + 2.0
        while time.perf_counter() < until:
            began = time.perf_counter()
            student(inputs[:16])
            spent.append(time.perf_counter() - began)
        return float(np.median(spent))

    alone, ended = median(), threading.Event()

    def work() -> None:
        while not ended.is_set():
            teacher(inputs[:16])

    beside = threading.Thread(target=work)
    beside.start()
    try:
        return max(1.0, median() / alone)
    finally:
        ended.set()
        beside.join()


def main() -> None:
    """Compare with the real server, or plan."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    tasks = parser.add_subparsers(dest="task")
    planned = tasks.add_parser("plan", help="how many replicas a load needs")
    planned.add_argument("--requests", type=float, required=True, help="a second")
    planned.add_argument("--p99", type=float, required=True, help="seconds")
    planned.add_argument("--deferral-rate", type=float, help="else as measured")
    planned.add_argument("--rows", type=int, default=ROWS, help="of a request")
    planned.add_argument("--student-price", type=float, default=1.0, help="of a replica, an hour")
    planned.add_argument("--teacher-price", type=float, default=1.0, help="of a replica, an hour")
    asked = parser.parse_args()
    if asked.task == "plan":
        print_plan(asked)
    else:
        compare()


def print_plan(asked: argparse.Namespace) -> None:
    """Plan with the times of the committed result, or of `capacity.json` as it was made here."""
    measured = RESULTS / "capacity.json"
    if not measured.is_file():
        raise SystemExit("first measure the times here: python -m benchmarks.capacity")
    known = json.loads(measured.read_text())
    rate = known["deferral_rate"] if asked.deferral_rate is None else asked.deferral_rate
    plan = Plan(
        Times(**known["student"]),
        Times(**known["teacher"]),
        rate,
        rows=asked.rows,
        overhead=known["overhead"],
    )
    prices = (asked.student_price, asked.teacher_price)
    found = cheapest(plan, asked.requests, asked.p99, prices)
    if found is None:
        raise SystemExit("not even 64 replicas of each do it: the p99 is below what a batch takes")
    best, simulated = found
    cost = best.students * prices[0] + best.teachers * prices[1]
    p50, p99 = np.quantile(simulated.latencies, [0.5, 0.99])
    print(
        f"{best.students} student and {best.teachers} teacher replicas, {cost:g} an hour: "
        f"p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, teacher batches of "
        f"{np.mean(simulated.batches['teacher'] or [0]):.1f} rows"
    )


def compare() -> None:
    """Measure, simulate, serve, and write how far apart they are."""
    from benchmarks.load import Measured, closed, opened, requests
    from benchmarks.pair import cifar_inputs, running_server, write_pair
    from ebjr import load_joint

    with tempfile.TemporaryDirectory() as folder:
        path = write_pair(Path(folder))
        inputs = cifar_inputs(1024)
        joint = load_joint(path, threads=1)
        rate = float(joint(inputs).deferred.mean())
        student, teacher = (measure_times(m, inputs) for m in (joint.student, joint.teacher))
        contention = measure_contention(joint.student, joint.teacher, inputs)
        asked = requests("image", inputs, ROWS)
        plan = Plan(student, teacher, rate, contention=contention)
        with running_server(path, threads=1) as port:
            closed(port, asked, 4, 2.0)
            kept = opened(port, asked[:40], np.arange(40) * 0.3).latencies
            alone = simulate(plan, np.arange(40) * 0.3).latencies
            plan = replace(plan, overhead=max(0.0, float(np.median(kept) - np.median(alone))))
            busiest = closed(port, asked, 64, 10.0)
            most = len(busiest.latencies) / busiest.seconds
            loads = []
            for load in LOADS:
                times = poisson(load * most, SECONDS, seed=1)
                real: Measured = opened(port, asked, times)
                loads.append({"load": load, **_compared(plan, times, real)})
    save(
        "capacity",
        {
            **about(seed=0),
            "student": vars(student),
            "teacher": vars(teacher),
            "deferral_rate": rate,
            "overhead": plan.overhead,
            "contention": contention,
            "busiest_requests_per_second": round(most, 2),
            "loads": loads,
        },
    )


def _compared(plan: Plan, times: np.ndarray, real: Any) -> dict[str, Any]:
    found = simulate(plan, times).latencies
    simulated = {
        "requests_per_second": len(times) / float((times + found).max()),
        "p99": float(np.quantile(found, 0.99)),
    }
    measured = {
        "requests_per_second": len(real.latencies) / real.seconds,
        "p99": float(np.quantile(real.latencies, 0.99)),
    }
    return {
        "simulated": {key: round(value, 4) for key, value in simulated.items()},
        "measured": {key: round(value, 4) for key, value in measured.items()},
        "simulated_over_measured": {
            key: round(simulated[key] / measured[key], 3) for key in measured
        },
    }


if __name__ == "__main__":
    main()

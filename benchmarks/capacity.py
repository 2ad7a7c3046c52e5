"""How many replicas a load needs: a simulator of the server's queues, and how right it is.

``python -m benchmarks.capacity`` measures what the shipped pair's batches and requests take on this
machine, inside a server where next to none waits for another; simulates ``ebjr serve`` at three
loads; and compares with the real server, which gets the same requests at the same times, in several
rounds. Both share the cores with the clients. ``python -m benchmarks.capacity plan --requests 400
--p99 0.2`` says how many replicas that takes, and what they cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, about, save
from benchmarks.simulator import ROWS, Plan, Times, cheapest, likely, poisson, simulate

LOADS = (0.3, 0.5, 0.7)
"""Of the most requests a second that 64 clients get."""

ROUNDS = 5
"""Times and loads are measured so often, one after the other: a shared machine changes its pace."""

REQUESTS = 1_500
"""Of a load in a round."""

SIMULATIONS = 10
"""Of each round, so that the simulator's own chance does not count."""

TIMED_RATE, TIMED_REQUESTS = 10.0, 200
"""Requests a second, and how many of a round, from which the times are."""

TIMED_ROWS = (ROWS, 2 * ROWS, 4 * ROWS)
"""Of a request: batches of several sizes say what each row adds."""


def main() -> None:
    """Compare with the real server, or plan."""
    parser = argparse.ArgumentParser(description=__doc__)
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
        http=known["http"],
        idle=known["idle"],
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
    from benchmarks.load import closed, opened, requests
    from benchmarks.pair import cifar_inputs, running_server, write_pair
    from ebjr import load_joint

    with tempfile.TemporaryDirectory() as folder:
        path = write_pair(Path(folder))
        inputs = cifar_inputs(1024)
        deferred = load_joint(path, threads=1)(inputs).deferred.reshape(-1, ROWS)
        asked = requests("image", inputs, ROWS)
        timed: list[dict[str, Any]] = []
        rounds: dict[float, list[dict[str, Any]]] = {load: [] for load in LOADS}
        for number in range(ROUNDS):
            here = [_timed(path, inputs, rows, 100 + number) for rows in TIMED_ROWS]
            timed += here
            plan = _plan(here, float(deferred.mean()))
            with running_server(path, threads=1) as port:
                closed(port, asked, 4, 2.0)
                busiest = closed(port, asked, 64, 5.0)
                most = len(busiest.latencies) / busiest.seconds
                for load in LOADS:
                    times = poisson(load * most, REQUESTS / (load * most), seed=number)
                    real = opened(port, asked, times)
                    if real.failed:
                        raise SystemExit(f"{real.failed} of {len(times)} requests failed")
                    rounds[load].append(_compared(plan, deferred, times, real))
                    p99 = rounds[load][-1]["measured"]["p99"]
                    tell(f"round {number + 1} of {ROUNDS}, load {load}: p99 {1e3 * p99:.1f} ms")
    plan = _plan(timed, float(deferred.mean()))
    save(
        "capacity",
        {
            **about(seed=0),
            "student": vars(plan.student),
            "teacher": vars(plan.teacher),
            "http": plan.http,
            "client": plan.client,
            "idle": plan.idle,
            "deferral_rate": plan.deferral_rate,
            "cores": plan.cores,
            "loads": [
                {
                    "load": load,
                    "simulated_over_measured_median": {
                        key: round(float(np.median([each["ratio"][key] for each in found])), 3)
                        for key in found[0]["ratio"]
                    },
                    "rounds": found,
                }
                for load, found in rounds.items()
            ],
        },
    )


def tell(words: str) -> None:
    """Say how far it is, beside the result."""
    print(words, file=sys.stderr, flush=True)


def _timed(path: Path, inputs: np.ndarray, rows: int, seed: int) -> dict[str, Any]:
    """Seconds of batches and requests of some rows, with almost no queueing.

    Seconds of each batch; core seconds of a request in the server's event loop and in the clients;
    and the seconds of each request in which no model had its rows, of those that wait for no other.
    """
    from benchmarks.load import opened, requests

    output = path.with_name("times.json")
    command = [sys.executable, "-m", "benchmarks.timed_server", str(path), str(output)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    times = poisson(TIMED_RATE, TIMED_REQUESTS / TIMED_RATE, seed)
    asked = requests("image", inputs, rows)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().strip().rpartition(":")[2])
        warm = len(opened(port, asked, times[:20]).latencies)
        began = time.process_time()
        latencies = opened(port, asked, times).latencies
        client = (time.process_time() - began) / len(times)
    finally:
        server.terminate()
        server.wait()
    found = json.loads(output.read_text())
    batches = [(stage, size, seconds) for stage, size, seconds, _ in found["batches"]]
    modelled: dict[int, list[float]] = {}
    shared = set()
    for _, _, seconds, numbers in found["batches"]:
        shared |= set(numbers) if len(numbers) > 1 else set()
        for number in numbers:
            modelled.setdefault(number - warm, []).append(seconds)
    rest: dict[str, list[float]] = {"kept": [], "deferred": []}
    answered = np.concatenate([[0.0], (times + latencies)[:-1]])
    for number in np.flatnonzero(times > answered).tolist():
        if number + warm not in shared:
            seconds = modelled[number]
            own = float(latencies[number]) - sum(seconds)
            rest["deferred" if len(seconds) > 1 else "kept"].append(own)
    return {"rows": rows, "batches": batches, "http": found["http"], "client": client, **rest}


def _plan(timed: list[dict[str, Any]], deferral_rate: float) -> Plan:
    batches = [batch for one in timed for batch in one["batches"]]
    student, teacher = (
        Times.fit(*zip(*((rows, s) for stage, rows, s in batches if stage == kind), strict=True))
        for kind in ("student", "teacher")
    )
    usual = [one for one in timed if one["rows"] == ROWS]
    http, client = (float(np.mean([one[what] for one in usual])) for what in ("http", "client"))
    kept, deferred = (
        likely(np.concatenate([one[which] for one in usual]) - http - client, 100)
        for which in ("kept", "deferred")
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Plan(
        student,
        teacher,
        deferral_rate,
        http=http,
        client=client,
        idle=(kept, deferred),
        cores=float(cores or 1),
    )


def _compared(plan: Plan, deferred: np.ndarray, times: np.ndarray, real: Any) -> dict[str, Any]:
    """Throughput, p50 and p99 of a load in one round."""
    hard = deferred[np.arange(len(times)) % len(deferred)]
    again = [simulate(plan, times, seed, hard).latencies for seed in range(SIMULATIONS)]
    seconds = float(np.mean([(times + latencies).max() for latencies in again]))
    simulated = _figures(len(times) / seconds, np.concatenate(again))
    measured = _figures(len(times) / real.seconds, real.latencies)
    ratio = {key: round(simulated[key] / measured[key], 3) for key in measured}
    return {"simulated": simulated, "measured": measured, "ratio": ratio}


def _figures(rate: float, latencies: np.ndarray) -> dict[str, float]:
    p50, p99 = np.quantile(latencies, [0.5, 0.99])
    return {
        "requests_per_second": round(rate, 4),
        "p50": round(float(p50), 5),
        "p99": round(float(p99), 5),
    }


if __name__ == "__main__":
    main()

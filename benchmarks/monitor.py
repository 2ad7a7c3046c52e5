"""The monitor: 10,000,000 rows in constant memory, false alarms, and how soon a break is found."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.machine import about, save
from ebjr.monitor import DriftMonitor, RiskMonitor, draw_audits

SEED = 0
ALPHA = 0.05
TOLERANCE = 0.01
DEFERRAL_RATE = 0.3
BATCH = 100_000


def timed(monitor: RiskMonitor | DriftMonitor, batches: Iterator[np.ndarray]) -> dict[str, Any]:
    """Seconds inside `update`, and its peak memory, over a stream that is never held."""
    seconds, peaks, rows = 0.0, [], 0
    for batch in batches:
        began = time.perf_counter()
        monitor.update(batch)
        seconds += time.perf_counter() - began
        rows += len(batch)
    for _ in range(2):
        tracemalloc.start()
        monitor.update(batch)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "peak_bytes_in_a_batch": max(peaks),
        "state_bytes": len(str(monitor.state())),
    }


def stream(draw: Callable[[int], np.ndarray], n: int) -> Iterator[np.ndarray]:
    """Batches that add up to n rows."""
    for _ in range(n // BATCH):
        yield draw(BATCH)


def reach(rng: np.random.Generator) -> dict[str, Any]:
    """Time and memory of each monitor, for a tenth of the rows and for all."""

    def harms(n: int) -> np.ndarray:
        return (rng.random(n) < TOLERANCE / 2).astype(np.float64)

    def losses(n: int) -> np.ndarray:
        return rng.beta(0.5, 10.0, n)

    def scores(n: int) -> np.ndarray:
        return rng.normal(size=n)

    figures = {}
    for rows in (1_000_000, 10_000_000):
        figures[f"{rows:,}"] = {
            "harm": timed(RiskMonitor(TOLERANCE), stream(harms, rows)),
            "risk": timed(RiskMonitor(0.1, promise="risk"), stream(losses, rows)),
            "drift": timed(
                DriftMonitor(rng.normal(size=10_000), threshold=-0.5), stream(scores, rows)
            ),
        }
        figures[f"{rows:,}"]["drift"]["tests"] = "scores and deferral rate"
    return figures


def traffic(
    rng: np.random.Generator, n: int, risk: float, audit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows served: which were deferred, their harm, which were audited, and with what chance."""
    deferred = rng.random(n) < DEFERRAL_RATE
    harm = ~deferred & (rng.random(n) < risk / (1 - DEFERRAL_RATE))
    audited, chance = draw_audits(deferred, audit, rng)
    return deferred, harm.astype(np.float64), audited, chance


def false_alarms(rng: np.random.Generator, runs: int, rows: int) -> dict[str, Any]:
    """Count the runs that raise a false alarm while the promise is (just) kept."""
    found = dict.fromkeys(("harm", "harm, 10 % audited", "excess", "drift", "drift, with ties"), 0)
    for _ in range(runs):
        for name, audit in (("harm", 1.0), ("harm, 10 % audited", 0.1)):
            monitor = RiskMonitor(TOLERANCE, ALPHA, audit_probability=audit)
            _, harm, audited, chance = traffic(rng, rows, TOLERANCE, audit)
            found[name] += monitor.update(harm, audited, chance) == "broken"
        excess = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.95, 0.03], size=rows)
        found["excess"] += RiskMonitor(0.01, ALPHA, promise="excess").update(excess) == "broken"
        scores, live = rng.normal(size=500), rng.normal(size=rows)
        for name, squeeze in (("drift", np.array), ("drift, with ties", np.round)):
            drift = DriftMonitor(squeeze(scores), ALPHA, threshold=-0.5, rate_tolerance=0.0)
            found[name] += drift.update(squeeze(live)) == "drifted"
    return {"runs": runs, "rows": rows, "alpha": ALPHA, "false_alarms": found}


def doubling(rng: np.random.Generator, runs: int) -> dict[str, Any]:
    """Harm doubles from the tolerance: rows, and audits of kept answers, until the alarm."""
    figures = {}
    for quiet, audit in ((0, 1.0), (10_000, 1.0), (1_000_000, 1.0), (0, 0.1), (100_000, 0.1)):
        rows, audits = [], []
        for _ in range(max(runs // 10, 50) if quiet == 1_000_000 else runs):
            monitor = RiskMonitor(TOLERANCE, ALPHA, audit_probability=audit)
            _, harm, audited, chance = traffic(rng, quiet, TOLERANCE / 2, audit)
            monitor.update(harm, audited, chance)
            asked = 0
            while monitor.alarm is None:
                deferred, harm, audited, chance = traffic(rng, 2_000, 2 * TOLERANCE, audit)
                before = monitor.rows
                monitor.update(harm, audited, chance)
                upto = (monitor.alarm or monitor.rows) - before
                asked += int((audited & ~deferred)[:upto].sum())
            rows.append(monitor.alarm - quiet)
            audits.append(asked)
        figures[f"after {quiet:,} rows at {TOLERANCE / 2:.1%}, {audit:.0%} audited"] = {
            "runs": len(rows),
            "rows": quantiles(rows),
            "audits": quantiles(audits),
        }
    return figures


def shifts(rng: np.random.Generator, runs: int) -> dict[str, Any]:
    """Scores drop by a part of their standard deviation: rows until the alarm."""
    figures = {}
    for size in (0.1, 0.2, 0.5, 1.0):
        rows: list[float] = []
        for _ in range(runs):
            monitor = DriftMonitor(rng.normal(size=10_000), ALPHA)
            monitor.update(rng.normal(-size, size=20_000))
            rows.append(monitor.alarms["scores"] or np.inf)
        figures[f"{size} standard deviations"] = {"runs": runs, "rows": quantiles(rows)}
    return figures


def quantiles(values: list[float] | list[int]) -> dict[str, float]:
    """Median and 90 % quantile."""
    return {"median": float(np.median(values)), "90 %": float(np.quantile(values, 0.9))}


def main() -> None:
    """Measure and write the result file."""
    rng = np.random.default_rng(SEED)
    figures = {
        **about(seed=SEED),
        "tolerance": TOLERANCE,
        "alpha": ALPHA,
        "deferral_rate": DEFERRAL_RATE,
        "reach": reach(rng),
        "false_alarms": false_alarms(rng, runs=1_000, rows=5_000),
        "harm_doubles": doubling(rng, runs=1_000),
        "scores_drop": shifts(rng, runs=200),
    }
    save("monitor", figures)


if __name__ == "__main__":
    main()

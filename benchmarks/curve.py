"""A curve over 1,000,000 examples: seconds, and memory that grows linearly with n."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from benchmarks.machine import about, save
from ebjr import Outcomes, TradeOffCurve

CLASSES = 10
SCORES = ("energy", "softmax", "entropy", "margin")


def table(n: int, seed: int) -> Outcomes:
    """Outcomes of n made-up examples."""
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, n, CLASSES)).astype(np.float32)
    return Outcomes(student, teacher, rng.integers(0, CLASSES, n))


def peak_bytes(n: int) -> int:
    """Memory that the curve of n examples adds at its peak."""
    outcomes = table(n, seed=0)
    tracemalloc.start()
    TradeOffCurve.of(outcomes, "energy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def main() -> None:
    """Measure and write the result file."""
    outcomes = table(1_000_000, seed=0)
    figures = {**about(seed=0), "examples": len(outcomes), "classes": CLASSES}
    for score in SCORES:
        began = time.perf_counter()
        rows = len(TradeOffCurve.of(outcomes, score))
        figures[score] = {"seconds": round(time.perf_counter() - began, 3), "rows": rows}
    figures["peak_bytes_per_example"] = {
        f"{n:,}": round(peak_bytes(n) / n, 1) for n in (100_000, 300_000, 1_000_000)
    }
    save("curve", figures)


if __name__ == "__main__":
    main()

"""Calibrating a million examples: `python -m benchmarks.calibration`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.machine import about, save
from ebjr import Cost, Outcomes, calibrate

EXAMPLES = 1_000_000
CLASSES = 10
TRIES = 3

JOBS: dict[str, dict[str, Any]] = {
    "energy": {"score": "energy", "blend": 0.0},
    "energy, guaranteed excess": {"score": "energy", "blend": 0.0, "delta": 0.1},
    "energy, guaranteed harm": {
        "score": "energy",
        "blend": 0.0,
        "delta": 0.1,
        "promise": "harm",
    },
    "auto score and blend": {},
    "auto score and blend, guaranteed excess": {"delta": 0.1},
}


def outcomes(n: int) -> Outcomes:
    """A weak and a strong classifier whose noise is partly the same, in single precision."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, CLASSES, n)
    clear = 4 * np.eye(CLASSES, dtype=np.float32)[targets]
    shared = rng.normal(0, 1.2, clear.shape).astype(np.float32)
    student = clear + shared + rng.normal(0, 2, clear.shape).astype(np.float32)
    costs = {"student_cost": Cost(flops=1.0), "teacher_cost": Cost(flops=10.0)}
    return Outcomes(student, clear + shared, targets, **costs)


def main() -> None:
    """Time every job, the best of a few tries, and write the result file."""
    table = outcomes(EXAMPLES)
    figures: dict[str, Any] = {
        **about(seed=0),
        "examples": EXAMPLES,
        "classes": CLASSES,
        "seconds": {},
    }
    for name, how in JOBS.items():
        spent = []
        for _ in range(TRIES):
            began = time.perf_counter()
            calibrate(table, "match-teacher", tolerance=0.01, **how)
            spent.append(time.perf_counter() - began)
        figures["seconds"][name] = round(min(spent), 2)
        print(name, figures["seconds"][name], flush=True)
    save("calibration", figures)


if __name__ == "__main__":
    main()

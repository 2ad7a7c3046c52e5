"""Recalibrating on a million examples: `OMP_NUM_THREADS=2 python -m benchmarks.recalibrate`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.calibration import EXAMPLES, outcomes
from benchmarks.machine import about, save
from ebjr import JointConfig, recalibrate, run_study
from ebjr.backends.entry import ModelEntry

SOURCES = 20
GOALS: dict[str, dict[str, Any]] = {
    "match-teacher": {"tolerance": 0.01},
    "match-teacher, guaranteed": {"tolerance": 0.01, "delta": 0.1},
}


def main() -> None:
    """Time each goal once, with slices by class, source and time, and write the result file."""
    table, before = outcomes(EXAMPLES), outcomes(20_001)
    models = ModelEntry("student.onnx", "0"), ModelEntry("teacher.onnx", "0")
    slices = {
        "source": np.arange(EXAMPLES) % SOURCES,
        "time": np.datetime64("2026-01-01", "s") + np.arange(EXAMPLES),
    }
    figures: dict[str, Any] = {**about(seed=0), "examples": EXAMPLES, "seconds": {}, "status": {}}
    for name, goal in GOALS.items():
        study = run_study(before, score="softmax", blend=0.0, **goal)
        config = JointConfig.of_study(*models, study)
        began = time.perf_counter()
        found = recalibrate(config, table, slices=slices)
        figures["seconds"][name] = round(time.perf_counter() - began, 1)
        figures["status"][name] = found.status
        figures["slices"] = len(found.slices)
    save("recalibrate", figures)


if __name__ == "__main__":
    main()

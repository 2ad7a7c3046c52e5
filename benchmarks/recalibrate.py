"""Recalibrating a million examples, and how often a status is wrong.

`OMP_NUM_THREADS=2 python -m benchmarks.recalibrate`
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any

import numpy as np

from benchmarks.calibration import EXAMPLES, outcomes
from benchmarks.machine import about, save
from ebjr import CalibrationError, JointConfig, Outcomes, TradeOffCurve, recalibrate, run_study
from ebjr.backends.entry import ModelEntry

SOURCES = 20
REDRAWS, POPULATION, DRAWN = 200, 200_000, 2_000
MODELS = ModelEntry("student.onnx", "0"), ModelEntry("teacher.onnx", "0")
GOALS: dict[str, dict[str, Any]] = {
    "match-teacher": {"tolerance": 0.02},
    "match-teacher, guaranteed": {"tolerance": 0.02, "delta": 0.1},
    "accuracy, guaranteed": {"goal": "accuracy", "target": 0.88, "delta": 0.1},
    "budget": {"goal": "budget", "deferral_rate": 0.3},
}


def calibrated(before: Outcomes, goal: dict[str, Any]) -> JointConfig:
    """Return what `ebjr calibrate` would write."""
    study = run_study(before, score="softmax", blend=0.0, **goal)
    return JointConfig.of_study(*MODELS, study)


def timed(goal: dict[str, Any], table: Outcomes) -> dict[str, Any]:
    """The seconds for all of a table, with slices by class, source and time."""
    slices = {
        "source": np.arange(EXAMPLES) % SOURCES,
        "time": np.datetime64("2026-01-01", "s") + np.arange(EXAMPLES),
    }
    config = calibrated(outcomes(20_001), goal)
    began = time.perf_counter()
    found = recalibrate(config, table, slices=slices)
    seconds = round(time.perf_counter() - began, 1)
    return {"seconds": seconds, "slices": len(found.slices)}


def redrawn(goal: dict[str, Any], population: Outcomes) -> dict[str, Any]:
    """Count each status over redraws of one population, by whether the promise is kept.

    Before and since are as many examples each. Nothing changes in between, so that every "moved" is
    wrong, and every "broken" of a promise that is kept in the population.
    """
    rng, counts = np.random.default_rng(5), Counter[str]()
    curve = TradeOffCurve.of(population, "softmax", 0.0)
    for _ in range(REDRAWS):
        before, since = (population.take(rng.integers(0, POPULATION, DRAWN)) for _ in range(2))
        try:
            config = calibrated(before, goal)
        except CalibrationError:
            counts["not calibrated"] += 1
            continue
        found, true = recalibrate(config, since), curve.at(threshold=config.threshold)
        losses = {
            "excess": true.teacher_quality - true.quality,
            "risk": 1 - true.quality,
            "rate": true.deferral_rate,
        }
        assert found.promise is not None
        assert found.limit is not None
        kept = losses[found.promise] <= found.limit
        counts[f"{found.status}, {'a kept' if kept else 'a broken'} promise"] += 1
    return dict(sorted(counts.items()))


def main() -> None:
    """Time and redraw each goal, and write the result file."""
    warnings.simplefilter("ignore")
    table, population = outcomes(EXAMPLES), outcomes(POPULATION)
    figures: dict[str, Any] = {
        **about(seed=0),
        "examples": EXAMPLES,
        "timed": {name: timed(goal, table) for name, goal in GOALS.items()},
        "redraws": REDRAWS,
        "examples of a redraw": DRAWN,
        "redrawn": {name: redrawn(goal, population) for name, goal in GOALS.items()},
    }
    save("recalibrate", figures)


if __name__ == "__main__":
    main()

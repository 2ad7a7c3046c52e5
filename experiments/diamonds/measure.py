"""Measure the pair: `python -m experiments.diamonds.measure`.

Trains the pair, records it on the test split in one run, and writes `results.json`: RMSE and MAE of
the logarithm of the price, and time, for each head of the student, the threshold chosen on one half
and reported on the other, mean of many splits. All models run in ONNX Runtime on one thread, and
time is the processor's, to which other work on the machine does not add.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ebjr import Cost, JointRegressor, Outcomes, calibrate, load_model
from ebjr.demo.diamonds import load
from experiments.diamonds.export import write
from experiments.diamonds.pair import SEED, train_pair
from experiments.splits import within_by_score
from runs import about, save

HERE = Path(__file__).parent
SPLITS = 10
BATCH = 1024
WITHIN = (0.02, 0.015)
"""What the thresholds are chosen for; the smaller leaves some room for the other half."""


def run(model: Callable[[Any], Any], x: np.ndarray) -> list[Any]:
    """Return its answers on all rows, in batches."""
    return [model(x[k : k + BATCH]) for k in range(0, len(x), BATCH)]


def seconds(models: dict[str, Any], x: np.ndarray, rounds: int = 15) -> dict[str, float]:
    """Processor seconds per example of each model, in turns, the median of the rounds."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            began = time.process_time()
            run(model, x)
            spent[name].append((time.process_time() - began) / len(x))
    return {name: float(np.median(values)) for name, values in spent.items()}


def joint_seconds(
    outcomes: Outcomes, models: dict[str, Any], x: np.ndarray, share: float
) -> dict[str, float]:
    """The joint model itself, run on the held-out half beside the teacher alone."""
    calibration, held_out = outcomes.split(0.5, 0)
    _, rows = outcomes.split_rows(0.5, 0)
    point = calibrate(calibration, tolerance=-share * calibration.quality("teacher"), margin=0.0)
    joint = JointRegressor(models["student"], models["teacher"], point.router, blend=point.blend)
    spent = seconds({"joint": joint, "teacher": models["teacher"]}, x[rows], rounds=5)
    said = np.concatenate([answer.prediction for answer in run(joint, x[rows])])
    measure = held_out.measure
    loss = -float(measure.quality(measure.rows(said, held_out.targets).mean()))
    return {
        "loss_over_teacher": round(-loss / held_out.quality("teacher"), 4),
        "times_cheaper": round(spent["teacher"] / spent["joint"], 3),
    }


def main() -> None:
    """Train, record, calibrate, write."""
    torch.set_num_threads(1)
    pair = train_pair()
    x, y = load("test")
    with TemporaryDirectory() as folder:
        files = write(pair, Path(folder))
        models = {name: load_model(file, threads=1) for name, file in files.items()}
    spent = seconds(models, x)
    answers = {name: np.concatenate(run(model, x)) for name, model in models.items()}
    results: dict[str, Any] = {"trees": pair.teacher.n_iter_}
    for name in list(models)[1:]:
        outcomes = Outcomes(
            answers[name],
            answers["teacher"],
            y,
            "regression",
            student_cost=Cost(seconds=spent[name]),
            teacher_cost=Cost(seconds=spent["teacher"]),
        )
        both = {"student": models[name], "teacher": models["teacher"]}
        results[name] = {"teacher_time_over_student": round(spent["teacher"] / spent[name], 2)}
        for metric in ("rmse", "mae"):
            judged = replace(outcomes, metric=metric)
            results[name][metric] = {
                f"within {share:.1%}": {
                    **within_by_score(judged, SPLITS, share),
                    "auto, run as one model": joint_seconds(judged, both, x, share),
                }
                for share in WITHIN
            }
    made = about(SEED) | {"splits": SPLITS, "cost": "processor seconds"}
    made |= {"recorded_rows": len(x)}
    save("results", made | results, folder=HERE)


if __name__ == "__main__":
    main()

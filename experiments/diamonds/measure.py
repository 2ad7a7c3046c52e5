"""A small network and gradient-boosted trees as one: `python -m experiments.diamonds.measure`.

Trains both on 60 % of the diamonds, the student's heads on another 10 %, records both on the other
30 % in one run, and writes `results.json`: RMSE and MAE of the logarithm of the price, and time,
for each head of the student, the threshold chosen on one half and reported on the other, mean of
many splits.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from benchmarks.machine import about, save
from ebjr import CalibrationError, Cost, GaussianMixture, Outcomes, calibrate, evaluate
from ebjr.arrays import to_numpy
from ebjr.regression_scores import regression_energy
from ebjr.regressors import sample_energy
from ebjr.training.energy_head import train_energy_head
from experiments.diamonds.data import load

HERE = Path(__file__).parent
SPLITS = 10
SEED = 0
BATCH = 1024
POINTS = 16
WITHIN = 0.02


def fit_network(x: np.ndarray, y: np.ndarray, *, epochs: int, gaussian: bool) -> torch.nn.Module:
    """Fit one output by squared error, or a log-variance of residuals y by its likelihood."""
    torch.manual_seed(SEED)
    hidden = 32
    network = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], hidden),
        torch.nn.ReLU(),
        *([] if gaussian else [torch.nn.Linear(hidden, hidden), torch.nn.ReLU()]),
        torch.nn.Linear(hidden, 1),
    )
    table, targets = torch.as_tensor(x), torch.as_tensor(y, dtype=torch.float32)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(table)).split(256):
            found = network(table[rows])[:, 0]
            if gaussian:
                loss = (found + targets[rows] ** 2 * torch.exp(-found)).mean()
            else:
                loss = ((found - targets[rows]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        falling.step()
    return network.eval()


def run(model: Any, x: np.ndarray) -> np.ndarray:
    """All rows in batches."""
    return np.concatenate([to_numpy(model(x[k : k + BATCH])) for k in range(0, len(x), BATCH)])


def seconds(models: dict[str, Any], x: np.ndarray, rounds: int = 9) -> dict[str, float]:
    """Seconds per example of each model, in turns, the median of the rounds."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            began = time.perf_counter()
            run(model, x)
            spent[name].append((time.perf_counter() - began) / len(x))
    return {name: float(np.median(values)) for name, values in spent.items()}


def over_splits(outcomes: Outcomes, **how: Any) -> dict[str, Any]:
    """The mean over many splits of figures on the held-out half; infeasible splits are counted."""
    found, scores, failed = [], [], 0
    for seed in range(SPLITS):
        calibration, held_out = outcomes.split(0.5, seed)
        tolerance = -WITHIN * calibration.quality("teacher")
        try:
            chosen = calibrate(calibration, tolerance=tolerance, **how)
        except CalibrationError:
            failed += 1
            continue
        point = evaluate(held_out, chosen)
        ratio = point.quality / point.teacher_quality
        found.append((point.deferral_rate, ratio, 1 / (point.saving or np.inf), point.blend))
        scores.append(point.score)
    rate, ratio, cost, blend = np.mean(found, axis=0)
    return {
        "scores": {name: scores.count(name) for name in sorted(set(scores))},
        "blend": round(blend, 3),
        "deferral_rate": round(rate, 4),
        "loss_over_teacher": round(ratio, 4),
        "times_less_time": round(1 / cost, 3),
        "splits_that_cannot": failed,
    }


def main() -> None:
    """Train, record, calibrate, write."""
    torch.set_num_threads(1)
    x, y = load(HERE / "outcomes")
    order = np.random.default_rng(SEED).permutation(len(x))
    fit, head_rows, rest = np.split(order, [int(0.6 * len(x)), int(0.7 * len(x))])
    teacher = HistGradientBoostingRegressor(
        max_iter=400, learning_rate=0.1, max_leaf_nodes=31, random_state=SEED
    ).fit(x[fit], y[fit])
    level = y[fit].mean()
    network = fit_network(x[fit], y[fit] - level, epochs=50, gaussian=False)
    trunk, last = network[:-1], network[-1]

    def features(batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            found = trunk(torch.as_tensor(batch))
            return found, last(found)[:, 0] + level

    seen, said = features(x[head_rows])
    residual = y[head_rows] - to_numpy(said)
    spread = fit_network(to_numpy(seen), residual / residual.std(), epochs=20, gaussian=True)
    head = train_energy_head(seen, said, y[head_rows], epochs=15, hidden=16, seed=SEED)
    wide = 6 * float(residual.std())

    def gaussian(batch: np.ndarray) -> np.ndarray:
        found, prediction = features(batch)
        with torch.no_grad():
            std = torch.exp(spread(found)[:, 0] / 2) * float(residual.std())
        return to_numpy(torch.stack([prediction, std], dim=1))

    models: dict[str, Any] = {
        "gaussian head": gaussian,
        "energy head": head.regressor(features, (-wide, wide), POINTS),
        "teacher": teacher.predict,
    }
    spent = seconds(models, x[rest])
    answers = {name: run(model, x[rest]) for name, model in models.items()}
    results: dict[str, Any] = {}
    for name in ("gaussian head", "energy head"):
        costs = {
            "student_cost": Cost(seconds=spent[name]),
            "teacher_cost": Cost(seconds=spent["teacher"]),
        }
        found: dict[str, Any] = {"teacher_time_over_student": spent["teacher"] / spent[name]}
        for metric in ("rmse", "mae"):
            outcomes = Outcomes(
                answers[name], answers["teacher"], y[rest], "regression", metric=metric, **costs
            )
            scores = [*outcomes.kind.scores(outcomes.student), "random"]
            found[metric] = {
                "student": round(-outcomes.quality("student"), 5),
                "teacher": round(-outcomes.quality("teacher"), 5),
                "auto": over_splits(outcomes),
                **{f"{score}, no blend": over_splits(outcomes, score=score, blend=0.0)
                   for score in scores},
            }  # fmt: skip
        results[name] = found
    results["importance sampling"] = sampling(head, features, x[rest][:500], residual, wide)
    made = about(SEED) | {"splits": SPLITS, "recorded_rows": len(rest)}
    save("results", made | results, folder=HERE)


def sampling(
    head: Any, features: Any, x: np.ndarray, residual: np.ndarray, wide: float
) -> dict[str, float]:
    """The free energy by 1,000 samples against quadrature on 2,001 points, on some rows."""
    exact = regression_energy(to_numpy(head.regressor(features, (-2 * wide, 2 * wide), 2001)(x)))
    found, prediction = features(x)
    estimate = sample_energy(
        lambda batch, y: head(found, prediction, y),
        x,
        to_numpy(prediction).astype(np.float64),
        GaussianMixture.fit(residual),
        samples=1000,
        seed=SEED,
    )
    off = np.abs(np.expm1(estimate.energy - exact))
    return {
        "mean_relative_error_of_the_integral": round(float(off.mean()), 4),
        "mean_standard_error": round(float(np.mean(estimate.standard_error)), 4),
        "mean_absolute_error_nats": round(float(np.mean(np.abs(estimate.energy - exact))), 4),
        "mean_free_energy_nats": round(float(np.mean(np.abs(exact))), 3),
        "relative_error_of_the_free_energy": round(
            float(np.mean(np.abs(estimate.energy - exact)) / np.mean(np.abs(exact))), 4
        ),
    }


if __name__ == "__main__":
    main()

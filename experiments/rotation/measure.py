"""Measure the pair on the test set: `python -m experiments.rotation.measure`.

Needs the checkpoints that `train` leaves. Writes `results.json`: RMSE and MAE in degrees, and
FLOPs, the threshold chosen on one half and reported on the other, mean of many splits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ebjr import BinnedRegressor, Cost, Outcomes, load_model, record
from ebjr.evaluation.flops import count_flops
from experiments.rotation.data import load
from experiments.rotation.nets import EDGES, NETS
from experiments.rotation.train import CHECKPOINTS, SEED
from experiments.splits import within_by_score
from runs import about, save

HERE = Path(__file__).parent
SPLITS = 10
WITHIN = (0.02, 0.1)


def recorded() -> Outcomes:
    """Both models on the 10,000 test images."""
    images, angles = load("test")
    models, costs = {}, {}
    for role, build in NETS.items():
        net = build()
        net.load_state_dict(torch.load(CHECKPOINTS / f"{role}.pt"))
        models[role] = BinnedRegressor(load_model(net.eval()), EDGES.tolist())
        costs[f"{role}_cost"] = Cost(flops=count_flops(net, images[:1].shape).flops)
    return record(
        models["student"],
        models["teacher"],
        images,
        angles,
        task="regression",
        batch_size=250,
        **costs,
    )


def main() -> None:
    """Record, calibrate, write."""
    outcomes = recorded()
    outcomes.save(CHECKPOINTS / "outcomes.npz")
    costs = outcomes.student_cost.flops, outcomes.teacher_cost.flops
    results: dict[str, Any] = {
        "student_flops": costs[0],
        "teacher_flops": costs[1],
    }
    for metric in ("rmse", "mae"):
        judged = replace(outcomes, metric=metric)
        results[metric] = {
            f"within {share:.0%}": within_by_score(judged, SPLITS, share) for share in WITHIN
        }
    made = about(SEED) | {"splits": SPLITS, "cost": "flops", "recorded_rows": len(outcomes)}
    save("results", made | results, folder=HERE)


if __name__ == "__main__":
    main()

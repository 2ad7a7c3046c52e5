"""Figures 2 and 3: accuracy against cost. `python -m experiments.fig2_fig3 [--quick]`.

The joint model with the paper's score and with what the library chooses, beside random routing and
the oracle, on the held-out half; the paper's student, teacher and joint model are drawn at their
share of the teacher's FLOPs. How much cheaper it is at the paper's own loss of accuracy is a mean
of splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebjr import Outcomes, TradeOffCurve, calibrate, oracle
from experiments.choices import choice, choices
from experiments.frame import COLORS, Run, start
from experiments.nets import PAPER
from experiments.pairs import apart, here
from experiments.splits import over_splits

RATES = np.linspace(0, 1, 101)
LOSSES = {
    "cifar10": ((0.0002, 2.15), (0.002, 3.0)),
    "cifar100": ((0.0007, 1.36),),
    "imagenet": ((0.003, 1.49),),
    "caltech256": ((0.0, 2.0),),
}
"""By data set: accuracy that the paper gives up, and how many times fewer FLOPs it takes."""


def curves(outcomes: Outcomes) -> dict[str, Any]:
    """Accuracy at fixed deferral rates on the held-out half of the first split, in percent."""
    calibration, held_out = outcomes.split(0.5, 0)
    chosen = calibrate(calibration, margin=0.0, **choice(outcomes, 0))
    found = {
        "auto and blend": chosen.curve(held_out),
        "energy": TradeOffCurve.of(held_out, "energy"),
        "oracle": TradeOffCurve.of(held_out, oracle(held_out)),
    }
    accuracy = {
        name: [100 * curve.at(deferral_rate=rate).quality for rate in RATES]
        for name, curve in found.items()
    }
    ends = [100 * held_out.quality(role) for role in ("student", "teacher")]
    accuracy["random"] = np.linspace(*ends, len(RATES)).tolist()
    student, teacher = held_out.student_cost.flops or 0.0, held_out.teacher_cost.flops or 1.0
    return {
        "cost_percent": (100 * (student / teacher + RATES)).round(2),
        "accuracy": {name: np.round(values, 3) for name, values in accuracy.items()},
        "ends": ends,
        "chosen": {"score": chosen.score.partition("(")[0], "blend": float(chosen.blend)},
    }


def measure(outcomes: Outcomes, data: str, splits: int) -> dict[str, Any]:
    """A pair's curves, and its cost at the losses of the paper."""
    chosen = choices(outcomes, splits)
    return {
        **curves(outcomes),
        "at_losses": [
            {
                "loss": loss,
                "paper": paper,
                **over_splits(outcomes, splits, tolerance=loss, **chosen),
            }
            for loss, paper in LOSSES[data]
        ],
    }


def draw(run: Run, found: dict[str, Any]) -> None:
    """A panel for each pair."""
    with run.panels(len(found), "accuracy, %") as axes:
        for axis, figures in zip(axes, found.values(), strict=True):
            cost = figures["cost_percent"]
            for name, values in figures["accuracy"].items():
                style = {"oracle": ":", "random": "--"}.get(name, "-")
                axis.plot(cost, values, style, color=COLORS[name], linewidth=1.6, label=name)
            own, teacher = figures["ends"]
            axis.plot(cost[0], own, "s", color=COLORS["student"], label="student")
            axis.plot(100, teacher, "D", color=COLORS["teacher"], label="teacher")
            paper = PAPER[figures["data"]]
            whole = paper.teacher.paper_flops
            axis.plot(
                [100 * paper.student.paper_flops / whole, 100 * paper.joint_flops / whole, 100],
                [paper.student.paper_accuracy, paper.joint_accuracy, paper.teacher.paper_accuracy],
                "o--",
                color=COLORS["paper"],
                linewidth=0.9,
                markersize=4,
                label="the paper: student, joint, teacher",
            )
            axis.set_title(figures["title"], fontsize=10)
            axis.set_xlabel("FLOPs, % of the teacher's")


def main(run: Run) -> dict[str, Any]:
    """Measure and draw every pair at hand."""
    found = {}
    for name, pair in here(run):
        step = run.step(name, lambda pair=pair: measure(pair.load(), pair.data, pair.splits))
        found[name] = {"title": pair.title, "data": pair.data, **step}
        for row in step["at_losses"]:
            run.compare(
                f"{pair.title}: times fewer FLOPs, aiming {100 * row['loss']:g} points lower",
                paper=row["paper"],
                ours=row["times_fewer_flops"],
                unit="x",
                points=row["over_teacher_points"],
                interval=row["interval"],
                loss=100 * row["loss"],
                pair=name,
                why=apart(
                    step["cost_percent"][0] / 100, *step["ends"], paper=PAPER[pair.data].apart
                ),
            )
    draw(run, found)
    run.caption = (
        "The held-out half of the first split. The paper's networks are others, or trained for "
        "more epochs, so that its points are no rivals of these curves: they say where its "
        "student, joint model and teacher stand."
    )
    return {"pairs": found}


if __name__ == "__main__":
    start(main, "Figures 2 and 3: accuracy against cost")

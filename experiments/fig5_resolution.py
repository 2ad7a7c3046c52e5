"""Figure 5, left: a network at two resolutions: `python -m experiments.fig5_resolution`.

MobileNetV2 at 128 pixels as the student of itself at 224, as in the paper, and EfficientNet-Lite at
a low resolution as the student of a higher one, on 1,000 photos of ImageNet's classes. The weights
were trained at one resolution, unlike the paper's. Among the curves are single networks, at several
resolutions: what switching by hand gives. Score, blend and threshold are chosen on one half and
judged on the other; means of splits. ``--quick`` looks at 200 photos and one family.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebjr import Outcomes, TradeOffCurve
from experiments.choices import choice, choices
from experiments.frame import COLORS, OURS, Run, start
from experiments.other_pairs import pairs as other
from experiments.pairs import apart
from experiments.splits import over_splits

SPLITS = 5
QUICK_SPLITS, QUICK_IMAGES = 2, 200
RATES = np.linspace(0, 1, 51)
PANELS = {
    "MobileNetV2": {
        "pairs": {"at 128 -> at 224": "imagenet_mobilenet_128_224"},
        "singles": {"alone, at 128 and 224": ["mobilenet_v2_128", "mobilenet_v2_224"]},
    },
    "EfficientNet-Lite": {
        "pairs": {
            "Lite2 at 160 -> at 260": "imagenet_lite2_160_lite2_260",
            "Lite0 at 160 -> Lite2 at 260": "imagenet_lite0_160_lite2_260",
            "Lite0 at 224 -> Lite2 at 260": "imagenet_lite0_224_lite2_260",
        },
        "singles": {
            "alone: Lite0 at 160 and 224, Lite2 at 160 and 260": [
                *("lite0_160", "lite2_160", "lite0_224", "lite2_260"),
            ],
        },
    },
}
"""What is drawn together."""


def joined(outcomes: Outcomes, splits: int) -> dict[str, Any]:
    """A pair: at the teacher's accuracy, and its mean curve over held-out halves."""
    curves = []
    for seed in range(splits):
        curve = TradeOffCurve.of(outcomes.split(0.5, seed)[1], **choice(outcomes, seed))
        curves.append([curve.at(deferral_rate=rate).quality for rate in RATES])
    student, teacher = outcomes.student_cost.flops or 0.0, outcomes.teacher_cost.flops or 1.0
    energy = TradeOffCurve.of(outcomes, "energy")
    return {
        "auto and blend": over_splits(outcomes, splits, **choices(outcomes, splits)),
        "energy": over_splits(outcomes, splits, score="energy", blend=0.0),
        "gflops": ((student + RATES * teacher) / 1e9).round(4),
        "accuracy": (100 * np.mean(curves, axis=0)).round(2),
        "energy_accuracy": [
            round(100 * energy.at(deferral_rate=rate).quality, 2) for rate in RATES
        ],
    }


def single(name: str, most: int | None) -> dict[str, float]:
    """A network alone, on the first `most` images."""
    said = other.answers(name, most)
    right = (np.argmax(said["output"], axis=1) == said["targets"])[:most].mean()
    return {"gflops": float(said["flops"]) / 1e9, "accuracy": round(100 * float(right), 2)}


def draw(run: Run, found: dict[str, Any]) -> None:
    """A panel for each family."""
    with run.picture(len(found), 1, figsize=(5.2 * len(found), 4.6)) as axes:
        for axis, (title, panel) in zip(axes.flat, found.items(), strict=True):
            for color, (name, row) in zip(OURS, panel["pairs"].items(), strict=False):
                axis.plot(row["gflops"], row["accuracy"], color=color, label=name)
            for marker, (name, places) in zip("Ds", panel["singles"].items(), strict=False):
                along = [[place[key] for place in places] for key in ("gflops", "accuracy")]
                axis.plot(*along, marker + ":", color=COLORS["single"], lw=0.8, label=name)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("GFLOPs per image")
            axis.legend(frameon=False, fontsize=8, loc="lower right")
        axes[0, 0].set_ylabel("accuracy, %")


SAME = {
    "imagenet_lite0_160_lite2_260": "imagenet_160_260",
    "imagenet_lite0_224_lite2_260": "imagenet_224_260",
}
"""Pairs that `experiments.pairs` has, too, by their names there."""

WHY = "; the paper does not say how its MobileNetV2 was trained, ours was at one size of images"


def main(run: Run) -> dict[str, Any]:
    """Measure every pair at hand."""
    splits, most = (QUICK_SPLITS, QUICK_IMAGES) if run.quick else (SPLITS, None)
    found: dict[str, Any] = {}
    for title, panel in PANELS.items():
        if run.quick and title == "MobileNetV2":
            continue
        pairs = {
            name: run.step(name, lambda pair=pair: joined(other.load(pair, most), splits))
            for name, pair in panel["pairs"].items()
        }
        singles = {
            name: [run.step(one, lambda one=one: single(one, most)) for one in members]
            for name, members in panel["singles"].items()
        }
        found[title] = {"pairs": pairs, "singles": singles}
        for name, row in pairs.items():
            student, both = row["gflops"][0], row["gflops"][-1]
            alone = row["energy_accuracy"]
            run.compare(
                f"{title}, {name}: times fewer FLOPs, aiming at the teacher's accuracy",
                paper=1.49,
                ours=row["auto and blend"]["times_fewer_flops"],
                unit="x",
                points=row["auto and blend"]["over_teacher_points"],
                interval=row["auto and blend"]["interval"],
                pair=SAME.get(panel["pairs"][name], panel["pairs"][name]),
                step=name,
                why=f"energy {row['energy']['times_fewer_flops']:.3g}x; "
                + apart(student / (both - student), alone[0], alone[-1])
                + WHY,
            )
    draw(run, found)
    run.caption = (
        "Mean accuracy over the held-out halves; the photos were picked so that another network is "
        "right on them, so that every accuracy is too high and differences are what counts. The "
        "paper's factor is what 32.93 % less power comes to (its table 2, of figure 5)."
    )
    return {"panels": found}


if __name__ == "__main__":
    start(main, "Figure 5, left: resolutions")

"""Measure `auto` on published pairs: `python -m experiments.other_pairs.measure`.

Every figure is the mean over splits: score, blend and threshold are chosen on one half, and judged
on the other. Writes `results.json`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ebjr import Outcomes, as_score
from ebjr.calibration import choose_blend, choose_score
from ebjr.calibration.choice import area_influence, blend_candidates
from ebjr.demo import shipped
from ebjr.scores import Score
from ebjr.tasks import as_task
from experiments.other_pairs.pairs import PAIRS, load
from experiments.splits import over_splits
from runs import about, save

SPLITS = 10
SINGLE = as_task("classification").auto


def area(held_out: Outcomes, score: Any, blend: float = 0.0) -> float:
    """Mean accuracy over all deferral rates, in percent."""
    values = np.asarray(score(held_out.student), np.float64)
    deferred = held_out.deferred_quality(blend)
    return 100 * float(area_influence(values, held_out.student_quality, deferred).mean())


def scores_and_blends(outcomes: Outcomes, scores: list[Score]) -> dict[str, Any]:
    """Return `auto`'s area beside every single score's, and the blend's gain.

    `scores` are its choices on each split.
    """
    areas: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        areas.setdefault(name, []).append(value)

    for seed, score in enumerate(scores):
        calibration, held_out = outcomes.split(0.5, seed)
        note("auto", area(held_out, score))
        for name in SINGLE:
            note(name, area(held_out, as_score(name)))
        plain = [blend for blend in blend_candidates(outcomes) if type(blend) is float]
        note("auto and a weight", area(held_out, score, choose_blend(calibration, score, plain)))
        note("auto and a blend", area(held_out, score, choose_blend(calibration, score)))
    best = max(SINGLE, key=lambda name: float(np.mean(areas[name])))
    behind = np.array(areas[best]) - np.array(areas["auto"])
    return {
        "chosen_score": dict(Counter(score.title for score in scores)),
        "area_percent": {name: round(float(np.mean(values)), 3) for name, values in areas.items()},
        "best_single_score": best,
        "auto_behind_it": round(float(behind.mean()), 3),
        "deviation_between_splits": round(float(behind.std(ddof=1)), 3),
    }


def main() -> None:
    """Measure every pair and write the result file."""
    report: dict[str, Any] = {**about(seed=0), "splits": SPLITS, "pairs": {}}
    with shipped("outcomes.npz") as path:
        pairs = {"cifar10_shipped": Outcomes.load(path)}
    for name in PAIRS:
        pairs[name] = load(name)
    for name, outcomes in pairs.items():
        scores = [choose_score(outcomes.split(0.5, seed)[0]) for seed in range(SPLITS)]
        student, teacher = outcomes.student_cost.flops, outcomes.teacher_cost.flops
        report["pairs"][name] = {
            "examples": len(outcomes),
            "accuracy": {
                "student": float(outcomes.student_quality.mean()),
                "teacher": float(outcomes.teacher_quality.mean()),
            },
            "flops": {"student": student, "teacher": teacher},
            **scores_and_blends(outcomes, scores),
            "at_the_teachers_accuracy": {
                "auto and blend": over_splits(outcomes, SPLITS, scores=scores),
                "auto": over_splits(outcomes, SPLITS, scores=scores, blend=0.0),
                **{
                    score: over_splits(outcomes, SPLITS, score=score, blend=0.0)
                    for score in ("energy", "softmax", "entropy", "margin", "random")
                },
            },
        }
        print(name, report["pairs"][name], flush=True)
    save("results", report, Path(__file__).parent)


if __name__ == "__main__":
    main()

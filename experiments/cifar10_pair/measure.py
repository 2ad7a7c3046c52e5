"""Measure the shipped pair: `python -m experiments.cifar10_pair.measure`.

Reads the shipped outcomes (`record` makes them) and writes `results.json`: accuracy and FLOPs of
both models, and the joint model at the teacher's accuracy, beyond it, and with a guarantee, its
threshold chosen on one half and reported on the other, for the demo's split and as the mean over
many. ``--student pooled``, the student that was shipped before, on the answers that
`experiments.rivals.record` kept: `results_pooled.json`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebjr import Cost, OperatingPoint, Outcomes, calibrate, evaluate, run_study
from ebjr.demo import shipped
from experiments.choices import choices
from experiments.splits import over_splits
from runs import about, save

SPLITS = 50
BUDGET = 0.6
PROMISED = (("excess", 0.01), ("excess", 0.005), ("harm", 0.02), ("harm", 0.01))
SCORES = ("softmax", "margin", "entropy", "energy", "max_logit", "softmax_energy", "random")


def figures(point: OperatingPoint) -> dict[str, Any]:
    """Return the reported figures of an operating point."""
    return {
        "score": point.score,
        "blend": point.blend,
        "deferral_rate": round(point.deferral_rate, 4),
        "accuracy": round(point.quality, 4),
        "over_teacher_points": round(100 * (point.quality - point.teacher_quality), 3),
        "times_fewer_flops": round(point.saving or 0.0, 3),
    }


def pooled(outcomes: Outcomes) -> Outcomes:
    """The same with the student of dense convolutions in the place of the shipped one."""
    from experiments.rivals.record import read

    said = read("pooled")
    cost = Cost(flops=float(said.flops[0]))
    return replace(outcomes, student=said.logits[:, :, 0], student_cost=cost)


def main() -> None:
    """Measure and write the result file."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--student", choices=["shipped", "pooled"], default="shipped")
    asked = words.parse_args()
    with shipped("outcomes.npz") as path:
        outcomes = Outcomes.load(path)
    if asked.student == "pooled":
        outcomes = pooled(outcomes)
    study = run_study(outcomes, margin=0.0)
    calibration, held_out = outcomes.split(*study.split)
    student, teacher = outcomes.student_cost.flops, outcomes.teacher_cost.flops
    assert student is not None
    assert teacher is not None
    chosen = choices(outcomes, SPLITS)
    report = {
        **about(seed=0),
        "test_accuracy": {
            "student": float(outcomes.student_quality.mean()),
            "teacher": float(outcomes.teacher_quality.mean()),
        },
        "flops": {"student": student, "teacher": teacher, "ratio": round(teacher / student, 3)},
        "demo_split": {
            "chosen": figures(study.result),
            "best accuracy within 60 % of the teacher's FLOPs": figures(
                evaluate(held_out, calibrate(calibration, "budget", flops=BUDGET * teacher))
            ),
            **{
                f"{promise} at most {tolerance} with probability 0.9": figures(
                    evaluate(
                        held_out,
                        calibrate(calibration, tolerance=tolerance, delta=0.1, promise=promise),
                    )
                )
                for promise, tolerance in PROMISED
            },
            **{name: figures(point) for name, point in study.other_results.items()},
        },
        "mean_over_splits": {
            "chosen": over_splits(outcomes, SPLITS, **chosen),
            "best accuracy within 60 % of the teacher's FLOPs": over_splits(
                outcomes, SPLITS, "budget", flops=BUDGET * teacher, **chosen
            ),
            **{name: over_splits(outcomes, SPLITS, score=name, blend=0.0) for name in SCORES},
        },
    }
    name = "results" if asked.student == "shipped" else f"results_{asked.student}"
    save(name, report, Path(__file__).parent)


if __name__ == "__main__":
    main()

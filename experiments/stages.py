"""Held-out savings of more than two stages. `python -m experiments.stages [--quick]`.

Chains of recorded models are chosen on one half of the examples and judged on the other, as means
of 50 splits, and of 20 or 4 for others' models: the pair, a second look between, a second student
between, and what the search takes by itself. The saving is the inverse of the mean cost. Pick and
margin are those of `calibrate` with a margin of 0, which lands where it aims or a little under, and
with its own.

The guarantee is tried on three stages, over 1,000 redrawn sets, and the search is timed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ebjr import CalibrationError, Cost, Outcomes, calibrate_stages, evaluate
from ebjr.calibration.goal import MARGIN
from ebjr.calibration.stages import reduced
from experiments.frame import COLORS, Run, start
from experiments.other_pairs.pairs import zoo
from experiments.pairs import shipped_zoo
from experiments.rivals.record import read

SPLITS = 50
DELTA, TOLERANCE, REDRAWN, DRAWN = 0.1, 0.02, 1000, 1500

ZOOS = {
    "imagenet_lite": (20, "lite0_160", "lite0_160_mirrored", "lite0_224", "lite2_260"),
    "imagenet_mobilenet": (20, "mobilenet_v2_128", "mobilenet_v2_128_mirrored", "mobilenet_v2_224"),
    "cifar100": (4, "osi_exit", "osi_exit_mirrored", "osi_full"),
}
"""Of others, by name: on how many splits, and the models, the cheapest first."""


def exits(name: str) -> Outcomes:
    """Return a network with several exits as if each were a separate model."""
    answers, pair = read(name), shipped_zoo()
    said = [answers.logits[:, :, place] for place in range(answers.logits.shape[2])]
    costs = [Cost(flops=float(flops)) for flops in answers.flops]
    return Outcomes(
        said[0],
        said[-1],
        pair.targets,
        student_cost=costs[0],
        teacher_cost=costs[-1],
        between=tuple(said[1:-1]),
        between_costs=tuple(costs[1:-1]),
    )


def over_splits(
    outcomes: Outcomes, splits: int, stages: str | Sequence[str], **how: Any
) -> dict[str, Any]:
    """A chain, or what the search takes, on the other half: means over the splits."""
    found, taken, failed = [], Counter[str](), 0
    for seed in range(splits):
        calibration, held_out = outcomes.split(0.5, seed)
        try:
            point = calibrate_stages(calibration, stages=stages, **{"tolerance": 0.0, **how})
        except CalibrationError:
            failed += 1
            continue
        there = evaluate(reduced(held_out, point.stages), point)
        taken[",".join(stage.role for stage in point.stages)] += 1
        shares = [
            getattr(there.cost, unit) / getattr(outcomes.teacher_cost, unit)
            if getattr(there.cost, unit) is not None
            else np.nan
            for unit in ("flops", "seconds")
        ]
        over = 100 * (there.quality - held_out.quality("teacher"))
        found.append((over, *shares))
    over, flops, seconds = np.mean(found, axis=0)
    error = np.std(found, axis=0)[0] / len(found) ** 0.5
    return {
        "splits": len(found),
        "failed": failed,
        "times_fewer_flops": round(float(1 / flops), 3),
        **({} if np.isnan(seconds) else {"times_less_time": round(float(1 / seconds), 3)}),
        "over_teacher_points": round(float(over), 3),
        "standard_error": round(float(error), 3),
        "taken": dict(taken.most_common(5)),
    }


def measure(
    outcomes: Outcomes, chains: dict[str, str], splits: int, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Every chain at a margin of 0, at 0.05 points under, and at the margin of `calibrate`.

    Or at `only` some of these.
    """
    aims = {
        "margin 0": {"margin": 0.0},
        "0.05 points under": {"margin": 0.0, "tolerance": 0.0005},
        f"margin {MARGIN:g}": {},
    }
    return {
        name: {
            aim: over_splits(outcomes, splits, chain, **how)
            for aim, how in aims.items()
            if aim in (only or aims)
        }
        for name, chain in chains.items()
    }


def redrawn(outcomes: Outcomes, sets: int) -> dict[str, Any]:
    """Count how often a promise of three stages is broken, on redrawn sets.

    All recorded examples are the population, of which the truth is known.
    """
    rng, broken, refused, chain = np.random.default_rng(0), 0, 0, ("student", "model-2", "teacher")
    for _ in range(sets):
        drawn = outcomes.take(rng.integers(0, len(outcomes), DRAWN))
        try:
            point = calibrate_stages(drawn, stages=chain, tolerance=TOLERANCE, delta=DELTA)
        except CalibrationError:
            refused += 1
            continue
        truth = evaluate(reduced(outcomes, point.stages), point)
        broken += truth.teacher_quality - truth.quality > TOLERANCE
    return {
        "sets": sets,
        "refused": refused,
        "broken": broken,
        "share_broken": round(broken / sets, 4),
        "delta": DELTA,
    }


def timed(outcomes: Outcomes) -> dict[str, float]:
    """Time the search over six models of 10,000 examples."""
    more = [read(name) for name in ("pooled_mirrored", "single")]
    said = [*outcomes.between, *(one.logits[:, :, 0] for one in more)]
    flops = [*(cost.flops for cost in outcomes.between_costs), *(float(m.flops[0]) for m in more)]
    six = replace(
        outcomes,
        student_cost=Cost(flops=outcomes.student_cost.flops),
        teacher_cost=Cost(flops=outcomes.teacher_cost.flops),
        between=tuple(said),
        between_costs=tuple(Cost(flops=one) for one in flops),
    )
    found = {}
    for most in (3, 4):
        began = time.perf_counter()
        calibrate_stages(six, most=most)
        found[f"seconds, {most} stages at most"] = round(time.perf_counter() - began, 1)
    return {"models": len(six.roles), "examples": len(six), **found}


def main(run: Run) -> dict[str, Any]:
    """Every zoo: the frontier with and without more stages."""
    splits = 3 if run.quick else SPLITS
    ours = shipped_zoo()
    chains = {
        "pair": "student,teacher",
        "mirrored look between": "student,model-2,teacher",
        "second student between": "student,model-3,teacher",
        "auto": "auto",
    }
    figures: dict[str, Any] = {
        "cifar10": run.step("cifar10", partial(measure, ours, chains, splits)),
        "search": run.step("search", partial(timed, ours)),
        "guarantee": run.step("guarantee", lambda: redrawn(ours, 20 if run.quick else REDRAWN)),
    }
    figures["cifar10, seconds"] = run.step(
        "cifar10, seconds",
        lambda: {
            f"{most} stages at most": over_splits(
                ours, splits, "auto", margin=0.0, unit="seconds", most=most
            )
            for most in (2, 3)
        },
    )
    pair_or_more = {"pair": "student,teacher", "auto": "auto"}
    for name in ("early_exits", "multi_scale"):
        figures[name] = run.step(name, lambda n=name: measure(exits(n), pair_or_more, splits))
    for name, (count, *models) in {} if run.quick else ZOOS.items():
        figures[name] = run.step(name, partial(_of_others, models, pair_or_more, count))
    draw(run, figures)
    return figures


def _of_others(models: Sequence[str], chains: dict[str, str], splits: int) -> dict[str, Any]:
    return measure(zoo(models), chains, splits, ("margin 0", f"margin {MARGIN:g}"))


def draw(run: Run, figures: dict[str, Any]) -> None:
    """Draw each chain's saving against its distance from the teacher."""
    shown = {name: found for name, found in figures.items() if "pair" in found}
    run.caption = (
        "Each dot is a chain, chosen on one half and judged on the other: how many times fewer "
        "FLOPs than the last model alone, by accuracy over it, at three aims."
    )
    colors = {"pair": COLORS["single"], "auto": COLORS["auto and blend"]}
    with run.panels(len(shown), "times fewer FLOPs") as axes:
        for axis, (name, found) in zip(axes, shown.items(), strict=True):
            for chain, aims in found.items():
                points = [(a["over_teacher_points"], a["times_fewer_flops"]) for a in aims.values()]
                axis.plot(*zip(*points, strict=True), "o-", label=chain, color=colors.get(chain))
            axis.axvline(0, color="#A0A6AE", linewidth=1)
            axis.set_title(name)
            axis.set_xlabel("points over the last model")


if __name__ == "__main__":
    start(main, "More than two stages")

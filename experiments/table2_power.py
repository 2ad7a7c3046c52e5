"""Table 2: power saved at a loss of accuracy. `python -m experiments.table2_power [--quick]`.

Joules per image by the library (`ebjr.evaluation.power`): measured by the machine's counters where
it has any, else estimated for both models alike from FLOPs and the bytes that move: one image at a
time, where each pays for reading the weights, and estimated in batches of 64, which share that. The
threshold is chosen on one half for the teacher's accuracy less the loss and judged on the other,
with the margin of `table1`; means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ebjr import Cost, Model, OperatingPoint, load_model
from ebjr.demo import shipped
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.power import Load, estimate_joules, with_joules
from experiments.frame import COLORS, OURS, Run, start
from experiments.intervals import Draws, interval
from experiments.nets import PAPER
from experiments.other_pairs import pairs as other
from experiments.pairs import PAIRS, ROLES, here
from experiments.splits import aimed_draws, aimed_points
from experiments.table1 import MARGIN

BATCH = 64
LOSSES = {
    "cifar10": {0.0: {"the paper": 64.03}, 0.0096: {"Tann et al.": 58.74}},
    "imagenet": {0.0: {"the paper": 32.93}, 0.009: {"the paper": 56.63, "BL-Net": 53.7}},
}
"""By data set and loss of accuracy: the percentage of power that is saved, by whose figure."""


def load_of(model: Model, size: int) -> Load:
    """A model on one image with sides of `size` pixels."""
    counted = count_flops(model, (1, 3, size, size))
    batch = np.zeros((1, 3, size, size), np.float32)
    return Load(model, batch, counted.flops, counted.parameter_bytes)


def shipped_loads() -> dict[str, Load]:
    """The shipped pair on one image."""
    found = {}
    for role in ROLES:
        with shipped(f"{role}.onnx") as path:
            found[role] = load_of(load_model(path, threads=1), 32)
    return found


def paper_loads(data: str) -> dict[str, Load]:
    """The paper's own networks on one image; what they have learned changes no cost."""
    nets = {role: getattr(PAPER[data], role) for role in ROLES}
    return {role: load_of(load_model(net.make().eval()), net.size) for role, net in nets.items()}


def other_loads(pair: str) -> dict[str, Load]:
    """A pair that others trained, on one image."""
    sources = {role: other.MODELS[n] for role, n in zip(ROLES, other.PAIRS[pair], strict=True)}
    return {role: load_of(source.model().model, source.size) for role, source in sources.items()}


LOADS: dict[str, Callable[[], dict[str, Load]]] = {
    "cifar10": shipped_loads,
    "paper_cifar10": lambda: paper_loads("cifar10"),
    "imagenet_160_260": lambda: other_loads("imagenet_lite0_160_lite2_260"),
    "imagenet_224_260": lambda: other_loads("imagenet_lite0_224_lite2_260"),
}


def joules(loads: dict[str, Load]) -> dict[str, dict[str, Cost]]:
    """Return an image's cost for each model, alone and in a batch."""
    costs = {role: Cost(flops=load.flops) for role, load in loads.items()}
    return {
        "one by one": with_joules(costs, loads),
        f"in batches of {BATCH}": {
            role: estimate_joules(
                load.flops or 0.0,
                weight_bytes=load.weight_bytes,
                input_bytes=load.batch.nbytes,
                batch_size=BATCH,
            ).add_to(costs[role])
            for role, load in loads.items()
        },
    }


def means(points: list[OperatingPoint], drawn: Draws) -> dict[str, Any]:
    """The percentage of joules that the joint model saves, over splits and resamples."""
    student, teacher = (
        cost.joules or np.nan for cost in (points[0].student_cost, points[0].teacher_cost)
    )
    percent = [100 * (np.nan if p.joules_saved is None else p.joules_saved) for p in points]
    gains = [100 * (p.quality - p.teacher_quality) for p in points]
    return {
        "splits": len(points),
        "saved_percent": round(float(np.mean(percent)), 2),
        "interval": interval(100 * (1 - student / teacher - drawn.rate), 2),
        "over_teacher_points": round(float(np.mean(gains)), 3),
        "deferral_rate": round(float(np.mean([p.deferral_rate for p in points])), 4),
    }


def measure(name: str, splits: int) -> dict[str, Any]:
    """Joules of a pair, and what is saved at each loss."""
    found, outcomes = {}, PAIRS[name].load()
    losses = LOSSES[PAIRS[name].data]
    for way, costs in joules(LOADS[name]()).items():
        table = replace(outcomes, student_cost=costs["student"], teacher_cost=costs["teacher"])
        points = aimed_points(table, splits, [MARGIN - loss for loss in losses])
        found[way] = {
            "joules_per_image": {role: cost.as_dict() for role, cost in costs.items()},
            "saved": {
                f"{loss:g}": means(points[MARGIN - loss], aimed_draws(table, splits, MARGIN - loss))
                for loss in losses
            },
        }
    return found


def draw(run: Run, found: dict[str, Any]) -> None:
    """Bars: what the paper and its rivals save, and what is saved here."""
    with run.picture(1, 1, figsize=(8, 5.4)) as axes:
        axis, places, labels, place = axes[0, 0], [], [], 0.0
        for name, ways in found.items():
            for loss, theirs in LOSSES[PAIRS[name].data].items():
                colors = dict(zip(ways, OURS[1::-1], strict=True))
                bars = [(saved, COLORS["paper"], whose) for whose, saved in theirs.items()]
                for way, figures in ways.items():
                    saved = figures["saved"][f"{loss:g}"]["saved_percent"]
                    bars.append((saved, colors[way], f"ours, {way}"))
                middle = place + (len(bars) - 1) / 2
                for saved, color, whose in bars:
                    axis.barh(place, saved, 0.9, color=color)
                    axis.text(saved + 0.6, place, whose, va="center", fontsize=7)
                    place += 1.0
                place += 0.8
                places.append(middle)
                labels.append(f"{PAIRS[name].title}\n{100 * loss:g} points lower")
        axis.set_yticks(places, labels, fontsize=8)
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()
        axis.set_xlim(0, 110)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("joules saved per image, %")


def main(run: Run) -> dict[str, Any]:
    """Measure every pair at hand whose models are there."""
    found = {}
    for name, pair in here(run):
        if name not in LOADS:
            continue
        found[name] = run.step(name, lambda name=name, n=pair.splits: measure(name, n))
        for way, figures in found[name].items():
            how = figures["joules_per_image"]["student"].get("joules_are", "not known")
            for loss, theirs in LOSSES[pair.data].items():
                row = figures["saved"][f"{loss:g}"]
                for whose, paper in theirs.items():
                    run.compare(
                        f"{pair.title}, {way}: power saved, {100 * loss:g} points lower ({whose})",
                        paper=paper,
                        ours=row["saved_percent"],
                        unit="%",
                        points=row["over_teacher_points"],
                        interval=row["interval"],
                        loss=100 * loss,
                        pair=name,
                        why=f"joules are {how}{why(figures, way)}",
                    )
    draw(run, found)
    return {"pairs": found, "margin": MARGIN}


def why(figures: dict[str, Any], way: str) -> str:
    """Explain the saving by the student's share of the teacher's joules."""
    student, teacher = (
        figures["joules_per_image"][role]["joules"] for role in ("student", "teacher")
    )
    words = f": the student takes {100 * student / teacher:.0f} % of its teacher's"
    if way == "one by one":
        return words + ", for each image pays for reading the weights"
    return words + ", nearly its share of the FLOPs (table 1)"


if __name__ == "__main__":
    start(main, "Table 2: power")

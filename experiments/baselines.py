"""Baselines beside each pair: `python -m experiments.baselines [--quick]`.

Two questions that a factor alone does not answer. Would luck do? Random orders of the inputs, the
best of twenty read off the judged half, as the paper reports them; once without a blend and once
with the one that was chosen for the joint model. And would a single network do? Every one at hand
that answers the same images and costs more than the student and less than the teacher, beside the
joint model that may cost as much: the best accuracy within that cost on one half, judged on the
other; means of splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from ebjr import Outcomes, calibrate, evaluate
from experiments import intervals
from experiments.choices import choice
from experiments.fig3_ablation import RANDOM_RUNS, best_random, orders, read_off_draws
from experiments.frame import Run, start
from experiments.intervals import Half
from experiments.other_pairs import pairs as other
from experiments.pairs import Pair, here, shipped_pair
from experiments.rivals.record import recorded
from experiments.splits import flops

Single = tuple[np.ndarray, float]
"""What a network says of every example, (n,), and its FLOPs."""

NAMES = {
    "osi_full": "the early exit's full net",
    "densenet_bc_100_12": "DenseNet-BC",
    "lite0_160": "Lite0 at 160",
    "lite0_224": "Lite0 at 224",
    "lite2_160": "Lite2 at 160",
    "lite2_260": "Lite2 at 260",
    "mobilenet_v2_128": "MobileNetV2 at 128",
    "mobilenet_v2_224": "MobileNetV2 at 224",
}
"""Networks of others as the table calls them."""

FIGURE_5 = {
    "imagenet_mobilenet_128_224": "ImageNet's classes, MobileNetV2 at 128 -> at 224",
    "imagenet_lite2_160_lite2_260": "ImageNet's classes, Lite2 at 160 -> at 260",
}
"""Pairs of figure 5 that no other figure has."""


def of_cifar10() -> dict[str, Single]:
    """Networks, and averages of networks, that `experiments.rivals_cifar10` measures."""
    from experiments.rivals_cifar10 import single_networks

    found = single_networks(shipped_pair(), recorded())
    return {name: (logits.argmax(axis=1), cost) for name, (logits, cost) in found.items()}


def of_others(*models: str) -> dict[str, Single]:
    """Models that others trained."""
    said = {name: other.answers(name) for name in models}
    return {
        NAMES[name]: (one["output"].argmax(axis=1), float(one["flops"]))
        for name, one in said.items()
    }


SINGLES: dict[str, Callable[[], dict[str, Single]]] = {
    "cifar10": of_cifar10,
    "cifar100": partial(of_others, "osi_full", "densenet_bc_100_12"),
    "imagenet": partial(of_others, *(name for name in NAMES if name[:4] in ("lite", "mobi"))),
}
"""By data set: what answers the same images without a router."""


def lucky(outcomes: Outcomes, splits: int, runs: int, blended: bool) -> dict[str, Any]:
    """Times fewer FLOPs of the best of random orders, the inverse of the mean cost over splits."""
    halves = [outcomes.split(0.5, seed)[1] for seed in range(splits)]
    blends = [choice(outcomes, seed)["blend"] if blended else 0.0 for seed in range(splits)]
    costs = [1 / best_random(half, runs, blend) for half, blend in zip(halves, blends, strict=True)]
    drawn = read_off_draws(halves, orders(runs), blends)
    return {
        "times_fewer_flops": round(1 / float(np.mean(costs)), 3),
        "interval": intervals.factor(drawn, *flops(outcomes))["interval"],
    }


def beside(outcomes: Outcomes, single: Single, splits: int) -> dict[str, Any]:
    """The joint model within the cost of a single network, and that network."""
    said, cost = single
    student, teacher = flops(outcomes)
    right = (said == outcomes.targets).astype(float)
    gains, accuracy, drawn, rng = [], [], [], np.random.default_rng(0)
    for seed in range(splits):
        rows, chosen = outcomes.split_rows(0.5, seed), choice(outcomes, seed)
        first, second = outcomes.split(0.5, seed)
        point = evaluate(second, calibrate(first, "budget", flops=cost, **chosen))
        accuracy.append(point.quality)
        gains.append(point.quality - right[rows[1]].mean())
        halves = [
            Half.of(part, chosen["score"], chosen["blend"], right[own])
            for part, own in zip((first, second), rows, strict=True)
        ]
        each = -(-intervals.RESAMPLES // splits)
        times = [intervals.times_drawn(len(part), each, rng) for part in (first, second)]
        threshold = halves[0].within(times[0], (cost - student) / teacher)
        drawn.append(100 * halves[1].judged(times[1], threshold)[1])
    return {
        "percent_of_teachers_flops": round(100 * cost / teacher, 1),
        "accuracy": round(100 * float(right.mean()), 2),
        "joint_accuracy": round(100 * float(np.mean(accuracy)), 2),
        "joint_over_it_points": round(100 * float(np.mean(gains)), 3),
        "interval": intervals.interval(np.concatenate(drawn), 2),
    }


def measure(outcomes: Outcomes, data: str, splits: int, runs: int) -> dict[str, Any]:
    """Both baselines of a pair."""
    student, teacher = flops(outcomes)
    between = {
        name: single
        for name, single in SINGLES[data]().items()
        if 1.02 * student < single[1] < 0.98 * teacher
    }
    found = {name: beside(outcomes, single, splits) for name, single in between.items()}
    worst = min(found, key=lambda name: found[name]["joint_over_it_points"], default=None)
    return {
        "random": {
            "runs": runs,
            **lucky(outcomes, splits, runs, blended=False),
            "with_our_blend": lucky(outcomes, splits, runs, blended=True)["times_fewer_flops"],
        },
        "singles": found,
        "strongest": worst,
    }


def loses(found: dict[str, Any]) -> bool:
    """Tell whether the strongest single network beats the joint model of its cost."""
    name = found["strongest"]
    return name is not None and found["singles"][name]["joint_over_it_points"] < 0


def words(found: dict[str, Any]) -> str:
    """Both baselines of a pair, in as few words as stand in each of its rows."""
    luck, name = found["random"], found["strongest"]
    text = f"random {luck['times_fewer_flops']:.3g}x"
    if luck["with_our_blend"] != luck["times_fewer_flops"]:
        text += f", blended {luck['with_our_blend']:.3g}x"
    if name is None:
        return text + "; no single network between the two is at hand"
    one = found["singles"][name]
    low, high = one["interval"]
    verdict = "**loses to a single network**: " if loses(found) else ""
    points = f"{one['joint_over_it_points']:+.2f} points ({low:+.2f} to {high:+.2f})"
    return f"{text}; {verdict}{name} {points}"


def measured(run: Run) -> Iterator[tuple[str, Pair]]:
    """The pairs at hand, those of figure 5 among them."""
    yield from here(run)
    if run.quick:
        return
    for name, title in FIGURE_5.items():
        yield name, Pair(title, "imagenet", cache(partial(other.load, name)))


def main(run: Run) -> dict[str, Any]:
    """Measure every pair at hand."""
    found, runs = {}, 5 if run.quick else RANDOM_RUNS
    for name, pair in measured(run):
        step = run.step(name, lambda pair=pair: measure(pair.load(), pair.data, pair.splits, runs))
        found[name] = {"title": pair.title, **step, "words": words(step)}
        luck = step["random"]
        run.compare(
            f"{pair.title}: best of {runs} random orders, times fewer FLOPs",
            paper=None,
            ours=luck["times_fewer_flops"],
            unit="x",
            interval=luck["interval"],
            why=f"read off the judged half, as in the paper, which gives no figure; with the blend "
            f"of ours {luck['with_our_blend']:.3g}x",
        )
        if step["strongest"] is None:
            continue
        one = step["singles"][step["strongest"]]
        run.compare(
            f"{pair.title}: accuracy of the joint model over {step['strongest']} of its cost",
            paper=None,
            ours=one["joint_over_it_points"],
            unit="points",
            interval=one["interval"],
            why=f"the strongest of {len(step['singles'])} at hand between student and teacher: "
            f"right on {one['accuracy']:.1f} % at {one['percent_of_teachers_flops']:.0f} % of the "
            f"teacher's FLOPs{'; the pair loses to it' if loses(step) else ''}",
        )
    return {"pairs": found}


if __name__ == "__main__":
    start(main, "Baselines beside each pair")

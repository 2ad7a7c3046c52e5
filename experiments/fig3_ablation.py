"""Figure 3, right: which score routes best? `python -m experiments.fig3_ablation [--quick]`.

Every score alone, without a blend: the paper's (energy, eq. 3), its rivals, a learned one, random
routing and the oracle; and what the library chooses, score and blend. Score, blend and threshold
are chosen on one half and judged on the other; means of splits. Random is also given as the paper
gives it, the best of several runs, read off the very half that it is judged on.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ebjr import OperatingPoint, Outcomes, TradeOffCurve, calibrate, evaluate, oracle
from ebjr.blend import Blend
from ebjr.calibration import choose_score
from ebjr.calibration.learned import can_learn
from experiments import intervals, nets
from experiments.choices import choice, choices
from experiments.frame import COLORS, Run, start
from experiments.pairs import apart, here
from experiments.splits import flops, over_splits

Router = Callable[[Outcomes], Any]
"""From the half that choices are made on to a score: its name, or a function of raw output."""

NAMED = ("energy", "softmax_energy", "softmax", "entropy", "margin", "max_logit", "random")


def named(name: str, calibration: Outcomes) -> str:
    """A score that there is nothing to fit in."""
    return name


def learned(calibration: Outcomes) -> Any:
    """The library's learned score; softmax where too few rows show where the teacher helps."""
    if not can_learn(calibration):
        return "softmax"
    return choose_score(calibration, ["learned"])


ROUTERS: dict[str, Router] = {**{name: partial(named, name) for name in NAMED}, "learned": learned}
"""Whatever routes; `--add FILE` joins the `ROUTERS` of a file of yours."""

RANDOM_RUNS = 20
RATES = np.linspace(0, 1, 51)


def read_off(curve: TradeOffCurve) -> OperatingPoint:
    """The cheapest point as good as the teacher, chosen where it is judged."""
    return curve.at(index=int(np.argmax(curve.quality >= curve.outcomes.quality("teacher"))))


def best_random(held_out: Outcomes, runs: int, blend: float | Blend = 0.0) -> float:
    """Return the saving of the best of several random orders, as the paper reports it."""
    curves = (TradeOffCurve.of(held_out, f"random(seed={seed})", blend) for seed in range(runs))
    return max(read_off(curve).saving or 0.0 for curve in curves)


def read_off_draws(
    halves: Sequence[Outcomes],
    scores: Callable[[Outcomes], Sequence[Any]],
    blends: Sequence[float | Blend] | None = None,
) -> intervals.Draws:
    """Resamples of what is read off the half that it is judged on: the cheapest of some scores."""
    rng, rates = np.random.default_rng(0), []
    for number, outcomes in enumerate(halves):
        blend = 0.0 if blends is None else blends[number]
        times = intervals.times_drawn(len(outcomes), intervals.RESAMPLES // len(halves), rng)
        each = (intervals.Half.of(outcomes, score, blend) for score in scores(outcomes))
        found = [half.judged(times, half.chosen(times, 0.0, capped=True))[0] for half in each]
        rates.append(np.min(found, axis=0))
    rate = np.concatenate(rates)
    return intervals.Draws(rate, np.zeros(len(rate)))


def orders(runs: int) -> Callable[[Outcomes], Sequence[str]]:
    """Random orders of inputs, as `read_off_draws` takes scores."""
    return lambda outcomes: [f"random(seed={seed})" for seed in range(runs)]


def ideal(outcomes: Outcomes, splits: int, runs: int) -> dict[str, Any]:
    """Routers that know the answers: the oracle, and the luckiest of random orders."""
    halves = [outcomes.split(0.5, seed)[1] for seed in range(splits)]
    points = [read_off(TradeOffCurve.of(half, oracle(half))) for half in halves]
    cost = float(np.mean([1 / (point.saving or np.inf) for point in points]))
    lucky = float(np.mean([1 / best_random(half, runs) for half in halves]))
    known, luck = (
        intervals.factor(read_off_draws(halves, scores), *flops(outcomes))["interval"]
        for scores in (lambda half: [oracle(half)], orders(runs))
    )
    return {
        "oracle": {"times_fewer_flops": round(1 / cost, 3), "interval": known},
        "random, best of several": {
            "times_fewer_flops": round(1 / lucky, 3),
            "interval": luck,
            "runs": runs,
        },
    }


def fitted(outcomes: Outcomes, router: Router, splits: int) -> list[Any]:
    """A router's score of each split's first half."""
    return [router(outcomes.split(0.5, seed)[0]) for seed in range(splits)]


def routed(outcomes: Outcomes, router: Router, splits: int) -> dict[str, float]:
    """Measure a router at the teacher's accuracy: fitted on one half, judged on the other."""
    return over_splits(outcomes, splits, scores=fitted(outcomes, router, splits), blend=0.0)


def areas(outcomes: Outcomes, scores: Mapping[str, list[Any]]) -> dict[str, float]:
    """By router: mean accuracy over all deferral rates, in percent."""
    found: dict[str, list[float]] = {}
    for name, each in scores.items():
        for seed, score in enumerate(each):
            held_out = outcomes.split(0.5, seed)[1]
            found.setdefault(name, []).append(TradeOffCurve.of(held_out, score).area)
            if name == "random":
                best = TradeOffCurve.of(held_out, oracle(held_out)).area
                found.setdefault("oracle", []).append(best)
    return {name: round(100 * float(np.mean(each)), 3) for name, each in found.items()}


def drawn(outcomes: Outcomes, first: Mapping[str, Any]) -> dict[str, Any]:
    """Return one half's curves: accuracy at fixed costs, in percent of the teacher's FLOPs."""
    calibration, held_out = outcomes.split(0.5, 0)
    joint = evaluate(held_out, calibrate(calibration, margin=0.0, **choice(outcomes, 0)))
    scores = {**first, "oracle": oracle(held_out)}
    curves = {name: TradeOffCurve.of(held_out, score) for name, score in scores.items()}
    curves["auto and blend"] = joint.curve(held_out)
    student, teacher = held_out.student_cost.flops or 0.0, held_out.teacher_cost.flops or 1.0
    return {
        "cost_percent": (100 * (student / teacher + RATES)).round(2),
        "accuracy": {
            name: [round(100 * curve.at(deferral_rate=rate).quality, 3) for rate in RATES]
            for name, curve in curves.items()
        },
        "ends": [100 * held_out.quality(role) for role in ("student", "teacher")],
        "point": [100 * (joint.cost.flops or 0.0) / teacher, 100 * joint.quality],
    }


def measure(
    outcomes: Outcomes, routers: Mapping[str, Router], splits: int, runs: int
) -> dict[str, Any]:
    """Every figure of a pair."""
    scores = {name: fitted(outcomes, router, splits) for name, router in routers.items()}
    return {
        "examples": len(outcomes),
        "splits": splits,
        "accuracy": {role: outcomes.quality(role) for role in ("student", "teacher")},
        "flops": {"student": outcomes.student_cost.flops, "teacher": outcomes.teacher_cost.flops},
        "at_the_teachers_accuracy": {
            "auto and blend": over_splits(outcomes, splits, **choices(outcomes, splits)),
            **{
                name: over_splits(outcomes, splits, scores=each, blend=0.0)
                for name, each in scores.items()
            },
            **ideal(outcomes, splits, runs),
        },
        "area_percent": areas(outcomes, scores),
        "curves": drawn(outcomes, {name: each[0] for name, each in scores.items()}),
    }


def draw(run: Run, found: dict[str, Any], titles: dict[str, str]) -> None:
    """A panel for each pair; random is drawn as random orders are on average."""
    with run.panels(len(found), "accuracy, %", more=2) as axes:
        for axis, (name, figures) in zip(axes, found.items(), strict=True):
            curves = figures["curves"]
            cost = np.asarray(curves["cost_percent"])
            accuracy = curves["accuracy"] | {"random": np.linspace(*curves["ends"], len(cost))}
            for score in (
                "auto and blend",
                *(name for name in accuracy if name != "auto and blend"),
            ):
                style = {"oracle": ":", "random": "--"}.get(score, "-")
                width = 2.2 if score == "auto and blend" else 1.3
                color = COLORS.get(score, COLORS["added"])
                axis.plot(cost, accuracy[score], style, color=color, linewidth=width, label=score)
            axis.axvline(100, color=COLORS["paper"], linewidth=0.8)
            axis.plot(*curves["point"], "o", color=COLORS["chosen"], markersize=6)
            best = max(max(values) for score, values in accuracy.items() if score != "oracle")
            least = curves["ends"][0]
            axis.set_ylim(least - 0.05 * (best - least), best + 0.25 * (best - least))
            axis.set_title(titles[name], fontsize=10)
            axis.set_xlabel("FLOPs, % of the teacher's")


SHORT = ("auto and blend", "energy", "softmax", "oracle")
"""What the table shows of other pairs; the result file has all."""

PAPER = {"energy": 2.0, "softmax": 1.4, "entropy": 1.7}
"""Times fewer FLOPs at the teacher's accuracy on Caltech-256."""

WHY = {
    "auto and blend": "what the library chooses; the paper has one score and no blend",
    "softmax_energy": "what the thresholds of the authors' notebook fit; the paper has no figure",
    "random": "one order a split, chosen on the other half; the paper gives the best of several",
    "oracle": "knows the labels: no score can do better",
    "random, best of several": "read off the judged half, as in the paper, which gives no figure",
}
"""Of scores that the paper gives no figure for, where there is more to say than that."""


def why(score: str, figures: Mapping[str, Any]) -> str:
    """Why a score's figure is not the paper's, or why the paper has none."""
    if score not in PAPER:
        return WHY.get(score, "not in the paper")
    student, teacher = (figures["flops"][role] for role in ("student", "teacher"))
    accuracy = [100 * figures["accuracy"][role] for role in ("student", "teacher")]
    there = nets.PAPER["caltech256"].apart
    return apart(student / teacher, *accuracy, there, "the paper's, on Caltech-256,")


def main(run: Run) -> dict[str, Any]:
    """Measure every pair at hand."""
    runs = 5 if run.quick else RANDOM_RUNS
    routers, titles, found = dict(ROUTERS), {}, {}
    if run.asked.add:
        routers |= runpy.run_path(run.asked.add)["ROUTERS"]
    for name, pair in here(run):
        found[name] = run.step(
            name, lambda pair=pair: measure(pair.load(), routers, pair.splits, runs)
        )
        titles[name] = pair.title
        for score, figures in found[name]["at_the_teachers_accuracy"].items():
            if name != "cifar10" and score not in SHORT:
                continue
            run.compare(
                f"{pair.title}: {score}",
                paper=PAPER.get(score),
                ours=figures["times_fewer_flops"],
                unit="x",
                points=figures.get("over_teacher_points"),
                interval=figures.get("interval"),
                pair=name,
                why=why(score, found[name]),
            )
    run.caption = (
        "The held-out half of the first split; the dot is what `auto` and its blend chose on the "
        "other half, the upright line what the teacher alone costs."
    )
    draw(run, found, titles)
    return {"pairs": found}


def options(words: argparse.ArgumentParser) -> None:
    """Add this script's own options."""
    words.add_argument("--add", metavar="FILE", help="a Python file whose ROUTERS are measured too")


if __name__ == "__main__":
    start(main, "Figure 3, right: which score", options)

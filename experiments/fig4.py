"""Figure 4: the score where the student is right and wrong. `python -m experiments.fig4 [--quick]`.

The paper's threshold is where the two densities cross. It is found on one half, without a bin width
(`ebjr.calibration.crossing`), and judged on the other: what share it keeps, and how often the
student is right there; means of splits. At the share that the paper keeps the student's accuracy
says how well each score orders its inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebjr import CalibrationError, Outcomes, as_score, calibrate
from ebjr.stats import share_interval
from experiments import nets
from experiments.frame import COLORS, Run, start
from experiments.pairs import here

SCORES = ("energy", "softmax", "margin")
BINS = 50
PAPER = {"cifar10": (70.0, 99.0), "cifar100": (50.0, 91.0), "imagenet": (50.0, 91.0)}
"""By data set: the percentage of inputs that the student keeps, and its accuracy on them."""


def at_crossing(outcomes: Outcomes, score: str, splits: int) -> dict[str, Any] | None:
    """Judge the crossing of one half on the other; None without a crossing."""
    found = []
    for seed in range(splits):
        calibration, held_out = outcomes.split(0.5, seed)
        try:
            point = calibrate(calibration, "crossing", score=score, blend=0.0)
        except CalibrationError:
            continue
        kept = ~point.router(held_out.student)[1]
        right = 100 * float(held_out.student_quality[kept].mean())
        here = point.curve(held_out).at(threshold=point.threshold)
        gain = 100 * (here.quality - here.teacher_quality)
        found.append((point.threshold, 100 * kept.mean(), right, 1 / (here.saving or np.inf), gain))
    if not found:
        return None
    threshold, kept, right, cost, gain = np.mean(found, axis=0)
    return {
        "splits": len(found),
        "threshold": round(threshold, 3),
        "kept_percent": round(kept, 2),
        "right_on_kept_percent": round(right, 2),
        "times_fewer_flops": round(1 / cost, 3),
        "over_teacher_points": round(gain, 2),
    }


def right_at_share(outcomes: Outcomes, score: str, kept_percent: float) -> dict[str, Any]:
    """Return the student's accuracy on the inputs of the highest scores, in percent."""
    values = np.asarray(as_score(score)(outcomes.student), np.float64)
    most = round(kept_percent / 100 * len(values))
    best = np.argsort(-values, kind="stable")[:most]
    share = share_interval(int(outcomes.student_quality[best].sum()), most)
    return {
        "percent": round(100 * share.estimate, 2),
        "interval": [round(100 * share.low, 2), round(100 * share.high, 2)],
    }


def histogram(outcomes: Outcomes) -> dict[str, Any]:
    """Densities of the paper's score, of inputs that the student gets right and wrong."""
    values = np.asarray(as_score("energy")(outcomes.student), np.float64)
    edges = np.linspace(*np.quantile(values, [0.001, 0.999]), BINS + 1)
    right = outcomes.student_quality > 0
    return {
        "edges": edges.round(4),
        "right": np.histogram(values[right], edges, density=True)[0].round(6),
        "wrong": np.histogram(values[~right], edges, density=True)[0].round(6),
    }


def measure(outcomes: Outcomes, kept_percent: float, splits: int) -> dict[str, Any]:
    """Every figure of a pair."""
    return {
        "student_percent": round(100 * outcomes.quality("student"), 2),
        "crossing": {score: at_crossing(outcomes, score, splits) for score in SCORES},
        "right_at_the_papers_share": {
            score: right_at_share(outcomes, score, kept_percent) for score in SCORES
        },
        "energy": histogram(outcomes),
    }


def draw(run: Run, found: dict[str, Any]) -> None:
    """A panel for each pair."""
    with run.panels(len(found), "density") as axes:
        for axis, figures in zip(axes, found.values(), strict=True):
            bars = figures["energy"]
            for name in ("right", "wrong"):
                axis.stairs(
                    bars[name],
                    bars["edges"],
                    fill=True,
                    alpha=0.35,
                    color=COLORS[name],
                    label=f"the student is {name}",
                )
            crossing = figures["crossing"]["energy"]
            if crossing:
                threshold = crossing["threshold"]
                axis.axvline(
                    threshold, color=COLORS["teacher"], ls="--", lw=1.2, label="the crossing"
                )
            axis.set_title(figures["title"], fontsize=10)
            axis.set_xlabel("energy, -F(x), nats")


def main(run: Run) -> dict[str, Any]:
    """Measure and draw every pair at hand."""
    found = {}
    for name, pair in here(run):
        if pair.data not in PAPER or name == "cifar100_early_exit":  # the other's student
            continue
        kept, right = PAPER[pair.data]
        own = nets.PAPER[pair.data].student.paper_accuracy
        step = run.step(name, lambda pair=pair, k=kept: measure(pair.load(), k, pair.splits))
        found[name] = {"title": pair.title, **step}
        students = (
            f"the student is right on {step['student_percent']:.1f} % of all, the paper's on "
            f"{own:.1f} %{WHY.get(pair.data, '')}"
        )
        shares = step["right_at_the_papers_share"]
        best = max(shares, key=lambda score: shares[score]["percent"])
        for score in dict.fromkeys(("energy", best)):
            run.compare(
                f"{pair.title}: right on the {kept:g} % that {score} keeps",
                paper=right,
                ours=shares[score]["percent"],
                unit="%",
                interval=shares[score]["interval"],
                pair=name,
                why=students,
            )
        crossing = step["crossing"]["energy"]
        if crossing:
            run.compare(
                f"{pair.title}: kept at the crossing of energy",
                paper=kept,
                ours=crossing["kept_percent"],
                unit="%",
                lower=None,
                points=crossing["over_teacher_points"],
                pair=name,
                why=f"right on {crossing['right_on_kept_percent']} % of them; the threshold is of "
                f"other images than these; {students}",
            )
    draw(run, found)
    run.caption = (
        "All the examples; the crossing is that of one half, as the mean over splits. Energies are "
        "of the networks at hand: their unit is nats, their level is the network's own."
    )
    return {"pairs": found}


WHY = {"imagenet": ": the photos were picked so that a network is right on them"}
"""By data set: why the student is not as often right as the paper's."""


if __name__ == "__main__":
    start(main, "Figure 4: the score's distribution")

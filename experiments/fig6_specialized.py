"""Figure 6: specialized students. `python -m experiments.fig6_specialized [--quick]`.

How many popular classes should the student know, and what if fewer inputs are of these? The shipped
students of CIFAR-10, C of 3, 5 and all ten, and heads of 5, 10, 20 and 50 of CIFAR-100's classes on
a published trunk: chosen on one half for the teacher's accuracy, drawn in the mix, and judged on
the other; means of splits. The heads' answers are committed (`experiments.specialized.answers`);
how they do at other popular shares is read from the files of `experiments.specialized.measure`.
``--quick`` looks at fewer splits.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebjr import Outcomes, TradeOffCurve
from ebjr.demo.specialized import TRAFFIC
from ebjr.tasks.specialized.known_classes import Traffic
from experiments.frame import COLORS, Run, start
from experiments.specialized import answers
from experiments.specialized import measure as heads
from experiments.specialized_cifar10.measure import tables

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
SHARE = 0.75
STUDY = Path(heads.__file__).parent
TEACHERS = {
    "osi_full": "the trunk's own teacher",
    "densenet_bc_100_12": "a DenseNet-BC as teacher",
}
KNOWS = {
    "knows-3": "it knows 3 of ten classes",
    "knows-5": "it knows 5 of ten classes",
    "knows-all": "a general student of all ten classes",
}
SHADES = {
    **{"knows-3": "#F0A36B", "knows-5": "#D55E00", "knows-all": COLORS["general"]},
    **{"C = 5": "#F0A36B", "C = 10": "#D55E00", "C = 20": "#9A4400", "C = 50": "#5C2900"},
    "general": COLORS["general"],
}
"""By student: the more classes it knows, the darker."""

WORDS = {"specialized_energy": "eq. 17", "energy": "eq. 3", "known_softmax": "known_softmax"}
"""What the table calls a score."""

OPEN_IMAGES = "the paper's knows 50 of 256 classes, on Open Images, which is not at hand"
SPLITS = 10
AUTO_SPLITS = 3
RATES = np.linspace(0, 1, 51)


def scores_of(table: Outcomes) -> dict[str, dict[str, Any]]:
    """The paper's score, and the other that is measured, by name."""
    known = table.task == "specialized"
    names = ("specialized_energy", "known_softmax") if known else ("energy", "softmax")
    return {name: {"score": name, "blend": 0.0} for name in names}


def sweep(table: Outcomes, popular: tuple[int, ...], splits: int) -> dict[str, Any]:
    """Every score at every popular share, `auto` where three of four inputs are popular."""
    found: dict[str, Any] = {}
    for share in SHARES:
        ways: dict[str, dict[str, Any]] = scores_of(table)
        if share == SHARE:
            ways["auto"] = {}
        for way, how in ways.items():
            times = min(splits, AUTO_SPLITS) if way == "auto" else splits
            row = heads.over_splits(table, Traffic(share, popular), splits=times, **how)
            found.setdefault(way, {})[f"{share:g}"] = row
    return found


def curve(table: Outcomes, popular: tuple[int, ...]) -> dict[str, Any]:
    """Accuracy against cost on a half in which three of four inputs are popular."""
    held_out = table.split(0.5, 0)[1]
    held_out = held_out.take(Traffic(SHARE, popular).draw(held_out.targets, 0))
    score = next(name for name in reversed(scores_of(table)))
    drawn = TradeOffCurve.of(held_out, score)
    rates = RATES[drawn.deferral_rate[0] <= RATES]
    student, teacher = held_out.student_cost.flops or 0.0, held_out.teacher_cost.flops or 1.0
    return {
        "score": score,
        "cost_percent": (100 * (student / teacher + rates)).round(2),
        "accuracy": [round(100 * drawn.at(deferral_rate=rate).quality, 2) for rate in rates],
        "teacher": 100 * held_out.quality("teacher"),
    }


def cifar10(splits: int) -> dict[str, Any]:
    """The shipped students, whose popular classes are the demo's three."""
    popular, found = TRAFFIC.popular_classes, {}
    for name, table in tables().items():
        if name != "the shipped pair's":
            student, teacher = table.student_cost.flops or 0.0, table.teacher_cost.flops or 1.0
            found[name] = {
                "student_percent_of_flops": round(100 * student / teacher, 1),
                "sweep": sweep(table, popular, splits),
                "curve": curve(table, popular),
            }
    return found


def kept_of(teacher: str) -> dict[str, Any]:
    """The result file of `experiments.specialized.measure` beside a teacher."""
    found: dict[str, Any] = json.loads((STUDY / f"results_whole_{teacher}.json").read_text())
    return found


def cifar100(teacher: str) -> dict[int, Any]:
    """Return what `experiments.specialized.measure` found beside a teacher, by known classes."""
    kept = kept_of(teacher)
    sizes = sorted(int(name.split()[0]) for name in kept if name.endswith(" known"))
    return {size: kept[f"{size} known"] for size in sizes}


def draw(run: Run, panels: dict[str, dict[str, Any]], left: dict[str, Any], title: str) -> None:
    """Left, accuracy against cost; then a panel of times fewer FLOPs by popular share each."""
    with run.picture(1 + len(panels), 1) as axes:
        axis = axes[0, 0]
        for name, figures in left.items():
            row = figures["curve"]
            axis.plot(row["cost_percent"], row["accuracy"], color=SHADES[name], label=name)
        axis.axhline(row["teacher"], color=COLORS["paper"], linewidth=0.8)
        axis.axvline(100, color=COLORS["paper"], linewidth=0.8)
        axis.set_title(f"{title}, 75 % popular", fontsize=10)
        axis.set_xlabel("FLOPs, % of the teacher's")
        axis.set_ylabel("accuracy, %")
        axis.legend(frameon=False, fontsize=8)
        for axis, (name, lines) in zip(axes.flat[1:], panels.items(), strict=True):
            for label, row in lines.items():
                shares = [100 * float(share) for share in row]
                saved = [one["times_fewer_flops"] for one in row.values()]
                axis.plot(shares, saved, "o-", color=SHADES[label], markersize=4, label=label)
            axis.axhline(1, color=COLORS["paper"], linewidth=0.8)
            axis.set_title(name, fontsize=10)
            axis.set_xlabel("popular inputs, %")
            axis.set_ylabel("times fewer FLOPs")
            axis.legend(frameon=False, fontsize=8)


def lines_of_cifar10(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """The table's lines and the panel of the shipped students."""
    for name, figures in found.items():
        for way, shares in figures["sweep"].items():
            row = shares[f"{SHARE:g}"]
            run.compare(
                f"CIFAR-10, {name}, 75 % popular: times fewer FLOPs, {WORDS.get(way, way)}",
                paper=1.5,
                ours=row["times_fewer_flops"],
                unit="x",
                points=row["over_teacher_points"],
                interval=row["interval"],
                step="cifar10",
                why=(
                    f"{KNOWS[name]} and costs {figures['student_percent_of_flops']:.0f} % of its "
                    f"teacher; {OPEN_IMAGES}"
                ),
            )
    return {
        name: figures["sweep"]["softmax" if name == "knows-all" else "known_softmax"]
        for name, figures in found.items()
    }


def head(teacher: str, size: int, splits: int) -> dict[str, Any]:
    """A head of CIFAR-100 beside a teacher, three of four inputs popular, by score."""
    table, known = answers.table(size, teacher)
    whole = table.teacher_cost.flops or 1.0
    kept = kept_of(teacher)
    shared = whole - 1e6 * kept["one_trunk"]["rest_mflops"] if "one_trunk" in kept else 0.0
    return {
        "student_percent_of_flops": round(100 * (table.student_cost.flops or 0.0) / whole, 1),
        "right_on_popular": heads.known_accuracy(table, known),
        "ways": {
            way: heads.over_splits(
                table, Traffic(SHARE, known), shared, splits, score=way, blend=0.0
            )
            for way in ("specialized_energy", "known_softmax")
        },
    }


def beaten(teacher: str) -> str:
    """Tell whether another teacher at hand is more accurate for fewer FLOPs."""
    own = kept_of(teacher)["teacher"]
    for other in TEACHERS:
        one = kept_of(other)["teacher"]
        if one["accuracy"] > own["accuracy"] and one["mflops"] < own["mflops"]:
            share = 100 * one["mflops"] / own["mflops"]
            return (
                "; **the pair loses to a single network**: the trunk's own teacher is right on "
                f"{one['accuracy']:.1f} % for {share:.0f} % of this one's FLOPs, this one on "
                f"{own['accuracy']:.1f} %"
            )
    return ""


def lines_of_cifar100(run: Run, teacher: str, found: dict[int, Any]) -> dict[str, Any]:
    """The table's lines and the panel of the heads beside one teacher."""
    panel: dict[str, Any] = {}
    for size, figures in found.items():
        step = f"cifar100, {teacher}, {size}"
        own = run.step(step, partial(head, teacher, size, splits=2 if run.quick else SPLITS))
        facts = (
            f"the student costs {own['student_percent_of_flops']:.0f} % of its teacher and is "
            f"right on {own['right_on_popular']:.0f} % of popular inputs{beaten(teacher)}; "
            f"{OPEN_IMAGES}"
        )
        for way, row in own["ways"].items():
            one = "with_one_trunk" in row
            run.compare(
                f"CIFAR-100, {TEACHERS[teacher]}, C = {size}, 75 % popular: "
                f"times fewer FLOPs, {WORDS[way]}",
                paper=1.5 if size in (10, 20) else None,
                ours=row["with_one_trunk" if one else "times_fewer_flops"],
                unit="x",
                points=row["over_teacher_points"],
                interval=row["interval_with_one_trunk" if one else "interval"],
                step=step,
                why=f"one trunk; as two files {row['times_fewer_flops']:.3g}x; {facts}"
                if one
                else facts,
            )
        panel[f"C = {size}"] = by_share(figures["specialized"])
    panel["general"] = by_share(found[10]["general"])
    return panel


def by_share(row: dict[str, Any]) -> dict[str, Any]:
    """The softmax's figures by popular share, the teacher going on from a shared trunk."""
    return {
        share: {
            "times_fewer_flops": ways["softmax"].get(
                "with_one_trunk", ways["softmax"]["times_fewer_flops"]
            )
        }
        for share, ways in row.items()
    }


def main(run: Run) -> dict[str, Any]:
    """Measure, read, draw."""
    small = run.step("cifar10", lambda: cifar10(2 if run.quick else SPLITS))
    panels = {"CIFAR-10, as shipped": lines_of_cifar10(run, small)}
    large = {teacher: cifar100(teacher) for teacher in TEACHERS}
    for teacher, found in large.items():
        panels[f"CIFAR-100, {TEACHERS[teacher]}"] = lines_of_cifar100(run, teacher, found)
    draw(run, panels, small, "CIFAR-10")
    run.caption = (
        "First panel: the level line is the teacher's accuracy, the upright one its cost. Then the "
        "score known_softmax and, for the general student, softmax, at the teacher's accuracy."
    )
    return {"cifar10": small, "cifar100": {name: list(found) for name, found in large.items()}}


if __name__ == "__main__":
    start(main, "Figure 6: specialized students")

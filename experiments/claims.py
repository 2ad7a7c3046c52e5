"""The summary before the table: what reproduces, what does not, what is ours.

`summary` makes it from the result files. A row's figure is **short** of the paper's where its 95 %
interval lies on the worse side of it; **unequal** where it is less accurate than the paper's own
loss allows, whatever its factor; **beyond** it where the interval lies on the better side; and
**undecided** where the interval holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
ROUNDED = 0.005
"""Points of accuracy are compared as they are printed, with two digits."""

Row = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]
"""By script: its result file."""


def standing(row: Row) -> str:
    """``beyond``, ``undecided``, ``short`` or ``unequal``; ``""`` where nothing can be compared.

    Examples
    --------
    >>> row = {"paper": 2.0, "ours": 3.0, "lower": False, "interval": [2.5, 3.5], "points": -0.1}
    >>> standing({**row, "loss": 0.1}), standing({**row, "loss": 0.0})
    ('beyond', 'unequal')
    """
    paper, ends = row["paper"], row.get("interval")
    if not isinstance(paper, int | float) or isinstance(row["ours"], str) or row["lower"] is None:
        return ""
    sign = -1 if row["lower"] else 1
    worst, best = sorted(sign * end for end in ends) if ends else 2 * [sign * row["ours"]]
    if best < sign * paper:
        return "short"
    if row["points"] is not None and row["points"] < -row.get("loss", 0.0) - ROUNDED:
        return "unequal"
    return "beyond" if ends and worst > sign * paper else "undecided"


class Claim(NamedTuple):
    """A claim of the paper, and the rows that test it: a script and a pattern of its findings.

    `missing` says why no row does.
    """

    where: str
    says: str
    script: str = ""
    pattern: str = ""
    missing: str = ""


PLAIN = r"FLOPs than the teacher(, with the library's own margin)?(: no less accurate)?$"
CLAIMS = (
    Claim("Table 1", "CIFAR-10: 2.15x, 0.02 under", "table1", rf"^CIFAR-10,.*{PLAIN}"),
    Claim("Table 1", "CIFAR-100: 1.36x, 0.07 under", "table1", rf"^CIFAR-100,.*{PLAIN}"),
    Claim("Table 1", "ImageNet: 1.49x, 0.3 under", "table1", rf"^ImageNet's.*{PLAIN}"),
    Claim(
        "Table 1",
        "Caltech-256: 2.0x at no loss",
        missing="no network for its images is at hand; `experiments.full_scale` trains them",
    ),
    Claim("Table 1", "CIFAR-10: 1.47x less time, 0.02 under", "table1_latency", ""),
    Claim(
        "Figure 2",
        "CIFAR-10: 3x, 0.2 under (its own formula gives 2.06x)",
        "fig2_fig3",
        r"^CIFAR-10,.*aiming 0\.2",
    ),
    Claim(
        "Figure 4",
        "the student is right on 99 % of its surest 70 %, on 91 % of 50 %; energy",
        "fig4",
        r"energy keeps",
    ),
    Claim(
        "Table 2",
        "CIFAR-10: 64 % less power at no loss",
        "table2_power",
        r"^CIFAR-10,.*, 0 points lower \(the paper",
    ),
    Claim(
        "Table 2",
        "ImageNet: 32.9 % less power at no loss",
        "table2_power",
        r"^ImageNet's.*, 0 points lower \(the paper",
    ),
    Claim(
        "Table 2",
        "ImageNet: 56.6 % less power, 0.9 under",
        "table2_power",
        r"^ImageNet's.*, 0\.9 points lower \(the paper",
    ),
    Claim(
        "Figure 5, left",
        "a network at two sizes of images: 1.49x at no loss",
        "fig5_resolution",
        r"MobileNetV2|Lite2 at 160",
    ),
    Claim(
        "Section 3.1",
        "odds 1.14 against RS-Net; here against a single network of that cost",
        "significance",
        r"single network",
    ),
    Claim("Section 3.1", "odds 1.42 against RANet", missing="RANet's weights are not at hand"),
    Claim(
        "Figure 5, right",
        "COCO: 1.8x at 97 % of the teacher's mAP, eq. 14",
        "fig5_detection",
        r"energy \(eq\. 14\)",
    ),
    Claim(
        "Figure 6", "specialized students: 1.5x at no loss, eq. 17", "fig6_specialized", r"eq\. 17"
    ),
)


def signed(points: float) -> str:
    """Points of accuracy with two digits, and 0 without a minus."""
    return f"{round(points, 2) + 0.0:+.2f}"


def short(row: Row) -> str:
    """A row as the summary has it: which network, the figure, its interval and its accuracy."""
    name = re.split(r": (?:times|right|power|odds)|, (?:one by one|in batches)", row["what"])[0]
    for words in ("CIFAR-100, ", "CIFAR-10, ", "ImageNet's classes, ", "EfficientNet-Lite, "):
        name = name.removeprefix(words)
    found = re.search(r"one by one|in batches of \d+|own margin|known_softmax", row["what"])
    name = name.removesuffix(", 75 % popular") + (f", {found.group()}" if found else "")
    unit = row["unit"] if row["unit"] == "x" else f" {row['unit']}".rstrip()
    text = f"{name} {row['ours']:.3g}{unit}"
    if row.get("interval"):
        text += " ({:.3g} to {:.3g})".format(*row["interval"])
    return text + (f" at {signed(row['points'])}" if row["points"] is not None else "")


VERDICTS = ("beyond", "undecided", "short", "unequal")


def verdict(rows: Sequence[Row]) -> str:
    """Return the verdict over all rows that test a claim."""
    found = [standing(row) for row in rows]
    counts = {word: found.count(word) for word in VERDICTS}
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "not tried"


def tried(found: Results, claim: Claim) -> list[Row]:
    """The rows that try a claim."""
    rows = found[claim.script]["rows"] if claim.script in found else []
    return [row for row in rows if re.search(claim.pattern, row["what"]) and standing(row)]


def group(rows: Sequence[Row]) -> str:
    """``holds``, ``open`` or ``fails``: whether a claim reproduces.

    It holds where a row is beyond the paper and no other is short, unequal or undecided with a
    figure that is worse; and fails where none is beyond or undecided.
    """
    found = [standing(row) for row in rows]
    better = [(row["ours"] > row["paper"]) is not bool(row["lower"]) for row in rows]
    fine = [
        one == "beyond" or (one == "undecided" and good)
        for one, good in zip(found, better, strict=True)
    ]
    if "beyond" in found and all(fine):
        return "holds"
    return "open" if {"beyond", "undecided"} & {*found} else "fails"


def claims(found: Results, wanted: str) -> list[str]:
    """The claims of one `group`, a row each."""
    lines = ["| where | the paper | here | verdict |", "|---|---|---|---|"]
    for claim in CLAIMS:
        rows = tried(found, claim)
        if group(rows) == wanted:
            said = "; ".join(map(short, rows)) or claim.missing
            lines.append(f"| {claim.where} | {claim.says} | {said} | {verdict(rows)} |")
    return lines if len(lines) > 2 else ["No claim of the paper's about accuracy and cost."]


TRAINED = (
    ", and one is the paper's: CIFAR-10's networks of table 1, trained for 25 epochs (student) and "
    "12 (teacher) where DenseNet's recipe has 300"
)


def own_networks(found: Results) -> bool:
    """Tell whether a pair of the paper's own networks was measured."""
    return any(name.startswith("paper_") for name in found["fig3_ablation"]["figures"]["pairs"])


def counted(found: Results) -> str:
    """Describe the difference of the library's count of FLOPs from table 1's."""
    rows = [row for row in found["table1"]["rows"] if row["unit"] == "MFLOPs"]
    off = [100 * (row["ours"] / row["paper"] - 1) for row in rows]
    return (
        f"The FLOPs of table 1's {len(rows)} networks, counted by the library, are within "
        f"{max(map(abs, off)):.1f} % of the paper's."
    )


# Which score


def which_score(found: Results) -> list[str]:
    """The paper's claim that energy routes best, and the pairs on which it does not pay at all."""
    pairs = found["fig3_ablation"]["figures"]["pairs"]
    titles = {
        name: row["what"].rpartition(": ")[0]
        for row in found["fig3_ablation"]["rows"]
        for name in [row["pair"]]
    }
    factors = {
        name: {
            score: row["times_fewer_flops"]
            for score, row in pair["at_the_teachers_accuracy"].items()
        }
        for name, pair in pairs.items()
    }
    behind = [name for name, each in factors.items() if each["energy"] < each["softmax"]]
    surely = [
        name
        for name in behind
        if pairs[name]["at_the_teachers_accuracy"]["energy"]["interval"][1]
        < factors[name]["softmax"]
    ]
    under = [name for name, each in factors.items() if each["energy"] < 1]
    best = [max(each["softmax"], each["margin"]) / each["energy"] for each in factors.values()]
    resolution = next(
        row for row in found["fig5_resolution"]["rows"] if row["what"].startswith("MobileNetV2")
    )
    return [
        f"- **Figure 3, right: energy (eq. 3) is not the best score.** The paper has 2.0x for "
        f"energy, 1.7x for entropy and 1.4x for softmax, on Caltech-256. Here energy is behind "
        f"softmax on {len(behind)} of {len(factors)} pairs, on {len(surely)} by more than its own "
        f"interval, the better of softmax and margin "
        f"{min(best):.2f} to {max(best):.2f} times ahead of it. On {len(under)} of {len(factors)} "
        f"it is dearer than the teacher alone: "
        + "; ".join(f"{titles[name]} {factors[name]['energy']:.3g}x" for name in under)
        + ".",
        *(
            f"- **The same on {titles[name]}**: energy {ranged(each['energy'])}, softmax "
            f"{ranged(each['softmax'])}, margin {ranged(each['margin'])}, at the teacher's "
            "accuracy."
            for name, pair in pairs.items()
            for each in [pair["at_the_teachers_accuracy"]]
            if name.startswith("paper_")
        ),
        f"- **Figure 5, left, on the paper's own architecture**: MobileNetV2 at 128 -> at 224 "
        f"is {resolution['ours']:.3g}x ({resolution['interval'][0]:.3g} to "
        f"{resolution['interval'][1]:.3g}), "
        f"{'dearer' if resolution['ours'] < 1 else 'cheaper'} than the teacher alone; with energy "
        f"{resolution['why'].partition(';')[0].removeprefix('energy ')}.",
    ]


def ranged(row: Mapping[str, Any]) -> str:
    """The factor of a score, with its interval."""
    return "{:.3g}x ({:.3g} to {:.3g})".format(row["times_fewer_flops"], *row["interval"])


def losers(found: Results) -> list[str]:
    """Pairs that a single network of their cost beats, and a rival that was trained as long."""
    pairs = found["baselines"]["figures"]["pairs"].values()
    lost = []
    for pair in pairs:
        one = pair["singles"].get(pair["strongest"] or "")
        if one and one["joint_over_it_points"] < 0:
            ends = "{:+.1f} to {:+.1f}".format(*one["interval"])
            lost.append(
                f"{pair['title']} to {pair['strongest']} ({one['joint_over_it_points']:+.1f} "
                f"points, {ends})"
            )
    alike = found["rivals_cifar10"]["figures"]["trained alike"]["early exits on the teacher"]
    exits = alike["its own rule, max softmax"]
    gain = exits["joint_over_it_points"]
    return [
        f"- **{len(lost)} of {len(pairs)} pairs lose to a single network** of the joint model's "
        f"cost: {'; '.join(lost)}.",
        f"- **At equal training the shipped pair is {'behind' if gain < 0 else 'ahead of'} early "
        f"exits** on its teacher: after three epochs each the joint model is {gain:+.1f} points "
        f"({exits['interval'][0]:+.1f} to {exits['interval'][1]:+.1f}) over them at "
        f"{exits['mflops']:.0f} MFLOPs.",
    ]


# Ours alone


def alone(found: Results) -> list[str]:
    """Return this project's findings that the paper lacks."""
    stages = found["stages"]["figures"]["cifar10"]["second student between"]["margin 0"]
    best = found["significance"]["rows"][0]
    scores = found["fig3_ablation"]["figures"]["pairs"]["cifar10"]["at_the_teachers_accuracy"]
    known = {
        row["what"].rpartition(", ")[2]: row
        for row in found["fig6_specialized"]["rows"]
        if "knows-3" in row["what"]
    }
    blend, plain = scores["auto and blend"], scores["softmax"]
    return [
        f"- Three stages: a second student between the shipped two takes "
        f"{stages['times_fewer_flops']:.3g} times fewer FLOPs at "
        f"{signed(stages['over_teacher_points'])} points of the teacher.",
        f"- A joint model that is better than its teacher, within 60 % of its FLOPs: odds "
        f"{best['ours']:.3g} ({best['interval'][0]:.3g} to {best['interval'][1]:.3g}), shipped "
        "pair.",
        f"- The blend: {ranged(blend)} with it and {ranged(plain)} by softmax alone, shipped pair: "
        "these intervals do not tell them apart.",
        f"- `known_softmax` for specialized students: {known['known_softmax']['ours']:.3g}x where "
        f"eq. 17 is {known['eq. 17']['ours']:.3g}x, CIFAR-10, three classes.",
        "- Every threshold is chosen on one half and judged on the other; the paper describes no "
        "calibration set.",
    ]


# Targets of this project's own


def _kept(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / path).read_text())
    return found


def _stage(chain: str) -> Callable[[Results], str]:
    def read(found: Results) -> str:
        aims = found["stages"]["figures"]["cifar10"][chain].values()
        return ", ".join(
            f"{aim['times_fewer_flops']:.2f}x at {signed(aim['over_teacher_points'])}"
            for aim in aims
        )

    return read


def _row(script: str, pattern: str) -> Callable[[Results], str]:
    def read(found: Results) -> str:
        rows = [row for row in found[script]["rows"] if re.search(pattern, row["what"])]
        return "; ".join(map(short, rows))

    return read


def _detection(found: Results) -> str:
    """Return the best score's gain over random, in gains of eq. 14, by pair."""
    times = []
    for file in sorted((ROOT / "experiments" / "detection").glob("results_*.json")):
        (pair,) = json.loads(file.read_text())["pairs"].values()
        gains = {
            name: row["gain"]
            for name, row in pair["scores"].items()
            if "oracle" not in name and name != "random"
        }
        times.append(max(gains.values()) / gains["energy (eq. 14)"])
    return ", ".join(f"{one:.1f}" for one in sorted(times)) + " times on four pairs"


def _optimism(found: Results) -> str:
    """On how many sizes and tolerances the early exit lands more than 0.1 points short."""
    sizes = found["optimism"]["figures"]["cifar100_early_exit"]
    margin = f"{found['optimism']['figures']['margin']:g}"
    cells = [
        aims[margin]["points_short"]
        for size in sizes.values()
        for aims in size["match-teacher"].values()
    ]
    kept = sum(short <= 0.1 for short in cells)
    return f"{kept} of {len(cells)} kept, the worst {max(cells):.2f} points short"


def _serving(found: Results) -> str:
    """Every goal of the served benchmark that was missed, with what was asked in brackets."""
    goals = _kept("benchmarks/results/serving.json")["goals"]
    return "; ".join(
        f"{name.replace('_', ' ')} {goal['median']:.2f} ({goal['goal']:g})"
        for name, goal in goals.items()
        if not goal["met"]
    )


def _loops(found: Results) -> str:
    loop = _kept("benchmarks/results/joint_loop.json")["batch_1_softmax"]["joint_over_ideal"]
    stage = _kept("benchmarks/results/stages.json")["python_batch_1"]["three_over_two"]
    return f"{loop:.3f}; {stage:.3f}"


TARGETS: tuple[tuple[str, Callable[[Results], str]], ...] = (
    (
        "shipped pair, score and blend chosen: 5x at the teacher's accuracy",
        _row("fig3_ablation", r"^CIFAR-10,.*auto and blend"),
    ),
    (
        "a mirrored look between: 5.0x at no more than 0.05 points under",
        _stage("mirrored look between"),
    ),
    (
        "a second student between: 5.7x at no more than 0.05 points under",
        _stage("second student between"),
    ),
    (
        "every pair of ImageNet's classes over 1.49x at no loss",
        _row("table1", r"^ImageNet's.*aiming 0\.3"),
    ),
    (
        "specialized, 75 % popular: 1.5x and a clear win over the general student",
        _row("fig6_specialized", r"CIFAR-10, knows-(3.*known|all.*softmax)"),
    ),
    (
        "power on ImageNet's classes, 0 points lower: over 32.9 %",
        _row("table2_power", r"^ImageNet's.*, 0 points lower"),
    ),
    ("detection: the best score gains 2.5 times what eq. 14 gains over random", _detection),
    (
        "thresholds of few examples at most 0.1 points short elsewhere, a fourth pair",
        _optimism,
    ),
    ("served, by clients (asked): `benchmarks.serving.throughput`", _serving),
    (
        "one image at a time: 1.05 times the bare models, 1.03 for a stage that nothing reaches "
        "(`benchmarks`)",
        _loops,
    ),
)
"""Figures that this project asked of itself and did not reach, or not on every pair."""


def summary(found: Results) -> list[str]:
    """The lines of the summary, in Markdown."""
    return [
        "## In one screen",
        "",
        "Times fewer FLOPs than the teacher, unless a unit says otherwise, with a 95 % interval "
        'over the test set and the splits; "at" and "under" are points of accuracy over and under '
        "the teacher. **Beyond**: no less accurate than the paper's own loss allows, and the "
        "interval lies beyond the paper's figure. **Undecided**: it holds that figure. **Short**: "
        "it lies below. **Unequal**: less accurate than that loss allows, so that the factor "
        "counts for nothing. The pairs are others' and our own"
        f"{TRAINED if own_networks(found) else ': no network of table 1 has been trained here'}.",
        "",
        "### What reproduces",
        "",
        f"{counted(found)} A claim reproduces where "
        "a row is beyond it and no other short of it, unequal, or undecided with a worse figure.",
        "",
        *claims(found, "holds"),
        "",
        "### What is not decided, or holds on some pairs alone",
        "",
        *claims(found, "open"),
        "",
        "### What does not reproduce",
        "",
        *claims(found, "fails"),
        "",
        *which_score(found),
        *losers(found),
        "",
        "### What is ours alone",
        "",
        *alone(found),
        "",
        "### Targets of our own that were missed, or met on some pairs alone",
        "",
        "| asked | measured |",
        "|---|---|",
        *(f"| {asked} | {read(found)} |" for asked, read in TARGETS),
    ]

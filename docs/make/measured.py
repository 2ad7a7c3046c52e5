"""Tables and a picture of the measurements, from the result files of `experiments/`."""

from __future__ import annotations

import html
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from docs.make.sources import ROOT
from ebjr.calibration.goal import MARGIN
from ebjr.evaluation.plots import PALETTE
from ebjr.scores import RAW_OUTPUTS
from ebjr.tasks import load_all

EXPERIMENTS = ROOT / "experiments"

CHEAP = ("softmax", "margin", "entropy", "energy")
"""Scores that every pair of classifiers was measured with."""

COLUMNS = (*CHEAP, "random", "auto and blend")

DETECTORS = {
    "nanodet_m_320": "NanoDet-m",
    "yolov8n_640": "YOLOv8n",
    "deimv2_atto_320": "DEIMv2 atto",
    "deimv2_femto_416": "DEIMv2 femto",
}

DETECTION_SCORES = {
    "eq. 12": "energy of classes (eq. 12)",
    "eq. 13": "energy of boxes (eq. 13)",
    "eq. 14": "energy (eq. 14)",
    "number of boxes": "number of boxes",
    "learned gain": "learned gain",
    "oracle": "oracle: gain of AP",
}

PAIRS = {
    "cifar100_early_exit": "CIFAR-100, early exit → its full net",
    "cifar100_densenet": "CIFAR-100, early exit → DenseNet-BC",
    "imagenet_lite0_160_lite2_260": "ImageNet classes, Lite0 at 160 px → Lite2",
    "imagenet_lite0_224_lite2_260": "ImageNet classes, Lite0 at 224 px → Lite2",
}


@dataclass(frozen=True)
class Pair:
    """Two classifiers: times fewer FLOPs at the teacher's accuracy, by score."""

    title: str
    student: float
    teacher: float
    saving: Mapping[str, float]

    @property
    def best(self) -> str:
        """Return the best of the cheap scores."""
        return max(CHEAP, key=lambda score: self.saving[score])

    @property
    def energy_is_worst(self) -> bool:
        """Tell whether every other cheap score saves more."""
        return min(CHEAP, key=lambda score: self.saving[score]) == "energy"


def read(path: str) -> Any:
    """Read a result file of `experiments/`."""
    return json.loads((EXPERIMENTS / path).read_text())


def classifier_pairs() -> list[Pair]:
    """Return every measured pair of classifiers."""
    found = []
    for title, path in (
        ("CIFAR-10, the shipped pair", "cifar10_pair/results.json"),
        ("CIFAR-10, a student of dense convolutions", "cifar10_pair/results_pooled.json"),
    ):
        table = read(path)
        rows = {**table["mean_over_splits"], "auto and blend": table["mean_over_splits"]["chosen"]}
        found.append(_pair(title, table["test_accuracy"], rows))
    others = read("other_pairs/results.json")["pairs"]
    for name, title in PAIRS.items():
        rows = others[name]["at_the_teachers_accuracy"]
        found.append(_pair(title, others[name]["accuracy"], rows))
    return found


def _pair(title: str, accuracy: Mapping[str, float], rows: Mapping[str, Any]) -> Pair:
    saving = {score: rows[score]["times_fewer_flops"] for score in COLUMNS}
    return Pair(title, accuracy["student"], accuracy["teacher"], saving)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def classifiers_table(pairs: Sequence[Pair]) -> str:
    """Times fewer FLOPs by pair and score; the best cheap score in bold."""
    rows = []
    for pair in pairs:
        cells = [f"{pair.saving[score]:.2f}" for score in COLUMNS]
        place = COLUMNS.index(pair.best)
        cells[place] = f"**{cells[place]}**"
        rows.append(
            [pair.title, f"{100 * pair.student:.1f} % → {100 * pair.teacher:.1f} %", *cells]
        )
    return table(["pair", "student → teacher", *COLUMNS], rows)


def verdict(pairs: Sequence[Pair]) -> str:
    """Count on how many pairs the paper's score is best and worst."""
    worst = sum(pair.energy_is_worst for pair in pairs)
    best = sum(pair.best == "energy" for pair in pairs)
    never = [pair.title for pair in pairs if max(pair.saving.values()) < 1]
    text = (
        f"Of {len(pairs)} pairs of classifiers energy is the best of the four cheap scores on "
        f"{_count(best, len(pairs))}, and the worst on {_count(worst, len(pairs))}."
    )
    if never:
        text += f" No score pays on {'; '.join(never)}."
    return text


def _count(number: int, of: int) -> str:
    return {0: "none", of: f"all {of}"}.get(number, str(number))


LOWEST, HIGHEST = 0.6, 6.0


def place(saving: float) -> float:
    """Return a saving's place on the picture's logarithmic axis, in percent."""
    return 100 * math.log(saving / LOWEST) / math.log(HIGHEST / LOWEST)


def css_class(score: str) -> str:
    """Return the class of a score's dot in the style sheet."""
    return score.replace(" ", "-")


def picture(pairs: Sequence[Pair]) -> str:
    """Draw every pair as a line of dots, one a score, on one axis of savings."""
    colors = {**PALETTE, "auto and blend": PALETTE["chosen"]}
    legend = "".join(
        f'<span><i style="background:{colors[score]}" class="{css_class(score)}"></i>{score}</span>'
        for score in COLUMNS
    )
    ticks = "".join(
        f'<span style="left:{place(tick):.2f}%">{tick:g}×</span>' for tick in (0.7, 1, 2, 3, 5)
    )
    lines = []
    for pair in pairs:
        dots = "".join(
            f'<i style="left:{place(pair.saving[score]):.2f}%;background:{colors[score]}" '
            f'class="{css_class(score)}" title="{score}: {pair.saving[score]:.2f}"></i>'
            for score in COLUMNS
        )
        even = f'<b style="left:{place(1.0):.2f}%"></b>'
        lines.append(f"<p>{html.escape(pair.title)}</p><div>{even}{dots}</div>")
    return (
        f'<figure class="dots"><div class="legend">{legend}</div><div class="plot" role="img" '
        'aria-label="Times fewer FLOPs than the teacher, by pair and score. The same figures are '
        f'in the table below.">{"".join(lines)}<div class="ticks">{ticks}</div></div>'
        "<figcaption>Times fewer FLOPs than the teacher at its accuracy. Left of the line the "
        "teacher alone is cheaper.</figcaption></figure>\n"
    )


def regression_table() -> str:
    """Times cheaper by pair and score, at a share of the teacher's loss."""
    scores = ("density_std", "density_entropy", "regression_energy", "random", "oracle")
    diamonds, rotation = read("diamonds/results.json"), read("rotation/results.json")
    measured = {
        "prices of diamonds, a network → trees, within 2 % (time)": diamonds["energy_of_price"][
            "rmse"
        ]["within 2.0%"],
        "angle of a turned digit, two networks, within 10 % (FLOPs)": rotation["rmse"][
            "within 10%"
        ],
    }
    rows = [
        [title, *(f"{found[f'{score}, no blend']['times_cheaper']:.2f}" for score in scores)]
        for title, found in measured.items()
    ]
    return table(["pair, of the teacher's RMSE", *(f"`{score}`" for score in scores)], rows)


def specialized_table() -> str:
    """Savings of the paper's specialized score and of softmax, beside how they land."""
    rows = []
    for title, path, known in (
        ("CIFAR-100, 10 known, its own full net", "osi_full", "10 known"),
        ("CIFAR-100, 10 known, DenseNet-BC", "densenet_bc_100_12", "10 known"),
        ("CIFAR-100, 20 known, DenseNet-BC", "densenet_bc_100_12", "20 known"),
    ):
        found = read(f"specialized/results_whole_{path}.json")[known]
        own, general = found["specialized"]["0.75"], found["general"]["0.75"]
        cells = [own["the paper's"], own["softmax"], general["softmax"]]
        rows.append([title, *(_with_landing(cell) for cell in cells)])
    head = [
        "pair",
        "`specialized_energy` (eq. 17)",
        "`known_softmax`",
        "a general student, `softmax`",
    ]
    return table(head, rows)


def _with_landing(found: Mapping[str, float]) -> str:
    return f"{found['times_fewer_flops']:.2f} ({found['over_teacher_points']:+.2f})"


def detection_table() -> str:
    """Gain over random routing in points of AP, by pair of detectors and score."""
    rows = []
    for path in sorted((EXPERIMENTS / "detection").glob("results_*.json")):
        for name, found in json.loads(path.read_text())["pairs"].items():
            title = " → ".join(DETECTORS[role] for role in name.split(":"))
            gains = {key: found["scores"][score]["gain"] for key, score in DETECTION_SCORES.items()}
            best = max((key for key in gains if key != "oracle"), key=lambda key: gains[key])
            cells = {key: f"{gain:.2f}" for key, gain in gains.items()}
            cells[best] = f"**{cells[best]}**"
            rows.append([title, *cells.values()])
    return table(["pair", *DETECTION_SCORES], rows)


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0].replace("|", "\\|").replace("``", "`")


def scores_table() -> str:
    """Return every score with the task that it reads and the first line of its docstring."""
    load_all()
    rows = [
        [f"`{name}`", raw.name, _first_line(function)]
        for raw in RAW_OUTPUTS.values()
        for name, function in {**raw.scores, **raw.fitted}.items()
    ]
    return table(["score", "raw output", "meaning"], rows)


OPTIMISM = ROOT / "experiments" / "results" / "optimism.json"


def optimism_table() -> str:
    """Return how far a pick misses its goal on other data, without the margin and with it."""
    figures = json.loads(OPTIMISM.read_text())["figures"]
    rows = []
    for name, title in OPTIMISM_PAIRS.items():
        for n, found in figures[name].items():
            for tolerance, by_margin in found["match-teacher"].items():
                cells = [
                    text
                    for key in ("0", f"{MARGIN:g}")
                    for text in (
                        f"{by_margin[key]['points_short']:+.2f}",
                        f"{100 * by_margin[key]['deferral_rate']:.1f} %",
                    )
                ]
                rows.append([title, f"{int(n):,}", f"{100 * float(tolerance):g}", *cells])
    head = [
        "pair",
        "examples",
        "tolerance, points",
        "short, plain",
        "deferred",
        "short",
        "deferred",
    ]
    return table(head, rows)


OPTIMISM_PAIRS = {
    "cifar10": "CIFAR-10, shipped",
    "imagenet_160_260": "ImageNet's classes, 160 → 260",
    "imagenet_224_260": "ImageNet's classes, 224 → 260",
    "cifar100_early_exit": "CIFAR-100, early exit",
}


STAGES = ROOT / "experiments" / "results" / "stages.json"
ZOOS = {
    "cifar10": "CIFAR-10, shipped: two students, a look, a teacher",
    "early_exits": "CIFAR-10, three exits of one network",
    "multi_scale": "CIFAR-10, three exits of several scales",
    "cifar100": "CIFAR-100, early exit, its look, its full net",
    "imagenet_lite": "ImageNet's classes, Lite0 at 160, its look, at 224, Lite2",
    "imagenet_mobilenet": "ImageNet's classes, MobileNet at 128, its look, at 224",
}


def stages_table() -> str:
    """Return what every chain of a zoo saves on the half that did not choose it."""
    figures = json.loads(STAGES.read_text())["figures"]
    rows = [
        [title, chain, f"{found['times_fewer_flops']:.2f}", f"{found['over_teacher_points']:+.2f}"]
        for name, title in ZOOS.items()
        for chain, aims in figures.get(name, {}).items()
        for found in [aims["margin 0"]]
    ]
    return table(["models", "chain", "times fewer FLOPs", "over"], rows)


ATTAINABLE = ROOT / "experiments" / "results" / "attainable.json"
ATTAINABLE_PAIRS = {
    "cifar10": "CIFAR-10, shipped",
    "cifar100_early_exit": "CIFAR-100, early exit → its full net",
    "cifar100_densenet": "CIFAR-100, early exit → DenseNet-BC",
    "imagenet_160_260": "ImageNet classes, Lite0 at 160 px → Lite2",
}


def attainable_table() -> str:
    """Return the chosen score's share of the oracle's gain on each pair, and where the rest is."""
    figures = json.loads(ATTAINABLE.read_text())["figures"]
    parts = ("score", "other_score", "examples", "seeing_more", "models")
    rows = [
        [
            title,
            *(f"{100 * figures[name][part]:.1f} %" for part in parts),
            f"{100 * figures[name]['reached']:.0f} %",
        ]
        for name, title in ATTAINABLE_PAIRS.items()
    ]
    head = ["pair", "`auto` has", "another score", "more examples", "seeing more", "other models"]
    return table([*head, "of what is attainable"], rows)


def parts() -> dict[str, str]:
    """Return what the pages include, by file name."""
    pairs = classifier_pairs()
    return {
        "verdict.md": verdict(pairs),
        "picture.html": picture(pairs),
        "classifiers.md": classifiers_table(pairs),
        "regression.md": regression_table(),
        "specialized.md": specialized_table(),
        "detection.md": detection_table(),
        "scores.md": scores_table(),
        "optimism.md": optimism_table(),
        "stages.md": stages_table(),
        "attainable.md": attainable_table(),
    }

"""Specialized students on CIFAR-100: `python -m experiments.specialized.measure whole osi_full`.

Trains, on the training images, students that know 5, 10, 20 and 50 of the 100 classes, and a
general one of the same architecture and budget, on frozen features that `record` left in
``outcomes/``; calibrates them on one half of the test images and judges them on the other, for a
popular share of 25 to 100 %, mean of many splits. Writes a file for each depth and teacher.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebjr import (
    CalibrationError,
    Cost,
    Outcomes,
    as_score,
    calibrate,
    evaluate,
    load_model,
    relabel,
)
from ebjr.evaluation.flops import count_flops
from ebjr.tasks.specialized.known_classes import Traffic
from ebjr.training.specialized import small_head, train_specialized
from experiments import intervals
from experiments.other_pairs.pairs import data_folder
from experiments.specialized.one_trunk import rest_flops
from experiments.specialized.record import CACHE, CUTS, SHAPE, TEACHERS, trunk_flops
from runs import about, save

HERE = Path(__file__).parent
SIZES = (5, 10, 20, 50)
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
SHARE = 0.75
SPLITS = 10
AUTO_SPLITS = 3
SEED = 0
ORDER = np.random.default_rng(SEED).permutation(100)
"""Which classes are popular: CIFAR-100 has as many images of each, so that a draw says it."""


def head(classes: int) -> torch.nn.Module:
    """For the features of the whole trunk: one hidden layer."""
    return small_head(136, classes - 1, hidden=128, seed=SEED)


def tail(classes: int) -> torch.nn.Module:
    """For the maps half way, 40 x 7 x 7: two separable convolutions and a linear layer."""
    torch.manual_seed(SEED)
    layers: list[torch.nn.Module] = [torch.nn.BatchNorm2d(40)]
    for before, after in ((40, 128), (128, 192)):
        layers += [
            torch.nn.Conv2d(before, after, 1, bias=False),
            torch.nn.BatchNorm2d(after),
            torch.nn.ReLU(),
            torch.nn.Conv2d(after, after, 3, padding=1, groups=after, bias=False),
            torch.nn.BatchNorm2d(after),
            torch.nn.ReLU(),
        ]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(192, classes)]
    return torch.nn.Sequential(*layers)


ARCHITECTURES: dict[str, tuple[Callable[[int], torch.nn.Module], int]] = {
    "whole": (head, 20),
    "half": (tail, 5),
}
"""By depth of the trunk: what is trained on top, and for how many epochs."""


def load(split: str, name: str) -> dict[str, np.ndarray]:
    """Read `record`'s files."""
    with np.load(CACHE / f"{split}_{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def student(depth: str, known: tuple[int, ...] | None) -> tuple[np.ndarray, float, float]:
    """Train one: its logits of the test images, its FLOPs, and the seconds of its training.

    The general student, `known` being None, is trained by the same loop: it knows 99 classes and
    its "other" is the last one, which makes it a plain classifier of all hundred.
    """
    data = {split: load(split, "trunk") for split in ("train", "test")}
    classes = 100 if known is None else len(known) + 1
    make, epochs = ARCHITECTURES[depth]
    network = make(classes)
    began = time.perf_counter()
    trained = train_specialized(
        network,
        data["train"][depth].astype(np.float32),
        data["train"]["labels"],
        range(99) if known is None else known,
        popular=None if known is None else SHARE,
        epochs=epochs,
        seed=SEED,
    )
    seconds = time.perf_counter() - began
    flops = trunk_flops(depth) + count_flops(network, (1, *data["test"][depth].shape[1:])).flops
    with torch.no_grad():
        parts = torch.as_tensor(data["test"][depth]).float().split(500)
        return torch.cat([trained(part) for part in parts]).numpy(), flops, seconds


@cache
def teacher_flops(teacher: str) -> float:
    """FLOPs of a teacher."""
    graph = load_model(data_folder() / "cifar100" / "weights" / f"{teacher}_cifar100.onnx")
    return count_flops(graph, SHAPE).flops


def shared_flops(depth: str) -> float:
    """FLOPs of the trunk's own teacher that the student has done: of the whole trunk as it runs."""
    own = teacher_flops("osi_full") - rest_flops()
    return own if depth == "whole" else trunk_flops(depth)


def outcomes(logits: np.ndarray, flops: float, teacher: str, known: Any) -> Outcomes:
    """Measure one student beside one teacher on the test images."""
    answers = load("test", teacher)
    return Outcomes(
        logits,
        answers["logits"],
        answers["labels"],
        "classification" if known is None else "specialized",
        student_cost=Cost(flops=flops),
        teacher_cost=Cost(flops=teacher_flops(teacher)),
        known_classes=known,
    )


def over_splits(
    table: Outcomes, traffic: Traffic, shared: float = 0.0, splits: int = SPLITS, **how: Any
) -> dict[str, Any]:
    """The mean over splits of figures on the held-out half, drawn in the mix.

    `shared`: FLOPs of the teacher that the student has done already, where its trunk is theirs.
    """
    found, halves_of, failed = [], [], 0
    student_flops, teacher_flops = table.student_cost.flops or 0.0, table.teacher_cost.flops or 1.0
    for seed in range(splits):
        halves = [half.take(traffic.draw(half.targets, seed)) for half in table.split(0.5, seed)]
        try:
            point = evaluate(halves[1], calibrate(halves[0], margin=0.0, **how))
        except CalibrationError:
            failed += 1
            continue
        found.append(
            (
                1 / (point.saving or np.inf),
                (student_flops + point.deferral_rate * (teacher_flops - shared)) / teacher_flops,
                100 * (point.quality - point.teacher_quality),
                point.deferral_rate,
                100 * point.quality,
                100 * point.student_quality,
            )
        )
        halves_of.append((*halves, point))
    scores = [point.score.partition("(")[0] for *_, point in halves_of]
    cost, less, gain, rate, quality, own = np.mean(found, axis=0) if found else [np.nan] * 6
    drawn = intervals.of_points(halves_of, -how.get("tolerance", 0.0)) if halves_of else None
    sure = {} if drawn is None else intervals.factor(drawn, student_flops, teacher_flops)
    trunk: dict[str, Any] = {}
    if shared:
        paid = student_flops + (0.0 if drawn is None else drawn.rate) * (teacher_flops - shared)
        trunk = {
            "with_one_trunk": round(float(1 / less), 3),
            "interval_with_one_trunk": intervals.interval(np.atleast_1d(teacher_flops / paid)),
        }
    return {
        "times_fewer_flops": round(float(1 / cost), 3),
        **sure,
        **trunk,
        "over_teacher_points": round(float(gain), 2),
        "deferral_rate": round(float(rate), 4),
        "accuracy": round(float(quality), 2),
        "student_accuracy": round(float(own), 2),
        "splits_that_cannot": failed,
        "scores": {name: scores.count(name) for name in sorted(set(scores))},
    }


def by_share(table: Outcomes, popular: tuple[int, ...], shared: float) -> dict[str, Any]:
    """Every figure of a pair, by popular share."""
    specialized = table.task == "specialized"
    paper, plain = ("specialized_energy", "known_softmax") if specialized else ("energy", "softmax")
    found: dict[str, Any] = {}
    for share in SHARES:
        traffic = Traffic(share, popular)
        row = {
            "the paper's": over_splits(table, traffic, shared, score=paper, blend=0.0),
            "softmax": over_splits(table, traffic, shared, score=plain, blend=0.0),
        }
        if share == SHARE:
            row["auto"] = over_splits(table, traffic, shared, AUTO_SPLITS)
            row["random"] = over_splits(table, traffic, shared, score="random", blend=0.0)
        found[f"{share:g}"] = row
    return found


def energy_gap(table: Outcomes, popular: tuple[int, ...]) -> dict[str, Any]:
    """Eq. 15: the mean energy of inputs of popular classes minus that of the others.

    In nats, in units of the standard deviation within, and as an AUROC; of the specialized student
    over its known classes ("other" left out, and no row marked), of the general over all.
    """
    logits = table.student
    if table.task == "specialized":
        logits = logits[:, :-1]
    values = np.asarray(as_score("energy")(logits), np.float64)
    inside = relabel(table.targets, popular) < len(popular)
    one, other = values[inside], values[~inside]
    spread = np.sqrt((one.var() + other.var()) / 2)
    ranks = np.argsort(np.argsort(values))[inside]
    auroc = (ranks.mean() - (len(one) - 1) / 2) / len(other)
    return {
        "nats": round(float(one.mean() - other.mean()), 3),
        "deviations": round(float((one.mean() - other.mean()) / spread), 3),
        "auroc": round(float(auroc), 4),
    }


def known_accuracy(table: Outcomes, popular: tuple[int, ...]) -> float:
    """Return the student's accuracy on inputs of popular classes, in percent."""
    inside = np.isin(table.targets, popular)
    return round(100 * float(table.student_quality[inside].mean()), 2)


def teacher_figures(teacher: str) -> dict[str, float]:
    """A teacher alone, on all the test images."""
    answers = load("test", teacher)
    right = (answers["logits"].argmax(axis=1) == answers["labels"]).mean()
    mflops = teacher_flops(teacher) / 1e6
    return {"accuracy": round(100 * float(right), 2), "mflops": round(mflops, 2)}


def main() -> None:
    """Train, calibrate, write."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("depth", choices=list(CUTS))
    words.add_argument("teacher", choices=TEACHERS)
    words.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    options = words.parse_args()
    depth, teacher = options.depth, options.teacher
    torch.set_num_threads(1)
    general = student(depth, None)
    shared = shared_flops(depth) if teacher == "osi_full" else 0.0
    found: dict[str, Any] = {}
    for size in options.sizes:
        known = tuple(int(label) for label in ORDER[:size])
        special = student(depth, known)
        tables = {
            "specialized": outcomes(*special[:2], teacher, known),
            "general": outcomes(*general[:2], teacher, None),
        }
        found[f"{size} known"] = {
            "training_seconds": round(special[2], 1),
            "eq_15": {kind: energy_gap(t, known) for kind, t in tables.items()},
            "right_on_popular": {k: known_accuracy(t, known) for k, t in tables.items()},
            "student_mflops": {k: round(t.student_cost.flops / 1e6, 2) for k, t in tables.items()},
            **{kind: by_share(t, known, shared) for kind, t in tables.items()},
        }
        made = about(SEED) | {
            "splits": SPLITS,
            "auto_splits": AUTO_SPLITS,
            "training_images": len(load("train", "trunk")["labels"]),
            "popular_order": ORDER.tolist(),
            "general_training_seconds": round(general[2], 1),
            "general_accuracy": round(100 * tables["general"].quality("student"), 2),
            "teacher": teacher_figures(teacher),
        }
        save(f"results_{depth}_{teacher}", made | found, folder=HERE)


if __name__ == "__main__":
    main()

"""Table 1, latency: how much less time. `python -m experiments.table1_latency [--quick]`.

The shipped pair, and the paper's own networks, on this machine: teacher and joint model answer the
same held-out test images in turn, one by one and in batches of 64, and what counts is the ratio
within a turn; the median of the turns. Score, blend and threshold are those that the teacher's
accuracy asks for on the other half.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ebjr import JointClassifier, Model, calibrate, load_model
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load
from experiments.data import normalized
from experiments.frame import Run, start
from experiments.full_scale import trained
from experiments.intervals import Draws, interval
from experiments.nets import PAPER
from experiments.pairs import ROLES, Pair, here
from experiments.splits import aimed_draws

BATCHES = {"one by one": 1, "in batches of 64": 64}
TURNS = 9
SPLITS = 10


def seconds(model: Callable[[np.ndarray], Any], images: np.ndarray, size: int) -> float:
    """Return the seconds that a model takes for all images."""
    began = time.perf_counter()
    for at in range(0, len(images), size):
        model(images[at : at + size])
    return time.perf_counter() - began


def measure(joint: JointClassifier, images: np.ndarray, size: int, turns: int) -> dict[str, Any]:
    """Times of the student, the teacher and the joint model, in turn."""
    models = {"student": joint.student, "teacher": joint.teacher, "joint": joint}
    for model in models.values():
        seconds(model, images[: 4 * size], size)  # warm
    taken = np.array([[seconds(m, images, size) for m in models.values()] for _ in range(turns)])
    ratios = np.sort(taken[:, 1] / taken[:, 2])
    milliseconds = 1e3 * np.median(taken, axis=0) / len(images)
    return {
        "times_less_time": round(float(np.median(ratios)), 3),
        "each_turn": ratios.round(3),
        "milliseconds_per_image": dict(zip(models, milliseconds.round(3), strict=True)),
    }


def sure(found: dict[str, Any], rate: float, drawn: Draws) -> list[float]:
    """The interval over test sets, splits and turns: the joint model's time goes by its rate."""
    times, turns = found["milliseconds_per_image"], np.array(found["each_turn"])
    spent = times["joint"] + (drawn.rate - rate) * times["teacher"]
    turn = np.random.default_rng(0).choice(turns / np.median(turns), len(spent))
    return interval(times["teacher"] / spent * turn)


def shipped_models() -> list[Model]:
    """Student and teacher of the demo, which take pixels of 0..1."""
    models = []
    for role in ROLES:
        with shipped(f"{role}.onnx") as path:
            models.append(load_model(path, threads=os.cpu_count()))
    return models


def paper_models() -> list[Model]:
    """The paper's own networks as `experiments.full_scale` trained them."""
    return [load_model(trained("cifar10", role)) for role in ROLES]


MODELS: dict[str, tuple[Callable[[], list[Model]], Callable[[np.ndarray], np.ndarray]]] = {
    "cifar10": (shipped_models, lambda pixels: pixels.astype(np.float32) / 255),
    "paper_cifar10": (paper_models, normalized),
}
"""By pair: the models, and what they take of pixels (n, 3, 32, 32) of 0..255."""


def time_pair(run: Run, name: str, pair: Pair) -> dict[str, Any]:
    """Calibrate a pair on one half of its test set, time it on the other."""
    outcomes, (models, prepared) = pair.load(), MODELS[name]
    first, second = outcomes.split_rows(0.5, seed=0)
    point = calibrate(outcomes.take(first), margin=0.0)
    there = point.curve(outcomes.take(second)).at(threshold=point.threshold)
    joint = JointClassifier(*models(), point.router, blend=point.blend)
    chosen = load("test")[0][second[: 256 if run.quick else 2048]]
    images = np.ascontiguousarray(prepared(chosen.transpose(0, 3, 1, 2)))
    paper = PAPER[pair.data]
    found, drawn = {}, aimed_draws(outcomes, 2 if run.quick else SPLITS, 0.0)
    for words, size in BATCHES.items():
        turns = 3 if run.quick else TURNS
        few = images[: len(images) // 4] if size == 1 else images
        found[words] = run.step(
            f"{name}, {words}",
            lambda: measure(joint, few, size, turns),  # noqa: B023
        )
        run.compare(
            f"{pair.title}, {words}: times less time than the teacher",
            paper=round(paper.teacher.paper_ms / paper.joint_ms, 2),
            ours=found[words]["times_less_time"],
            unit="x",
            points=round(100 * (there.quality - there.teacher_quality), 3),
            interval=sure(found[words], there.deferral_rate, drawn),
            loss=paper.loss,
            pair=name,
            timed=True,
            why=f"{100 * there.deferral_rate:.1f} % deferred, with {point.score}",
        )
    return {"deferral_rate": there.deferral_rate, "images": len(images), "times": found}


def main(run: Run) -> dict[str, Any]:
    """Time every pair at hand whose models are there."""
    return {name: time_pair(run, name, pair) for name, pair in here(run) if name in MODELS}


if __name__ == "__main__":
    start(main, "Table 1: latency")

"""Detection: the joint detector against the ideal, and the curve of joint mAP over 5,000 images.

DEIMv2 atto and femto answer labeled images on one thread, an image at a time, as their graphs have
a batch of one. The joint detector and its parts take turns, image by image, so that a change of the
machine's speed meets both alike; the ideal is given the deferred images for free. The curve is that
of the shipped detections of the same pair, images repeated to 5,000. Images and weights lie in the
folder that EBJR_DATA names, see `ebjr.demo.detection.find`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.machine import about, save, seconds_of
from ebjr import JointDetector, Outcomes, Preprocess, Router
from ebjr.backends.detectors import OnnxDetector
from ebjr.data.coco import read_coco
from ebjr.demo import shipped
from ebjr.demo.detection import SIZES, Encoded, find
from ebjr.tasks.detection.precision import RECALLS, JointPrecision, match_detections

IMAGES = 48
PASSES = 3
MANY = 5_000


def measure(joint: JointDetector, batches: list[list[np.ndarray]]) -> dict[str, float]:
    """Time one pass over the images: the joint detector and its parts."""
    spent = {"joint": 0.0, "student": 0.0, "teacher": 0.0, "deferred": 0.0}
    for number, batch in enumerate(batches):
        _, deferred = joint.router(joint.student(batch))
        hard = [batch[row] for row in np.flatnonzero(deferred)]
        turns = [("joint", joint, batch), ("student", joint.student, batch)]
        if hard:
            turns.append(("teacher", joint.teacher, hard))
        for name, model, rows in turns if number % 2 else turns[::-1]:
            spent[name] += seconds_of(model, rows)
        spent["deferred"] += len(hard)
    return spent


def joint_time() -> dict[str, Any]:
    """The joint detector's time over the ideal, for batches of 1 and of 8."""
    pair = [
        OnnxDetector(find(role), "detr", Preprocess(size=size), threads=1)
        for role, size in SIZES.items()
    ]
    shown = Encoded(find("images"), read_coco(find("labels")).files)[:IMAGES]
    router = Router("box_count", -3.5)
    figures: dict[str, Any] = {"images": IMAGES, "score": "box_count", "threshold": -3.5}
    for blend in (0.0, 0.25):
        joint = JointDetector(*pair, router, blend=blend)
        for size in (1, 8):
            batches = [shown[start : start + size] for start in range(0, IMAGES, size)]
            measure(joint, batches[:4])
            passes = [measure(joint, batches) for _ in range(PASSES)]
            ratios = [p["joint"] / (p["student"] + p["teacher"]) for p in passes]
            figures[f"blend {blend:g}, batch {size}"] = {
                "time_over_ideal": [round(ratio, 4) for ratio in sorted(ratios)],
                "deferral_rate": round(passes[0]["deferred"] / IMAGES, 3),
                "ms_per_image": round(1e3 * min(p["joint"] for p in passes) / IMAGES, 2),
            }
    return figures


def curve_time() -> dict[str, Any]:
    """Seconds from matches to the joint mAP at 101 deferral rates."""
    with shipped("outcomes.npz", "detection") as path:
        outcomes = Outcomes.load(path)
    truth = outcomes.targets
    rows = np.arange(MANY) % len(truth)
    began = time.perf_counter()
    matches = [match_detections(one, truth) for one in (outcomes.student, outcomes.teacher)]
    matched = time.perf_counter() - began
    many = [one.take(rows) for one in matches]
    score = np.random.default_rng(0).normal(size=MANY)
    began = time.perf_counter()
    curve = JointPrecision(*many).curve(score)
    spent = time.perf_counter() - began
    return {
        "images": MANY,
        "detections": sum(len(one.score) for one in many),
        "rates": len(RECALLS),
        "seconds": round(spent, 2),
        "seconds_of_matching": round(matched * MANY / len(truth), 2),
        "ends": [round(100 * value, 2) for value in (curve[0], curve[-1])],
    }


def main() -> None:
    """Measure and write the result file."""
    save("detection", {**about(seed=0), "joint": joint_time(), "curve": curve_time()})


if __name__ == "__main__":
    main()

"""The joint loop against the ideal: student on all rows, teacher on the deferred ones alone.

The shipped pair answers real CIFAR-10 test images at the threshold that the demo calibrates, on
two threads. Joint model and bare sessions take turns, batch by batch, so that a change of the
machine's speed meets both alike. The ideal is given the deferred rows for free: it runs the same
sessions on batches of the same sizes that somebody else has gathered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.machine import about, passes, save, seconds_of
from ebjr import JointClassifier, Outcomes, Router, load_model, run_study
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10

THREADS = 2
IMAGES = {1: 1_500, 64: 64 * 60}


def measure(joint: JointClassifier, images: np.ndarray, batch_size: int) -> dict[str, float]:
    """One pass over the images: seconds of the joint model and of the bare sessions."""
    spent = {"joint": 0.0, "student": 0.0, "teacher": 0.0, "deferred": 0.0}
    for number, start in enumerate(range(0, len(images), batch_size)):
        batch = images[start : start + batch_size]
        _, deferred = joint.router(joint.student(batch))
        hard = np.ascontiguousarray(batch[deferred])
        turns = [("joint", joint, batch), ("student", joint.student, batch)]
        if len(hard):
            turns.append(("teacher", joint.teacher, hard))
        for name, model, rows in turns if number % 2 else turns[::-1]:
            spent[name] += seconds_of(model, rows)
        spent["deferred"] += len(hard)
    return spent


def router_seconds(joint: JointClassifier, images: np.ndarray, batch_size: int) -> float:
    """Median seconds a batch of the joint loop around models that answer at once."""
    batch = images[:batch_size]
    student, teacher = joint.student(batch), joint.teacher(batch)
    score, _ = joint.router(student)
    rate = 0.15 if batch_size > 1 else 1.0  # the dear case at batch 1: the row is deferred
    threshold = float(np.quantile(score, rate)) + (1e-3 if batch_size == 1 else 0.0)
    loop = JointClassifier(
        lambda rows: student,
        lambda rows: teacher[: len(rows)],
        Router(joint.router.score, threshold),
        blend=joint.blend,
    )
    return float(np.median([seconds_of(loop, batch) for _ in range(3_000)]))


def main() -> None:
    """Measure batch 1 and 64, and write the result file."""
    images, _ = load_cifar10("test")
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
    with shipped("outcomes.npz") as path:
        point = run_study(Outcomes.load(path), margin=0.0).point
    with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
        models = [load_model(path, threads=THREADS) for path in (student, teacher)]
    figures: dict[str, Any] = {**about(seed=0), "threads": THREADS, "score": point.score}
    for blend in sorted({0.0, point.blend}):
        joint = JointClassifier(*models, point.router, blend=blend)
        for batch_size, count in IMAGES.items():
            found = passes(
                lambda rows, joint=joint, size=batch_size: measure(joint, rows, size),
                inputs[:count],
                5 * batch_size,
            )
            ratios = [p["joint"] / (p["student"] + p["teacher"]) for p in found]
            student_seconds = float(np.median([p["student"] for p in found])) / count * batch_size
            own = router_seconds(joint, inputs, batch_size)
            figures[f"batch_{batch_size}_blend_{blend:g}"] = {
                "joint_over_ideal_median": round(float(np.median(ratios)), 4),
                "joint_over_ideal_each": [round(ratio, 4) for ratio in ratios],
                "deferral_rate": found[0]["deferred"] / count,
                "student_milliseconds_per_batch": round(1e3 * student_seconds, 3),
                "router_microseconds_per_batch": round(1e6 * own, 1),
                "router_share_of_student": round(own / student_seconds, 4),
            }
    save("joint_loop", figures)


if __name__ == "__main__":
    main()

"""Record the demo's students on the test set: `python -m experiments.specialized_cifar10.record`.

Leaves what each said on the CIFAR-10 test set beside it in the demo's folder, in half precision,
with what the teacher said when the shipped pair was recorded. Costs are FLOPs alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ebjr import Cost, Outcomes
from ebjr.demo import cifar10, shipped
from ebjr.demo.specialized import DEMO
from ebjr.evaluation.flops import count_flops
from ebjr.joint_file import ModelEntry

PLACE = Path(__file__).parents[2] / "src" / "ebjr" / "demo" / "shipped" / "specialized"
BATCH = 250


def main() -> None:
    """Run every student once and keep what it said."""
    images, labels = cifar10.load("test")
    with shipped("outcomes.npz", "classification") as path:
        pair = Outcomes.load(path)
    if not np.array_equal(pair.targets, labels):
        raise SystemExit("the shipped pair was recorded on other images")
    for name, own in DEMO.students.items():
        file = PLACE / f"{name}.onnx"
        student = ModelEntry.of_file(file, preprocess=DEMO.preprocess).load(threads=1)
        parts = [student(images[k : k + BATCH]) for k in range(0, len(images), BATCH)]
        about = {"task": DEMO.task, "labels": cifar10.CLASSES, **own}
        Outcomes(
            np.concatenate(parts),
            pair.teacher,
            labels,
            student_cost=Cost(flops=count_flops(file).flops),
            teacher_cost=Cost(flops=pair.teacher_cost.flops),
            **about,
        ).save(file.with_suffix(".npz"), half=True)
        print(f"{name}.npz: {file.with_suffix('.npz').stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()

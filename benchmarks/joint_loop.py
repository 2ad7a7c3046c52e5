"""The joint loop against the ideal: student on all rows, teacher on the deferred ones alone.

The shipped pair answers real CIFAR-10 test images. Joint model and ideal take turns, batch by
batch, so that a change of the machine's speed meets both alike.

One image at a time, the ideal is a user's own loop on bare sessions: the score in plain floats, a
comparison, the teacher where it says so. A session between two calls evicts the Python of the next
from the caches, as it does in service: a loop around models that answer at once hides that. At
batch 64 the ideal is given the deferred rows for free: it runs the same models on batches of the
same sizes that somebody else has gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, passes, save, seconds_of
from ebjr import JointClassifier, Outcomes, Router, load_model, run_study
from ebjr.backends.onnx import open_session
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10

THREADS = 1
ONE_BY_ONE = 1_000
BATCH, BATCHES = 64, 40
DEFERRED = 0.1
GOAL = 1.05


def softmax(row: list[float]) -> float:
    """The largest probability of a row of logits."""
    top = max(row)
    return 1.0 / sum([math.exp(value - top) for value in row])


def energy(row: list[float]) -> float:
    """The log of the sum of exponentials of a row of logits, eq. 3."""
    top = max(row)
    return top + math.log(sum([math.exp(value - top) for value in row]))


SCORES: dict[str, Callable[[list[float]], float]] = {"softmax": softmax, "energy": energy}


def ideal(
    paths: Sequence[Path], score: Callable[[list[float]], float], threshold: float
) -> Callable[[np.ndarray], tuple[int, float, bool]]:
    """The least work that answers an image: label, score, and whether it was deferred."""
    student, teacher = (open_session(path, THREADS, None) for path in paths)
    (given,), (told,) = ([node.name for node in s.get_inputs()] for s in (student, teacher))

    def answer(image: np.ndarray) -> tuple[int, float, bool]:
        row = student.run(None, {given: image})[0][0].tolist()
        found = score(row)
        deferred = not found >= threshold
        if deferred:
            row = teacher.run(None, {told: image})[0][0].tolist()
        return row.index(max(row)), found, deferred

    return answer


def one_by_one(joint: JointClassifier, bare: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Seconds of each image by the joint model and by the ideal, and which were deferred."""
    spent = {"joint": np.zeros(len(images)), "ideal": np.zeros(len(images))}
    for number in range(len(images)):
        image = images[number : number + 1]
        turns = [("joint", joint), ("ideal", bare)]
        for name, model in turns if number % 2 else turns[::-1]:
            spent[name][number] = seconds_of(model, image)
    return spent


def in_batches(joint: JointClassifier, images: np.ndarray) -> float:
    """Seconds of the joint model over those of the bare models, on batches of 64."""
    whole, parts = 0.0, 0.0
    for number, start in enumerate(range(0, len(images), BATCH)):
        batch = images[start : start + BATCH]
        _, deferred = joint.router(joint.student(batch))
        hard = np.ascontiguousarray(batch[deferred])
        if number % 2:
            whole += seconds_of(joint, batch)
        parts += seconds_of(joint.student, batch)
        parts += seconds_of(joint.teacher, hard) if len(hard) else 0.0
        if not number % 2:
            whole += seconds_of(joint, batch)
    return whole / parts


def figures_of_one(
    found: Sequence[dict[str, np.ndarray]], deferred: np.ndarray
) -> dict[str, float | bool | list[float]]:
    """Ratios of means, pass by pass, and of the median kept and deferred image."""
    ratios = [float(each["joint"].mean() / each["ideal"].mean()) for each in found]
    joint, bare = (np.concatenate([each[name] for each in found]) for name in ("joint", "ideal"))
    late = np.tile(deferred, len(found))
    medians = {
        f"{kind}_over_ideal_median": float(np.median(joint[rows]) / np.median(bare[rows]))
        for kind, rows in (("kept", ~late), ("deferred", late))
    }
    ratio = float(np.median(ratios))
    return {
        "joint_over_ideal": round(ratio, 4),
        "met": ratio <= GOAL,
        "joint_over_ideal_each": [round(each, 4) for each in ratios],
        **{name: round(value, 4) for name, value in medians.items()},
        "joint_microseconds_median": round(1e6 * float(np.median(joint)), 1),
        "ideal_microseconds_median": round(1e6 * float(np.median(bare)), 1),
        "deferral_rate": round(float(deferred.mean()), 4),
    }


def measure_one(paths: Sequence[Path], score: str, images: np.ndarray) -> dict[str, Any]:
    """Time one image at a time, a tenth deferred."""
    models = [load_model(path, threads=THREADS) for path in paths]
    scores = Router(score, 0.0).score(models[0](images))
    joint = JointClassifier(*models, Router(score, float(np.quantile(scores, DEFERRED))))
    bare = ideal(paths, SCORES[score], joint.router.threshold)
    alike = [
        (int(answer.prediction[0]), bool(answer.deferred[0])) == bare(image)[::2]
        for image in (images[n : n + 1] for n in range(200))
        for answer in [joint(image)]
    ]
    assert all(alike), "the ideal answers otherwise"
    deferred = ~(scores >= joint.router.threshold)
    found = passes(partial(one_by_one, joint, bare), images, 100)
    return figures_of_one(found, deferred)


def main() -> None:
    """Measure one by one and in batches, and write the result file."""
    images, _ = load_cifar10("test")
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
    figures: dict[str, Any] = {**about(seed=0), "threads": THREADS, "goal": GOAL}
    with ExitStack() as files:
        paths = [files.enter_context(shipped(f"{role}.onnx")) for role in ("student", "teacher")]
        for score in SCORES:
            figures[f"batch_1_{score}"] = measure_one(paths, score, inputs[:ONE_BY_ONE])
        study = run_study(Outcomes.load(files.enter_context(shipped("outcomes.npz"))), margin=0.0)
        models = [load_model(path, threads=THREADS) for path in paths]
        joint = JointClassifier(*models, study.point.router, blend=study.point.blend)
        ratios = passes(partial(in_batches, joint), inputs[: BATCH * BATCHES], 5 * BATCH)
        figures["batch_64"] = {
            "blend": joint.blend,
            "joint_over_ideal": round(float(np.median(ratios)), 4),
            "joint_over_ideal_each": [round(ratio, 4) for ratio in ratios],
        }
    save("joint_loop", figures)


if __name__ == "__main__":
    main()

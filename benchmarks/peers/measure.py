"""The joint loop beside its peers: `python -m benchmarks.peers.measure`.

One pair (the shipped one), the same rows of CIFAR-10's test set, the same threshold on the same
score, no blend: every loop defers the same rows and says the same. All take turns, batch by
batch, in one run. The ideal runs the bare sessions, the teacher on deferred rows that somebody
else has gathered. Writes `benchmarks/results/peers.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, save, seconds_of
from benchmarks.peers.loops import LOOPS, Loop
from benchmarks.peers.packages import PACKAGES, Absent, install
from ebjr import JointClassifier, Router, load_model, save_joint
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.errors import MissingExtra

THREADS = 2
DEFERRAL_RATE = 0.15
IMAGES = {1: 400, 64: 64 * 16}


def single_file(joint: JointClassifier, folder: Path) -> Loop:
    """The exported graph under plain ONNX Runtime."""
    try:
        from ebjr.export import export_joint
    except (ImportError, MissingExtra) as error:
        raise Absent(str(error)) from error
    import onnxruntime

    save_joint(folder / "joint.toml", joint)
    export_joint(folder / "joint.toml", folder / "joint.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        folder / "joint.onnx", options, providers=["CPUExecutionProvider"]
    )
    feed = next(node.name for node in session.get_inputs() if node.name != "threshold")
    return lambda batch: session.run(["prediction"], {feed: batch})[0]


def peers(
    joint: JointClassifier, threshold: float, folder: Path
) -> tuple[dict[str, Loop], dict[str, str]]:
    """Every loop that can be run here, and why the others cannot."""
    student, teacher = joint.student, joint.teacher
    found: dict[str, Loop] = {"ebjr: JointClassifier": lambda batch: joint(batch).prediction}
    skipped = {}
    try:
        found["ebjr: one ONNX file, plain ONNX Runtime"] = single_file(joint, folder)
    except Absent as reason:
        skipped["ebjr: one ONNX file"] = str(reason)
    found |= {name: make(student, teacher, threshold) for name, make in LOOPS.items()}
    for package, wrap in PACKAGES.items():
        try:
            name, loop = wrap(student, teacher, threshold)
        except Absent as reason:
            skipped[package] = str(reason)
        else:
            found[name] = loop
    return found, skipped


def measure(
    joint: JointClassifier, loops: dict[str, Loop], inputs: np.ndarray, batch_size: int
) -> dict[str, Any]:
    """Seconds of every loop and of the ideal, and how often a loop answers as ours does."""
    spent = dict.fromkeys(("ideal", *loops), 0.0)
    alike = dict.fromkeys(loops, 0)
    deferred = 0
    for number, start in enumerate(range(0, len(inputs), batch_size)):
        batch = inputs[start : start + batch_size]
        answer = joint(batch)
        hard = np.ascontiguousarray(batch[answer.deferred])
        deferred += len(hard)

        def ideal(batch: np.ndarray, hard: np.ndarray = hard) -> np.ndarray:
            joint.student(batch)
            return joint.teacher(hard) if len(hard) else batch

        turns = list({"ideal": ideal, **loops}.items())
        shift = number % len(turns)
        for name, loop in turns[shift:] + turns[:shift]:
            spent[name] += seconds_of(loop, batch)
        for name, loop in loops.items():
            alike[name] += int((loop(batch) == answer.prediction).sum()) if number < 4 else 0
    checked = min(4 * batch_size, len(inputs))
    return {
        "images": len(inputs),
        "deferral_rate": round(deferred / len(inputs), 4),
        "ideal_milliseconds_per_image": round(1e3 * spent["ideal"] / len(inputs), 4),
        "times_the_ideal": {
            name: round(spent[name] / spent["ideal"], 3)
            for name in sorted(loops, key=spent.get)  # type: ignore[arg-type]
        },
        "answers_as_ours": {name: round(count / checked, 4) for name, count in alike.items()},
    }


def measure_overlap(
    joint: JointClassifier, alone: JointClassifier, inputs: np.ndarray, batch_size: int
) -> dict[str, Any]:
    """The stream with two batches in work, one thread each, against the ideal on two threads."""
    parts = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    hard = [np.ascontiguousarray(part[joint(part).deferred]) for part in parts]

    def ideal() -> None:
        for part, some in zip(parts, hard, strict=True):
            joint.student(part)
            if len(some):
                joint.teacher(some)

    ways = {
        "ideal": ideal,
        "stream": lambda: [None for _ in joint.stream(parts, overlap=1)],
        "stream, overlap 2": lambda: [None for _ in alone.stream(parts, overlap=2)],
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways if name != "ideal"}
    for number in range(5):
        spent = {}
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            ways[name]()
            spent[name] = time.perf_counter() - began
        for name, each in ratios.items():
            each.append(spent[name] / spent["ideal"])
    return {
        f"{name}, times the ideal": {
            "median": round(float(np.median(each)), 3),
            "each": [round(ratio, 3) for ratio in each],
        }
        for name, each in ratios.items()
    }


def main() -> None:
    """Measure batch 1 and 64, and write the result file."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--images", type=float, default=1.0, help="a share of the images")
    words.add_argument(
        "--packages", type=Path, help="a folder for the public packages, filled where it is empty"
    )
    asked = words.parse_args()
    share = asked.images
    if asked.packages is not None:
        install(asked.packages)
    inputs = np.ascontiguousarray(load_cifar10("test")[0].transpose(0, 3, 1, 2), np.float32) / 255
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = [stack.enter_context(shipped(f"{role}.onnx")) for role in ("student", "teacher")]
        pairs = {
            threads: [load_model(path, threads=threads) for path in paths] for threads in (1, 2)
        }
        some = inputs[:1024]
        router = Router("softmax", 0.5)
        threshold = float(np.quantile(router.score(pairs[THREADS][0](some)), DEFERRAL_RATE))
        joints = {
            threads: JointClassifier(*pair, Router("softmax", threshold))
            for threads, pair in pairs.items()
        }
        loops, skipped = peers(joints[THREADS], threshold, folder)
        report: dict[str, Any] = {
            **about(seed=0),
            "threads": THREADS,
            "score": "softmax",
            "threshold": threshold,
            "skipped": skipped,
        }
        for batch_size, count in IMAGES.items():
            rows = inputs[: max(batch_size, int(count * share))]
            measure(joints[THREADS], loops, rows[: 2 * batch_size], batch_size)
            report[f"batch_{batch_size}"] = measure(joints[THREADS], loops, rows, batch_size)
        rows = inputs[: max(128, int(2048 * share))]
        report["overlap, batch 64"] = measure_overlap(joints[THREADS], joints[1], rows, 64)
    save("peers", report)


if __name__ == "__main__":
    main()

"""The exported file beside the joint model: the same decisions on 10,000 images, and at what speed.

The shipped pair at the threshold that the demo calibrates, on all of CIFAR-10's test images, in
batches of 1 and 64: decisions and predictions are compared row by row. Then the Python loop, the
file under plain ONNX Runtime and the student's session alone take turns, batch by batch, so that a
change of the machine's speed meets all alike; once with nothing deferred, where the file should
cost no more than the student and its score. With ``--beside other.onnx``, the same pair as another
version exported it, that file takes its turns too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, passes, save, seconds_of
from ebjr import JointClassifier, Outcomes, load_model, run_study, save_joint
from ebjr.backends.exported import OUTPUTS
from ebjr.backends.onnx import open_session
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.export import export_joint
from ebjr.router import round_up

THREADS = 2
IMAGES = {1: 1_500, 64: 64 * 60}

Run = Callable[[np.ndarray], Any]


def compare(
    joint: JointClassifier, run: Run, inputs: np.ndarray, batch_size: int
) -> dict[str, Any]:
    """Decisions, predictions and raw outputs of both on all images."""
    found: dict[str, Any] = {"decisions_differ": 0, "predictions_differ": 0}
    farthest, nearest, deferred = 0.0, np.inf, 0
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        wanted = joint(batch)
        prediction, output, score, defers = run(batch)
        found["decisions_differ"] += int((defers != wanted.deferred).sum())
        found["predictions_differ"] += int((prediction != wanted.prediction).sum())
        farthest = max(farthest, float(np.abs(output - wanted.output).max()))
        nearest = min(nearest, float(np.abs(score - joint.router.threshold).min()))
        deferred += int(wanted.deferred.sum())
    return {
        **found,
        "images": len(inputs),
        "deferred": deferred,
        "largest_difference_of_output": farthest,
        "nearest_score_to_threshold": nearest,
    }


def measure(runs: Mapping[str, Run], inputs: np.ndarray, batch_size: int) -> dict[str, float]:
    """Seconds of each on the same batches, which take turns."""
    spent = dict.fromkeys(runs, 0.0)
    names = list(runs)
    for number, start in enumerate(range(0, len(inputs), batch_size)):
        batch = inputs[start : start + batch_size]
        for name in names if number % 2 else names[::-1]:
            spent[name] += seconds_of(runs[name], batch)
    return spent


def ratios(found: list[dict[str, float]], over: str, under: str) -> dict[str, Any]:
    """One's time over another's in each pass, and the median."""
    each = [p[over] / p[under] for p in found]
    return {"median": round(float(np.median(each)), 4), "each": [round(r, 4) for r in each]}


def main() -> None:
    """Compare, measure, and write the result file."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--beside", type=Path, help="the file of another version")
    beside = words.parse_args().beside
    images, _ = load_cifar10("test")
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
    with shipped("outcomes.npz") as path:
        point = run_study(Outcomes.load(path), margin=0.0).point
    with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
        models = [load_model(path, threads=THREADS) for path in (student, teacher)]
        joint = JointClassifier(*models, point.router, blend=point.blend)
        with tempfile.TemporaryDirectory() as folder:
            save_joint(Path(folder) / "joint.toml", joint)
            exported = export_joint(Path(folder) / "joint.toml", Path(folder) / "joint.onnx")
            session = open_session(exported.path, THREADS)
    other = None if beside is None else open_session(beside, THREADS)
    figures: dict[str, Any] = {
        **about(seed=0),
        "threads": THREADS,
        "score": point.score,
        "threshold": point.threshold,
        "blend": float(point.blend),
        "opset": exported.opset,
        "bytes": exported.bytes,
    }
    names = list(OUTPUTS)

    def at(threshold: float, file: Any = session) -> Run:
        joint.router.threshold = threshold
        feed = {"threshold": np.array(round_up(threshold), np.float32)}
        return lambda batch: file.run(names, {**feed, "image": batch})

    for batch_size, count in IMAGES.items():
        run = at(point.threshold)
        figures[f"batch_{batch_size}"] = compare(joint, run, inputs, batch_size)
        for words, threshold in (("as_calibrated", point.threshold), ("nothing_deferred", -1e30)):
            run = at(threshold)
            runs: dict[str, Run] = {"file": run, "joint": joint, "student": joint.student}
            if other is not None:
                runs["other"] = at(threshold, other)
            found = passes(
                lambda rows, runs=runs, size=batch_size: measure(runs, rows, size),
                inputs[:count],
                5 * batch_size,
            )
            pairs = [
                ("file", "joint"),
                ("file", "student"),
                ("joint", "student"),
                ("file", "other"),
            ]
            figures[f"batch_{batch_size}"][words] = {
                f"{over}_over_{under}": ratios(found, over, under)
                for over, under in pairs
                if under in runs
            }
    save("export", figures)


if __name__ == "__main__":
    main()

"""Measure the exported pair: `python -m experiments.cifar10_pair.measure`.

Accuracy, FLOPs, file size and time of each network; then what the joint model of both costs, with
its threshold chosen on one half of the pictures and reported on the other. The test set is read
here and nowhere else.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime

from ebjr.demo.cifar10 import load
from experiments.cifar10_pair.export import DEMO
from experiments.cifar10_pair.nets import STUDENTS, build_teacher, flops
from experiments.cifar10_pair.train import HERE, parser, split_indices

BLENDS = (0.0, 0.25, 0.5, 1.0, 2.0)
MOST_COST = 0.6


def session(file: Path, threads: int = 2) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def predict(model: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Logits of uint8 pictures (n, 32, 32, 3)."""
    inputs = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    parts = np.array_split(inputs, max(1, len(inputs) // 250))
    return np.concatenate([model.run(None, {"image": part})[0] for part in parts])


def milliseconds(model: onnxruntime.InferenceSession, batch: int, seconds: float = 3.0) -> float:
    """Median wall time per picture."""
    inputs = np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        model.run(None, {"image": inputs})
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times)) / batch


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def scores(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Score of each row under each rule; higher keeps the picture on the student."""
    p = softmax(logits)
    top = np.sort(p, axis=1)
    return {
        "energy": np.log(np.exp(logits).sum(axis=1)),
        "softmax": top[:, -1],
        "entropy": (p * np.log(p + 1e-12)).sum(axis=1),
        "margin": top[:, -1] - top[:, -2],
    }


def curve(
    score: np.ndarray, kept_right: np.ndarray, deferred_right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds, and accuracy of the joint model at each; entry k defers the k lowest scores."""
    order = np.argsort(score)
    gain = deferred_right[order].astype(float) - kept_right[order]
    right = kept_right.sum() + np.concatenate([[0], np.cumsum(gain)])
    return np.append(score[order], np.inf), right / len(score)


def joint_figures(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    first: np.ndarray,
    student_cost: float,
    blends: tuple[float, ...],
) -> dict[str, dict[str, dict[str, float]]]:
    """Choose a threshold (and a blend) on the rows in `first`, report on the others.

    Parameters
    ----------
    student, teacher : ndarray, (n, classes)
        Logits.
    labels : ndarray, (n,)
        Right classes.
    first : ndarray of bool, (n,)
        Rows to choose on.
    student_cost : float
        FLOPs of the student over FLOPs of the teacher.
    blends : tuple of float
        Weights of the student's probabilities in a deferred answer to choose from.

    Returns
    -------
    dict
        Per score, two operating points: `match` is the cheapest with the teacher's accuracy,
        `gain` the most accurate at no more than `MOST_COST` of the teacher's FLOPs. Each with
        `cost` (fraction of the teacher's FLOPs), `deferral_rate`, `accuracy`, `over_teacher`
        (accuracy minus the teacher's, in points) and `blend`.
    """
    kept_right = student.argmax(1) == labels
    teacher_right = teacher.argmax(1) == labels
    mixed = {w: softmax(teacher) + w * softmax(student) for w in blends}
    deferred_right = {w: p.argmax(1) == labels for w, p in mixed.items()}
    most = int((MOST_COST - student_cost) * first.sum())
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, score in scores(student).items():
        match, gain = [], []
        for w, right in deferred_right.items():
            thresholds, quality = curve(score[first], kept_right[first], right[first])
            enough = np.flatnonzero(quality >= teacher_right[first].mean())
            k = int(enough[0]) if len(enough) else len(quality) - 1
            match.append((k, w, thresholds[k]))
            k = int(quality[: most + 1].argmax())
            gain.append((-quality[k], w, thresholds[k]))
        result[name] = {}
        for goal, (_, w, threshold) in {"match": min(match), "gain": min(gain)}.items():
            deferred = score[~first] < threshold
            joint = np.where(deferred, deferred_right[w][~first], kept_right[~first])
            result[name][goal] = {
                "cost": student_cost + deferred.mean(),
                "deferral_rate": deferred.mean(),
                "accuracy": joint.mean(),
                "over_teacher": 100 * (joint.mean() - teacher_right[~first].mean()),
                "blend": w,
            }
    return result


def mean_of(trees: list) -> object:
    """Mean of equally shaped nested dictionaries of numbers, rounded."""
    if isinstance(trees[0], dict):
        return {key: mean_of([tree[key] for tree in trees]) for key in trees[0]}
    return round(float(np.mean(trees)), 4)


def main() -> None:
    """Measure and write `results.json`."""
    options = parser(
        folder=str(DEMO), net="pooled", data="test", splits=50, out=str(HERE / "results.json")
    ).parse_args()
    images, labels = load("test" if options.data == "test" else "train")
    if options.data != "test":
        held_out = split_indices(len(images))[1]
        images, labels = images[held_out], labels[held_out]
    report: dict = {
        "command": "python -m experiments.cifar10_pair.measure " + " ".join(sys.argv[1:]),
        "machine": "AMD EPYC, 2 cores",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "data": options.data,
        "pictures": len(images),
    }
    nets = {"student": STUDENTS[options.net](), "teacher": build_teacher()}
    logits = {}
    for role, net in nets.items():
        file = Path(options.folder) / f"{role}.onnx"
        model = session(file)
        logits[role] = predict(model, images)
        report[role] = {
            "accuracy": round(float((logits[role].argmax(1) == labels).mean()), 4),
            "flops": flops(net),
            "megabytes": round(file.stat().st_size / 1e6, 3),
            "ms_per_picture_batch_1": round(milliseconds(model, 1), 3),
            "ms_per_picture_batch_64": round(milliseconds(model, 64), 3),
        }
    cost = report["student"]["flops"] / report["teacher"]["flops"]
    report["student_over_teacher_flops"] = round(cost, 4)
    for name, blends in {"plain": (0.0,), "blend": BLENDS}.items():
        runs = []
        for seed in range(options.splits):
            first = np.zeros(len(images), bool)
            first[np.random.default_rng(seed).permutation(len(images))[: len(images) // 2]] = True
            runs.append(
                joint_figures(logits["student"], logits["teacher"], labels, first, cost, blends)
            )
        report[f"joint_{name}_seed_0"] = mean_of(runs[:1])
        report[f"joint_{name}_mean_of_{options.splits}_splits"] = mean_of(runs)
    text = json.dumps(report, indent=1)
    Path(options.out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

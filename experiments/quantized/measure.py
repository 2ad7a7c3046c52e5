"""The shipped pair in eight-bit numbers: `python -m experiments.quantized.measure`.

`ebjr quantize` makes an int8 student and an int8 teacher of the shipped models, calibrated on
CIFAR-10's training images. Beside the teacher in single precision, three students answer the test
set: the shipped one, the int8 student, and the int8 teacher. Thresholds are chosen on one half
and reported on the other; what each costs is counted in FLOPs and measured in seconds, all models
in turns in one run. The seconds are processor time on one thread, which stays what it is while
the machine does other work. Writes `results.json`.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ebjr import Cost, Model, Outcomes, TradeOffCurve, load_model
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.quantize import quantize
from experiments.splits import held_out_points
from runs import about, save

SPLITS = 10
THREADS = 1
EXAMPLES = 256
WEIGHT_BITS = 8  # the processor this was measured on has VNNI
ROUNDS = {1: 150, 64: 12}
RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def as_inputs(images: np.ndarray) -> np.ndarray:
    """Pixels as both models take them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255


def timed(models: dict[str, Model], inputs: np.ndarray) -> dict[int, dict[str, float]]:
    """Median processor seconds an example, by batch size; the models take turns."""
    found: dict[int, dict[str, float]] = {}
    for size, rounds in ROUNDS.items():
        spent: dict[str, list[float]] = {name: [] for name in models}
        for number in range(rounds):
            batch = inputs[number * size :][:size]
            for name, model in models.items():
                began = time.process_time()
                model(batch)
                spent[name].append(time.process_time() - began)
        found[size] = {name: float(np.median(each[2:])) / size for name, each in spent.items()}
    return found


def of_pair(outcomes: Outcomes, seconds: dict[int, tuple[float, float]]) -> dict[str, Any]:
    """Measure a pair at the teacher's accuracy, mean over splits, and along its curve."""
    points = held_out_points(outcomes, SPLITS)
    rate = float(np.mean([point.deferral_rate for point in points]))
    gains = [point.quality - point.teacher_quality for point in points]
    flops = outcomes.student_cost.flops or 0.0, outcomes.teacher_cost.flops or 1.0
    curve = TradeOffCurve.of(outcomes, "softmax")
    along = [curve.at(deferral_rate=most) for most in RATES]
    return {
        "student_accuracy": round(outcomes.quality("student"), 4),
        "splits": len(points),
        "deferral_rate": round(rate, 4),
        "over_teacher_points": round(100 * float(np.mean(gains)), 3),
        "times_fewer_flops": round(times_cheaper(*flops, rate), 3),
        "times_less_time": {
            f"batch of {size}": round(times_cheaper(*pair, rate), 3)
            for size, pair in seconds.items()
        },
        "curve_of_softmax": [
            {
                "deferral_rate": round(point.deferral_rate, 4),
                "accuracy": round(point.quality, 4),
                "mflops": round((point.cost.flops or 0.0) / 1e6, 1),
                "milliseconds": {
                    f"batch of {size}": round(1e3 * (own + point.deferral_rate * other), 4)
                    for size, (own, other) in seconds.items()
                },
            }
            for point in along
        ],
    }


def times_cheaper(student: float, teacher: float, rate: float) -> float:
    """The teacher's cost over that of student and teacher at a deferral rate."""
    return teacher / (student + rate * teacher)


def main() -> None:
    """Quantize, answer, measure, and write `results.json`."""
    images, _ = load_cifar10("train")
    rows = np.random.default_rng(0).choice(len(images), EXAMPLES, replace=False)
    some = as_inputs(images[np.sort(rows)])
    inputs = as_inputs(load_cifar10("test")[0])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = {
            role: stack.enter_context(shipped(f"{role}.onnx")) for role in ("student", "teacher")
        }
        outcomes = Outcomes.load(stack.enter_context(shipped("outcomes.npz")))
        quantized = {
            role: quantize(
                path, [some], folder / f"{role}.onnx", examples=EXAMPLES, weight_bits=WEIGHT_BITS
            )
            for role, path in paths.items()
        }
        models = {
            **{role: load_model(path, threads=THREADS) for role, path in paths.items()},
            **{f"int8 {r}": load_model(q.path, threads=THREADS) for r, q in quantized.items()},
        }
        seconds = timed(models, inputs)
        answers = {
            name: np.concatenate([models[name](part) for part in np.array_split(inputs, 100)])
            for name in ("int8 student", "int8 teacher")
        }
    flops = {"student": outcomes.student_cost.flops, "teacher": outcomes.teacher_cost.flops}
    raw = {"student": outcomes.student, **answers}
    report: dict[str, Any] = {
        **about(seed=0),
        "threads": THREADS,
        "quantized": {
            role: {key: value for key, value in found.as_dict().items() if key != "path"}
            for role, found in quantized.items()
        },
        "milliseconds_per_image": {
            f"batch of {size}": {name: round(1e3 * value, 4) for name, value in each.items()}
            for size, each in seconds.items()
        },
        "teacher_accuracy": round(outcomes.quality("teacher"), 4),
        "beside the teacher in single precision": {
            name: of_pair(
                replace(
                    outcomes,
                    student=output,
                    student_cost=Cost(flops[name.split()[-1]]),
                    teacher_cost=Cost(flops["teacher"]),
                ),
                {size: (each[name], each["teacher"]) for size, each in seconds.items()},
            )
            for name, output in raw.items()
        },
    }
    save("results", report, Path(__file__).parent)


if __name__ == "__main__":
    main()

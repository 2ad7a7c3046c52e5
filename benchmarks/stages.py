"""A stage that nothing reaches: what it costs a joint model, in Python and in the engine.

The shipped pair answers real CIFAR-10 test images, alone, and with the teacher once more as a stage
between: its router scores every row and defers none. Both take turns, batch by batch, so that a
change of the machine's speed meets both alike. One image at a time, most are kept; the median of
both is compared, as a mean is that of the few that the teacher answers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from benchmarks.machine import about, passes, save, seconds_of
from ebjr import JointClassifier, Router, load_model
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.serving.engine import Engine

THREADS = 1
SIZES = {1: 1_000, 64: 40 * 64}  # rows of a batch, and of a pass
DEFERRED = 0.1
GOAL = 1.03

Asked = Callable[[np.ndarray], Any]


def by_turns(pair: Asked, three: Asked, size: int, images: np.ndarray) -> np.ndarray:
    """(batches, 2): seconds of each batch by the pair, and with the stage between."""
    spent = np.zeros((len(images) // size, 2))
    for number in range(len(spent)):
        batch = images[number * size : (number + 1) * size]
        for place in (0, 1) if number % 2 else (1, 0):
            spent[number, place] = seconds_of((pair, three)[place], batch)
    return spent


def ratio(pair: Asked, three: Asked, size: int, images: np.ndarray) -> dict[str, Any]:
    """Three stages over two: ratios of the medians, pass by pass, and whether the goal is met."""
    rows = images[: SIZES[size]]
    found = passes(partial(by_turns, pair, three, size), rows, max(100, 5 * size))
    ratios = [float(np.divide(*np.median(each, axis=0)[::-1])) for each in found]
    middle = float(np.median(ratios))
    return {
        "three_over_two": round(middle, 4),
        "met": middle <= GOAL,
        "three_over_two_each": [round(each, 4) for each in ratios],
        "pair_microseconds_median": round(1e6 * float(np.median(np.concatenate(found)[:, 0])), 1),
    }


def main() -> None:
    """Measure in Python and in the engine, and write the result file."""
    images, _ = load_cifar10("test")
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
    with ExitStack() as files:
        paths = [files.enter_context(shipped(f"{role}.onnx")) for role in ("student", "teacher")]
        student, teacher = (load_model(path, threads=THREADS) for path in paths)
    scores = Router("softmax", 0.0).score(student(inputs[:1_000]))
    router = Router("softmax", float(np.quantile(scores, DEFERRED)))
    nobody = Router("softmax", float(np.finfo(np.float32).min))
    pair = JointClassifier(student, teacher, router)
    three = JointClassifier(JointClassifier(student, teacher, nobody), teacher, router)
    assert np.array_equal(pair(inputs[:640]).prediction, three(inputs[:640]).prediction)
    figures: dict[str, Any] = {**about(seed=0), "threads": THREADS, "goal": GOAL}
    for size in SIZES:
        figures[f"python_batch_{size}"] = ratio(pair, three, size, inputs)
    with Engine(pair) as two, Engine(three) as more:
        asked = [lambda batch, engine=each: engine.ask(batch).result() for each in (two, more)]
        for size in SIZES:
            figures[f"engine_batch_{size}"] = ratio(*asked, size, inputs)
    save("stages", figures)


if __name__ == "__main__":
    main()

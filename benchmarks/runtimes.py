"""Other ways to run the shipped pair on this processor, beside ours, in turns in one run.

Ours is ONNX Runtime's plain `run`. The others: its IO binding with the output's buffer made once,
and OpenVINO, where it is installed. A change is worth its weight only where it is measured to be
faster. Writes `benchmarks/results/runtimes.json`: how many times less processor time than ours on
one thread (which stays what it is while the machine does other work), the median of rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, save
from ebjr import load_model
from ebjr.backends.onnx import open_session
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10

ROUNDS = {1: 60, 64: 6}

Run = Callable[[np.ndarray], Any]


def bound(path: Path, rows: int) -> Run:
    """ONNX Runtime with its input bound to the batch and its output to one buffer."""
    session = open_session(path, threads=1)
    buffer = np.zeros((rows, 10), np.float32)
    binding = session.io_binding()
    binding.bind_output("logits", "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        binding.bind_input(name, "cpu", 0, np.float32, batch.shape, batch.ctypes.data)
        session.run_with_iobinding(binding)
        return buffer

    return run


def openvino(path: Path, rows: int) -> Run:
    """OpenVINO's processor plugin, in single precision, tuned for latency as it advises."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(str(path)), "CPU", options).create_infer_request()
    return lambda batch: request.infer([batch], share_inputs=True)[0]


OTHERS = {"onnxruntime, IO binding": bound, "openvino": openvino}


def measure(path: Path, inputs: np.ndarray) -> tuple[dict[str, Any], dict[str, str]]:
    """Every way by batch size, and why some are missing."""
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for rows, rounds in ROUNDS.items():
        ways: dict[str, Run] = {"ours": load_model(path, threads=1)}
        for name, make in OTHERS.items():
            try:
                ways[name] = make(path, rows)
            except ImportError as error:
                skipped[name] = f"not installed: {error}"
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            batch = inputs[number * rows : (number + 1) * rows]
            expected = ways["ours"](batch)
            for name, run in list(ways.items())[:: 1 if number % 2 else -1]:
                began = time.process_time()
                answer = run(batch)
                spent[name].append(time.process_time() - began)
                np.testing.assert_allclose(answer, expected, atol=1e-3)
        medians = {name: float(np.median(times[2:])) for name, times in spent.items()}
        found[f"batch_{rows}"] = {
            "our_milliseconds": round(1e3 * medians["ours"], 3),
            "times_less_processor_time": {
                name: round(medians["ours"] / value, 3)
                for name, value in medians.items()
                if name != "ours"
            },
        }
    return found, skipped


def main() -> None:
    """Measure both models, and write the result file."""
    inputs = np.ascontiguousarray(load_cifar10("test")[0].transpose(0, 3, 1, 2), np.float32) / 255
    report: dict[str, Any] = about(seed=0)
    for role in ("student", "teacher"):
        with shipped(f"{role}.onnx") as path:
            report[role], report["skipped"] = measure(path, inputs)
    save("runtimes", report)


if __name__ == "__main__":
    main()

"""`ebjr predict` on 10,000 images beside the bare sessions: images per second, and memory.

The images are CIFAR-10's test set as PNG files in a table (Parquet), and as an array. The bare
sessions are given what predict has to make first: inputs that are decoded and prepared, and the
deferred rows gathered; they run the student on all and the teacher on those, on as many threads
as there are cores. Each run of predict is a process of its own, whose peak of memory is read from
the system at its end. Writes `benchmarks/results/predict.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, save
from ebjr import JointClassifier, Outcomes, load_model, run_study, save_joint
from ebjr.data.preprocess import Preprocess, prepared
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10

BATCH = 64
RUNS = 3

CHILD = """
import json, sys, time
from ebjr.joint_file import JointConfig
from ebjr.data.open import open_data
from ebjr.predict import predict
joint, data, output, overlap = sys.argv[1:]
config = JointConfig.read(joint)
threads = config.threads_for(int(overlap))
model, source = config.load(threads=threads), open_data(data)
began = time.perf_counter()
done = predict(model, source, output, overlap=int(overlap))
seconds = time.perf_counter() - began
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
memory = int(peak[0].split()[1]) / 1024
print(json.dumps({"seconds": seconds, "memory": memory, "deferred": done.deferred}))
"""


def write_table(images: np.ndarray, path: Path) -> None:
    """PNG files in a Parquet table."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    encoded = []
    for pixels in images:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        encoded.append(file.getvalue())
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded}), path, row_group_size=500)


def run_predict(joint: Path, data: Path, overlap: int) -> dict[str, float]:
    """Run once in a separate process."""
    output = data.with_suffix(".jsonl")
    words = [sys.executable, "-c", CHILD, *map(str, (joint, data, output, overlap))]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def bare_seconds(joint: JointClassifier, inputs: np.ndarray) -> float:
    """The bare sessions on inputs that are ready."""
    parts = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    hard = [np.ascontiguousarray(part[joint(part).deferred]) for part in parts]
    began = time.perf_counter()
    for part, some in zip(parts, hard, strict=True):
        joint.student(part)
        if len(some):
            joint.teacher(some)
    return time.perf_counter() - began


def main() -> None:
    """Measure, and write the result file."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--images", type=int, default=10_000)
    count = words.parse_args().images
    images = load_cifar10("test")[0][:count]
    preprocess = Preprocess(size=32)
    report: dict[str, Any] = {**about(seed=0), "images": count, "batch_size": BATCH}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        point = run_study(
            Outcomes.load(stack.enter_context(shipped("outcomes.npz"))), margin=0.0
        ).point
        paths = [stack.enter_context(shipped(f"{role}.onnx")) for role in ("student", "teacher")]
        models = [load_model(path, threads=os.cpu_count()) for path in paths]
        bare = JointClassifier(*models, point.router, blend=point.blend)
        plain = JointClassifier(*map(load_model, paths), point.router, blend=point.blend)
        save_joint(folder / "arrays.toml", plain)
        whole = JointClassifier(
            *(prepared(load_model(path), preprocess) for path in paths),
            point.router,
            blend=point.blend,
        )
        save_joint(folder / "images.toml", whole)
        inputs = preprocess(images)
        write_table(images, folder / "images.parquet")
        write_table(images[: count // 10], folder / "tenth.parquet")
        np.savez(folder / "arrays.npz", inputs=inputs)
        ways = {
            f"{name}, overlap {overlap}": (f"{kind}.toml", file, overlap)
            for name, kind, file in (
                ("arrays", "arrays", "arrays.npz"),
                ("PNG in Parquet", "images", "images.parquet"),
            )
            for overlap in (1, 2)
        }
        shares: dict[str, list[float]] = {name: [] for name in ways}
        memory: dict[str, float] = {}
        for _ in range(RUNS):
            for name, (joint, file, overlap) in ways.items():
                best = bare_seconds(bare, inputs)
                found = run_predict(folder / joint, folder / file, overlap)
                shares[name].append(best / found["seconds"])
                memory[name] = found["memory"]
        small = run_predict(folder / "images.toml", folder / "tenth.parquet", 2)
        report["images_per_second_of_bare_sessions"] = {
            name: {"median": round(float(np.median(each)), 3), "each": np.round(each, 3).tolist()}
            for name, each in shares.items()
        }
        report["peak_memory_mib"] = {name: round(value) for name, value in memory.items()} | {
            "PNG in Parquet, a tenth of the images": round(small["memory"])
        }
    save("predict", report)


if __name__ == "__main__":
    main()

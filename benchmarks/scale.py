"""Ray beside one server: throughput on the same two cores, and how dense teacher batches are.

The shipped pair on real CIFAR-10 images. ``ebjr serve`` and the Ray application take turns, 64
clients with 8 images a request, the same threads for each model. Teacher batches are counted at a
deferral rate of 20 % with batches of 32: as each student batch alone would make them, as the Ray
application's teacher got them, and as the second stage of `ebjr.scale.predict` made them.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve

from benchmarks.load import closed, requests
from benchmarks.machine import about, save
from benchmarks.pair import cifar_inputs, running_server, write_pair
from ebjr import load_joint
from ebjr.scale import build_app, predict

ROWS, CLIENTS, SECONDS, TURNS = 8, 64, 15.0, 3
BATCH, RATE, WAIT, DENSE_ROWS = 32, 0.2, 0.5, 2_000
STORE = 200 * 2**20


@contextmanager
def running_ray() -> Iterator[None]:
    """Ray on this machine, with one CPU for each of two models."""
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init(
        num_cpus=4,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def running_app(joint: Path, **options: Any) -> Iterator[int]:
    """The Ray application: the port where it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start("HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    light = {"ray_actor_options": {"num_cpus": 1}}
    serve.run(build_app(joint, student=light, teacher=light, threads=1, **options))
    try:
        yield port
    finally:
        serve.shutdown()


def throughput(joint: Path, asked: list[bytes]) -> dict[str, Any]:
    """Server and Ray application by turns, each alone on the machine."""
    found: dict[str, list[dict[str, float]]] = {"serve": [], "ray": []}
    for _ in range(TURNS):
        for name, running in (("serve", running_server(joint, 1)), ("ray", running_app(joint))):
            with running as port:
                closed(port, asked, CLIENTS, 4.0)
                found[name].append(closed(port, asked, CLIENTS, SECONDS).as_dict(ROWS))
    key = "rows_per_second"
    ratios = [r[key] / s[key] for r, s in zip(found["ray"], found["serve"], strict=True)]
    return {
        **found,
        "ray_over_serve_median": round(float(np.median(ratios)), 3),
        "ray_over_serve_each": [round(ratio, 3) for ratio in ratios],
    }


def where_time_goes(joint: Path, asked: list[bytes]) -> dict[str, float]:
    """Milliseconds of one client's request, one at a time: through each of both."""
    found = {}
    for name, running in (("serve", running_server(joint, 1)), ("ray", running_app(joint))):
        with running as port:
            closed(port, asked, 1, 2.0)
            found[f"{name}_milliseconds"] = closed(port, asked, 1, 5.0).as_dict(ROWS)[
                "p50_milliseconds"
            ]
    found["hops_milliseconds"] = round(found["ray_milliseconds"] - found["serve_milliseconds"], 2)
    return found


def teacher_batches(joint: Path, inputs: np.ndarray) -> dict[str, Any]:
    """Mean rows of a teacher batch without and with batching across student batches."""
    deferred = load_joint(joint, threads=1)(inputs).deferred
    alone = [int(part.sum()) for part in np.split(deferred, range(BATCH, len(deferred), BATCH))]
    without = float(np.mean([count for count in alone if count]))
    with running_app(
        joint, student_batch=BATCH, teacher_batch=BATCH, teacher_wait_seconds=WAIT
    ) as port:
        closed(port, requests("image", inputs, ROWS), CLIENTS, SECONDS)
        served = _mean_teacher_batch()
    answers = predict(inputs, joint, batch_size=BATCH, teacher_batch=BATCH, threads=1)
    blocks = [batch["deferred"] for batch in answers.iter_batches(batch_size=None)]
    sizes = [int(block.sum()) for block in blocks]
    dense = float(np.mean([n / -(-n // BATCH) for n in sizes if n]))
    return {
        "deferral_rate": round(float(deferred.mean()), 3),
        "without": round(without, 2),
        "serve": round(served, 2),
        "data": round(dense, 2),
        "serve_over_without": round(served / without, 2),
        "data_over_without": round(dense / without, 2),
    }


def _mean_teacher_batch() -> float:
    """Deferred rows by batches of the teacher, as Ray's Prometheus endpoint counts both.

    Of the rows of a batch it knows the bucket alone.
    """
    time.sleep(12)  # metrics are pushed now and then
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    batches = r'^ray_ebjr_batch_rows_count{[^}]*stage="teacher"[^}]*} (\S+)'
    rows, count = (
        sum(map(float, re.findall(pattern, text, re.MULTILINE)))
        for pattern in (r"^ray_ebjr_deferred_rows_total{[^}]*} (\S+)", batches)
    )
    return rows / count


def main() -> None:
    """Measure, and write the result file."""
    inputs = cifar_inputs(DENSE_ROWS)
    asked = requests("image", inputs[:1024], ROWS)
    figures: dict[str, Any] = {**about(seed=0), "clients": CLIENTS, "rows": ROWS}
    with tempfile.TemporaryDirectory() as folder, running_ray():
        joint = write_pair(Path(folder))
        figures["throughput"] = throughput(joint, asked)
        figures["one_client"] = where_time_goes(joint, asked)
        figures["teacher_batches"] = teacher_batches(write_pair(Path(folder), RATE), inputs)
    save("scale", figures)


if __name__ == "__main__":
    main()

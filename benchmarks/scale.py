"""Ray beside one server: throughput on the same two cores, where it goes, dense teacher batches.

The shipped pair on real CIFAR-10 images. ``ebjr serve`` and the Ray application take turns, 64
clients with 8 images a request, the same threads for each model; the CPU time of every process says
where a request's time goes, with HAProxy in front (`ebjr.scale.INGRESS`) and with Ray's own proxy.
Teacher batches are counted at a deferral rate of 20 % with batches of 32: as each student batch
alone would make them, as the Ray application's teacher got them, and as the second stage of
`ebjr.scale.predict` made them, whose answers to all 10,000 test images are held against the local
joint model's. ``--seconds`` of each turn makes a short run.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve

from benchmarks.load import Measured, closed, requests
from benchmarks.machine import about, free_port, save
from benchmarks.pair import cifar_inputs, running_server, write_pair
from ebjr import load_joint
from ebjr.scale import INGRESS, build_app, predict

ROWS, CLIENTS, TURNS = 8, 64, 3
BATCH, RATE, WAIT, DENSE_ROWS = 32, 0.2, 1.0, 2_000
STORE = 500 * 2**20


@contextmanager
def running_ray(ingress: bool = True) -> Iterator[int]:
    """Ray and Serve on this machine, behind HAProxy or Ray's proxy: the port where they answer."""
    more = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    patient = {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }
    before = dict(os.environ)
    os.environ |= {**INGRESS, **more, **patient} if ingress else {}
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    port = free_port()
    try:
        serve.start("HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()
        os.environ.clear()
        os.environ |= before


def run_app(joint: Path, **options: Any) -> None:
    """Make it the application that is served, with one CPU for each of both models."""
    light = {"ray_actor_options": {"num_cpus": 1}}
    serve.run(build_app(joint, student=light, teacher=light, threads=1, **options))


def cpu_seconds() -> Counter[str]:
    """Return the CPU time of this process's descendants, by kind."""
    tick = os.sysconf("SC_CLK_TCK")
    known: dict[int, tuple[int, str, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        known[int(folder.name)] = (
            int(fields[1]),
            _title(words),
            (int(fields[11]) + int(fields[12])) / tick,
        )

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in known and ours(known[pid][0]))

    found: Counter[str] = Counter()
    for pid, (_, title, seconds) in known.items():
        if pid != os.getpid() and ours(pid):
            found[title] += seconds
    return found


def _title(words: list[str]) -> str:
    """Return a process's kind: a replica, a proxy, the server, or the rest of Ray."""
    line = " ".join(words)
    replica = re.search(r"ServeReplica:[^:]*:(\w+)", line)
    if replica:
        return replica[1]
    for sign, title in (
        ("ProxyActor", "Ray's proxy"),
        ("/haproxy", "HAProxy"),
        ("ebjr serve", "ebjr serve"),
    ):
        if sign in line:
            return title
    return "the rest of Ray"


def measure(port: int, asked: list[bytes], seconds: float) -> dict[str, Any]:
    """A load of all clients, and the CPU milliseconds of a request in each process."""
    before = cpu_seconds()
    found: Measured = closed(port, asked, CLIENTS, seconds)
    spent = cpu_seconds() - before
    each = {title: 1e3 * value / len(found.latencies) for title, value in spent.most_common()}
    return {
        **found.as_dict(ROWS),
        "cpu_milliseconds": {title: round(value, 2) for title, value in each.items()},
    }


def throughput(ours: int, joint: Path, asked: list[bytes], seconds: float) -> dict[str, Any]:
    """Server and Ray application by turns; who has no turn has nothing to do."""
    found: dict[str, list[dict[str, Any]]] = {"serve": [], "ray": []}
    run_app(joint)
    with running_server(joint, 1) as alone:
        ports = {"serve": alone, "ray": ours}
        for port in ports.values():
            closed(port, asked, CLIENTS, 3.0)
        for _ in range(TURNS):
            for name, port in ports.items():
                found[name].append(measure(port, asked, seconds))
        one = {name: closed(port, asked, 1, 3.0).as_dict(ROWS) for name, port in ports.items()}
    key = "rows_per_second"
    ratios = [r[key] / s[key] for r, s in zip(found["ray"], found["serve"], strict=True)]
    return {
        **found,
        "ray_over_serve_median": round(float(np.median(ratios)), 3),
        "ray_over_serve_each": [round(ratio, 3) for ratio in ratios],
        "one_client_p50_milliseconds": {n: told["p50_milliseconds"] for n, told in one.items()},
    }


def one_turn(port: int, joint: Path, asked: list[bytes], seconds: float) -> dict[str, Any]:
    """The Ray application alone."""
    run_app(joint)
    closed(port, asked, CLIENTS, 3.0)
    return measure(port, asked, seconds)


def served_batches(
    port: int, joint: Path, asked: list[bytes], seconds: float, wait: float
) -> dict[str, float]:
    """Mean rows of a batch of the Ray application's teacher, and what its clients see."""
    before = _counters()
    run_app(joint, student_batch=BATCH, teacher_batch=BATCH, teacher_wait_seconds=wait)
    told = closed(port, asked, CLIENTS, seconds).as_dict(ROWS)
    time.sleep(12)  # metrics are pushed now and then
    found: Counter[str] = Counter()
    for (name, labels), value in _counters().items():
        if not before.get((name, labels)):  # of the replicas that have come
            found[name] += value
    return {"rows": round(found["deferred_rows_total"] / found["batch_rows_count"], 2), **told}


def teacher_batches(port: int, joint: Path, inputs: np.ndarray, seconds: float) -> dict[str, Any]:
    """Mean rows of a teacher batch without and with batching across student batches."""
    model = load_joint(joint, threads=1)
    local = [model(part) for part in np.split(inputs, range(BATCH, len(inputs), BATCH))]
    deferred, prediction = (
        np.concatenate([getattr(answer, name) for answer in local])
        for name in ("deferred", "prediction")
    )
    without = float(np.mean([n for answer in local if (n := answer.deferred.sum())]))
    asked = requests("image", inputs[:DENSE_ROWS], ROWS)
    served = {
        f"waits {wait:g} s at most": served_batches(port, joint, asked, seconds, wait)
        for wait in (WAIT, 0.0)
    }
    answers = predict(inputs, joint, batch_size=BATCH, teacher_batch=BATCH, threads=1)
    blocks = list(answers.iter_batches(batch_size=None, batch_format="numpy"))
    sizes = [int(block["deferred"].sum()) for block in blocks]
    dense = float(np.mean([n / -(-n // BATCH) for n in sizes if n]))
    order = np.argsort(np.concatenate([block["row"] for block in blocks]))
    said = {
        name: np.concatenate([block[name] for block in blocks])[order]
        for name in ("prediction", "deferred")
    }
    best = max(entry["rows"] for entry in served.values())
    return {
        "deferral_rate": round(float(deferred.mean()), 3),
        "without": round(without, 2),
        "serve": served,
        "data": round(dense, 2),
        "serve_over_without": round(best / without, 2),
        "data_over_without": round(dense / without, 2),
        "data_beside_the_local_model": {
            "images": len(order),
            "decisions_differ": int((said["deferred"] != deferred).sum()),
            "predictions_differ": int((said["prediction"] != prediction).sum()),
        },
    }


def _counters() -> dict[tuple[str, str], float]:
    """Deferred rows and batches of teachers by replica, of Ray's Prometheus endpoint.

    Of a batch's rows it knows the bucket alone.
    """
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    counted = re.findall(
        r"^ray_ebjr_(deferred_rows_total|batch_rows_count){(.*)} (\S+)", text, re.M
    )
    return {
        (name, labels): float(value)
        for name, labels, value in counted
        if name == "deferred_rows_total" or 'stage="teacher"' in labels
    }


def main() -> None:
    """Measure, and write the result file."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    seconds = words.parse_args().seconds
    inputs = cifar_inputs(10_000)
    asked = requests("image", inputs[:1024], ROWS)
    figures: dict[str, Any] = {**about(seed=0), "clients": CLIENTS, "rows": ROWS}
    with tempfile.TemporaryDirectory() as folder:
        joint = write_pair(Path(folder))
        with running_ray() as port:
            figures["throughput"] = throughput(port, joint, asked, seconds)
            dense = write_pair(Path(folder), RATE)
            figures["teacher_batches"] = teacher_batches(port, dense, inputs, seconds)
        joint = write_pair(Path(folder))
        with running_ray(ingress=False) as port:
            figures["behind_rays_own_proxy"] = one_turn(port, joint, asked, seconds)
    save("scale", figures)


if __name__ == "__main__":
    main()

"""The served shipped pair beside LitServe, BentoML and Ray Serve.

``python -m benchmarks.serving.throughput --rivals V/bin/python``. Every server runs the same
cascade (the same two files, score, threshold and number of cores) on the same CIFAR-10 test images,
one image a request, sent by a process of its own. Rounds go through all servers in turn, so that a
change of the machine's speed meets all alike. Each server runs with as many threads for each model
as make it faster at 64 clients, 1 or the number of cores. Beside them a bare offline loop over both
ONNX sessions, at the same deferral rate, in a process of its own.

What share of that loop a server can reach is arithmetic: on busy cores an image costs the server's
processor time and the load generator's, which run on the same cores, where the loop pays for the
models alone. ``core_milliseconds`` has all of them.

The rivals live in an environment of their own (``requirements.txt`` beside this file); those that
it lacks are left out, and the result says so.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, save
from benchmarks.serving.load import Target, as_fast_as_possible, at_rate, group_seconds
from ebjr import JointClassifier, Outcomes, Router, calibrate, load_model, save_joint
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.protocol import LENGTH_HEADER

HERE = Path(__file__).parent
IMAGES = 512
CLIENTS = (16, 64)
LOAD_SHARE = 0.7
"""Of the best rival's throughput: where latencies are compared."""

Body = Callable[[np.ndarray], tuple[bytes, dict[str, str]]]


@dataclass(frozen=True)
class Server:
    """How a server is started (at a port, with so many threads for each model), asked, and read."""

    command: Callable[[int, int], list[str]]
    path: str
    content_type: str
    body: Body
    read: Callable[[bytes, Any], tuple[int, bool]]
    needs: str | None = None


def oip_body(image: np.ndarray, name: str) -> tuple[bytes, dict[str, str]]:
    """An image as a binary tensor of the Open Inference Protocol."""
    wanted = [
        {"name": name, "parameters": {"binary_data": False}} for name in ("prediction", "deferred")
    ]
    raw = np.ascontiguousarray(image[None], np.float32).tobytes()
    tensor = {
        "name": name,
        "shape": [1, *image.shape],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    return head + raw, {LENGTH_HEADER: str(len(head))}


def _oip_answer(body: bytes, _headers: Any) -> tuple[int, bool]:
    outputs = {output["name"]: output["data"][0] for output in json.loads(body)["outputs"]}
    return outputs["prediction"], outputs["deferred"]


def _json_answer(body: bytes, _headers: Any) -> tuple[int, bool]:
    found = json.loads(body)
    found = found[0] if isinstance(found, list) else found
    return found["prediction"], found["deferred"]


def _base64(image: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(image, np.float32).tobytes()).decode()


def servers(folder: Path, rivals: str, input_name: str) -> dict[str, Server]:
    """All servers, ours first."""
    ours = [sys.executable, "-m", "ebjr", "serve", str(folder / "joint.toml")]
    apps = HERE / "rivals"
    return {
        "ebjr": Server(
            lambda port, threads: [*ours, "--port", str(port), "--threads", str(threads)],
            "/v2/models/joint/infer",
            "application/octet-stream",
            lambda image: oip_body(image, input_name),
            _oip_answer,
        ),
        "litserve": Server(
            lambda port, _threads: [rivals, str(apps / "litserve_app.py"), str(port)],
            "/predict",
            "application/json",
            lambda image: (json.dumps({"image": _base64(image)}).encode(), {}),
            _json_answer,
            "litserve",
        ),
        "bentoml": Server(
            lambda port, _threads: [
                *(rivals, "-m", "bentoml", "serve", "bentoml_app:Cascade"),
                *("--working-dir", str(apps), "--host", "127.0.0.1", "--port", str(port)),
            ],
            "/predict",
            "application/json",
            lambda image: (json.dumps({"images": [_base64(image)]}).encode(), {}),
            _json_answer,
            "bentoml",
        ),
        "ray_serve": Server(
            lambda port, _threads: [rivals, str(apps / "ray_app.py"), str(port)],
            "/",
            "application/octet-stream",
            lambda image: (np.ascontiguousarray(image, np.float32).tobytes(), {}),
            _json_answer,
            "ray",
        ),
    }


@dataclass(frozen=True)
class Running:
    """A server that runs: its address, and the group of its processes."""

    url: str
    group: int


@contextmanager
def running(
    server: Server, folder: Path, environment: dict[str, str], threads: int
) -> Iterator[Running]:
    """A server in a process group of its own, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(
        server.command(port, threads),
        env={**os.environ, **environment, "CASCADE_THREADS": str(threads)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Running(f"http://127.0.0.1:{port}{server.path}", process.pid)
    finally:
        for sent, patience in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
            with_group = process.poll() is None or sent == signal.SIGKILL
            if with_group:
                try:
                    os.killpg(process.pid, sent)
                    process.wait(patience)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
        log.close()


def ask(server: Server, url: str, image: np.ndarray, timeout: float = 10) -> tuple[int, bool]:
    """One image, asked of a server: the label, and whether the teacher was asked."""
    body, headers = server.body(image)
    request = urllib.request.Request(
        url, body, {"Content-Type": server.content_type, **headers}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return server.read(answer.read(), answer.headers)


def wait_for(server: Server, url: str, image: np.ndarray, seconds: float = 120) -> None:
    """Ask until there is an answer.

    Raises
    ------
    TimeoutError
        There is none.
    """
    until, came = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        try:
            ask(server, url, image)
        except urllib.error.HTTPError as error:
            came = f": {error.read().decode()}"
        except OSError as error:
            came = f": {error}"
        else:
            return
        time.sleep(0.3)
    raise TimeoutError(f"{url} did not answer within {seconds:g} s{came}")


def offline_loop(folder: Path, threshold: float, seconds: float = 6.0) -> tuple[float, float]:
    """Both sessions in a bare loop: batches of 64, deferred rows gathered to batches of 64.

    Returns
    -------
    tuple
        Images per second, and core milliseconds of one.
    """
    words = [str(folder / "student.onnx"), str(folder / "teacher.onnx"), str(folder / "images.npy")]
    done = subprocess.run(
        [sys.executable, str(HERE / "offline.py"), *words, str(threshold), str(seconds)],
        capture_output=True,
        text=True,
        check=True,
    )
    rate, spent = map(float, done.stdout.split())
    return rate, spent


def prepare(folder: Path) -> tuple[np.ndarray, JointClassifier]:
    """Write models, joint.toml and images; the images and the joint model that is served."""
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            (folder / name).write_bytes(path.read_bytes())
    with shipped("outcomes.npz") as path:
        point = calibrate(
            Outcomes.load(path).split(0.5, seed=0)[0], score="softmax", blend=0.0, margin=0.0
        )
    models = [load_model(folder / f"{role}.onnx", threads=1) for role in ("student", "teacher")]
    joint = JointClassifier(*models, Router("softmax", point.threshold))
    save_joint(folder / "joint.toml", joint, point=point)
    pixels, _ = load_cifar10("test")
    chosen = np.random.default_rng(0).permutation(len(pixels))[:IMAGES]
    images = np.ascontiguousarray(pixels[chosen].transpose(0, 3, 1, 2), np.float32) / 255
    np.save(folder / "images.npy", images)
    return images, joint


def target_of(server: Server, url: str, name: str, images: np.ndarray, folder: Path) -> Target:
    """The prepared bodies of all images."""
    bodies = folder / name
    bodies.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        body, headers = server.body(image)
        (bodies / f"{number}.body").write_bytes(body)
    return Target(url, str(bodies), len(images), server.content_type, headers)


def agreement(server: Server, url: str, images: np.ndarray, joint: JointClassifier) -> float:
    """The share of images that a server answers as our joint model does, and defers alike."""
    answer = joint(images)
    said = [ask(server, url, image) for image in images]
    wanted = list(zip(answer.prediction.tolist(), answer.deferred.tolist(), strict=True))
    return float(np.mean([one == other for one, other in zip(said, wanted, strict=True)]))


def bare_call(images: np.ndarray, joint: JointClassifier) -> float:
    """The median time of the student's session on one image, in milliseconds, with no server."""
    times = []
    for image in images[:300]:
        began = time.perf_counter()
        joint.student(image[None])
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def versions(rivals: str, chosen: dict[str, Server]) -> dict[str, str | None]:
    """What of the rivals the environment holds."""
    names = [server.needs for server in chosen.values() if server.needs]
    code = (
        "import importlib.metadata as m, json, sys\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run([rivals, "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", default=sys.executable, help="the rivals' Python")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="these servers alone; nothing is written then")
    options = parser.parse_args()
    figures: dict[str, Any] = {**about(seed=0), "images": IMAGES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images, joint = prepare(folder)
        chosen = servers(folder, options.rivals, joint.student.input_name)
        known = versions(options.rivals, chosen)
        figures["versions"] = known
        chosen = {
            name: server
            for name, server in chosen.items()
            if (server.needs is None or known[server.needs])
            and (not options.only or name in options.only)
        }
        threshold = joint.router.threshold
        figures["deferral_rate"] = float(joint(images).deferred.mean())
        environment = {
            "CASCADE_STUDENT": str(folder / "student.onnx"),
            "CASCADE_TEACHER": str(folder / "teacher.onnx"),
            "CASCADE_THRESHOLD": repr(threshold),
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH")])),
        }
        threads = _best_threads(chosen, images, folder, environment)
        figures["threads"] = threads
        found = _rounds(chosen, threads, images, joint, folder, environment, options)
        figures.update(found)
        best = max(
            (rates["64"] for name, rates in found["images_per_second"].items() if name in known),
            default=0.0,
        )
        if best:
            figures["at_rate"] = _latencies(
                chosen, threads, images, folder, environment, best, options
            )
    if options.only:
        print(json.dumps(figures, indent=2))
    else:
        save("serving", figures)


def _best_threads(
    chosen: dict[str, Server], images: np.ndarray, folder: Path, environment: dict[str, str]
) -> dict[str, int]:
    """With how many threads for each model a server is fastest at the most clients."""
    best = {}
    for name, server in chosen.items():
        found = {}
        for threads in {1, os.cpu_count() or 1}:
            with running(server, folder, environment, threads) as place:
                wait_for(server, place.url, images[0])
                target = target_of(server, place.url, name, images, folder)
                as_fast_as_possible(target, 16, 2)  # warm
                measured = as_fast_as_possible(target, CLIENTS[-1], 4)
                found[threads] = measured["images_per_second"]
        print(name, "by threads:", found, flush=True)
        best[name] = max(found, key=lambda threads: found[threads])
    return best


def _rounds(
    chosen: dict[str, Server],
    threads: dict[str, int],
    images: np.ndarray,
    joint: JointClassifier,
    folder: Path,
    environment: dict[str, str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Throughput by server and number of clients, medians over rounds; and the offline loop's."""
    offline: list[tuple[float, float]] = []
    rates: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in chosen}
    agreed: dict[str, float] = {}
    alone: dict[str, float] = {}
    for _ in range(options.rounds):
        offline.append(offline_loop(folder, joint.router.threshold))
        for name, server in chosen.items():
            with running(server, folder, environment, threads[name]) as place:
                wait_for(server, place.url, images[0])
                target = target_of(server, place.url, name, images, folder)
                agreed[name] = agreement(server, place.url, images[:100], joint)
                as_fast_as_possible(target, 16, 2)  # warm
                for clients in CLIENTS:
                    before = group_seconds(place.group)
                    measured = as_fast_as_possible(target, clients, options.seconds)
                    spent = 1e3 * (group_seconds(place.group) - before) / options.seconds
                    measured["core_milliseconds"] = round(spent / measured["images_per_second"], 3)
                    rates[name].setdefault(str(clients), []).append(measured)
                    print(name, clients, measured, flush=True)
                one = as_fast_as_possible(target, 1, max(2, options.seconds // 2))
                alone[name] = one["p50_milliseconds"]
    bare, bare_milliseconds = np.median(offline, axis=0).tolist()

    def median(name: str, clients: str, figure: str) -> float:
        return float(np.median([measured[figure] for measured in rates[name][clients]]))

    return {
        "offline_images_per_second": round(bare, 1),
        "images_per_second": {
            name: {clients: median(name, clients, "images_per_second") for clients in found}
            for name, found in rates.items()
        },
        "share_of_offline": {
            name: {
                clients: round(median(name, clients, "images_per_second") / bare, 3)
                for clients in found
            }
            for name, found in rates.items()
        },
        "p99_milliseconds": {
            name: {clients: median(name, clients, "p99_milliseconds") for clients in found}
            for name, found in rates.items()
        },
        "core_milliseconds": {
            "offline": round(bare_milliseconds, 3),
            "wrk": {
                clients: median("ebjr", clients, "wrk_core_milliseconds")
                for clients in rates.get("ebjr", {})
            },
            **{
                name: {clients: median(name, clients, "core_milliseconds") for clients in found}
                for name, found in rates.items()
            },
        },
        "one_client_p50_milliseconds": alone,
        "bare_call_p50_milliseconds": round(bare_call(images, joint), 3),
        "agrees_with_the_joint_model": agreed,
    }


def _latencies(
    chosen: dict[str, Server],
    threads: dict[str, int],
    images: np.ndarray,
    folder: Path,
    environment: dict[str, str],
    best: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Latencies under an open loop at a share of the best rival's throughput; None: it cannot."""
    found: dict[str, Any] = {}
    for name, server in chosen.items():
        with running(server, folder, environment, threads[name]) as place:
            wait_for(server, place.url, images[0])
            target = target_of(server, place.url, name, images, folder)
            as_fast_as_possible(target, 16, 2)
            try:
                found[name] = at_rate(target, LOAD_SHARE * best, options.seconds)
            except subprocess.CalledProcessError:  # it refuses requests at this rate
                found[name] = None
            print(name, found[name], flush=True)
    return found


if __name__ == "__main__":
    main()

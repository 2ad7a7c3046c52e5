"""Section 3.2: the student here, the teacher far. `python -m experiments.edge_cloud [--quick]`.

The shipped pair, its teacher behind `ebjr serve` in a process of its own, and between the two a
real TCP connection over loopback that is as slow as a link of 1, 10 or 100 Mbit/s with 20 ms each
way (`ShapedLink`: no burst, one direction does not wait for the other, and a delay). Images travel
as PNG files, bytes are those that moved, one image is asked for at a time. Accuracy is that of the
held-out half of the test set at each deferral rate. Times are this machine's, which runs student,
teacher and link at once; beside them is what the link alone takes, which no machine could beat. The
paper describes this setup and has no figures of it.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ebjr import (
    FarTeacher,
    JointClassifier,
    Link,
    Preprocess,
    Preprocessed,
    Router,
    TradeOffCurve,
    calibrate,
    load_model,
    over_link,
)
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from experiments.frame import COLORS, Run, start
from experiments.pairs import shipped_pair

MBITS = (1, 10, 100)
DELAY_SECONDS = 0.02
REQUESTS = 200
RATES = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
CHUNK = 1448
SHADES = {1: "#9CC9F0", 10: "#3F8FD6", 100: "#0B3D70"}


class ShapedLink:
    """TCP to a server on this machine, as over a link of limited speed.

    Parameters
    ----------
    port
        The server's.
    bits_per_second
        In each direction, for all connections together.
    delay_seconds
        From one end to the other.

    Attributes
    ----------
    port
        Where to connect instead.
    """

    def __init__(self, port: int, bits_per_second: float, delay_seconds: float) -> None:
        self._server, self._rate, self._delay = port, bits_per_second, delay_seconds
        self._free = {"there": 0.0, "back": 0.0}
        self._loop = asyncio.new_event_loop()
        self.port = 0
        opened = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[opened], daemon=True)
        self._thread.start()
        opened.wait()

    def close(self) -> None:
        """Cut it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, opened: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        listening = self._loop.run_until_complete(
            asyncio.start_server(self._connect, "127.0.0.1", 0)
        )
        self.port = listening.sockets[0].getsockname()[1]
        opened.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        listening.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connect(self, reader: Any, writer: Any) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server)
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(
            self._carry("there", reader, far_writer), self._carry("back", far_reader, writer)
        )

    async def _carry(self, way: str, reader: Any, writer: Any) -> None:
        """Send on what comes, no faster than the link, each part delayed."""
        while data := await reader.read(CHUNK):
            now = self._loop.time()
            self._free[way] = max(now, self._free[way]) + 8 * len(data) / self._rate
            self._loop.call_at(self._free[way] + self._delay, writer.write, data)
            await asyncio.sleep(self._free[way] - now)
        self._loop.call_at(self._loop.time() + self._delay, writer.close)


@contextmanager
def served_teacher() -> Iterator[int]:
    """The shipped teacher behind `ebjr serve`; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with shipped("teacher.onnx") as file:
        words = [sys.executable, "-m", "ebjr", "serve", str(file), "--preprocess", "size=32"]
        process = subprocess.Popen(
            [*words, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int, seconds: float = 120.0) -> None:
    """Until somebody listens there."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens on port {port}")


def asked_one_by_one(joint: JointClassifier, images: np.ndarray) -> dict[str, Any]:
    """Milliseconds of each image's answer, and how many the teacher gave."""
    joint(images[:1])
    spent, deferred, degraded = [], 0, 0
    for image in images:
        began = time.perf_counter()
        answer = joint(image[None])
        spent.append(1e3 * (time.perf_counter() - began))
        deferred += int(answer.deferred[0])
        degraded += int(answer.degraded[0])
    quantiles = np.quantile(spent, [0.5, 0.95]).round(1)
    return {
        "p50_ms": quantiles[0],
        "p95_ms": quantiles[1],
        "mean_ms": round(float(np.mean(spent)), 1),
        "deferral_rate": deferred / len(images),
        "degraded": degraded,
    }


def on_link(
    port: int, mbits: int, thresholds: dict[str, float], score: Any, images: np.ndarray
) -> dict[str, Any]:
    """Every threshold over one link, and the bytes that an image moves."""
    link = ShapedLink(port, 1e6 * mbits, DELAY_SECONDS)
    try:
        with shipped("student.onnx") as file:
            student = Preprocessed(load_model(file, threads=1), Preprocess(size=32))
        remote = load_model(f"http://127.0.0.1:{link.port}", timeout_seconds=30)
        far = FarTeacher(remote, Link(retries=0))
        joint = JointClassifier(student, far, Router(score, 0.0))
        remote(images[:1])
        before = remote.bytes_moved
        for image in images:
            remote(image[None])
        moved = (remote.bytes_moved - before) / len(images)
        alone = 2 * DELAY_SECONDS + 8 * moved / (1e6 * mbits)
        found: dict[str, Any] = {"bytes_per_image": moved, "link_alone_ms": 1e3 * alone, "at": {}}
        for name, threshold in thresholds.items():
            joint.router.threshold = threshold
            found["at"][name] = asked_one_by_one(joint, images)
        far.close()
        return found
    finally:
        link.close()


def measure(run: Run) -> dict[str, Any]:
    """Accuracy by bytes, and times on every link; each link is a step."""
    outcomes = shipped_pair()
    calibration, held_out = outcomes.split(0.5, 0)
    rows = outcomes.split_rows(0.5, 0)[1]
    chosen = calibrate(calibration, blend=0.0, margin=0.0)
    curve = TradeOffCurve.of(held_out, chosen.router.score)
    points = {f"{rate:g}": curve.at(deferral_rate=rate) for rate in RATES}
    points["chosen"] = curve.at(threshold=chosen.threshold)
    images = load_cifar10("test")[0][rows[: 40 if run.quick else REQUESTS]]
    thresholds = {name: point.threshold for name, point in points.items()}
    thresholds["1"] = 1e30  # every image, those that tie with the best score too
    by_link = {}
    with served_teacher() as port:
        for mbits in MBITS[1:2] if run.quick else MBITS:
            by_link[f"{mbits}"] = run.step(
                f"{mbits} Mbit/s",
                partial(on_link, port, mbits, thresholds, chosen.router.score, images),
            )
    bytes_each = next(iter(by_link.values()))["bytes_per_image"]
    far = over_link(held_out, bytes=bytes_each)
    return {
        "score": chosen.score,
        "bytes_per_image": round(bytes_each, 1),
        "points": {
            name: {
                "deferral_rate": round(point.deferral_rate, 4),
                "accuracy": round(100 * point.quality, 2),
                "bytes": round(far.teacher_cost.bytes * point.deferral_rate, 1),
            }
            for name, point in points.items()
        },
        "links": by_link,
        "teacher": 100 * held_out.quality("teacher"),
        "requests": len(images),
    }


def draw(run: Run, found: dict[str, Any]) -> None:
    """Accuracy against bytes, and against the 95th percentile on every link."""
    points = {name: row for name, row in found["points"].items() if name != "chosen"}
    with run.picture(2, 1) as axes:
        left, right = axes[0]
        accuracy = [row["accuracy"] for row in points.values()]
        left.plot(
            [row["bytes"] for row in points.values()], accuracy, "o-", color=COLORS["softmax"]
        )
        chosen = found["points"]["chosen"]
        left.plot(chosen["bytes"], chosen["accuracy"], "o", color=COLORS["chosen"], markersize=8)
        left.set_xlabel("bytes moved per image")
        left.set_ylabel("accuracy, %")
        for mbits, link in found["links"].items():
            times = [link["at"][name]["p95_ms"] for name in points]
            color = SHADES[int(mbits)]
            right.plot(times, accuracy, "o-", color=color, label=f"{mbits} Mbit/s")
            at = link["at"]["chosen"]["p95_ms"]
            right.plot(at, chosen["accuracy"], "o", color=COLORS["chosen"], markersize=8)
        right.set_xlabel("95th percentile of one image's time, ms")
        right.legend(frameon=False, fontsize=8)


def main(run: Run) -> dict[str, Any]:
    """Measure, compare with sending everything, draw."""
    found = measure(run)
    chosen, everything = found["points"]["chosen"], found["points"]["1"]
    first = f"{next(iter(found['links']))} Mbit/s"
    run.compare(
        "CIFAR-10: bytes to the cloud per image, everything sent",
        paper=None,
        ours=everything["bytes"],
        unit="B",
        lower=True,
        step=first,
        why=f"{everything['accuracy']} % right",
    )
    run.compare(
        "CIFAR-10: bytes to the cloud per image, joint model aiming at the teacher's accuracy",
        paper=None,
        ours=chosen["bytes"],
        unit="B",
        lower=True,
        points=round(chosen["accuracy"] - found["teacher"], 2),
        pair="cifar10",
        step=first,
        why=f"{everything['bytes'] / chosen['bytes']:.1f} times fewer",
    )
    for mbits, link in found["links"].items():
        joint, cloud = link["at"]["chosen"], link["at"]["1"]
        run.compare(
            f"CIFAR-10 over {mbits} Mbit/s: mean time of an image, joint and all in the cloud",
            paper="no figure",
            ours=f"{joint['mean_ms']:g} and {cloud['mean_ms']:g} ms",
            pair="cifar10",
            step=f"{mbits} Mbit/s",
            timed=True,
            why=f"the link alone takes {link['link_alone_ms']:.1f} ms; p95 {joint['p95_ms']:g} and "
            f"{cloud['p95_ms']:g} ms, {joint['deferral_rate']:.1%} of the images deferred",
        )
    draw(run, found)
    run.caption = (
        "Points are deferral rates of 0, 5, 10, 20, 40 and 100 %; the large one is what calibration"
        " chose for the teacher's accuracy. One image at a time, 20 ms each way. The machine "
        f"({run.about['machine']}) had a load of {run.about['load']} when it began."
    )
    return found


if __name__ == "__main__":
    start(main, "Section 3.2: edge and cloud")

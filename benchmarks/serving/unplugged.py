"""The cloud is unplugged for a minute under load and comes back: does any request fail?

Two real processes: `ebjr serve` of the teacher alone, the cloud, and `ebjr serve` of a joint model
whose teacher is at that address, the edge. Clients ask the edge for one image after the other. The
cloud is first stopped (SIGSTOP: it takes connections and says nothing), comes back, is then killed
(SIGKILL), and is started again. Recovery is the time from its return, for the killed one from its
first word that it serves, to the first answer of the teacher.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.machine import about, free_port, save
from ebjr import FarTeacher, JointClassifier, Link, Preprocess, Router, load_model, save_joint
from ebjr.data.preprocess import prepared
from ebjr.demo import shipped
from ebjr.protocol import InferRequest, read_response, write_request

LENGTH = "Inference-Header-Content-Length"
IMAGES = Preprocess(size=32)
CLIENTS = 8


class Server:
    """Start `ebjr serve` in a separate process."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "ebjr", "serve", *words, "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split(" at ")[1].strip()

    def send(self, what: int) -> None:
        """Send the process a signal."""
        self.process.send_signal(what)

    def end(self, what: int = signal.SIGTERM) -> None:
        """Send it one that ends it, and wait."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(what)
        self.process.communicate(timeout=60)


class Client(threading.Thread):
    """Asks for one image after the other, and keeps what came of it and when."""

    def __init__(self, url: str, seed: int, ended: threading.Event) -> None:
        super().__init__()
        self.rows: list[tuple[float, float, bool, bool]] = []  # when, seconds, deferred, degraded
        self.failed: list[str] = []
        self._url, self._ended = url, ended
        self._rng = np.random.default_rng(seed)

    def run(self) -> None:
        """Until told to end."""
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while not self._ended.is_set():
                image = self._rng.integers(0, 256, (1, 32, 32, 3), np.uint8)
                body, length = write_request(InferRequest({"image": image}, binary=True))
                began = time.monotonic()
                try:
                    headers = {LENGTH: str(length)}
                    said = client.post("/v2/models/joint/infer", content=body, headers=headers)
                    said.raise_for_status()
                    found = read_response(said.content, said.headers.get(LENGTH)).outputs
                except Exception as error:  # whatever it is, a request has failed
                    self.failed.append(f"{type(error).__name__}: {error}")
                    continue
                now = time.monotonic()
                marks = bool(found["deferred"][0]), bool(found["degraded"][0])
                self.rows.append((now, now - began, *marks))
                time.sleep(0.02)


def write_config(folder: Path, cloud: str) -> Path:
    """joint.toml of the shipped student and a far teacher; about half of the rows are deferred."""
    with shipped("student.onnx") as path:
        (folder / "student.onnx").write_bytes(path.read_bytes())
    student = prepared(load_model(folder / "student.onnx", threads=1), IMAGES)
    noise = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    router = Router("softmax", 0.5)
    router.threshold = float(np.median(router.score(student(noise))))
    teacher = FarTeacher(load_model(cloud), Link())
    save_joint(folder / "joint.toml", JointClassifier(student, teacher, router))
    return folder / "joint.toml"


def figures_of(rows: np.ndarray, began: float, back: float) -> dict[str, Any]:
    """Return the results of requests while the cloud was away, and the time until its next use."""
    away = rows[(rows[:, 0] > began) & (rows[:, 0] < back)]
    needed = away[(away[:, 2] > 0) | (away[:, 3] > 0)]
    taught = rows[(rows[:, 0] > back) & (rows[:, 2] > 0)]
    return {
        "seconds_away": round(back - began, 1),
        "requests": len(away),
        "needed_the_teacher": len(needed),
        "of_these_degraded": int(needed[:, 3].sum()),
        "p50_milliseconds": round(1e3 * float(np.quantile(away[:, 1], 0.5)), 2),
        "p99_milliseconds": round(1e3 * float(np.quantile(away[:, 1], 0.99)), 2),
        "longest_milliseconds": round(1e3 * float(away[:, 1].max()), 2),
        "recovery_seconds": round(float(taught[0, 0] - back), 2) if len(taught) else None,
    }


def measure(seconds: float) -> dict[str, Any]:
    """Both kinds of outage, one after the other, under the same load."""
    port = str(free_port())
    with tempfile.TemporaryDirectory() as name, shipped("teacher.onnx") as path:
        folder = Path(name)
        words = (str(path), "--preprocess", IMAGES.as_text(), "--port", port)
        cloud = Server(*words)
        edge = Server(str(write_config(folder, cloud.url)), "--port", "0")
        ended = threading.Event()
        clients = [Client(edge.url, seed, ended) for seed in range(CLIENTS)]
        try:
            for client in clients:
                client.start()
            time.sleep(5)
            marks = {"stopped": [time.monotonic()]}
            cloud.send(signal.SIGSTOP)
            time.sleep(seconds)
            cloud.send(signal.SIGCONT)
            marks["stopped"].append(time.monotonic())
            time.sleep(10)
            marks["killed"] = [time.monotonic()]
            cloud.end(signal.SIGKILL)
            time.sleep(seconds)
            cloud = Server(*words)
            marks["killed"].append(time.monotonic())
            time.sleep(10)
        finally:
            ended.set()
            for client in clients:
                client.join()
            edge.end()
            cloud.end()
    rows = np.array(sorted(row for client in clients for row in client.rows))
    before = rows[rows[:, 0] < marks["stopped"][0]]
    return {
        "clients": CLIENTS,
        "requests": len(rows),
        "failed": [error for client in clients for error in client.failed],
        "degraded_before": int(before[:, 3].sum()),
        **{how: figures_of(rows, *times) for how, times in marks.items()},
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each outage")
    options = parser.parse_args()
    figures = measure(options.seconds)
    save("unplugged", {**about(0), "seconds": options.seconds, **figures})


if __name__ == "__main__":
    main()

"""A server under mixed load for minutes: does its memory stay flat, and is every answer right?

A real process serves the shipped pair with all that a server can have switched on: autopilot,
audits, audit log, monitors, JSON logs. Clients of many kinds ask at once: single images and
batches, pixels, files and forms, JSON and binary, compressed, with deadlines and thresholds of
their own, malformed, and some that hang up while they wait; others move the knob and read the
metrics and the page. Once a second the process's resident memory is read; growth is that of its
median over the last tenth of the run against the first tenth after the warm-up.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from benchmarks.machine import about, save
from ebjr.demo import run_demo
from ebjr.protocol import InferRequest, read_response, write_request

INFER = "/v2/models/joint/infer"
LENGTH = "Inference-Header-Content-Length"
CLIENTS = 12
WARM_UP = 0.25  # of the run
BOMB = gzip.compress(bytes(80 * 2**20))


def pixels(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random images."""
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8)


def png(image: np.ndarray) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def binary(array: np.ndarray, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """A request with its tensors after the JSON, and the header that says where."""
    asked = InferRequest({"image": array}, parameters=parameters, binary=True)
    body, length = write_request(asked)
    return body, {} if length is None else {LENGTH: str(length)}


class Client(threading.Thread):
    """Asks one thing after the other, chosen by chance, and checks what comes back."""

    def __init__(self, url: str, seed: int, until: float) -> None:
        super().__init__(name=f"client-{seed}")
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.seconds: list[float] = []
        self._rng = np.random.default_rng(seed)
        self._random = random.Random(seed)
        self._url, self._until = url, until
        self._kinds: dict[Callable[[httpx2.Client], httpx2.Response | None], int] = {
            self.single: 40,
            self.batch: 15,
            self.files: 10,
            self.form: 5,
            self.plain: 5,
            self.own_threshold: 10,
            self.hurried: 5,
            self.malformed: 5,
            self.bomb: 1,
            self.hang_up: 3,
            self.knob: 2,
            self.look: 3,
        }

    def run(self) -> None:
        """Ask until the time is over."""
        kinds, weights = list(self._kinds), list(self._kinds.values())
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while time.monotonic() < self._until:
                (kind,) = self._random.choices(kinds, weights)
                name = kind.__name__
                began = time.perf_counter()
                try:
                    answer = kind(client)
                except httpx2.TransportError as error:
                    if kind != self.hang_up:
                        self.wrong.append(f"{name}: {type(error).__name__} {error}")
                    continue
                self.seconds.append(time.perf_counter() - began)
                if answer is not None:
                    self.statuses[f"{name} {answer.status_code}"] += 1

    def single(self, client: httpx2.Client) -> httpx2.Response:
        """One image as a binary tensor."""
        return self._infer(client, *binary(pixels(self._rng, 1)))

    def batch(self, client: httpx2.Client) -> httpx2.Response:
        """Some images as one binary tensor."""
        return self._infer(client, *binary(pixels(self._rng, int(self._rng.integers(2, 17)))))

    def files(self, client: httpx2.Client) -> httpx2.Response:
        """Images as PNG files in a BYTES tensor."""
        images = np.empty(3, object)
        images[:] = [png(image) for image in pixels(self._rng, 3)]
        return self._infer(client, *binary(images))

    def form(self, client: httpx2.Client) -> httpx2.Response:
        """Images as a form."""
        files = [("image", ("x.png", png(image))) for image in pixels(self._rng, 2)]
        return client.post(INFER, files=files, data={"timeout": "20"})

    def plain(self, client: httpx2.Client) -> httpx2.Response:
        """JSON alone, compressed."""
        body, _ = write_request(InferRequest({"image": pixels(self._rng, 1)}), binary=False)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        return client.post(INFER, content=gzip.compress(body), headers=headers)

    def own_threshold(self, client: httpx2.Client) -> httpx2.Response:
        """With a threshold of its own."""
        own = float(self._rng.uniform(0.3, 1.0))
        return self._infer(client, *binary(pixels(self._rng, 2), threshold=own), threshold=own)

    def hurried(self, client: httpx2.Client) -> httpx2.Response:
        """With so short a deadline that some rows stay with the student."""
        return client.post(INFER, **_sent(*binary(pixels(self._rng, 8), timeout=0.01)))

    def malformed(self, client: httpx2.Client) -> httpx2.Response:
        """Something that is no request."""
        body = self._random.choice([b"{", b"[]", b'{"inputs": []}', self._rng.bytes(2000)])
        return client.post(INFER, content=body)

    def bomb(self, client: httpx2.Client) -> httpx2.Response:
        """A body that is far larger once it is decompressed."""
        return client.post(INFER, content=BOMB, headers={"Content-Encoding": "gzip"})

    def hang_up(self, client: httpx2.Client) -> None:
        """Ask for much, and go away."""
        body, headers = binary(pixels(self._rng, 64))
        with httpx2.Client(base_url=self._url, timeout=0.005) as hasty:
            hasty.post(INFER, content=body, headers=headers)

    def knob(self, client: httpx2.Client) -> httpx2.Response:
        """Move the knob, or give it back to the autopilot."""
        wish: dict[str, Any] = {"hold": "deferral_rate=0.3", "between": [0.01, 0.9]}
        if self._rng.random() < 0.5:
            wish = {"deferral_rate": float(self._rng.uniform(0.05, 0.5))}
        return client.put("/v1/router", json=wish)

    def look(self, client: httpx2.Client) -> httpx2.Response:
        """Read the metrics, the status or the page."""
        return client.get(self._random.choice(["/metrics", "/v1/status", "/"]))

    def _infer(
        self,
        client: httpx2.Client,
        body: bytes,
        headers: dict[str, str],
        threshold: float | None = None,
    ) -> httpx2.Response:
        answer = client.post(INFER, **_sent(body, headers))
        if answer.status_code == 200:
            self._check(answer, threshold)
        return answer

    def _check(self, answer: httpx2.Response, threshold: float | None) -> None:
        found = read_response(answer.content, answer.headers.get(LENGTH))
        said = float(found.parameters["threshold"])
        kept = found.outputs["score"].astype(np.float64) >= said
        asked = found.outputs["deferred"] | found.outputs["degraded"]
        if (kept == asked).any() or threshold not in (None, said):
            self.wrong.append(f"an answer is torn: threshold {said}, asked for {threshold}")


def _sent(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    return {"content": body, "headers": headers}


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The shipped pair in a process of its own, with everything switched on."""
    joint = run_demo(folder / "demo", recorded=True).files["joint.toml"]
    command = [sys.executable, "-m", "ebjr", "serve", str(joint), "--port", "0", "--threads", "1"]
    command += ["--audit-log", str(folder / "audit.jsonl"), "--audit-rate", "0.02"]
    command += ["--hold", "deferral_rate=0.3", "--between", "0.01,0.9", "--log", "json"]
    with (
        (folder / "log.jsonl").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def resident(pid: int) -> float:
    """MiB of memory that a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    """Run the load, and what came of it."""
    with serving(folder) as (process, url):
        until = time.monotonic() + 60 * minutes
        clients = [Client(url, seed, until) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        memory = []
        while any(client.is_alive() for client in clients):
            memory.append(resident(process.pid))
            time.sleep(1.0)
        status = httpx2.get(f"{url}/v1/status", timeout=60).json()
        process.send_signal(signal.SIGTERM)
        ended = process.wait(60)
    warm = memory[int(WARM_UP * len(memory)) :]
    tenth = max(1, len(warm) // 10)
    first, last = float(np.median(warm[:tenth])), float(np.median(warm[-tenth:]))
    statuses = sum((client.statuses for client in clients), Counter[str]())
    seconds = np.concatenate([client.seconds for client in clients])
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "minutes": minutes,
        "clients": CLIENTS,
        "requests": int(sum(statuses.values())),
        "answers": dict(sorted(statuses.items())),
        "wrong": sorted({text for client in clients for text in client.wrong}),
        "server_errors": [key for key in statuses if key.endswith((" 500", " 503"))],
        "errors_logged": sorted({line["message"] for line in log if line["level"] == "error"}),
        "p50_milliseconds": round(1e3 * float(np.quantile(seconds, 0.5)), 2),
        "p99_milliseconds": round(1e3 * float(np.quantile(seconds, 0.99)), 2),
        "resident_mib": {
            "start": round(memory[0], 1),
            "after_warm_up": round(first, 1),
            "end": round(last, 1),
            "most": round(max(memory), 1),
            "each_tenth": [round(float(np.median(part)), 1) for part in np.array_split(memory, 10)],
        },
        "growth_after_warm_up": round(last / first - 1, 4),
        "knob_moves": len((folder / "audit.jsonl").read_text().splitlines()),
        "audits": status["monitor"]["audits"],
        "exit_code_after_sigterm": ended,
    }


def main() -> None:
    """Run for so many minutes, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), minutes)
    save("serving_soak", {**about(seed=0), **found})


if __name__ == "__main__":
    main()

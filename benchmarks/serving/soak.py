"""A server under bad clients for minutes: bounded memory, right answers, a neighbor's latency.

A real process serves the shipped pair with all that a server can have switched on: autopilot,
audits, audit log, monitors, JSON logs. Clients of many kinds ask at their leisure: single images
and batches, pixels, files and forms, JSON and binary, compressed, with deadlines and thresholds of
their own; some move the knob and read the metrics and the page. A neighbor asks for one image 25
times a second, on up to 16 connections, and must get the same answer each time; its latency counts
from the time when it meant to ask. So much is the quiet phase. Each of them has an address of its
own. Then bad company comes, all of it from one address, as of one machine with many connections:
the largest images and the most rows that the server admits, one after the other without a pause,
bombs, clients that send or read a byte at a time or hang up, malformed requests.

Each kind of client is a process of its own. With ``--apart`` server and clients have a core each,
as they have where they are on machines of their own, and the neighbor, which costs next to nothing,
goes before the other clients: what it waits for then is the server alone. Once a second the
server's resident memory is read, and when all have left, after the warm-up and at the end: growth
is from one rest to the other. The most that it ever held is the kernel's own figure; its bound
follows from the server's limits.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import io
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
from PIL import Image

from benchmarks import malformed
from benchmarks.machine import about, save
from benchmarks.serving.processes import resident
from ebjr.demo import run_demo
from ebjr.protocol import InferRequest, read_response, write_request
from ebjr.serving.admission import SPARE
from ebjr.serving.limits import Limits

INFER = "/v2/models/joint/infer"
LENGTH = "Inference-Header-Content-Length"
CLIENTS = 8
PAUSE_SECONDS = 0.15
NEIGHBOR_SECONDS, NEIGHBOR_CONNECTIONS = 0.04, 16
FIRST = -10  # the niceness of the neighbor, whose own process is not what is measured
QUIET, WARM_UP = 0.1, 0.2  # of the run
REST_SECONDS = 4.0
BOMB = gzip.compress(bytes(80 * 2**20))
SIDES = (512, 1024, 2048, 4096, 8190)
ROWS = (64, 256, 1024, 4096, 16384)
PATIENCE_SECONDS = 10.0  # what takes longer alone is not tried larger
BAD_ADDRESS, NEIGHBOR_ADDRESS = "127.0.0.2", "127.0.0.3"
BATCHES_MIB = 128.0
"""What models and queues may take beyond the bodies and images that the limits count."""
GOALS = {"growth": 0.02, "p99_over_quiet": 3.0}


def opened(url: str, address: str) -> httpx2.Client:
    """A client that asks from an address of its own, as on a machine of its own."""
    return httpx2.Client(
        base_url=url, timeout=60, transport=httpx2.HTTPTransport(local_address=address)
    )


def pixels(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random images."""
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8)


def png(image: np.ndarray) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def files_of(*files: bytes) -> np.ndarray:
    """Files as a BYTES tensor."""
    found = np.empty(len(files), object)
    found[:] = files
    return found


def binary(array: np.ndarray, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """A request with its tensors after the JSON, and the header that says where."""
    asked = InferRequest({"image": array}, parameters=parameters, binary=True)
    body, length = write_request(asked)
    return body, {} if length is None else {LENGTH: str(length)}


@dataclass
class Heard:
    """Results of the requests of a process."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, other: Heard) -> None:
        """Count another's too."""
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.seconds += other.seconds


class Client(threading.Thread):
    """Asks one thing after the other, chosen by chance, and checks what comes back."""

    def __init__(self, url: str, seed: int, until: float) -> None:
        super().__init__(name=f"client-{seed}")
        self.heard = Heard()
        self._address = f"127.0.1.{seed % 100 + 1}"
        self._rng = np.random.default_rng(seed)
        self._random = random.Random(seed)
        self._url, self._until = url, until
        self._kinds: dict[Callable[[httpx2.Client], httpx2.Response], int] = {
            self.single: 40,
            self.batch: 15,
            self.files: 10,
            self.form: 5,
            self.plain: 5,
            self.own_threshold: 10,
            self.hurried: 5,
            self.knob: 2,
            self.look: 3,
        }

    def run(self) -> None:
        """Ask until the time is over, with pauses."""
        kinds, weights = list(self._kinds), list(self._kinds.values())
        with opened(self._url, self._address) as client:
            while time.monotonic() < self._until:
                (kind,) = self._random.choices(kinds, weights)
                name = kind.__name__
                began = time.perf_counter()
                try:
                    answer = kind(client)
                except httpx2.TransportError as error:
                    self.heard.wrong.append(f"{name}: {type(error).__name__} {error}")
                    continue
                self.heard.seconds.append(time.perf_counter() - began)
                self.heard.statuses[f"{name} {answer.status_code}"] += 1
                time.sleep(self._random.expovariate(1 / PAUSE_SECONDS))

    def single(self, client: httpx2.Client) -> httpx2.Response:
        """Ask about one image as a binary tensor."""
        return self._infer(client, *binary(pixels(self._rng, 1)))

    def batch(self, client: httpx2.Client) -> httpx2.Response:
        """Ask about some images as one binary tensor."""
        return self._infer(client, *binary(pixels(self._rng, int(self._rng.integers(2, 17)))))

    def files(self, client: httpx2.Client) -> httpx2.Response:
        """Images as PNG files in a BYTES tensor."""
        images = files_of(*(png(image) for image in pixels(self._rng, 3)))
        return self._infer(client, *binary(images))

    def form(self, client: httpx2.Client) -> httpx2.Response:
        """Images as a form."""
        files = [("image", ("x.png", png(image))) for image in pixels(self._rng, 2)]
        return client.post(INFER, files=files, data={"timeout_seconds": "20"})

    def plain(self, client: httpx2.Client) -> httpx2.Response:
        """JSON alone, compressed."""
        body, _ = write_request(InferRequest({"image": pixels(self._rng, 1)}), binary=False)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        return client.post(INFER, content=gzip.compress(body), headers=headers)

    def own_threshold(self, client: httpx2.Client) -> httpx2.Response:
        """Ask with a threshold for this request."""
        own = float(self._rng.uniform(0.3, 1.0))
        return self._infer(client, *binary(pixels(self._rng, 2), threshold=own), threshold=own)

    def hurried(self, client: httpx2.Client) -> httpx2.Response:
        """With so short a deadline that some rows stay with the student."""
        return client.post(INFER, **_sent(*binary(pixels(self._rng, 8), timeout_seconds=0.01)))

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
            self.heard.wrong.append(f"an answer is torn: threshold {said}, asked for {threshold}")


def _sent(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    return {"content": body, "headers": headers}


def mixed(url: str, seconds: float, seed: int) -> Heard:
    """Clients of many kinds, for some time."""
    until = time.monotonic() + seconds
    return heard_of([Client(url, 100 * seed + number, until) for number in range(CLIENTS)])


def neighbor(url: str, seconds: float) -> Heard:
    """A client that asks about the same images repeatedly and must get the same answers.

    It asks when it means to, on another connection if an answer has not come yet.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    heard = Heard()
    wanted: dict[int, tuple[int, bool]] = {}
    asked = [binary(row[None], threshold=0.5) for row in pixels(np.random.default_rng(0), 8)]
    numbers = iter(range(int(seconds / NEIGHBOR_SECONDS)))

    def ask() -> None:
        for number in numbers:
            due, number = began + number * NEIGHBOR_SECONDS, number % len(asked)
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                answer = client.post(INFER, **_sent(*asked[number]))
            except httpx2.TransportError as error:
                heard.wrong.append(f"neighbor: {type(error).__name__} {error}")
                continue
            heard.seconds.append(time.perf_counter() - due)
            heard.statuses[f"neighbor {answer.status_code}"] += 1
            if answer.status_code == 200:
                found = read_response(answer.content, answer.headers.get(LENGTH)).outputs
                said = int(found["prediction"][0]), bool(found["deferred"][0])
                if wanted.setdefault(number, said) != said:
                    heard.wrong.append(f"a neighbor got {said}, not {wanted[number]}")

    with opened(url, NEIGHBOR_ADDRESS) as client:
        began = time.perf_counter()
        threads = [threading.Thread(target=ask) for _ in range(NEIGHBOR_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return heard


@dataclass(frozen=True)
class Worst:
    """The largest requests that the server has admitted when it was idle."""

    side: int
    rows: int


class Company(threading.Thread):
    """A client that repeats one kind of misuse, from a separate address."""

    def __init__(self, url: str, deed: str, worst: Worst, until: float) -> None:
        super().__init__(name=deed)
        self.heard = Heard()
        place = urlsplit(url)
        self._address = (str(place.hostname), int(place.port or 80))
        self._deed, self._until, self._worst = deed, until, worst
        self._number = 0

    def run(self) -> None:
        """Until the time is over; who is refused waits a little."""
        deed: Callable[[], int | None] = getattr(self, self._deed)()
        while time.monotonic() < self._until:
            try:
                status = deed()
            except (OSError, http.client.HTTPException) as error:
                self.heard.statuses[f"{self._deed} {type(error).__name__}"] += 1
                status = None
            if status is not None:
                self.heard.statuses[f"{self._deed} {status}"] += 1
            if status != 200:
                time.sleep(0.05)

    def images(self) -> Callable[[], int]:
        """The largest images that are admitted."""
        body, headers = large_image(self._worst.side)
        return lambda: self._post(body, headers)

    def rows(self) -> Callable[[], int]:
        """The most rows that are admitted."""
        body, headers = many_rows(self._worst.rows)
        return lambda: self._post(body, headers)

    def bombs(self) -> Callable[[], int]:
        """Bodies that are far larger once they are decompressed."""
        return lambda: self._post(BOMB, {"Content-Encoding": "gzip"})

    def slow_senders(self) -> Callable[[], None]:
        """Clients that send a byte at a time, and go away."""
        return self._drip

    def slow_readers(self) -> Callable[[], None]:
        """Clients that ask for much and do not read it."""
        return self._stare

    def quitters(self) -> Callable[[], None]:
        """Clients that ask for much and go away."""
        return self._quit

    def breakers(self) -> Callable[[], None]:
        """Malformed requests of our fuzzer."""
        connection = http.client.HTTPConnection(
            *self._address, timeout=60, source_address=(BAD_ADDRESS, 0)
        )
        return lambda: self._break(connection)

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection(
            *self._address, timeout=60, source_address=(BAD_ADDRESS, 0)
        )
        try:
            connection.request("POST", INFER, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def _open(self) -> socket.socket:
        return socket.create_connection(self._address, 60, source_address=(BAD_ADDRESS, 0))

    def _drip(self) -> None:
        body, headers = many_rows(64)
        with self._open() as wire, suppress(OSError):
            wire.sendall(head_of(headers, len(body)))
            for byte in body[:50]:
                wire.sendall(bytes([byte]))
                time.sleep(0.1)

    def _stare(self) -> None:
        body, headers = many_rows(min(1024, self._worst.rows))
        with self._open() as wire, suppress(OSError):
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.sendall(head_of(headers, len(body)) + body)
            time.sleep(5)

    def _quit(self) -> None:
        body, headers = many_rows(min(256, self._worst.rows))
        with self._open() as wire, suppress(OSError):
            wire.sendall(head_of(headers, len(body)) + body)
        time.sleep(0.2)

    def _break(self, connection: http.client.HTTPConnection) -> None:
        tally, self._number = malformed.Tally(), self._number + 1
        malformed.send(connection, self._number, 1, tally)
        for status in tally.statuses:
            self.heard.statuses[f"breakers {status}"] += 1


DEEDS = (
    "images",
    "images",
    "rows",
    "bombs",
    "slow_senders",
    "slow_readers",
    "quitters",
    "breakers",
)


def company(url: str, seconds: float, worst: Worst) -> Heard:
    """All of the bad company, for some time."""
    until = time.monotonic() + seconds
    return heard_of([Company(url, deed, worst, until) for deed in DEEDS])


def heard_of(threads: Sequence[Client] | Sequence[Company]) -> Heard:
    """Results of all requests of some threads."""
    for thread in threads:
        thread.start()
    whole = Heard()
    for thread in threads:
        thread.join()
        whole.add(thread.heard)
    return whole


def head_of(headers: dict[str, str], length: int) -> bytes:
    """The head of a request for answers."""
    lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", *map(": ".join, headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {length}", "\r\n"]).encode()


def large_image(side: int) -> tuple[bytes, dict[str, str]]:
    """A request for one large image, a small file."""
    return binary(files_of(png(np.zeros((side, side, 3), np.uint8))))


def many_rows(count: int) -> tuple[bytes, dict[str, str]]:
    """A request for many small images."""
    return binary(np.zeros((count, 8, 8, 3), np.uint8))


def largest(
    url: str, sizes: Sequence[int], request: Callable[[int], tuple[bytes, dict[str, str]]]
) -> int:
    """The largest size that an idle server admits, up to where it takes long."""
    found = sizes[0]
    with httpx2.Client(base_url=url, timeout=60) as client:
        for size in sizes:
            began = time.perf_counter()
            if client.post(INFER, **_sent(*request(size))).status_code != 200:
                break
            found = size
            if time.perf_counter() - began > PATIENCE_SECONDS:
                break
    return found


@contextmanager
def serving(folder: Path, cores: Sequence[int]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve the shipped pair in a separate process on these cores, with every feature on."""
    joint = run_demo(folder / "demo", recorded=True).files["joint.toml"]
    command = [sys.executable, "-m", "ebjr", "serve", str(joint), "--port", "0", "--threads", "1"]
    command += ["--audit-log", str(folder / "audit.jsonl"), "--audit-rate", "0.02"]
    command += ["--hold", "deferral_rate=0.3", "--between", "0.01,0.9", "--log", "json"]
    with (
        (folder / "log.jsonl").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            os.sched_setaffinity(process.pid, cores)
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def most_resident(pid: int) -> float:
    """MiB that a process has held at most."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


class Soak:
    """A server that is asked, phase by phase, while its memory is read."""

    def __init__(self, url: str, pid: int, worst: Worst, pool: ProcessPoolExecutor) -> None:
        self.url, self.pid, self.worst = url, pid, worst
        self.memory: list[float] = []
        self._pool = pool
        self._phases = 0

    def phase(self, seconds: float, *, bad: bool) -> dict[str, Heard]:
        """Everybody asks for some time, with the bad company or without."""
        self._phases += 1
        jobs = {
            "neighbor": self._pool.submit(neighbor, self.url, seconds),
            "mixed": self._pool.submit(mixed, self.url, seconds, self._phases),
        }
        if bad:
            jobs["company"] = self._pool.submit(company, self.url, seconds, self.worst)
        while not all(job.done() for job in jobs.values()):
            self.memory.append(resident(self.pid))
            time.sleep(1.0)
        return {name: job.result() for name, job in jobs.items()}

    def rest(self) -> float:
        """MiB that the server holds when all have left."""
        time.sleep(REST_SECONDS)
        return resident(self.pid)


def soak(folder: Path, minutes: float, *, apart: bool) -> dict[str, Any]:
    """Run the load, and what came of it."""
    spawned = multiprocessing.get_context("spawn")
    known = sorted(os.sched_getaffinity(0))
    cores = (known[:1], known[1:]) if apart else (known, known)
    own: dict[str, Any] = {
        "mp_context": spawned,
        "initializer": os.sched_setaffinity,
        "initargs": (0, cores[1]),
    }
    with serving(folder, cores[0]) as (process, url), ProcessPoolExecutor(3, **own) as pool:
        start = resident(process.pid)
        worst = Worst(largest(url, SIDES, large_image), largest(url, ROWS, many_rows))
        print(worst, flush=True)
        run = Soak(url, process.pid, worst, pool)
        quiet = run.phase(60 * minutes * QUIET, bad=False)
        warm = run.phase(60 * minutes * WARM_UP, bad=True)
        rested, before = run.rest(), len(run.memory)
        loud = run.phase(60 * minutes * (1 - QUIET - WARM_UP), bad=True)
        ended = run.rest()
        most = most_resident(process.pid)
        status = httpx2.get(f"{url}/v1/status", timeout=60).json()
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(60)
    heard = Heard()
    for each in (*quiet.values(), *warm.values(), *loud.values()):
        heard.add(each)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    late, calm = (percentiles(each["neighbor"].seconds) for each in (loud, quiet))
    bound = start + SPARE * Limits().held_bytes / 2**20 + BATCHES_MIB
    growth = round(ended / rested - 1, 4)
    ratio = round(late["p99_milliseconds"] / calm["p99_milliseconds"], 2)
    return {
        "minutes": minutes,
        "clients": CLIENTS,
        "apart": apart,
        "worst_admitted": asdict(worst),
        "requests": sum(heard.statuses.values()),
        "answers": dict(sorted(heard.statuses.items())),
        "wrong": sorted(set(heard.wrong)),
        "server_errors": [key for key in heard.statuses if key.endswith((" 500", " 503"))],
        "errors_logged": sorted({line["message"] for line in log if line["level"] == "error"}),
        "mixed": percentiles(loud["mixed"].seconds),
        "neighbor": late,
        "neighbor_when_quiet": calm,
        "neighbor_p99_over_quiet": ratio,
        "resident_mib": {
            "start": round(start, 1),
            "at_rest_after_warm_up": round(rested, 1),
            "at_rest_at_the_end": round(ended, 1),
            "most": round(most, 1),
            "bound": round(bound, 1),
            "each_tenth": [
                round(float(np.median(part)), 1) for part in np.array_split(run.memory[before:], 10)
            ],
        },
        "growth_after_warm_up": growth,
        "met": {
            "growth": growth < GOALS["growth"],
            "bound": most <= bound,
            "p99_over_quiet": ratio <= GOALS["p99_over_quiet"],
            "no_wrong_answer": not heard.wrong,
        },
        "knob_moves": len((folder / "audit.jsonl").read_text().splitlines()),
        "audits": status["monitor"]["audits"],
        "exit_code_after_sigterm": exit_code,
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile, in milliseconds, and how many there are."""
    p50, p99 = 1e3 * np.quantile(seconds, [0.5, 0.99])
    return {
        "answers": len(seconds),
        "p50_milliseconds": round(float(p50), 2),
        "p99_milliseconds": round(float(p99), 2),
    }


def main() -> None:
    """Run for the given minutes and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--apart", action="store_true", help="server and clients on their own cores"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), asked.minutes, apart=asked.apart)
    save("serving_soak_apart" if asked.apart else "serving_soak", {**about(seed=0), **found})


if __name__ == "__main__":
    main()

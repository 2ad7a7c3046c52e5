"""A thousand reloads under load, and ten models beside one: nothing fails, nothing grows.

``python -m benchmarks.serving.reloads`` takes about ten minutes on two cores; ``--reloads 40
--windows 2 --seconds 2`` about one, and writes nothing. A real process serves the shipped pair from
a folder of models while clients in a process of their own ask for one image after the other. Every
other reload changes the threshold alone, which the service takes over; the others change the
models' files, so that a new service is loaded, asked, and the old one let go. Both are asked for by
``POST /v2/repository/models/photos/load``. Whatever is answered by another status than 200, or not
at all, is a failure, and so is a threshold that was never any file's. Resident memory is read at
rest, with no request at work and the old services gone, after each twentieth of the reloads. Growth
is from the least reading of the first half to that of the second: what ONNX Runtime keeps for
itself differs by tens of MiB from one load to the next.

Then two servers run side by side, one with one model and one with ten, each of which has files of
its own. The same clients ask one model of either, in windows in turn; a figure is the ratio of two
windows that follow each other, so that a change of the machine's speed meets both alike. What ten
models take in memory is told with files of their own and with shared ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import onnx
from scipy.stats import t as student_t

from benchmarks.machine import RESULTS, about, save
from benchmarks.serving.processes import resident
from ebjr import JointConfig
from ebjr.demo import run_demo
from ebjr.files import sha256_of
from ebjr.joint_file import Entry, JointEntry, ModelEntry

CLIENTS = 4
THRESHOLDS = (0.6, 0.8)  # of the two files that take turns
PAUSE_SECONDS = 0.1  # between two reloads
REST_SECONDS = 3.0
TEN = 10
GOALS = {"failed": 0, "growth": 0.02, "ten_over_one": 0.95}


def body() -> bytes:
    """A request for one image, in JSON."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8"}
    return json.dumps({"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}).encode()


def variant(config: JointConfig, folder: Path, number: int) -> JointConfig:
    """Copy the joint model to files with other bytes and the same answers."""

    def copied(entry: Entry) -> Entry:
        if isinstance(entry, JointEntry):
            both = {"student": copied(entry.student), "teacher": copied(entry.teacher)}
            return replace(entry, **both)
        assert isinstance(entry, ModelEntry)
        model, path = onnx.load(entry.path), folder / f"{Path(entry.path).stem}-{number}.onnx"
        model.doc_string = f"copy {number}"
        onnx.save(model, path)
        return replace(entry, path=str(path), sha256=sha256_of(path))

    return replace(config, student=copied(config.student), teacher=copied(config.teacher))


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve a folder of models in a separate process."""
    command = [sys.executable, "-m", "ebjr", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@dataclass
class Heard:
    """Results of the requests of all clients."""

    statuses: Counter[str] = field(default_factory=Counter)
    thresholds: set[float] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


async def _ask(url: str, name: str, heard: Heard, until: float, stop: Any) -> None:
    place, payload = urlsplit(url), body()
    request = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    ).encode() + payload
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    while time.monotonic() < until and not stop.is_set():
        began = time.perf_counter()
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            heard.statuses[type(error).__name__] += 1
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            continue
        heard.seconds.append(time.perf_counter() - began)
        heard.statuses[head.split()[1].decode()] += 1
        if "parameters" in answer:
            heard.thresholds.add(answer["parameters"]["threshold"])
    writer.close()


def ask(url: str, name: str, seconds: float, began: Any, stop: Any, found: Any) -> None:
    """All clients, in a process of their own; what they heard goes into the queue `found`."""
    heard, until = Heard(), time.monotonic() + seconds
    began.set()

    async def every() -> None:
        await asyncio.gather(*(_ask(url, name, heard, until, stop) for _ in range(CLIENTS)))

    asyncio.run(every())
    found.put(heard)


@contextmanager
def asked(url: str, name: str, seconds: float = math.inf) -> Iterator[list[Heard]]:
    """Clients that ask until the end; what they heard is in the list afterwards."""
    spawn = multiprocessing.get_context("spawn")
    began, stop, queue = spawn.Event(), spawn.Event(), spawn.Queue()
    process = spawn.Process(target=ask, args=(url, name, seconds, began, stop, queue))
    process.start()
    began.wait(60)
    heard: list[Heard] = []
    try:
        yield heard
    finally:
        if seconds == math.inf:
            stop.set()
        heard.append(queue.get())
        process.join(60)


def held(pid: int) -> dict[str, float]:
    """Return the resident memory of a process."""
    return {
        "resident_mib": round(resident(pid), 1),
        "threads": len([*Path(f"/proc/{pid}/task").iterdir()]),
        "files": len([*Path(f"/proc/{pid}/fd").iterdir()]),
    }


def reloads(folder: Path, config: JointConfig, count: int) -> dict[str, Any]:
    """Reload again and again while clients ask."""
    shop, place = folder / "models", folder / "models" / "photos"
    place.mkdir(parents=True)
    files = [variant(config, folder, number) for number in range(2)]
    replace(files[0], threshold=THRESHOLDS[0]).save(place / "joint.toml")
    looks = sorted({count * part // 20 for part in range(21)})
    took: dict[str, list[float]] = {"calibration": [], "weights": []}
    heard, memory, refused = Heard(), {}, 0
    with serving(shop) as (process, url), httpx2.Client(base_url=url, timeout=60) as client:

        def load(number: int) -> int:
            """The file of that number: every other one has other weights than the one before."""
            own = files[(number + 1) // 2 % 2]
            replace(own, threshold=THRESHOLDS[number % 2]).save(place / "joint.toml")
            began = time.perf_counter()
            status = client.post("/v2/repository/models/photos/load").status_code
            took["weights" if number % 2 else "calibration"].append(time.perf_counter() - began)
            return status

        for number in range(10):  # to warm up: allocators, and code that was never run
            load(number)
        for times in took.values():
            times.clear()
        done = 0
        for until in looks:
            with asked(url, "photos") as found:
                while done < until:
                    refused += load(done) != 200
                    time.sleep(PAUSE_SECONDS)
                    done += 1
                if not until:
                    time.sleep(REST_SECONDS)
            heard.statuses += found[0].statuses
            heard.thresholds |= found[0].thresholds
            heard.seconds += found[0].seconds
            time.sleep(REST_SECONDS)
            memory[until] = held(process.pid)
            print(until, memory[until], dict(heard.statuses), flush=True)
    known = [memory[number]["resident_mib"] for number in looks[1:]]
    least = [min(half) for half in (known[: len(known) // 2], known[len(known) // 2 :])]
    p50, p99 = 1e3 * np.quantile(heard.seconds, [0.5, 0.99])
    return {
        "reloads": count,
        "refused_reloads": refused,
        "reload_milliseconds": {
            kind: round(1e3 * float(np.median(times)), 1) for kind, times in took.items() if times
        },
        "requests": sum(heard.statuses.values()),
        "failed": sum(heard.statuses.values()) - heard.statuses["200"],
        "answers": dict(heard.statuses),
        "strange_thresholds": sorted(heard.thresholds - {*THRESHOLDS}),
        "p50_milliseconds": round(float(p50), 2),
        "p99_milliseconds": round(float(p99), 2),
        "at_rest_after": {str(number): found for number, found in memory.items()},
        "growth": round(least[1] / least[0] - 1, 4),
    }


def ten_beside_one(
    folder: Path, config: JointConfig, windows: int, seconds: float
) -> dict[str, Any]:
    """The same traffic to one model, of one and of ten that are loaded."""
    shops = {name: folder / name for name in ("one", "ten", "ten_sharing")}
    for name, shop in shops.items():
        for number in range(1 if name == "one" else TEN):
            own = config if name == "ten_sharing" else variant(config, folder, number)
            (shop / f"model-{number}").mkdir(parents=True)
            own.save(shop / f"model-{number}" / "joint.toml")
    with ExitStack() as stack:
        running = {name: stack.enter_context(serving(shop)) for name, shop in shops.items()}
        rates: dict[str, list[float]] = {"one": [], "ten": []}
        for number in range(windows + 1):  # the first one warms up
            for name in ("one", "ten") if number % 2 else ("ten", "one"):
                with asked(running[name][1], "model-0", seconds) as found:
                    pass
                assert set(found[0].statuses) == {"200"}, found[0].statuses
                rates[name].append(len(found[0].seconds) / seconds)
        memory = {name: held(process.pid) for name, (process, _) in running.items()}
    pairs = zip(rates["ten"][1:], rates["one"][1:], strict=True)
    ratios = np.log([ten / one for ten, one in pairs])
    spread = float(student_t.ppf(0.975, max(len(ratios) - 1, 1)) * ratios.std(ddof=1))
    spread /= math.sqrt(len(ratios))
    middle = float(ratios.mean())
    return {
        "windows": windows,
        "seconds": seconds,
        "requests_per_second": {
            name: round(float(np.median(each[1:])), 1) for name, each in rates.items()
        },
        "ten_over_one": round(math.exp(middle), 4),
        "interval": [round(math.exp(middle + side * spread), 4) for side in (-1, 1)],
        "memory": memory,
    }


def main() -> None:
    """Run both, and write the result file unless it was a short try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = JointConfig.read(run_demo(folder / "demo", recorded=True).files["joint.toml"])
        config = replace(config, operating_points={}, calibration={})
        soaked = reloads(folder, config, given.reloads)
        beside = ten_beside_one(folder, config, given.windows, given.seconds)
    met = {
        "failed": soaked["failed"] == soaked["refused_reloads"] == GOALS["failed"],
        "thresholds": not soaked["strange_thresholds"],
        "growth": soaked["growth"] < GOALS["growth"],
        "ten_over_one": beside["ten_over_one"] >= GOALS["ten_over_one"],
    }
    found = {**about(seed=0), "clients": CLIENTS, "under_load": soaked, "beside": beside}
    found["met"] = met
    if given.reloads < 1000:
        print(json.dumps(found, indent=2))
    else:
        save("reloads", found, RESULTS)


if __name__ == "__main__":
    main()

"""Server cost of a request beyond the models: processor time by thread, in microseconds.

Student and teacher are slices of the image and cost next to nothing. Clients of another process
post one image each as a binary tensor, again and again, and what the server's threads spent is read
from their own clocks, so that a busy machine disturbs little. With ``--beside`` another version's
source is measured in turn with this one, each time in a process of its own.

    python -m benchmarks.serving.request --clients 16 --beside ../before/src
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import about, save
from benchmarks.serving.servers import oip_body

ROOT = Path(__file__).parents[2]
WARM_UP = 3_000
DEFERRED = 0.1


def images() -> np.ndarray:
    """Return the request's inputs."""
    return np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)


def first_numbers(batch: np.ndarray) -> np.ndarray:
    """Ten numbers of each image, as logits."""
    return np.ascontiguousarray(batch[:, 0, 0, :10])


def serve(clients: int, requests: int) -> None:
    """Serve until a client process has sent `requests`, print what each thread spent, and end."""
    from ebjr import JointClassifier, Router
    from ebjr.serving.app import Served, run_server

    threshold = float(np.quantile(first_numbers(images()).max(axis=1), DEFERRED))
    joint = JointClassifier(first_numbers, first_numbers, Router("max_logit", threshold))

    def measure(url: str) -> None:
        _ask(url, clients, WARM_UP)
        before, whole = _spent(), time.process_time()
        _ask(url, clients, requests)
        spent = {name: after - before[name] for name, after in _spent().items()}
        spent["process"] = time.process_time() - whole
        print(json.dumps({name: 1e6 * each / requests for name, each in spent.items()}), flush=True)
        os._exit(0)

    def started(url: str) -> None:
        threading.Thread(target=measure, args=(url,), name="measure", daemon=True).start()

    served = Served(joint, score_quantiles=tuple(np.linspace(0.0, 3.0, 101)))
    run_server(served, port=0, started=started)


def _ask(url: str, clients: int, requests: int) -> None:
    arguments = [sys.executable, "-m", "benchmarks.serving.request", "--ask", url]
    counts = ["--clients", str(clients), "--requests", str(requests)]
    subprocess.run([*arguments, *counts], check=True, cwd=ROOT)


def _spent() -> dict[str, float]:
    """Seconds of a processor that each of the server's threads has spent."""
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name == "MainThread" or thread.name.startswith("ebjr-")
        if thread.ident is not None
    }


async def ask(url: str, clients: int, requests: int) -> None:
    """Post one image at a time from each client."""
    place = url.removeprefix("http://")
    host, _, port = place.partition(":")
    messages = []
    for image in images():
        body, headers = oip_body(image, "input")
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        first = f"POST /v2/models/joint/infer HTTP/1.1\r\nHost: {place}\r\n{head}\r\n"
        messages.append(first.encode() + body)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in range(requests // clients):
            writer.write(messages[number % len(messages)])
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise RuntimeError(answer.decode())
            await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def measured(source: Path, clients: int, requests: int) -> dict[str, float]:
    """Return microseconds a request for each thread of a server in a separate process."""
    words = [sys.executable, "-m", "benchmarks.serving.request", "--serve"]
    counts = ["--clients", str(clients), "--requests", str(requests)]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, *counts], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, in turn with another version where there is one, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="the source of another version")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.clients, asked.requests)
    if asked.ask:
        asyncio.run(ask(asked.ask, asked.clients, asked.requests))
        return
    sources = {"this": ROOT / "src"} | ({"beside": asked.beside} if asked.beside else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    for number in range(asked.rounds):
        for name in list(sources) if number % 2 else list(sources)[::-1]:
            found[name].append(measured(sources[name].resolve(), asked.clients, asked.requests))
            print(name, {key: round(value) for key, value in found[name][-1].items()}, flush=True)
    save(
        "serving_request",
        {
            **about(0),
            "clients": asked.clients,
            "microseconds": {
                name: {
                    key: round(statistics.median(each[key] for each in rounds), 1)
                    for key in rounds[0]
                }
                for name, rounds in found.items()
            },
        },
    )


if __name__ == "__main__":
    main()

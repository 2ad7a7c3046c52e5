"""The servers that are compared: how each is started, asked and read, and what a user tunes."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from benchmarks.machine import free_port
from benchmarks.serving import processes
from ebjr.protocol import LENGTH_HEADER

APPS = Path(__file__).parent / "rivals"

Settings = Mapping[str, int | str]
Body = Callable[[np.ndarray], tuple[bytes, dict[str, str]]]


@dataclass(frozen=True)
class Server:
    """A server: how to start, ask and read it; its settings, the best first."""

    command: Callable[[int, Settings], list[str]]
    path: str
    content_type: str
    body: Body
    read: Callable[[bytes], tuple[int, bool]]
    tried: tuple[Settings, ...] = ({},)
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


def raw_body(image: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """An image as bare float32."""
    return np.ascontiguousarray(image, np.float32).tobytes(), {}


def base64_body(image: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """An image as base64 of float32 in JSON, for BentoML."""
    return json.dumps({"images": [base64.b64encode(raw_body(image)[0]).decode()]}).encode(), {}


def _oip_answer(body: bytes) -> tuple[int, bool]:
    outputs = {output["name"]: output["data"][0] for output in json.loads(body)["outputs"]}
    return outputs["prediction"], outputs["deferred"]


def _json_answer(body: bytes) -> tuple[int, bool]:
    found = json.loads(body)
    found = found[0] if isinstance(found, list) else found
    return found["prediction"], found["deferred"]


def servers(folder: Path, rivals: str, input_name: str) -> dict[str, Server]:
    """All servers, ours first."""
    uvicorn = (rivals, "-m", "uvicorn", "--app-dir", str(APPS), "--no-access-log")
    uvicorn += ("--loop", "uvloop", "--http", "httptools", "--log-level", "warning")

    def rival(
        command: Callable[[int, Settings], list[str]],
        path: str,
        needs: str,
        *tried: Settings,
        body: Body = raw_body,
    ) -> Server:
        kind = "application/octet-stream" if body is raw_body else "application/json"
        return Server(command, path, kind, body, _json_answer, tried, needs)

    def web(app: str) -> Callable[[int, Settings], list[str]]:
        return lambda port, settings: [
            *(*uvicorn, f"{app}:app", "--port", str(port)),
            *("--workers", str(settings.get("processes", 1))),
        ]

    def ours(port: int, settings: Settings) -> list[str]:
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "ebjr", "serve", str(folder / "joint.toml")]
        return [*command, "--port", str(port), *words]

    return {
        "ebjr": Server(
            ours,
            "/v2/models/joint/infer",
            "application/octet-stream",
            lambda image: oip_body(image, input_name),
            _oip_answer,
            ({"threads": 1}, {}),
        ),
        "batcher": rival(
            web("batcher_app"),
            "/predict",
            "starlette",
            {"workers": 2, "wait": 0, "model": "joint"},
            {"workers": 2, "wait": 0, "model": "joint", "batch": 16},
            {"workers": 2, "wait": 2, "model": "joint"},
            {"workers": 1, "wait": 0, "model": "joint", "processes": 2},
            {"workers": 2, "wait": 0},
            {"workers": 1, "wait": 0, "threads": 2},
        ),
        "fastapi": rival(
            web("fastapi_app"),
            "/predict",
            "fastapi",
            {"model": "joint", "processes": 2},
            {"model": "joint", "processes": 1, "threads": 2},
            {"model": "joint", "processes": 1, "aside": "yes"},
            {"model": "joint", "processes": 2, "aside": "yes"},
        ),
        "mosec": rival(
            lambda port, _: [
                *(rivals, str(APPS / "mosec_app.py"), "--port", str(port)),
                *("--address", "127.0.0.1", "--timeout", "20000", "--log-level", "warning"),
            ],
            "/inference",
            "mosec",
            {"workers": 2, "wait": 2},
            {"workers": 2, "wait": 10},
            {"workers": 2, "wait": 1, "batch": 16},
            {"workers": 2, "wait": 2, "model": "joint"},
            {"workers": 1, "threads": 2, "wait": 2},
        ),
        "litserve": rival(
            lambda port, _: [rivals, str(APPS / "litserve_app.py"), str(port)],
            "/predict",
            "litserve",
            {"workers": 2, "batch": 32},
            {"workers": 2, "batch": 32, "model": "joint"},
            {"workers": 1, "batch": 64},
        ),
        "bentoml": rival(
            lambda port, _: [
                *(rivals, "-m", "bentoml", "serve", "bentoml_app:Cascade"),
                *("--working-dir", str(APPS), "--host", "127.0.0.1", "--port", str(port)),
            ],
            "/predict",
            "bentoml",
            {"workers": 2, "batch": 32},
            {"workers": 2, "batch": 32, "model": "joint"},
            {"workers": 1, "threads": 2, "batch": 64},
            body=base64_body,
        ),
        "ray_serve": rival(
            lambda port, _: [rivals, str(APPS / "ray_app.py"), str(port)],
            "/",
            "ray",
            {"threads": 1, "batch": 64},
            {"threads": 2, "batch": 64},
        ),
    }


@dataclass(frozen=True)
class Running:
    """A server that runs: its address, and the mark that all its processes carry."""

    url: str
    mark: str

    @property
    def seconds(self) -> float:
        """Processor time that its processes have spent."""
        return processes.seconds(self.mark)

    def get(self, path: str) -> str:
        """Return its answer at another path."""
        place = self.url.split("/", 3)
        with urllib.request.urlopen(f"{place[0]}//{place[2]}{path}", timeout=10) as answer:
            return answer.read().decode()


@contextmanager
def running(
    server: Server, folder: Path, environment: Mapping[str, str], settings: Settings
) -> Iterator[Running]:
    """A server, until the block ends; then all its processes are gone."""
    port = free_port()
    mark = f"{processes.MARK}={uuid4().hex}"
    told = {f"CASCADE_{name.upper()}": str(value) for name, value in settings.items()}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            server.command(port, settings),
            env={**os.environ, **environment, **told, **dict([mark.split("=")])},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Running(f"http://127.0.0.1:{port}{server.path}", mark)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            processes.kill(mark)


def ask(server: Server, url: str, image: np.ndarray, timeout: float = 10) -> tuple[int, bool]:
    """Ask a server about one image: the label, and whether the teacher was asked."""
    body, headers = server.body(image)
    request = urllib.request.Request(
        url, body, {"Content-Type": server.content_type, **headers}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return server.read(answer.read())


def wait_for(server: Server, url: str, image: np.ndarray, seconds: float = 60) -> None:
    """Ask until there is an answer.

    Raises
    ------
    TimeoutError
        No server answers in time.
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
        time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {seconds:g} s{came}")


def versions(rivals: str, chosen: Mapping[str, Server]) -> dict[str, str | None]:
    """Return the rivals that the environment has."""
    names = [server.needs for server in chosen.values() if server.needs]
    code = (
        "import importlib.metadata as m, json, sys\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run([rivals, "-c", code, *names], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found

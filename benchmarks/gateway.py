"""Latency and throughput that a gateway adds to language models that answer at once.

A stub speaks OpenAI's chat completions, with the log-probabilities of 20 tokens, and answers
without a model. Before it stand in turn: nothing; `ebjr serve` with a student and a teacher that
are both the stub, and a tenth of the texts deferred; and LiteLLM's proxy, which passes each request
on to one model. A client of a process of its own posts texts that differ, first one at a time, then
from many connections. Each gateway is one process with a core of its own, as threads of one
interpreter only pass it to and fro between cores; stub and client share another core. With
``--free`` all share all cores.

    python -m benchmarks.gateway --litellm litellm

LiteLLM has an environment of its own, at the end of PATH: ``pip install 'litellm[proxy]'``. Without
``--litellm`` it is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httptools
import uvloop

from benchmarks.machine import about, free_port, save

ROOT = Path(__file__).parents[1]
MARK = b"unclear"  # in a text that the stub is not sure of
ONE_IN = 10  # texts has the mark
TEXTS = 1_000
WARM_UP = 300
SECONDS = 600  # after which a process ends by itself


def completion(yes: float, no: float) -> bytes:
    """The stub's answer: yes, with log-probabilities of both labels and 18 other tokens."""
    tokens = ["yes", "no", *(f"token{number}" for number in range(18))]
    shares = [yes, no, *(-9.0 - number for number in range(18))]
    top = [
        {"token": token, "logprob": share, "bytes": [*token.encode()]}
        for token, share in zip(tokens, shares, strict=True)
    ]
    message = {"role": "assistant", "content": "yes"}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    usage = {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51}
    about = {"id": "stub", "object": "chat.completion", "created": 1, "model": "stub"}
    return json.dumps({**about, "choices": [choice], "usage": usage}).encode()


class Stub(asyncio.Protocol):
    """One connection to the stub."""

    clear, unclear = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
        for body in (completion(-0.05, -4.0), completion(-0.7, -0.75))
    )

    def connection_made(self, transport: Any) -> None:
        self.transport, self.body = transport, b""
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.transport.write(self.unclear if MARK in self.body else self.clear)
        self.body = b""


async def stub(port: int) -> None:
    """Answer for a while."""
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Stub, "127.0.0.1", port):
        await asyncio.sleep(SECONDS)


def serve(port: int, address: str) -> None:
    """Serve what a ``joint.toml`` says: student and teacher, both the stub."""
    from ebjr.backends.entry import ChatEntry
    from ebjr.joint_file import JointConfig
    from ebjr.serving.app import run_server, served_of

    asked = {
        "chat": address,
        "model": "stub",
        "prompt": "Does this agree? {text} Answer yes or no.",
        "labels": ["yes", "no"],
        "price": {"input": 0.15, "output": 0.6},
        "concurrent": 32,
    }
    config = JointConfig(
        ChatEntry(asked), ChatEntry(asked), score="softmax", threshold=0.8, labels=("yes", "no")
    )
    run_server(served_of(config), port=port)


class Client(asyncio.Protocol):
    """A connection that asks again as soon as it is answered, until it has asked its share."""

    def __init__(
        self, requests: list[bytes], done: Callable[[list[float], list[str]], None]
    ) -> None:
        self.left, self.done = requests[::-1], done
        self.seconds: list[float] = []
        self.who: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.began = time.perf_counter()
        self.transport.write(self.left.pop())

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-ebjr-answered-by":
            self.who.append(value.decode())

    def on_message_complete(self) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        if self.parser.get_status_code() != 200:
            raise RuntimeError(f"status {self.parser.get_status_code()}")
        if self.left:
            self.ask()
        else:
            self.transport.close()
            self.done(self.seconds, self.who)


def messages(port: int) -> list[bytes]:
    """Requests that differ in their texts."""
    found = []
    for number in range(TEXTS):
        text = f"Text {number} is {'unclear' if number % ONE_IN == 0 else 'as clear as day'}."
        asked = {"model": "joint", "messages": [{"role": "user", "content": text}]}
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Content-Type: application/json\r\nAuthorization: Bearer sk-none\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


async def ask(port: int, clients: int, requests: int) -> dict[str, Any]:
    """Ask from `clients` connections: the time of each request, and which model answered."""
    texts, loop = messages(port), asyncio.get_running_loop()
    seconds: list[float] = []
    who: list[str] = []
    ended = asyncio.Event()
    each, left = requests // clients, clients

    def done(own: list[float], answered: list[str]) -> None:
        nonlocal left
        seconds.extend(own)
        who.extend(answered)
        left -= 1
        if not left:
            ended.set()

    began = time.perf_counter()
    for number in range(clients):
        own = [texts[(number * each + place) % TEXTS] for place in range(each)]
        await loop.create_connection(lambda own=own: Client(own, done), "127.0.0.1", port)
    await asyncio.wait_for(ended.wait(), SECONDS)
    spent = time.perf_counter() - began
    seconds.sort()
    return {
        "requests_per_second": len(seconds) / spent,
        "p50_ms": 1e3 * statistics.median(seconds),
        "p99_ms": 1e3 * seconds[int(0.99 * len(seconds))],
        "mean_ms": 1e3 * statistics.fmean(seconds),
        "teacher": who.count("teacher") / len(who) if who else None,
    }


def asked(port: int, clients: int, requests: int) -> dict[str, Any]:
    """Run `ask` in a separate process."""
    words = ["--ask", str(port), str(clients), str(requests)]
    done = subprocess.run(own_command(*words), check=True, cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout)


def own_command(*words: str) -> list[str]:
    """Return the command that runs this script with other arguments."""
    return [sys.executable, "-m", "benchmarks.gateway", *words]


@contextmanager
def process(
    words: list[str], port: int, core: int | None = None, **environment: str
) -> Iterator[None]:
    """A server at a port, on one core or any, from when it answers until the context ends."""
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    words = words if core is None else ["taskset", "-c", str(core), *words]
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(words, cwd=ROOT, env=own, stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if running.poll() is not None:
                        log.seek(0)
                        raise RuntimeError(log.read().decode()[-2000:]) from None
                    time.sleep(0.1)
            yield
        finally:
            running.terminate()
            running.wait(30)


def litellm_config(folder: Path, address: str) -> Path:
    """Configuration of LiteLLM's proxy: one model, no logs, no retries."""
    own = {"model": "openai/stub", "api_base": address, "api_key": "none"}
    config = {
        "model_list": [{"model_name": "joint", "litellm_params": own}],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    file = folder / "litellm.yaml"
    file.write_text(json.dumps(config))  # which is YAML, too
    return file


def main() -> None:
    """Measure all in turn, several times, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--litellm", help="LiteLLM's command, in its own environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=6_000)
    parser.add_argument("--free", action="store_true", help="no core is anybody's own")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=3, type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.stub:
        uvloop.run(stub(told.stub))
    elif told.serve:
        serve(int(told.serve[0]), told.serve[1])
    elif told.ask:
        print(json.dumps(uvloop.run(ask(*told.ask))))
    else:
        measure(told)


def measure(told: argparse.Namespace) -> None:
    """Start all, ask each in turn, and write what was found."""
    cores = sorted(os.sched_getaffinity(0))
    ours, theirs = (None, None) if told.free else (cores[0], cores[-1])
    if theirs is not None:
        os.sched_setaffinity(0, {theirs})  # the clients' too
    ports = {"stub": free_port(), "ebjr": free_port()}
    address = f"http://127.0.0.1:{ports['stub']}/v1"
    with ExitStack() as stack:
        stack.enter_context(process(own_command("--stub", str(ports["stub"])), ports["stub"]))
        stack.enter_context(
            process(own_command("--serve", str(ports["ebjr"]), address), ports["ebjr"], ours)
        )
        if told.litellm:
            ports["litellm"] = free_port()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            file = str(litellm_config(folder, address))
            where = ["--host", "127.0.0.1", "--port", str(ports["litellm"])]
            words = [command_of(told.litellm), "--config", file, *where]
            own = {
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # ours has none
            }
            stack.enter_context(process(words, ports["litellm"], ours, **own))
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
        for port in ports.values():
            asked(port, told.clients, WARM_UP)
        for number in range(told.rounds):
            for name in list(ports) if number % 2 else list(ports)[::-1]:
                few = told.requests // (10 if name == "litellm" else 1)
                one = asked(ports[name], 1, few // 4)
                many = asked(ports[name], told.clients, few)
                found = {
                    "one_client": {key: one[key] for key in ("p50_ms", "p99_ms", "mean_ms")},
                    "many_clients": {key: many[key] for key in ("requests_per_second", "p99_ms")},
                    "teacher": many["teacher"],
                }
                rounds[name].append(found)
                print(name, json.dumps(found), flush=True)
    known = {**about(0), "clients": told.clients, **summary(rounds)}
    if told.litellm:
        known["litellm_version"] = version_beside(command_of(told.litellm), "litellm")
    save("gateway_free" if told.free else "gateway", known)


def command_of(name: str) -> str:
    """Return the path of a command."""
    if (found := shutil.which(name)) is None:
        raise SystemExit(f"there is no command {name!r}: put its environment at the end of PATH")
    return found


def version_beside(command: str, package: str) -> str:
    """The version of a package in a command's own environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    words = [str(Path(command).with_name("python")), "-c", code]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def summary(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, and what each gateway adds to the stub."""

    def middle(name: str, *keys: str) -> float:
        values = []
        for each in rounds[name]:
            for key in keys:
                each = each[key]
            values.append(each)
        return round(statistics.median(values), 3)

    found: dict[str, Any] = {}
    for name in rounds:
        one = {key: middle(name, "one_client", key) for key in ("p50_ms", "p99_ms", "mean_ms")}
        many = {key: middle(name, "many_clients", key) for key in ("requests_per_second", "p99_ms")}
        found[name] = {"one_client": one, "many_clients": many}
        if name != "stub":
            bare = found["stub"]["one_client"]
            found[name]["added_ms"] = {
                key: round(one[f"{key}_ms"] - bare[f"{key}_ms"], 3) for key in ("p50", "mean")
            }
    if rounds["ebjr"][0]["teacher"] is not None:
        found["ebjr"]["deferred"] = middle("ebjr", "teacher")
    return {"rounds": len(rounds["stub"]), "figures": found}


if __name__ == "__main__":
    main()

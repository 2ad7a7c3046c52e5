"""Malformed requests at a real server: each is answered in one sentence, and no neighbor suffers.

Valid requests, as JSON, with binary tensors and with encoded images, compressed or not, are broken
in one to four places: their JSON, their bytes, their headers, their address. `ebjr serve` of the
shipped pair gets all of them, while two other clients ask it for the same images over and over.
What is broken so little that it is a request still is answered with 200; all else must be a 4xx
with one sentence. Some come over wires that break the rules: two Hosts, strange transfer codings,
a client that closes its side and waits. Every eighth is a gRPC call, for which the statuses that
are the server's own fault count as answers in the 500s. Each case is made from the seed and its
number alone.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import http.client
import io
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
from PIL import Image
from tritonclient.grpc import service_pb2

from benchmarks.machine import about, free_port, save
from benchmarks.serving.processes import resident
from ebjr import JointConfig, Preprocess
from ebjr.demo import shipped
from ebjr.joint_file import ModelEntry
from ebjr.protocol import DATATYPES, LENGTH_HEADER

CASES = 100_000
SEED = 0
WORKERS = 4
PAUSE_SECONDS = 0.01
REPORT_SECONDS = 5
INFER = "/v2/models/joint/infer"
OUTPUTS = ("prediction", "output", "score", "deferred", "degraded")
WISHES = {
    **{"threshold": 0.5, "deferral_rate": 0.2, "timeout_seconds": 20},
    **{"timeout": 20_000_000, "priority": 2},
}

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 255, 256, 2**31, 2**63, 2**64, -(2**63), 10**40),
    *(10**400, -(10**309), 2**1024, 10**308, -(2**1023)),
    *(1.5, -0.0, 1e308, "", "x" * 300, "\0", "\ud800", "\n\r", "../../etc/passwd", "joint"),
    *([], {}, [[]], [None], [1, [2]], {"a": {}}, {"name": "image"}),
    *DATATYPES,
    *OUTPUTS,
    *(*WISHES, "operating_point", "binary_data_size", "classification"),
)
SHAPES: tuple[list[int], ...] = (
    *([0, 2**62, 2**62], [2**62, 2**62, 0], [0, 2**63 - 1, 3], [0, 0, 0, 0], [0, 8, 8, 3], [0]),
    *([2**31, 2**31, 4], [2**32, 2**32], [1, 0, 0, 3], [1, 2**62, 2**62, 0], [-1, 8, 8, 3]),
    *([0, -1], [0, 2**40, 2**40, 3], [1] * 40, [0] * 100, [3, 2**21, 2**21]),
)
WORDS = (b"NaN", b"-Infinity", b"1e999", b"[" * 3000, b'"', b"\\", b"\xff", b"}", b"null", b"{")
GRPC_EVERY = 8
FAULTS = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "ABORTED", "CANCELLED")
"""Statuses of gRPC that say that it was not the request's fault."""


@dataclass
class Case:
    """An HTTP request."""

    body: bytes
    method: str = "POST"
    path: str = INFER
    headers: dict[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()  # headers more, said beside those above
    chunked: bool = False
    half_closed: bool = False  # the client closes its side, and waits
    never: bool = False  # an answer would be a fault

    @property
    def by_hand(self) -> bool:
        """Tell whether an HTTP client would refuse to send it."""
        return bool(self.lines or self.chunked or self.half_closed)


@dataclass
class Draft:
    """A request before it is written: JSON, and the bytes after it."""

    message: dict[str, Any]
    rest: bytes = b""


def made(seed: int, number: int) -> Case:
    """The case of a number."""
    random = Random(f"{seed}-{number}")
    draft = valid(random)
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        random.choice((break_json, break_json, break_json, break_shape))(random, draft)
    head = json.dumps(draft.message).encode()
    case = Case(head + draft.rest)
    if draft.rest or random.random() < 0.1:
        case.headers[LENGTH_HEADER] = str(len(head))
    for _ in range(random.choice((0, 1, 1, 2))):
        random.choice((break_bytes, break_bytes, break_headers, break_address))(random, case)
    if random.random() < 0.15:
        compress(random, case)
    if random.random() < 0.1:
        break_wire(random, case)
    return case


def valid(random: Random) -> Draft:
    """A request that has nothing wrong with it."""
    kind = random.choice(("json", "binary", "encoded"))
    rows, height, width = random.randint(1, 3), random.randint(1, 5), random.randint(1, 5)
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8"}
    pixels = random.randbytes(rows * height * width * 3)
    draft = Draft({"inputs": [tensor], "id": "7"})
    if kind == "encoded":
        files = [image_file(random, height, width) for _ in range(rows)]
        draft.rest = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        tensor |= {"datatype": "BYTES", "shape": [rows]}
    else:
        tensor["shape"] = [rows, height, width, 3]
    if kind == "json":
        tensor["data"] = list(pixels)
    else:
        draft.rest = draft.rest or pixels
        tensor["parameters"] = {"binary_data_size": len(draft.rest)}
    if random.random() < 0.5:
        names = random.sample(OUTPUTS, random.randint(1, 5))
        own = {"binary_data": random.random() < 0.5}
        if names == ["output"]:
            own["classification"] = random.randint(1, 12)
        draft.message["outputs"] = [{"name": name, "parameters": {**own}} for name in names]
    if random.random() < 0.5:
        wishes = {**WISHES, "binary_data_output": True}
        name = random.choice((*wishes,))
        draft.message["parameters"] = {name: wishes[name]}
    return draft


def image_file(random: Random, height: int, width: int) -> bytes:
    """Random pixels, encoded."""
    pixels = Image.frombytes("RGB", (width, height), random.randbytes(width * height * 3))
    file = io.BytesIO()
    pixels.save(file, random.choice(("PNG", "JPEG", "WEBP")))
    return file.getvalue()


def break_json(random: Random, draft: Draft) -> None:
    """Put something odd in some place, or take something away."""
    places = list(_places(draft.message))
    if not places:
        return
    table, key = random.choice(places)
    match random.randrange(4):
        case 0:
            del table[key]
        case 1 if isinstance(table, list):
            table.insert(key, copy.deepcopy(table[key]))
        case 2 if isinstance(table, dict):
            table[str(random.choice(ODD))] = random.choice(ODD)
        case _:
            table[key] = copy.deepcopy(random.choice(ODD))


def break_shape(random: Random, draft: Draft) -> None:
    """Say an absurd shape, perhaps with as few values as it claims."""
    inputs = draft.message.get("inputs")
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], dict):
        return
    inputs[0]["shape"] = list(random.choice(SHAPES))
    inputs[0]["datatype"] = random.choice(("UINT8", "FP32", "BYTES"))
    if random.random() < 0.7:
        draft.rest = b""
        for name in ("data", "parameters"):
            inputs[0].pop(name, None)
        empty = random.choice(({"data": []}, {"parameters": {"binary_data_size": 0}}))
        inputs[0].update(empty)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 4))
    for key in keys:
        yield value, key
        yield from _places(value[key])


def break_bytes(random: Random, case: Case) -> None:
    """Change, lose, double or add bytes of the body."""
    body = bytearray(case.body)
    start = random.randrange(len(body) + 1)
    end = min(len(body), start + random.choice((1, 1, 2, 4, 16, 200)))
    match random.randrange(6):
        case 0:
            body[start:end] = random.randbytes(end - start)
        case 1:
            del body[start:end]
        case 2:
            body[start:start] = body[start:end]
        case 3:
            body[start:start] = random.choice(WORDS)
        case 4:
            del body[start:]
        case _:
            body += random.randbytes(random.choice((1, 4, 100)))
    case.body = bytes(body)


def break_headers(random: Random, case: Case) -> None:
    """Say something else of the body than it is."""
    length = len(case.body)
    lengths = ("-1", "0", "1", "1e3", "0x10", "", "9" * 30, str(length), str(length + 1), "12 ")
    name, values = random.choice(
        (
            (LENGTH_HEADER, lengths),
            (LENGTH_HEADER, [str(random.randrange(length + 1))]),
            ("Content-Encoding", ("gzip", "deflate", "br", "gzip, gzip", "identity", "")),
            ("Content-Type", ("text/plain", "application/json; charset=utf-7", "", "multipart/x")),
            ("Accept-Encoding", ("gzip;q=x", "deflate", "gzip", ";;,", "*")),
            ("X-Long", ("y" * 8000,)),
        )
    )
    case.headers[name] = random.choice(list(values))


def break_address(random: Random, case: Case) -> None:
    """Ask elsewhere, or by another method."""
    if random.random() < 0.3:
        case.method = random.choice(("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))
        return
    case.path = random.choice(
        (
            "/v2/models/other/infer",
            f"{INFER}/",
            "/v2/models/joint/versions/1/infer",
            "/v2/models/joint/versions/2/infer",
            "/v2/models/%2e%2e/infer",
            "/v2/models/%00/infer",
            "/v2/models/joint/../../../etc/passwd",
            "/v2/models/" + "j" * 3000 + "/infer",
            "/v1/both",
            f"{INFER}?threshold=1",
        )
    )


def compress(random: Random, case: Case) -> None:
    """Send the body compressed, and sometimes break that."""
    encoding = random.choice(("gzip", "deflate"))
    case.body = (
        gzip.compress(case.body, mtime=0) if encoding == "gzip" else zlib.compress(case.body)
    )
    case.headers["Content-Encoding"] = encoding
    if random.random() < 0.5:
        break_bytes(random, case)


WIRES: tuple[tuple[tuple[str, ...], bool, bool], ...] = (
    (("Host: other.example",), False, True),
    (("Host: 127.0.0.1", "Host: other.example"), False, True),
    (("Transfer-Encoding: chunked",), True, False),
    (("Transfer-Encoding: gzip, chunked",), True, True),
    (("Transfer-Encoding: chunked, gzip",), True, True),
    (("Transfer-Encoding: xchunked",), True, True),
    (("Transfer-Encoding: gzip",), False, True),
    (("Transfer-Encoding: identity",), False, False),
    (("Transfer-Encoding: chunked", "Content-Length: 5"), True, False),
    (("Content-Length: 999999", "Content-Length: 1"), False, True),
    (("Expect: 100-continue",), False, False),
    (("Connection: close",), False, False),
    ((), False, False),
)
"""More lines of a head, whether the body comes in chunks, and whether no answer may come."""


def break_wire(random: Random, case: Case) -> None:
    """Say twice or strangely where a request goes and how its body comes, or hang up half."""
    case.lines, case.chunked, case.never = random.choice(WIRES)
    case.half_closed = not case.lines or random.random() < 0.5


def call_of(seed: int, number: int) -> tuple[str, bytes]:
    """The gRPC call of a number: its method and its message."""
    random = Random(f"{seed}-call-{number}")
    draft = valid(random)
    message = message_of(random, draft)
    for _ in range(random.choice((0, 1, 1, 2))):
        break_message(random, message)
    case = Case(message.SerializeToString())
    if random.random() < 0.3:
        break_bytes(random, case)
    methods = ("ModelInfer",) * 12 + ("ModelReady", "ModelMetadata", "ServerMetadata", "None")
    return random.choice(methods), case.body


def message_of(random: Random, draft: Draft) -> Any:
    """A draft as a message, its values as raw bytes or as contents."""
    (tensor,) = draft.message["inputs"]
    about = {name: tensor[name] for name in ("name", "datatype", "shape")}
    message = service_pb2.ModelInferRequest(model_name="joint", id="7")
    if draft.rest:
        message.inputs.add(**about)
        message.raw_input_contents.append(draft.rest)
    else:
        message.inputs.add(**about, contents={"uint_contents": tensor["data"]})
    for output in draft.message.get("outputs", ()):
        message.outputs.add(name=output["name"])
    if random.random() < 0.3:
        message.parameters["threshold"].double_param = 0.5
    return message


def break_message(random: Random, message: Any) -> None:
    """Put something odd in some field, or take something away."""
    tensor = message.inputs[0]
    match random.randrange(9):
        case 0:
            tensor.shape[:] = [min(n, 2**63 - 1) for n in random.choice(SHAPES)]
        case 1:
            tensor.datatype = random.choice((*DATATYPES, "", "BF16", "uint8", "x" * 300))
        case 2:
            field = random.choice(tensor.contents.DESCRIPTOR.fields).name
            value = b"\xff" if field == "bytes_contents" else 1
            getattr(tensor.contents, field).extend([value] * random.choice((1, 3, 3000)))
        case 3:
            del message.raw_input_contents[:]
            tensor.ClearField("contents")
        case 4:
            message.raw_input_contents.append(random.randbytes(random.choice((0, 1, 48))))
        case 5:
            name = random.choice((*WISHES, "operating_point", "x"))
            kind, value = random.choice(PARAMETERS)
            where = random.choice((message, tensor))
            setattr(where.parameters[name], kind, value)
        case 6:
            field, texts = random.choice(NAMES)
            setattr(message, field, random.choice(texts))
        case 7:
            message.outputs.add(name=random.choice(("", "prediction", "prediction", "\0", "other")))
        case _:
            tensor.name = random.choice(("", "other", "image\n", "y" * 5000))


PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("int64_param", 2**63 - 1),
    ("int64_param", -(2**63)),
    ("double_param", float("nan")),
    ("double_param", float("inf")),
    ("double_param", -1e308),
    ("string_param", "high\n"),
    ("bool_param", True),
)
NAMES = (
    ("model_name", ("", "other", "../joint", "\0", "j" * 5000)),
    ("model_version", ("1", "2", "-1", "\n")),
    ("id", ("", "\r\n", "z" * 20_000)),
)


@dataclass
class Tally:
    """Counts of the answers."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def attack(
    address: tuple[str, int],
    numbers: Sequence[int],
    seed: int,
    tally: Tally,
    grpc_port: int | None = None,
) -> None:
    """Send cases over one connection, anew where the server hangs up, and calls over another."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    channel = grpc.insecure_channel(f"{address[0]}:{grpc_port}") if grpc_port else None
    for number in numbers:
        if channel is not None and number // WORKERS % GRPC_EVERY == 0:
            call(channel, number, seed, tally)
        else:
            send(connection, number, seed, tally)
    connection.close()
    if channel is not None:
        channel.close()


def send(connection: http.client.HTTPConnection, number: int, seed: int, tally: Tally) -> None:
    """Send the case of a number, and count what came of it."""
    case = made(seed, number)
    try:
        status, sent_as, body = exchanged(connection, case)
    except (OSError, http.client.HTTPException) as error:
        half = "half closed" if case.half_closed else "whole"
        about = f"{half}, {type(error).__name__}: {list(case.lines)}"
        tally.problems.append(f"case {number}: no answer, {about}")
        connection.close()
        return
    tally.statuses[status] += 1
    if fault := fault_of(case, status, sent_as, body):
        about = f"{status}, {fault}: {body[:200]!r} {list(case.lines) or ''}"
        tally.problems.append(f"case {number}: {about}")


def call(channel: grpc.Channel, number: int, seed: int, tally: Tally) -> None:
    """Make the gRPC call of a number, and count what came of it."""
    method, body = call_of(seed, number)
    try:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(body, timeout=60)
        code, sentence = "OK", ""
    except grpc.RpcError as error:
        code, sentence = error.code().name, error.details() or ""
    tally.statuses[f"grpc {code}"] += 1
    fault = code in FAULTS or (code == "DEADLINE_EXCEEDED" and "timeout" not in sentence)
    if fault or "Traceback" in sentence or "\n" in sentence or (code != "OK" and not sentence):
        tally.problems.append(f"call {number}: {code}: {sentence[:200]}")


def exchanged(connection: http.client.HTTPConnection, case: Case) -> tuple[int, str, bytes]:
    """The status, content type and body of the answer."""
    if case.by_hand:
        return exchanged_by_hand((connection.host, connection.port), case)
    connection.request(case.method, case.path, case.body, case.headers)
    with connection.getresponse() as answer:
        return answer.status, answer.headers.get("Content-Type", ""), answer.read()


def exchanged_by_hand(address: tuple[str, int], case: Case) -> tuple[int, str, bytes]:
    """Send the same over a raw socket, byte for byte."""
    headers = {"Host": f"{address[0]}:{address[1]}", **case.headers}
    body = case.body
    if case.chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif not any(line.startswith("Content-Length") for line in case.lines):
        headers["Content-Length"] = str(len(body))
    lines = [f"{case.method} {case.path} HTTP/1.1", *map(": ".join, headers.items()), *case.lines]
    with socket.create_connection(address, timeout=60) as wire:
        with suppress(OSError):  # refused while it is sent: what the server says counts
            wire.sendall("\r\n".join([*lines, "\r\n"]).encode() + body)
            if case.half_closed:
                wire.shutdown(socket.SHUT_WR)
        with closing(http.client.HTTPResponse(wire, method=case.method)) as answer:
            answer.begin()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()


def fault_of(case: Case, status: int, kind: str, body: bytes) -> str | None:
    """Return what is wrong with the answer to a broken request, or nothing."""
    if case.never and status < 400:
        return "an answer to what must be refused"
    if status == 200 or status == 307 or (case.method == "HEAD" and 400 <= status < 500):
        return None
    if not 400 <= status < 500 and not (status == 504 and b"microseconds" in body):  # as asked for
        return "neither an answer nor a 4xx"
    if kind != "application/json":
        return f"an error as {kind}"
    sentence = json.loads(body).get("error")
    if not isinstance(sentence, str) or not sentence or "\n" in sentence:
        return "no sentence"
    return "a traceback" if "Traceback" in sentence else None


class Neighbor(threading.Thread):
    """Another client, who asks the same again and again and must get the same answer."""

    def __init__(self, address: tuple[str, int], seed: int = 1) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(*address, timeout=60)
        pixels = Random(seed).randbytes(2 * 8 * 8 * 3)
        tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 8, 8, 3], "data": [*pixels]}
        self.case = Case(json.dumps({"inputs": [tensor]}).encode())
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        """Ask until it is over, with a pause between."""
        first: list[Any] = []
        while not self.over.is_set():
            began = time.perf_counter()
            try:
                status, _, body = exchanged(self.connection, self.case)
            except OSError as error:
                self.problems.append(f"a neighbor got no answer: {type(error).__name__}")
                return
            self.seconds.append(time.perf_counter() - began)
            found = json.loads(body).get("outputs")
            first = first or found
            if status != 200 or not alike(found, first):
                self.problems.append(f"a neighbor got {status}: {body[:200]!r}")
                return
            self.over.wait(PAUSE_SECONDS)
        self.connection.close()


def alike(found: list[Any], wanted: list[Any]) -> bool:
    """Tell whether two answers are equal up to rounding."""
    return all(
        (one["name"], one["shape"]) == (other["name"], other["shape"])
        and all(
            math.isclose(*pair, abs_tol=1e-3)
            for pair in zip(one["data"], other["data"], strict=True)
        )
        for one, other in zip(found, wanted, strict=True)
    )


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Start `ebjr serve` of the shipped pair: its address and process id."""
    joint = joint_toml(folder)
    command = [sys.executable, "-m", "ebjr", "serve", str(joint), "--port", "0", "--threads", "1"]
    command += more
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            found = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
            assert found is not None, "the server did not start"
            yield (found[1], int(found[2])), process.pid
        finally:
            process.terminate()
            process.wait(60)


def joint_toml(folder: Path) -> Path:
    """The shipped pair, at a threshold in the middle of its scores."""
    entries = []
    for role in ("student", "teacher"):
        with shipped(f"{role}.onnx") as path:
            copied = shutil.copy(path, folder)
        entries.append(ModelEntry.of_file(copied, preprocess=Preprocess(size=32)))
    quantiles = {"score_quantiles": [number / 5 for number in range(101)]}
    config = JointConfig(*entries, "max_logit", 8.0, calibration=quantiles)
    config.save(folder / "joint.toml")
    return folder / "joint.toml"


def run(
    address: tuple[str, int],
    cases: int,
    *,
    seed: int = SEED,
    workers: int = WORKERS,
    report: Callable[[int], None] = lambda done: None,
    grpc_port: int | None = None,
) -> tuple[Tally, list[Neighbor]]:
    """Attack a server with some cases while two neighbors ask it; what came back to whom."""
    neighbors = [Neighbor(address, seed) for seed in range(2)]
    tallies = [Tally() for _ in range(workers)]
    threads = [
        threading.Thread(
            target=attack, args=(address, range(start, cases, workers), seed, tally, grpc_port)
        )
        for start, tally in enumerate(tallies)
    ]
    for thread in (*neighbors, *threads):
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(REPORT_SECONDS)
            report(sum(tally.statuses.total() for tally in tallies))
    for neighbor in neighbors:
        neighbor.over.set()
        neighbor.join(60)
    whole = Tally()
    for tally in tallies:
        whole.statuses += tally.statuses
        whole.problems += tally.problems
    return whole, neighbors


def kind_of(problem: str) -> str:
    """Return the key that groups problems of a kind."""
    return re.sub(r"^(case|call) \d+: ", "", problem).partition(":")[0].strip()


def main() -> None:
    """Attack a server with all cases, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    cases = parser.parse_args().cases
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), "--grpc-port", str(port)) as (address, pid),
    ):
        memory = [resident(pid)]
        run(address, cases // 100, seed=SEED + 1, grpc_port=port)  # warm
        warm = resident(pid)

        def report(done: int) -> None:
            memory.append(resident(pid))
            print(f"{done} of {cases}, {memory[-1]:.0f} MiB", file=sys.stderr)

        began = time.perf_counter()
        tally, neighbors = run(address, cases, report=report, grpc_port=port)
        seconds = time.perf_counter() - began
        memory.append(resident(pid))
        logged = (Path(folder) / "server.log").read_text()
    waits = sorted(second for neighbor in neighbors for second in neighbor.seconds)
    problems = [*tally.problems, *(each for who in neighbors for each in who.problems)]
    save(
        "malformed",
        {
            **about(SEED),
            "cases": cases,
            "statuses": {
                str(status): n
                for status, n in sorted(tally.statuses.items(), key=lambda i: str(i[0]))
            },
            "problems": len(problems),
            "kinds_of_problems": Counter(map(kind_of, problems)),
            "tracebacks_logged": logged.count("Traceback"),
            "first_problems": problems[:20],
            "seconds": round(seconds, 1),
            "neighbors": {
                "answers": len(waits),
                "wrong_or_missing": sum(len(neighbor.problems) for neighbor in neighbors),
                "p50_milliseconds": round(1e3 * waits[len(waits) // 2], 2),
                "p99_milliseconds": round(1e3 * waits[int(0.99 * len(waits))], 2),
            },
            "resident_mib": {
                "start": round(memory[0], 1),
                "after_warm_up": round(warm, 1),
                "most": round(max(memory), 1),
                "end": round(memory[-1], 1),
            },
        },
    )


if __name__ == "__main__":
    main()

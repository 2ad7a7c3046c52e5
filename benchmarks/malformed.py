"""Malformed requests at a real server: each is answered in one sentence, and no neighbor suffers.

Valid requests, as JSON, with binary tensors and with encoded images, compressed or not, are broken
in one to four places: their JSON, their bytes, their headers, their address. `ebjr serve` of the
shipped pair gets all of them, while two other clients ask it for the same images over and over.
What is broken so little that it is a request still is answered with 200; all else must be a 4xx
with one sentence. Each case is made from the seed and its number alone.
"""

from __future__ import annotations

import copy
import gzip
import http.client
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from benchmarks.machine import about, save
from ebjr import JointConfig, Preprocess
from ebjr.demo import shipped
from ebjr.joint_file import ModelEntry
from ebjr.protocol import DATATYPES, LENGTH_HEADER

CASES = 100_000
SEED = 0
WORKERS = 4
PAUSE_SECONDS = 0.01
INFER = "/v2/models/joint/infer"
OUTPUTS = ("prediction", "output", "score", "deferred", "degraded")

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 255, 256, 2**31, 2**63, 2**64, -(2**63), 10**40),
    *(1.5, -0.0, 1e308, "", "x" * 300, "\0", "\ud800", "\n\r", "../../etc/passwd", "joint"),
    *([], {}, [[]], [None], [1, [2]], {"a": {}}, {"name": "image"}),
    *DATATYPES,
    *OUTPUTS,
    *("threshold", "deferral_rate", "operating_point", "timeout", "binary_data_size"),
)
WORDS = (b"NaN", b"-Infinity", b"1e999", b"[" * 3000, b'"', b"\\", b"\xff", b"}", b"null", b"{")


@dataclass
class Case:
    """An HTTP request."""

    body: bytes
    method: str = "POST"
    path: str = INFER
    headers: dict[str, str] = field(default_factory=dict)


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
        break_json(random, draft)
    head = json.dumps(draft.message).encode()
    case = Case(head + draft.rest)
    if draft.rest or random.random() < 0.1:
        case.headers[LENGTH_HEADER] = str(len(head))
    for _ in range(random.choice((0, 1, 1, 2))):
        random.choice((break_bytes, break_bytes, break_headers, break_address))(random, case)
    if random.random() < 0.15:
        compress(random, case)
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
        binary = random.random() < 0.5
        draft.message["outputs"] = [
            {"name": name, "parameters": {"binary_data": binary}} for name in names
        ]
    if random.random() < 0.5:
        wishes = {"threshold": 0.5, "deferral_rate": 0.2, "timeout": 20, "binary_data_output": True}
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
    case.body = gzip.compress(case.body) if encoding == "gzip" else zlib.compress(case.body)
    case.headers["Content-Encoding"] = encoding
    if random.random() < 0.5:
        break_bytes(random, case)


@dataclass
class Tally:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def attack(address: tuple[str, int], numbers: Sequence[int], seed: int, tally: Tally) -> None:
    """Send cases over one connection, anew where the server hangs up."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    for number in numbers:
        case = made(seed, number)
        try:
            status, sent_as, body = exchanged(connection, case)
        except OSError as error:
            tally.problems.append(f"case {number}: no answer, {type(error).__name__}")
            connection.close()
            continue
        tally.statuses[status] += 1
        if fault := fault_of(case, status, sent_as, body):
            tally.problems.append(f"case {number}: {status}, {fault}: {body[:200]!r}")
    connection.close()


def exchanged(connection: http.client.HTTPConnection, case: Case) -> tuple[int, str, bytes]:
    """The status, content type and body of the answer."""
    connection.request(case.method, case.path, case.body, case.headers)
    with connection.getresponse() as answer:
        return answer.status, answer.headers.get("Content-Type", ""), answer.read()


def fault_of(case: Case, status: int, kind: str, body: bytes) -> str | None:
    """What is wrong with an answer to a broken request, if anything."""
    if status == 200 or status == 307 or (case.method == "HEAD" and 400 <= status < 500):
        return None
    if not 400 <= status < 500:
        return "neither an answer nor a 4xx"
    if kind != "application/json":
        return f"an error as {kind}"
    sentence = json.loads(body).get("error")
    if not isinstance(sentence, str) or not sentence or "\n" in sentence:
        return "no sentence"
    return "a traceback" if "Traceback" in sentence else None


class Neighbor(threading.Thread):
    """Another client, who asks the same again and again and must get the same answer."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(*address, timeout=60)
        pixels = Random(1).randbytes(2 * 8 * 8 * 3)
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
            if status != 200 or found[0] != first[0]:
                self.problems.append(f"a neighbor got {status}: {body[:200]!r}")
                return
            self.over.wait(PAUSE_SECONDS)
        self.connection.close()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[tuple[str, int], int]]:
    """`ebjr serve` of the shipped pair in a process of its own: its address and process id."""
    joint = joint_toml(folder)
    command = [sys.executable, "-m", "ebjr", "serve", str(joint), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
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
) -> tuple[Tally, list[Neighbor]]:
    """Attack a server with some cases while two neighbors ask it; what came back to whom."""
    neighbors = [Neighbor(address) for _ in range(2)]
    tallies = [Tally() for _ in range(workers)]
    threads = [
        threading.Thread(target=attack, args=(address, range(start, cases, workers), seed, tally))
        for start, tally in enumerate(tallies)
    ]
    for thread in (*neighbors, *threads):
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(10)
            report(sum(tally.statuses.total() for tally in tallies))
    for neighbor in neighbors:
        neighbor.over.set()
        neighbor.join(60)
    whole = Tally()
    for tally in tallies:
        whole.statuses += tally.statuses
        whole.problems += tally.problems
    return whole, neighbors


def resident(pid: int) -> float:
    """MiB that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Attack a server with all cases, and write the result file."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (address, pid):
        run(address, CASES // 100, seed=SEED + 1)  # warm
        before = resident(pid)
        began = time.perf_counter()
        tally, neighbors = run(
            address, CASES, report=lambda done: print(f"{done} of {CASES}", file=sys.stderr)
        )
        seconds = time.perf_counter() - began
        after = resident(pid)
    waits = sorted(second for neighbor in neighbors for second in neighbor.seconds)
    problems = [*tally.problems, *(each for who in neighbors for each in who.problems)]
    save(
        "malformed",
        {
            **about(SEED),
            "cases": CASES,
            "statuses": {str(status): n for status, n in sorted(tally.statuses.items())},
            "problems": len(problems),
            "first_problems": problems[:20],
            "seconds": round(seconds, 1),
            "neighbors": {
                "answers": len(waits),
                "wrong_or_missing": sum(len(neighbor.problems) for neighbor in neighbors),
                "p50_milliseconds": round(1e3 * waits[len(waits) // 2], 2),
                "p99_milliseconds": round(1e3 * waits[int(0.99 * len(waits))], 2),
            },
            "resident_mib_after_warm_up": round(before, 1),
            "resident_mib_at_the_end": round(after, 1),
        },
    )


if __name__ == "__main__":
    main()

"""A real `ebjr serve` under malformed traffic: one sentence each, and its other clients unaffected.

The whole run, of 100,000 cases, is `python -m benchmarks.malformed`.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from random import Random

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

import grpc

from benchmarks.malformed import (
    Case,
    Tally,
    break_bytes,
    call,
    call_of,
    exchanged,
    fault_of,
    image_file,
    made,
    run,
    serving,
    valid,
)
from ebjr.protocol import LENGTH_HEADER

CASES = 2_000


@pytest.fixture(scope="module")
def grpc_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory, grpc_port):
    more = ("--grpc-port", str(grpc_port))
    with serving(tmp_path_factory.mktemp("demo"), *more) as (found, _):
        yield found


def test_each_malformed_request_is_a_4xx_in_one_sentence_and_no_neighbor_suffers(address):
    tally, neighbors = run(address, CASES)
    assert tally.problems == []
    assert tally.statuses.total() == CASES
    assert tally.statuses[400] > CASES / 3
    for neighbor in neighbors:
        assert neighbor.problems == []
        assert len(neighbor.seconds) > 10


def test_each_malformed_call_is_a_status_in_one_sentence(address, grpc_port):
    tally = Tally()
    with grpc.insecure_channel(f"{address[0]}:{grpc_port}") as channel:
        for number in range(400):
            call(channel, number, 0, tally)
    assert tally.problems == []
    assert tally.statuses["grpc INVALID_ARGUMENT"] > 100
    assert tally.statuses["grpc OK"] > 20


def test_a_case_is_made_from_the_seed_and_its_number_alone():
    assert [made(3, number) for number in range(50)] == [made(3, number) for number in range(50)]
    assert made(3, 1) != made(4, 1)
    assert [call_of(3, number) for number in range(50)] == [
        call_of(3, number) for number in range(50)
    ]


@pytest.mark.parametrize(("status", "faulty"), [(200, True), (307, True), (400, False)])
def test_an_answer_to_what_must_be_refused_is_a_fault(status, faulty):
    case = Case(b"", lines=("Host: other.example",), never=True)
    sent_as, body = "application/json", b'{"error": "one sentence"}'
    assert (fault_of(case, status, sent_as, body) is not None) == faulty


@pytest.mark.parametrize(
    ("status", "kind", "body", "fault"),
    [
        (500, "application/json", b'{"error": "x"}', "neither an answer nor a 4xx"),
        (503, "application/json", b'{"error": "x"}', "neither an answer nor a 4xx"),
        (400, "text/plain", b"x", "an error as text/plain"),
        (400, "application/json", b'{"error": ""}', "no sentence"),
        (400, "application/json", json.dumps({"error": "a\nb"}).encode(), "no sentence"),
        (400, "application/json", b'{"error": "Traceback (most"}', "a traceback"),
        (400, "application/json", b'{"error": "one sentence"}', None),
        (200, "application/octet-stream", b"", None),
    ],
)
def test_what_counts_as_a_fault(status, kind, body, fault):
    assert fault_of(Case(b""), status, kind, body) == fault


FAR = (10**400, -(10**400), 2**1024, 2**64, [0, 2**62, 2**62], [2**62, 0, 2**62, 3], [0] * 40)


def placed(random: Random, table: dict, value: object) -> None:
    """Put a value in some place of a JSON object, however deep."""
    key = random.choice(list(table))
    inside = table[key][0] if isinstance(table[key], list) else table[key]
    if isinstance(inside, dict) and random.random() < 0.8:
        placed(random, inside, value)
    else:
        table[key] = value


def test_huge_numbers_and_shapes_in_any_place_are_a_4xx_in_one_sentence(address):
    random, found = Random(0), Counter()
    with closing(HTTPConnection(*address, timeout=60)) as connection:
        for number in range(400):
            draft = valid(random)
            placed(random, draft.message, random.choice(FAR))
            head = json.dumps(draft.message).encode()
            case = Case(head + draft.rest, headers={LENGTH_HEADER: str(len(head))})
            status, sent_as, answer = exchanged(connection, case)
            assert fault_of(case, status, sent_as, answer) is None, (number, status, answer)
            found[status] += 1
    assert found[400] > 200


def form(random: Random) -> tuple[bytes, str]:
    """Images as a browser sends them, and what may be wrong with that."""
    mark = random.choice(("mark", "a b", "-" * 70, ""))
    parts = []
    for _ in range(random.randint(0, 3)):
        name = random.choice(
            ("file", "image", "threshold", "timeout", "priority", "outputs", "colour", "")
        )
        file = random.random() < 0.7
        about = f'form-data; name="{name}"' + ('; filename="a.png"' if file else "")
        raw = (
            image_file(random, 3, 4)
            if file
            else random.choice((b"0.5", b"nan", b"1e400", b"9" * 400, b"", b"x" * 5000, b"\xff"))
        )
        parts.append(f"--{mark}\r\nContent-Disposition: {about}\r\n\r\n".encode() + raw + b"\r\n")
    kind = f"multipart/form-data; boundary={mark}"
    case = Case(b"".join([*parts, f"--{mark}--\r\n".encode()]))
    for _ in range(random.choice((0, 1, 2))):
        break_bytes(random, case)
    return case.body, random.choice((kind, kind, "multipart/form-data", "multipart/;;="))


def test_malformed_forms_are_a_4xx_in_one_sentence(address):
    random, found = Random(0), Counter()
    connection = HTTPConnection(*address, timeout=60)
    with closing(connection):
        for number in range(400):
            body, kind = form(random)
            case = Case(body, headers={"Content-Type": kind})
            status, sent_as, answer = exchanged(connection, case)
            assert fault_of(case, status, sent_as, answer) is None, (number, status, answer)
            found[status] += 1
    assert found[200] > 10
    assert found[400] > 100

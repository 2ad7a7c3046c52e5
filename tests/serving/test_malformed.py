"""A real `ebjr serve` under malformed traffic: one sentence each, and its other clients unaffected.

The whole run, of 100,000 cases, is `python -m benchmarks.malformed`.
"""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from benchmarks.malformed import Case, fault_of, made, run, serving

CASES = 2_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("demo")) as (found, _):
        yield found


def test_each_malformed_request_is_a_4xx_in_one_sentence_and_no_neighbor_suffers(address):
    tally, neighbors = run(address, CASES)
    assert tally.problems == []
    assert tally.statuses.total() == CASES
    assert tally.statuses[400] > CASES / 3
    for neighbor in neighbors:
        assert neighbor.problems == []
        assert len(neighbor.seconds) > 10


def test_a_case_is_made_from_the_seed_and_its_number_alone():
    assert [made(3, number) for number in range(50)] == [made(3, number) for number in range(50)]
    assert made(3, 1) != made(4, 1)


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

"""Traces: a request's span, and below it what it waited for and which batches it was in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from small import NAME, request, served

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from ebjr.serving.app import build_app
from ebjr.serving.tracing import Tracing


def test_a_request_has_a_span_with_its_waits_and_batches_below_it():
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "mine"}
    with TestClient(build_app(served(), tracing=Tracing(provider))) as client:
        client.post(f"{NAME}/infer", json=request(), headers=headers)
    found = {span.name: span for span in spans.get_finished_spans()}
    own = found.pop(f"POST {NAME}/infer")
    assert format(own.context.trace_id, "032x") == trace
    assert format(own.parent.span_id, "016x") == parent
    assert own.attributes["ebjr.request_id"] == "mine"
    assert set(found) == {"student wait", "student batch", "teacher wait", "teacher batch"}
    for span in found.values():
        assert span.parent.span_id == own.context.span_id
        assert own.start_time <= span.start_time <= span.end_time
    assert found["student wait"].end_time == found["student batch"].start_time
    assert found["student batch"].end_time <= found["teacher batch"].start_time
    assert found["student batch"].attributes["ebjr.rows"] == 2
    assert found["teacher batch"].attributes["ebjr.rows"] == 1


def test_what_is_not_sampled_has_no_spans_of_batches():
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    with TestClient(build_app(served(), tracing=Tracing(provider))) as client:
        assert client.post(f"{NAME}/infer", json=request(), headers=headers).status_code == 200
    assert not spans.get_finished_spans()


def test_nothing_of_it_is_imported_without_being_asked_for():
    code = (
        "import sys, ebjr.serving.app\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert said.stdout.strip() == b"[]"

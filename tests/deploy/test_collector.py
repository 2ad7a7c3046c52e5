"""The collector's configuration: whole, and at the address to which a server sends its spans."""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pages import free_port
from shipped import documents, process

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="no extra `otel`")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


def test_its_pipelines_are_of_what_it_declares():
    (config,) = documents("otel-collector.yaml")
    assert set(config) == {"receivers", "processors", "exporters", "service"}
    used = config["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(used[kind]) == set(config[kind])
    assert used["processors"][0] == "memory_limiter"  # before anything else takes memory


def test_it_listens_where_a_server_sends_its_spans(monkeypatch):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    (config,) = documents("otel-collector.yaml")
    own = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    unset = OTLPSpanExporter()._endpoint
    assert unset.replace("localhost", "127.0.0.1") == f"http://{own}/v1/traces"


def test_a_server_with_otel_sends_its_spans_to_such_a_receiver(calibrated):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got, came = [], threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()
            came.set()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        url, port = f"http://127.0.0.1:{receiver.server_port}", free_port()
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        command = (sys.executable, "-m", "ebjr", "serve", calibrated, "--port", port, "--otel")
        try:
            with process(*command, env=environment) as server:
                assert "serving joint" in server.stdout.readline()
                pixels = [[[[200, 30, 30]] * 8] * 8]
                tensor = {"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8"}
                body = json.dumps({"inputs": [{**tensor, "data": pixels}]}).encode()
                asked = f"http://127.0.0.1:{port}/v2/models/joint/infer"
                urllib.request.urlopen(urllib.request.Request(asked, body), timeout=60).read()
                server.terminate()  # what has not been sent is sent
                server.wait(30)
            assert came.wait(30)
        finally:
            receiver.shutdown()
            thread.join()
    path, message = got[0]
    assert path == "/v1/traces"
    (resource,) = message.resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (named["service.name"], named["ebjr.model"]) == ("ebjr", "joint")
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert {"POST /v2/models/joint/infer", "student batch"} <= names

"""A teacher in a process of its own, over HTTP: right, or wrong in every way that a test asks for.

`python far_server.py PORT` serves until its standard input ends; port 0 takes a free one, which it
prints. `PUT /behave` with a word of `BEHAVIORS` changes how it answers from then on.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LENGTH_HEADER = "Inference-Header-Content-Length"
METADATA = {
    "name": "teacher",
    "versions": ["7"],
    "platform": "tests",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
}
BEHAVIORS = (
    *("right", "hung", "slow", "drip", "error", "busy", "garbage", "page", "refuse", "missing"),
    *("classes", "rows", "fewer", "text", "cut", "version", "json", "poison"),
    *("head", "nan", "infinity", "bool", "absurd"),
)


def read_rows(body: bytes, length: str | None) -> tuple[list[tuple[float, float]], bool]:
    """The rows of a request, and whether the answer is to be binary."""
    end = len(body) if length is None else int(length)
    message = json.loads(body[:end])
    binary = message["outputs"][0]["parameters"]["binary_data"]
    (tensor,) = message["inputs"]
    if "data" in tensor:
        flat = tensor["data"]
    else:
        flat = struct.unpack(f"<{(len(body) - end) // 4}f", body[end:])
    return list(zip(flat[::2], flat[1::2], strict=True)), binary


def teach(rows: list[tuple[float, float]]) -> list[list[float]]:
    return [[-x, 0.0, 3 * x] for x, _ in rows]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behavior = "right"
    asked = 0
    seen = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/seen":
            self.say({"asked": Handler.asked, "rows": Handler.seen})
        elif self.behavior == "hung":
            self.hang()
        elif self.behavior in ("error", "missing"):
            self.say({"error": "out of order"}, 500 if self.behavior == "error" else 404)
        elif self.path == "/v2":
            binary = [] if self.behavior == "json" else ["binary_tensor_data"]
            self.say({"name": "tests", "version": "1", "extensions": binary})
        elif self.path == "/v2/models/teacher":
            self.say({**METADATA, **({"versions": ["8"]} if self.behavior == "version" else {})})
        else:
            self.say({})

    def do_PUT(self):
        Handler.behavior = self.body().decode()
        assert Handler.behavior in BEHAVIORS
        self.say({})

    def do_POST(self):
        body = self.body()
        if self.path == "/v2/repository/index":
            self.reply(json.dumps([{"name": "teacher", "state": "READY"}]).encode())
            return
        Handler.asked += 1
        try:
            getattr(self, self.behavior, self.right)(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def say(self, message: dict, status: int = 200, **headers: str) -> None:
        self.reply(json.dumps(message).encode(), status, headers)

    def reply(self, body: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def right(self, body, change=lambda rows: rows, version="7", datatype="FP32"):
        rows, binary = read_rows(body, self.headers.get(LENGTH_HEADER))
        Handler.seen += len(rows)
        logits = change(teach(rows))
        flat = [value for row in logits for value in row]
        shape = [len(logits), len(logits[0])] if logits else [0, 2**62, 2**62]
        tensor = {"name": "logits", "datatype": datatype, "shape": shape}
        answer = {"model_name": "teacher", "model_version": version, "outputs": [tensor]}
        if not binary or datatype != "FP32":
            texts = datatype == "BYTES"
            tensor["data"] = [str(value) for value in flat] if texts else flat
            self.say(answer)
            return
        raw = struct.pack(f"<{len(flat)}f", *flat)
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps(answer).encode()
        self.reply(head + raw, headers={LENGTH_HEADER: str(len(head))})

    def hang(self, *_):
        while Handler.behavior == "hung":
            time.sleep(0.01)
        self.close_connection = True

    hung = hang

    def slow(self, body):
        time.sleep(0.15)
        self.right(body)

    def drip(self, *_):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b" ")
            time.sleep(0.02)

    def error(self, *_):
        self.say({"error": "out of order"}, 500)

    def busy(self, *_):
        self.say({"error": "too many"}, 429, **{"Retry-After": "0.05"})

    def garbage(self, *_):
        self.wfile.write(bytes(range(256)) * 4)
        self.close_connection = True

    def page(self, *_):
        self.reply(b"<html>Welcome! Please log in to our hotel's network.</html>")

    def refuse(self, *_):
        self.say({"error": "no such shape"}, 400)

    def missing(self, *_):
        self.say({"error": "no model 'teacher'"}, 404)

    def poison(self, body):
        rows, _ = read_rows(body, self.headers.get(LENGTH_HEADER))
        if any(second > 0 for _, second in rows):
            self.refuse()
        else:
            self.right(body)

    def classes(self, body):
        self.right(body, lambda rows: [row * 2 for row in rows])

    def rows(self, body):
        self.right(body, lambda rows: [*rows, rows[0]])

    def fewer(self, body):
        self.right(body, lambda rows: rows[1:])

    def text(self, body):
        self.right(body, datatype="BYTES")

    def nan(self, body):
        self.right(body, lambda rows: [[float("nan")] * 3 for _ in rows])

    def infinity(self, body):
        self.right(body, lambda rows: [[float("inf")] * 3 for _ in rows])

    def bool(self, body):
        self.right(body, lambda rows: [[True] * 3 for _ in rows], datatype="BOOL")

    def absurd(self, body):
        self.right(body, lambda rows: [])

    def head(self, *_):
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: " + 300 * b".":
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)

    def version(self, body):
        self.right(body, version="8")

    def cut(self, *_):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"model_name": "tea')
        self.close_connection = True


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    with suppress(KeyboardInterrupt):
        sys.stdin.read()  # until the process that started it is gone


if __name__ == "__main__":
    main()

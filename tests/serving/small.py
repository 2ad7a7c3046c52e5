"""Joint models of lambdas, and real servers of them on free ports, in threads of their own."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
from boxes import random_detections
from PIL import Image

from ebjr import JointClassifier, JointDetector, Router
from ebjr.serving.served import Served
from ebjr.tasks.detection.boxes import Detections

NAME = "/v2/models/joint"


def student(x):
    return np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)


def teacher(x):
    return np.stack([-x[:, 0], 0 * x[:, 0], 3 * x[:, 0]], axis=1)


student.input_shape, student.input_name, student.input_dtype = (None, 2), "x", np.float32


def served(student=student, teacher=teacher, **how) -> Served:
    return Served(
        JointClassifier(student, teacher, Router("max_logit", 1.0), **how),
        operating_points={"careful": 3.0},
        score_quantiles=tuple(np.linspace(0, 10, 101)),
        calibration_id="abc",
    )


def detector(seed):
    """A detector whose boxes depend on the pixels of each image alone; on some it finds none."""

    def detect(images):
        found = []
        for image in images:
            height, width = image.shape[:2]
            rng = np.random.default_rng([seed, int(image.sum())])
            boxes = random_detections(rng, int(rng.integers(0, 6)), 3, min(height, width))
            found.append(Detections(boxes.boxes, boxes.logits, (height, width)))
        return found

    return detect


def joint_detector(threshold=0.7, teacher=None, **how) -> JointDetector:
    router = Router("max_confidence", threshold)
    return JointDetector(detector(1), teacher or detector(2), router, **how)


def images(*sizes, seed=0) -> list[np.ndarray]:
    """Images of random pixels, of seven sizes if nothing else is asked for."""
    rng = np.random.default_rng(seed)
    sizes = sizes or ((20, 30), (30, 20), (20, 30), (8, 8), (31, 7), (40, 40), (20, 30))
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def files_of(batch) -> np.ndarray:
    """Images as a tensor of encoded files, which lose nothing."""
    tensor = np.empty(len(batch), object)
    for row, image in enumerate(batch):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        tensor[row] = file.getvalue()
    return tensor


def assert_boxes(outputs, answer):
    """The tensors are what the joint model says of the same images."""
    found = answer.prediction
    for name, dtype in (("boxes", np.float32), ("labels", np.int64), ("scores", np.float32)):
        whole = np.concatenate([getattr(one, name) for one in found])
        np.testing.assert_array_equal(outputs[name], whole.astype(dtype))
        assert outputs[name].dtype == dtype
    assert outputs["boxes"].shape == (sum(map(len, found)), 4)
    assert outputs["count"].tolist() == [len(one) for one in found]
    assert outputs["deferred"].tolist() == answer.deferred.tolist()
    assert not outputs["degraded"].any()


def request(values=((0.5, 0.0), (5.0, 0.0)), **parameters) -> dict:
    rows = [list(row) for row in values]
    tensor = {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}
    return {"inputs": [tensor], "parameters": parameters}


@contextmanager
def running(app, port=0, **options):
    """A real server in a thread of its own, that stops by itself: its address.

    The system holds little of its answers: who does not read is noticed soon.
    """
    import uvicorn

    from ebjr.serving.http import http_of

    options = {"http": http_of(app), "ws": "none", **options}
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **options))
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
                assert thread.is_alive()
            yield listener.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def asking(app):
    """A client of a real server."""
    import httpx2

    with (
        running(app) as (host, port),
        httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as opened,
    ):
        yield opened


def load(client, name="joint", what="load"):
    return client.post(f"/v2/repository/models/{name}/{what}")


def exchange(address, *parts: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes, and all that comes back until the server hangs up."""
    with socket.create_connection(address, seconds) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):  # it has said no already
                break
        return received(connection)


def received(connection: socket.socket) -> bytes:
    found = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not part:
            return found
        found += part


def refusal(answer: bytes) -> tuple[int, str]:
    """The status and sentence of an answer, checked to be JSON and one line."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert b"content-type: application/json" in head.lower()
    sentence = json.loads(body)["error"]
    assert "\n" not in sentence
    return status, sentence

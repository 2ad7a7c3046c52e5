"""Bulk requests yield to others by whatever protocol they come."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

import httpx2
import tritonclient.grpc
import tritonclient.http
from small import NAME, request, running, served, student

from ebjr.serving.app import build_app
from ebjr.serving.grpc import grpc_server


def triton(kind, places, value, priority):
    with kind.InferenceServerClient(places[kind]) as client:
        given = kind.InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[value, 0]], np.float32))
        client.infer("joint", [given], priority=priority)


def v1(places, value, priority):
    url = f"http://{places[tritonclient.http]}/v1/models/joint:predict"
    message = {"instances": [[value, 0]], "parameters": {"priority": priority}}
    httpx2.post(url, json=message, timeout=30).raise_for_status()


def v2(places, value, priority):
    url = f"http://{places[tritonclient.http]}{NAME}/infer"
    asked = request([(value, 0)], priority=priority)
    httpx2.post(url, json=asked, timeout=30).raise_for_status()


WAYS = {
    "tritonclient.http": partial(triton, tritonclient.http),
    "tritonclient.grpc": partial(triton, tritonclient.grpc),
    "V1": v1,
    "JSON": v2,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_came_later_and_does_not_yield_is_asked_first(way):
    order, entered, gate = [], threading.Event(), threading.Event()

    def slow(x):
        order.extend(x[:, 0].tolist())
        entered.set()
        assert gate.wait(30)
        return student(x)

    slow.input_shape, slow.input_name, slow.input_dtype = (None, 2), "x", np.float32
    over_grpc: list[str] = []
    app = build_app(
        served(slow),
        beside=[partial(grpc_server, port=0, started=over_grpc.append)],
        **{"student_batch": 1, "workers": 1},
    )
    with running(app) as (host, port), ThreadPoolExecutor(4) as pool:
        places = {tritonclient.http: f"{host}:{port}"}
        places[tritonclient.grpc] = over_grpc[0].removeprefix("grpc://")

        def wait_for(rows):
            while app.state.service.engine.waiting()["student"] < rows:
                time.sleep(0.001)

        sent = [pool.submit(WAYS[way], places, 2.0, 0)]
        assert entered.wait(30)
        for rows, (value, priority) in enumerate(((5.0, 3), (4.0, 2), (3.0, 1)), 1):
            sent.append(pool.submit(WAYS[way], places, value, priority))
            wait_for(rows)
        gate.set()
        for each in sent:
            each.result(30)
    assert order == [2.0, 3.0, 4.0, 5.0]

"""One Ray cluster of logical nodes on this machine for the tests of a module."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra `scale` is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from cluster import Nodes

from ebjr.scale import INGRESS


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def marked(mark: str) -> list[str]:
    """The processes that were started with a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


def check_all_ended(mark: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < until, f"these were left behind: {left}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    import ray

    before, mark = dict(os.environ), uuid.uuid4().hex
    os.environ |= {
        "EBJR_TESTS": mark,
        **INGRESS,
        "RAY_SERVE_HAPROXY_METRICS_PORT": free_port(),
        "RAY_SERVE_HAPROXY_STATS_PORT": free_port(),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_worker_niceness": "0",  # or whatever else is busy leaves workers nearly nothing
    }
    try:
        nodes = Nodes()
        try:
            ray.init(
                address=nodes.cluster.address,
                log_to_driver=False,
                logging_level="ERROR",
                namespace="tests",
            )
            yield nodes
        finally:
            ray.shutdown()
            nodes.cluster.shutdown()
        if Path("/proc/self/environ").exists():
            check_all_ended(mark)
    finally:
        os.environ.clear()
        os.environ.update(before)

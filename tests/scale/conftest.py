"""One Ray cluster of logical nodes on this machine for the tests of a module."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("ray", reason="the extra `scale` is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from cluster import Nodes

from ebjr.scale import INGRESS


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    import ray

    before = dict(os.environ)
    os.environ |= {
        **INGRESS,
        "RAY_SERVE_HAPROXY_METRICS_PORT": free_port(),
        "RAY_SERVE_HAPROXY_STATS_PORT": free_port(),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }
    nodes = Nodes()
    ray.init(
        address=nodes.cluster.address,
        log_to_driver=False,
        logging_level="ERROR",
        namespace="tests",
    )
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)

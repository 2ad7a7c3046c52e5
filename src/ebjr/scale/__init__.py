"""More than one machine: the same ``joint.toml`` on Ray, student and teacher scaled separately.

`build_app` makes a Ray Serve application with the server's routes and answers; `predict` answers a
Ray dataset in two stages. Ray is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebjr.scale.ray_data import predict
    from ebjr.scale.ray_serve import app, build_app

__all__ = ["INGRESS", "app", "build_app", "predict"]

INGRESS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    "RAY_SERVE_HAPROXY_RETRIES": "5",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(2**19),
}
"""Environment variables for Ray's processes: the shortest path for a request, and none is lost.

HAProxy, part of Ray from 2.55 on, then sends requests straight to the student replicas, and keeps
each until it is answered: if a replica dies or closes its connection, another one gets the request.
For that a request must fit into a buffer, half a MiB here. Serve has no setting for the option
after ``empty-response``, but copies the text, newline included, into HAProxy's configuration. Set
the variables where Ray is started, on every node.
"""


_HOMES = {"app": "ray_serve", "build_app": "ray_serve", "predict": "ray_data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Past one machine: the same ``joint.toml`` on Ray, student and teacher scaling on their own.

`build_app` is the joint model as a Ray Serve application with the server's routes and answers;
`predict` answers a Ray dataset in two stages. Ray is imported when one of them is used.
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
"""The environment of Ray's processes in which a request goes the shortest way, and none is lost.

HAProxy, which comes with Ray from 2.55 on, then hands requests to the student replicas themselves,
and holds each until it has an answer: what a replica had in hand when it died, or closed its
connection, is given to another one. For that a request must fit into a buffer, of half a MiB here.
What stands after ``empty-response`` is a line of HAProxy's own: Serve has no setting for it, and
writes both down as they are. To be set where Ray is started, on every node.
"""


_HOMES = {"app": "ray_serve", "build_app": "ray_serve", "predict": "ray_data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

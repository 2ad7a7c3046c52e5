"""Past one machine: the same ``joint.toml`` on Ray, student and teacher scaling on their own.

`build_app` is the joint model as a Ray Serve application with the server's routes and answers;
`predict` answers a Ray dataset in two stages. Ray is imported when one of them is called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.serve import Application

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


def build_app(joint: str | os.PathLike[str], **options: Any) -> Application:
    """A joint model as a Ray Serve application, see `ebjr.scale.ray_serve.build_app`."""
    from ebjr.scale import ray_serve

    return ray_serve.build_app(joint, **options)


def app(args: Mapping[str, Any]) -> Application:
    """The application that ``serve run ebjr.scale:app joint=joint.toml`` and Serve's YAML build.

    Parameters
    ----------
    args
        `joint`, and what else `build_app` takes; numbers may be text.

    Raises
    ------
    ValueError
        There is no `joint`, or what is given is no argument of `build_app`.
    """
    from ebjr.scale import ray_serve

    return ray_serve.from_args(args)


def predict(dataset: Any, joint: str | os.PathLike[str], **options: Any) -> Dataset:
    """The joint model's answers to a dataset, see `ebjr.scale.ray_data.predict`."""
    from ebjr.scale import ray_data

    return ray_data.predict(dataset, joint, **options)

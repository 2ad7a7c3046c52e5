"""Ray nodes that can be added and killed, and a small joint model for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ebjr import JointConfig, as_score, load_model
from ebjr.backends.entry import entry_of
from ebjr.joint_file import ModelEntry

STORE = 100 * 2**20
ROWS = 10_000


class Nodes:
    """A head, and nodes that can be added and killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {
            # a node that is gone refuses each check at once; one that is busy has time to answer
            "health_check_period_ms": 300,
            "health_check_failure_threshold": 10,
            "metrics_report_interval_ms": 1000,
        }
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "resources": {"student": 1},
                "object_store_memory": STORE,
                "include_dashboard": False,
                "_system_config": quick,
            },
        )

    def add(self, **resources: float) -> Any:
        """A node without CPUs: only what asks for its resources goes there."""
        node = self.cluster.add_node(
            num_cpus=0, object_store_memory=STORE, resources=resources, include_dashboard=False
        )
        self.cluster.wait_for_nodes(120)
        return node

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


def write_deep(path: Path, seed: int, layers: int, width: int = 512) -> Path:
    """An ONNX classifier of four numbers whose cost is that of its layers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    shapes = [(4, width), *[(width, width)] * layers, (width, 3)]
    nodes, weights, last = [], [], "x"
    for number, shape in enumerate(shapes):
        name = f"w{number}"
        values = rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        nodes.append(helper.make_node("MatMul", [last, name], [f"h{number}"]))
        last = f"h{number}"
        if number + 1 < len(shapes):
            nodes.append(helper.make_node("Tanh", [last], [f"a{number}"]))
            last = f"a{number}"
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def write_joint(folder: Path, *, teacher_seed: int = 1, layers: int = 0) -> Path:
    """A ``joint.toml`` of two small networks; about a third of `inputs` is deferred."""
    student = write_deep(folder / "student.onnx", 0, 0, width=16)
    teacher = write_deep(folder / f"teacher{teacher_seed}.onnx", teacher_seed, layers)
    entries = [ModelEntry.of_file(path) for path in (student, teacher)]
    quantiles = np.quantile(_scores(student), np.linspace(0, 1, 101)).tolist()
    joint = folder / "joint.toml"
    JointConfig(
        *entries,
        score="margin",
        threshold=quantiles[33],
        labels=("a", "b", "c"),
        calibration={"score_quantiles": quantiles, "outcomes": "abc"},
        operating_points={"careful": {"threshold": quantiles[60]}},
    ).save(joint)
    return joint


def write_stages(folder: Path) -> Path:
    """A ``joint.toml`` whose student is that of `write_joint`; each of three models answers."""
    inner = write_joint(folder)
    last = ModelEntry.of_file(write_deep(folder / "last.onnx", 5, 1))
    entry = entry_of(JointConfig.read(inner).load())
    JointConfig(entry, last, score="softmax", threshold=0.45).save(folder / "stages.toml")
    return folder / "stages.toml"


def _scores(student: Path) -> np.ndarray:
    return np.asarray(as_score("margin")(load_model(student)(inputs())))


def inputs(n: int = ROWS) -> np.ndarray:
    """Rows for `write_joint`."""
    return np.random.default_rng(7).normal(0, 1, (n, 4)).astype(np.float32)

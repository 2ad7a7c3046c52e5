"""Train the pair and write it as ONNX: `python -m experiments.diamonds.export`.

The graphs are built by hand. Standardization is folded into the first layer, and what of the energy
head depends on the grid alone into constants; the trees become one operator.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import HistGradientBoostingRegressor

from ebjr.demo.diamonds import FEATURES
from ebjr.tasks.regression.scores import grid_log_weights, grid_points
from experiments.diamonds.pair import (
    COLUMN,
    LARGEST,
    POINTS,
    SHAPES,
    SIZES,
    SMALLEST,
    Heads,
    Pair,
    Student,
    train_pair,
)

DEMO = Path(__file__).parents[2] / "src" / "ebjr" / "demo" / "shipped" / "regression"
SHIPPED = "energy_of_teacher"
"""The student of the demo, as `write` names it."""

DIAMOND = "diamond"
"""The graphs' input, (n, 9)."""


class Graph:
    """An ONNX graph that grows one node at a time; methods return the name of what they add."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        """Append a node."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, inputs, [output], output, domain=domain, **attributes)
        )
        return output

    def constant(self, values: object, dtype: type = np.float32) -> str:
        """Append a constant."""
        if isinstance(values, torch.Tensor):
            values = values.detach().numpy()
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def columns(self, places: list[int]) -> str:
        """Append some columns of the input."""
        return self.add("Gather", DIAMOND, self.constant(places, np.int64), axis=1)

    def linear(self, x: str, weight: torch.Tensor, bias: torch.Tensor) -> str:
        """Append a linear layer."""
        return self.add("Gemm", x, self.constant(weight), self.constant(bias), transB=1)

    def finish(self, output: str, name: str, width: int, description: str) -> onnx.ModelProto:
        """Build the model whose raw output is `output`, (batch, width)."""
        self.nodes.append(helper.make_node("Identity", [output], [name]))
        inputs = helper.make_tensor_value_info(DIAMOND, TensorProto.FLOAT, ["batch", len(FEATURES)])
        outputs = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        model = helper.make_model(
            helper.make_graph(
                self.nodes, "diamonds", [inputs], [outputs], self.weights, doc_string=description
            ),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
            ir_version=8,
            producer_name="ebjr",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def add_trunk(graph: Graph, student: Student) -> tuple[str, str]:
    """Append the network; its features and its prediction (n, 1)."""
    sizes = graph.add("Max", graph.columns(SIZES), graph.constant(SMALLEST))
    sizes = graph.add("Log", graph.add("Min", sizes, graph.constant(LARGEST)))
    equal = graph.add("Equal", graph.columns(COLUMN), graph.constant(student.place))
    grades = graph.add("Cast", equal, to=TensorProto.FLOAT)
    x = graph.add("Concat", sizes, graph.columns(SHAPES), grades, axis=1)
    weight, count = student.first.weight.detach().clone(), len(student.center)
    weight[:, :count] /= student.spread
    bias = student.first.bias - weight[:, :count] @ student.center
    x = graph.add("Relu", graph.linear(x, weight, bias))
    x = graph.add("Relu", graph.linear(x, student.second.weight, student.second.bias))
    return x, graph.linear(x, student.last.weight, student.last.bias)


def energy_student(student: Student, heads: Heads) -> onnx.ModelProto:
    """The network with its energy head: the prediction, then energies with their log-weights."""
    graph, head = Graph(), heads.energy
    network = head.network
    features, prediction = add_trunk(graph, student)
    steps = grid_points((-heads.reach, heads.reach), POINTS)
    offset = torch.as_tensor(steps / head.scale, dtype=torch.float32)
    size = offset.abs()
    with torch.no_grad():
        of_offset = network.of_offset(torch.stack([offset, size, torch.log1p(10 * size)], dim=-1))
    center, spread = (torch.as_tensor(v, dtype=torch.float32)
                      for v in (head.center, head.spread))  # fmt: skip
    weight = network.of_features.weight / spread
    bias = network.of_features.bias - weight @ center
    axis = graph.constant([1], np.int64)
    seen = graph.add("Unsqueeze", graph.linear(features, weight, bias), axis)
    x = graph.add("Relu", graph.add("Add", seen, graph.constant(of_offset)))
    x = graph.add("MatMul", x, graph.constant(network.middle.weight.T))
    x = graph.add("Relu", graph.add("Add", x, graph.constant(network.middle.bias)))
    x = graph.add("MatMul", x, graph.constant(network.last.weight.T))
    x = graph.add("Squeeze", x, graph.constant([2], np.int64))
    fixed = network.last.bias - 0.01 * offset**2 + torch.as_tensor(grid_log_weights(steps))
    x = graph.add("Add", x, graph.constant(fixed))
    whole = graph.add("Concat", prediction, x, axis=1)
    words = "a diamond to the logarithm of its price, and energies S(x, y) around it"
    return graph.finish(whole, "prediction_and_energies", 1 + POINTS, words)


def gaussian_student(student: Student, heads: Heads) -> onnx.ModelProto:
    """The network with a Gaussian head: the prediction, then its standard deviation."""
    graph = Graph()
    features, prediction = add_trunk(graph, student)
    half = graph.linear(features, heads.gaussian.weight / 2, heads.gaussian.bias / 2)
    scale = graph.constant(heads.scale)
    whole = graph.add("Concat", prediction, graph.add("Mul", graph.add("Exp", half), scale), axis=1)
    words = "a diamond to the logarithm of its price, and its standard deviation"
    return graph.finish(whole, "prediction_and_deviation", 2, words)


def trees(teacher: HistGradientBoostingRegressor) -> onnx.ModelProto:
    """The trees as one operator."""
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    nodes: dict[str, list] = {name: [] for name in names}
    leaves: dict[str, list] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree, (predictor,) in enumerate(teacher._predictors):
        for place, node in enumerate(predictor.nodes):
            leaf = bool(node["is_leaf"])
            entry = {
                "treeids": tree,
                "nodeids": place,
                "featureids": 0 if leaf else int(node["feature_idx"]),
                "values": 0.0 if leaf else _float_below(node["num_threshold"]),
                "modes": "LEAF" if leaf else "BRANCH_LEQ",
                "truenodeids": 0 if leaf else int(node["left"]),
                "falsenodeids": 0 if leaf else int(node["right"]),
            }
            for name, value in entry.items():
                nodes[name].append(value)
            if leaf:
                last = {"treeids": tree, "nodeids": place, "ids": 0, "weights": node["value"]}
                for name, value in last.items():
                    leaves[name].append(value)
    graph = Graph()
    whole = graph.add(
        "TreeEnsembleRegressor",
        DIAMOND,
        domain="ai.onnx.ml",
        n_targets=1,
        base_values=[float(np.ravel(teacher._baseline_prediction)[0])],
        **{f"nodes_{name}": values for name, values in nodes.items()},
        **{f"target_{name}": values for name, values in leaves.items()},
    )
    return graph.finish(whole, "prediction", 1, "a diamond to the logarithm of its price")


def _float_below(threshold: float) -> float:
    """The largest float32 that is not above it: float32 inputs go the same way as before."""
    near = np.float32(threshold)
    return float(near if near <= threshold else np.nextafter(near, np.float32(-np.inf)))


STUDENTS = {"energy": energy_student, "gaussian": gaussian_student}
FITTED_TO = ("of_price", "of_teacher")


def write(pair: Pair, folder: Path) -> dict[str, Path]:
    """Write the teacher, and the student with each of its heads, into a folder."""
    models = {"teacher": trees(pair.teacher)}
    for kind, build in STUDENTS.items():
        for target in FITTED_TO:
            models[f"{kind}_{target}"] = build(pair.student, getattr(pair, target))
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in models}


def main() -> None:
    """Train, and write the shipped pair."""
    torch.set_num_threads(1)
    DEMO.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        files = write(train_pair(), Path(folder))
        for role, name in (("student", SHIPPED), ("teacher", "teacher")):
            shutil.copy(files[name], DEMO / f"{role}.onnx")
            print(f"{role}: {files[name].stat().st_size / 1e6:.3f} MB")


if __name__ == "__main__":
    main()

"""ONNX graphs written by hand, and one net in both forms."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn


def save(path, nodes, inputs, outputs=(), weights=(), **options):
    """Write a graph; inputs are (name, shape), outputs names, weights (name, array)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or "y"],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    sets.append(helper.make_opsetid("example.org", 1))
    onnx.save(
        helper.make_model(graph, opset_imports=sets, ir_version=8, **options),
        path,
    )
    return path


def zeros(*shape):
    return np.zeros(shape, np.float32)


class ConvNet(nn.Module):
    """Strides, padding, groups, a transposed convolution, batch normalization, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 4, stride=2, groups=2)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.grouped(self.stem(x))))
        return self.head(self.up(x).mean(dim=(2, 3)))


def conv_net_graph(path, batch="n"):
    state = {name: tensor.numpy() for name, tensor in ConvNet().state_dict().items()}
    weights = [(name, array) for name, array in state.items() if array.ndim]
    norm = [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    nodes = [
        helper.make_node(
            "Conv", ["x", "stem.weight", "stem.bias"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Conv", ["a", "grouped.weight", "grouped.bias"], ["b"], group=4),
        helper.make_node("BatchNormalization", ["b", *norm], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node(
            "ConvTranspose", ["d", "up.weight", "up.bias"], ["e"], strides=[2, 2], group=2
        ),
        helper.make_node("ReduceMean", ["e"], ["f"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["f", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    return save(path, nodes, [("x", [batch, 3, 16, 16])], weights=weights)

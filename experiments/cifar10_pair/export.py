"""Write both networks as ONNX: `python -m experiments.cifar10_pair.export`.

The graphs are built by hand, from ten kinds of plain operators that any runtime knows. Pixel
normalization and batch norm are folded into the convolutions; weights are stored as float16 and
cast to float32, which a runtime does once, when it loads the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from experiments.cifar10_pair.nets import (
    STUDENTS,
    Block,
    InvertedNet,
    InvertedResidual,
    Residual,
    Whitened,
    WhitenedNet,
    build_teacher,
)
from experiments.cifar10_pair.train import CHECKPOINTS, HERE, parser

DEMO = HERE.parents[1] / "src" / "ebjr" / "demo" / "shipped" / "classification"


class Graph:
    """An ONNX graph that grows one node at a time; methods return the name of what they add."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        """Append a node."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, values: torch.Tensor) -> str:
        """Append float32 values, stored as float16."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(
            numpy_helper.from_array(values.contiguous().numpy().astype(np.float16), name)
        )
        return self.add("Cast", name, to=TensorProto.FLOAT)

    def conv(self, x: str, weight: torch.Tensor, bias: torch.Tensor, conv: nn.Conv2d) -> str:
        """Append a convolution shaped like `conv` with other weights."""
        return self.add(
            "Conv",
            x,
            self.constant(weight),
            self.constant(bias),
            kernel_shape=conv.kernel_size,
            pads=conv.padding * 2,
            strides=conv.stride,
            group=conv.groups,
        )


def fold(weight: torch.Tensor, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution that does the work of `norm` too."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def add_block(graph: Graph, x: str, block: Block) -> str:
    """Append one block.

    The network takes the norm after the max pool. A norm that scales by a positive number can as
    well be taken before, where it folds into the convolution, and so can the ReLU, which a
    runtime then fuses; channels scaled by a negative number would need a min pool.
    """
    if (block.norm.weight <= 0).any():
        raise ValueError("cannot fold a batch norm with a negative scale across a max pool")
    x = graph.add("Relu", graph.conv(x, *fold(block.conv.weight, block.norm), block.conv))
    if block.conv.stride == (1, 1):
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    skip = x
    for conv, norm in zip(block.more_convs, block.more_norms, strict=True):
        x = graph.conv(x, *fold(conv.weight, norm), conv)
        if len(block.more_convs) == 2 and conv is block.more_convs[1]:
            x = graph.add("Add", x, skip)
        x = graph.add("Relu", x)
    return x


def add_layers(graph: Graph, x: str, chain: nn.Sequential) -> str:
    """Append convolutions, each with the norm that follows it folded in, and residuals."""
    layers = list(chain)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            x = graph.conv(x, *fold(layer.weight, layers[i + 1]), layer)
        elif isinstance(layer, nn.ReLU):
            x = graph.add("Relu", x)
        elif isinstance(layer, Residual):
            x = graph.add("Relu", graph.add("Add", add_layers(graph, x, layer.convs), x))
        elif isinstance(layer, InvertedResidual):
            y = add_layers(graph, x, layer.convs)
            x = graph.add("Add", y, x) if layer.skip else y
        elif not isinstance(layer, nn.BatchNorm2d):
            raise TypeError(f"no operator for {type(layer).__name__}")
    return x


def add_whitening(graph: Graph, net: Whitened) -> str:
    """Append the first layer, pixel normalization included."""
    weight = net.whiten.weight / net.std
    bias = net.whiten.bias - (weight * net.mean).sum(dim=(1, 2, 3))
    return graph.add("Relu", graph.conv("image", weight, bias, net.whiten))


def add_net(graph: Graph, net: WhitenedNet | InvertedNet) -> str:
    """Append a whole network, up to its logits."""
    x = add_whitening(graph, net)
    if isinstance(net, InvertedNet):
        x = graph.add("GlobalAveragePool", add_layers(graph, x, net.features))
        x = graph.add("MatMul", graph.add("Flatten", x), graph.constant(net.head.weight.T))
        return graph.add("Add", x, graph.constant(net.head.bias))
    for block in net.blocks:
        x = add_block(graph, x, block)
    x = graph.add("Flatten", graph.add("GlobalMaxPool", x))
    return graph.add("MatMul", x, graph.constant(net.head.weight.T / 9))


@torch.no_grad()
def to_onnx(net: WhitenedNet | InvertedNet, description: str) -> onnx.ModelProto:
    """Build the ONNX model: `image` (batch, 3, 32, 32) in 0..1 to `logits` (batch, 10)."""
    graph = Graph()
    add_net(graph, net)
    return finished(graph, net.head.out_features, description)


def finished(graph: Graph, classes: int, description: str) -> onnx.ModelProto:
    """Make the model of a graph whose last node gives the logits of `classes` classes."""
    graph.nodes[-1].output[0] = "logits"
    shape_in, shape_out = ["batch", 3, 32, 32], ["batch", classes]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "cifar10",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape_in)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape_out)],
            graph.weights,
            doc_string=description,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="ebjr",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Export the checkpoints of both networks into the demo's folder."""
    options = parser(net="inverted", student="student", folder=str(DEMO)).parse_args()
    for role, checkpoint, net in (
        ("student", options.student, STUDENTS[options.net]()),
        ("teacher", "teacher", build_teacher()),
    ):
        trained = CHECKPOINTS / f"{checkpoint}.pt"
        weights = trained if trained.exists() else HERE / f"{checkpoint}.pt"
        net.load_state_dict(torch.load(weights)["net"])
        file = Path(options.folder) / f"{role}.onnx"
        onnx.save(to_onnx(net, f"CIFAR-10 {role}: image RGB in 0..1 to 10 logits"), file)
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

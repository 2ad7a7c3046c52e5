"""Operators: a part of an ONNX graph, written as calls. The one place where nodes are made."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

Value = Any  # a value of a graph, or what becomes a constant in it: a number, a list, an array


class Operators:
    """ONNX's operators as methods: ``op.Add(x, 1.0)`` adds a node and gives its output.

    Numbers with a point become constants of `dtype`, whole ones of int64; arrays stay what they
    are. `name` is that of this part of the graph: what its values are called after.
    """

    def __init__(self, opset: int, dtype: Any, name: str) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.name = name
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.given: list[ir.Value] = []

    def __getattr__(self, operator: str) -> Any:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        def add(*inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
            name = f"{self.name}/{operator}_{len(self.nodes)}"
            values = [self.value(entry) for entry in inputs]
            node = ir.node(operator, values, attributes, name=name, num_outputs=outputs)
            for number, output in enumerate(node.outputs):
                output.name = name if outputs == 1 else f"{name}_{number}"
            self.nodes.append(node)
            return node.outputs[0] if outputs == 1 else node.outputs

        return add

    def value(self, entry: Value) -> ir.Value | None:
        """A value as it is, anything else as a constant; None is an input left out."""
        if entry is None or isinstance(entry, ir.Value):
            return entry
        array = np.asarray(entry)
        if array.dtype == np.float64 and not isinstance(entry, np.ndarray):
            array = array.astype(self.dtype)
        return self.constant(array, f"{self.name}/constant_{len(self.constants)}")

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An array as a constant of that name."""
        tensor = ir.tensor(array, name=name)
        constant = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.constants.append(constant)
        return constant

    def to(self, x: ir.Value, dtype: Any) -> ir.Value:
        """`x` cast to a type."""
        wanted = ir.DataType.from_numpy(np.dtype(dtype))
        return x if x.dtype == wanted else self.Cast(x, to=int(wanted))

    def typed(self, x: ir.Value, dtype: Any) -> ir.Value:
        """`x` cast to a type, which it then says beside its shape."""
        return like(self.to(x, dtype), x, dtype)

    def reduce(self, kind: str, x: Value, keep: bool = False, axis: int = -1) -> ir.Value:
        """``ReduceMax`` and its kin over one axis, which became an input with opset 18."""
        operator = getattr(self, kind)
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return operator(x, [axis], keepdims=int(keep))
        return operator(x, axes=[axis], keepdims=int(keep))

    def computing(self, dtype: Any) -> Self:
        """The same part, whose numbers with a point become another type."""
        other = copy(self)
        other.dtype = np.dtype(dtype)
        return other

    def part(self, name: str) -> Self:
        """Another part that may read this one's values: a branch."""
        return type(self)(self.opset, self.dtype, name)

    def either(self, condition: ir.Value, then: Self, otherwise: Self) -> list[ir.Value]:
        """What one of two parts gives; only that part is run."""
        graphs = {"then_branch": then.graph(), "else_branch": otherwise.graph()}
        found = self.If(condition, outputs=len(graphs["then_branch"].outputs), **graphs)
        return [found] if isinstance(found, ir.Value) else list(found)

    def gives(self, values: Sequence[ir.Value]) -> None:
        """Say what this part gives, where that is not its last node's output alone."""
        self.given = list(values)

    def graph(self) -> ir.Graph:
        """A graph of this part that reads values from around it."""
        outputs = self.given or [self.nodes[-1].outputs[0]]
        return ir.Graph((), outputs, nodes=self.nodes, initializers=self.constants, name=self.name)

    def inline(self, model: ir.Model, *given: ir.Value) -> list[ir.Value]:
        """Take a model apart, nodes and weights becoming this part's: its answers to `given`."""
        graph, outputs = model.graph, list(model.graph.outputs)
        graph.outputs.clear()
        for own, value in zip(graph.inputs, given, strict=True):
            own.replace_all_uses_with(value)
        graph.inputs.clear()
        nodes, weights = list(graph), list(graph.initializers.values())
        graph.remove(nodes)
        graph.initializers.clear()
        self.nodes += nodes
        self.constants += weights
        return outputs


def like(value: ir.Value, other: ir.Value, dtype: Any = None) -> ir.Value:
    """A value that says that it has the shape of another, and its type or this one."""
    kind = other.type if dtype is None else ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    value.type, value.shape = kind, other.shape
    return value


def forget_shapes(model: ir.Model) -> None:
    """Leave shapes to the runtime: a dimension's name means another number in each part."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None


def name_after(name: str, model: ir.Model) -> None:
    """Put a name before every name of a graph."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.name = f"{name}/{value.name}"
        for node in graph:
            node.name = f"{name}/{node.name or node.op_type}"
            for value in node.outputs:
                value.name = f"{name}/{value.name}" if value.name else value.name
    passes.NameFixPass()(model)

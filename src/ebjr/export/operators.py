"""Operators: a part of an ONNX graph, written as calls; the only place that makes nodes."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

Value = Any  # a value of a graph, or a number, list or array that becomes a constant


class Operators:
    """ONNX's operators as methods: ``op.Add(x, 1.0)`` adds a node and returns its output.

    Floats become constants of `dtype`, integers of int64; arrays keep their type. `name` is this
    part's, and the prefix of its values' names.
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
        """Return a value unchanged, and anything else as a constant; None omits an input."""
        if entry is None or isinstance(entry, ir.Value):
            return entry
        array = np.asarray(entry)
        if array.dtype == np.float64 and not isinstance(entry, np.ndarray):
            array = array.astype(self.dtype)
        return self.constant(array, f"{self.name}/constant_{len(self.constants)}")

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """Add an array as a named constant."""
        tensor = ir.tensor(array, name=name)
        constant = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.constants.append(constant)
        return constant

    def to(self, x: ir.Value, dtype: Any) -> ir.Value:
        """Cast `x` to a type."""
        wanted = ir.DataType.from_numpy(np.dtype(dtype))
        return x if x.dtype == wanted else self.Cast(x, to=int(wanted))

    def typed(self, x: ir.Value, dtype: Any) -> ir.Value:
        """Cast `x` to a type, and annotate the result with type and shape."""
        return like(self.to(x, dtype), x, dtype)

    def reduce(self, kind: str, x: Value, keep: bool = False, axis: int = -1) -> ir.Value:
        """Reduce one axis, which is an attribute before opset 18 (13 for ``ReduceSum``)."""
        operator = getattr(self, kind)
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return operator(x, [axis], keepdims=int(keep))
        return operator(x, axes=[axis], keepdims=int(keep))

    def computing(self, dtype: Any) -> Self:
        """Return the same part with another type for floats."""
        other = copy(self)
        other.dtype = np.dtype(dtype)
        return other

    def part(self, name: str) -> Self:
        """Return a new part, a branch that may read this one's values."""
        return type(self)(self.opset, self.dtype, name)

    def either(self, condition: ir.Value, then: Self, otherwise: Self) -> list[ir.Value]:
        """Return the outputs of one of two parts; only that part runs."""
        graphs = {"then_branch": then.graph(), "else_branch": otherwise.graph()}
        found = self.If(condition, outputs=len(graphs["then_branch"].outputs), **graphs)
        return [found] if isinstance(found, ir.Value) else list(found)

    def gives(self, values: Sequence[ir.Value]) -> None:
        """Set this part's outputs, if they are not its last node's."""
        self.given = list(values)

    def graph(self) -> ir.Graph:
        """Return this part as a subgraph that reads outer values."""
        outputs = self.given or [self.nodes[-1].outputs[0]]
        return ir.Graph((), outputs, nodes=self.nodes, initializers=self.constants, name=self.name)

    def inline(self, model: ir.Model, *given: ir.Value) -> list[ir.Value]:
        """Move a model's nodes and weights into this part; return its outputs for `given`."""
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
    """Annotate a value with another's shape, and its type or `dtype`."""
    kind = other.type if dtype is None else ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    value.type, value.shape = kind, other.shape
    return value


def forget_shapes(model: ir.Model) -> None:
    """Drop inferred shapes: one dimension's name may mean different numbers in two parts."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None


def name_after(name: str, model: ir.Model) -> None:
    """Prefix every name in a graph."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.name = f"{name}/{value.name}"
        for node in graph:
            node.name = f"{name}/{node.name or node.op_type}"
            for value in node.outputs:
                value.name = f"{name}/{value.name}" if value.name else value.name
    passes.NameFixPass()(model)
